"""Trials on a Dask cluster: the same calls, on the workers of a scheduler that already runs.

A worker runs one trial at a time (`dask worker --nthreads 1`), with a GPU of its own where it was
started with `--resources GPU=1`. The scheduler runs a lost worker's trials elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import click

from fltrust_repro import machine, trial_process
from fltrust_repro.errors import BadInput, DataUnavailable, Raised, note
from fltrust_repro.plugins import Plugin
from fltrust_repro.processes import START_ONE, Executor, Machine
from fltrust_repro.training import PROTOCOL

try:
    import distributed
    from distributed.comm import connect
    from distributed.security import Security
except ImportError as error:
    raise BadInput(
        "--scheduler needs Dask, which is not installed; run `pip install -e .[cluster]`."
    ) from error

_TOPIC = "fltrust_repro-iterations"
_CONNECT_SECONDS = 10
_TELL_SECONDS = 1  # between a worker's words about its iterations


class Cluster(Executor):
    """The workers of a Dask scheduler; `BadInput` where it does not answer or they do not fit."""

    def __init__(self, machine: Machine) -> None:
        self._machine, address = machine, machine.scheduler or ""
        if address.startswith("tls:") and getattr(Security(), "tls_ca_file", None) is None:
            raise BadInput(
                f"scheduler {address!r} asks for TLS, and Dask knows no certificates "
                "here; set distributed.comm.tls in Dask's configuration."
            )
        try:
            # Asked first: a client that gets no right answer tries for minutes, and then to close.
            with ThreadPoolExecutor(1) as thread:  # a notebook's own has an event loop already
                thread.submit(asyncio.run, _greet(address)).result()
            options = {"timeout": _CONNECT_SECONDS, "set_as_default": False}
            self._client = distributed.Client(address, **options)
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            reason = str(error) or f"nothing that Dask understands in {_CONNECT_SECONDS} s"
            raise BadInput(
                f"scheduler {address!r} does not answer ({reason}); {START_ONE}"
            ) from error
        self._done = 0
        self._client.subscribe_topic(_TOPIC, self._hear)
        if not self.slots():
            click.echo("Waiting for a worker to join the cluster.", err=True)
            self._client.wait_for_workers(1)
        with self._plain_errors():
            self._client.register_plugin(_Preparation())
        self.device = self._device()
        needs = {"GPU": 1} if self.device == "gpu" else {}
        self._executor = self._client.get_executor(pure=False, resources=needs)

    def _hear(self, event: tuple[float, int]) -> None:
        self._done += event[1]

    def _device(self) -> str:
        workers = self._client.scheduler_info()["workers"].values()
        gpus = any(worker["resources"].get("GPU", 0) >= 1 for worker in workers)
        if self._machine.device == "gpu" and not gpus:
            raise BadInput(
                "device is 'gpu', but no worker of the cluster has one; start workers with "
                "--resources GPU=1, or use --device cpu."
            )
        return "gpu" if gpus and self._machine.device != "cpu" else "cpu"

    def check_data(self, names: Iterable[str], plugins: Sequence[Plugin]) -> None:
        """Raise `DataUnavailable` where a worker has not, and cannot get, a data set."""
        call = (trial_process.look_around, list(names), self._machine.data_dir, plugins)
        kinds = {}
        with self._plain_errors():
            asked = {
                address: self._client.submit(*call, workers=[address], pure=False)
                for address in self._client.nthreads()
            }
            for address, answer in asked.items():
                told = answer.result()
                if isinstance(told, Raised):
                    raise BadInput(f"worker {address} cannot run trials: {told.message}")
                protocol, problems, kinds[address] = told
                if protocol != PROTOCOL:
                    raise BadInput(
                        f"worker {address} has another version of fltrust_repro (protocol "
                        f"{protocol}, here {PROTOCOL}); install the same on all."
                    )
                if problems:
                    raise DataUnavailable(f"worker {address}: {' '.join(problems)}")
        if odd := machine.odd_ones(kinds):
            told = "; ".join(f"{address}: {kind}" for address, kind in odd.items())
            note(
                f"{len(odd)} of {len(kinds)} workers compute with other linear algebra or another "
                f"CPU, so that last digits can differ: {told}."
            )

    def slots(self) -> int:
        """How many trials can run at the same time: one per worker."""
        with self._plain_errors():
            threads = self._client.nthreads()
        for address, count in threads.items():
            if count != 1:
                raise BadInput(
                    f"worker {address} has {count} threads, and trials in threads would mix their "
                    "random numbers; start workers with --nthreads 1."
                )
        return len(threads)

    def submit(self, function: Callable, *args: Any) -> Future:
        """Start a call on a free worker."""
        return self._executor.submit(function, *args)

    def close(self) -> None:
        """Leave the cluster, which goes on."""
        self._client.close()

    def stop(self) -> None:
        """Take all calls back, and leave the cluster."""
        with contextlib.suppress(Exception):  # the scheduler may be what failed
            self._executor.shutdown(wait=False)
        self._client.close()

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as error:
            raise BadInput(
                f"a worker of the cluster lacks a package ({error}); install fltrust_repro where "
                "the workers run."
            ) from error
        except (OSError, TimeoutError) as error:
            raise BadInput(
                f"scheduler {self._machine.scheduler!r} was lost ({error}); finished trials are "
                "kept, and the same command goes on when the cluster is there again."
            ) from error


async def _greet(address: str) -> None:
    await (await asyncio.wait_for(connect(address), _CONNECT_SECONDS)).close()


class _Preparation(distributed.WorkerPlugin):
    """Makes a worker ready for trials, also one that joins later."""

    name = "fltrust_repro"

    def setup(self, worker: distributed.Worker) -> None:
        done, told = 0, time.monotonic()

        def count() -> None:
            nonlocal done, told
            done += 1
            if time.monotonic() - told >= _TELL_SECONDS:
                worker.log_event(_TOPIC, done)
                done, told = 0, time.monotonic()

        trial_process.prepare(0, count)
