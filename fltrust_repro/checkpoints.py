"""Checkpoints: how far a trial has come, in a file beside the store until the trial has ended.

A trial that was broken off goes on from there and ends with the same bits. So a checkpoint is taken
up by the very trial alone, under the same code; another one is no fault, and the trial starts anew.
One that was begun elsewhere, with other libraries, another kind of CPU or a GPU, goes on too: its
last digits may be neither's, and its `versions` name all of them.

There are none of trials with plug-ins: what a user's code keeps in variables cannot be written
down. Of a cluster's workers, those keep them that see the store's file, as on a shared disk: there
the command finds them again, and clears them away.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fltrust_repro import compiled, machine
from fltrust_repro.course import Snapshot
from fltrust_repro.errors import BadInput
from fltrust_repro.files import writable, write_bytes
from fltrust_repro.training import PROTOCOL
from fltrust_repro.trials import TOOK_OVER, TrialName
from fltrust_repro.words import counted

FORM = 3  # of the files: raised where what they hold means something else


class Checkpoint:
    """One trial's, in the process that runs it; written when so many minutes have passed."""

    def __init__(self, file: Path, name: TrialName, minutes: float, gpu: int | None) -> None:
        self._file, self._seconds, self._written = file, 60 * minutes, time.monotonic()
        # Any edit may move a digit, and PROTOCOL is not raised for that.
        self._of = [FORM, *name, compiled.program()]
        self._here = self.versions = machine.versions(gpu)  # the latter of all places so far

    def read(self) -> Snapshot | None:
        """Return the snapshot to begin with, None where there is none; else `ValueError`."""
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"cannot be read ({error.strerror})") from error
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = dict(file)
            (*of, versions), iterations, told, names = json.loads(arrays.pop("told").tobytes())
            if not versions.endswith(self._here):
                versions += f"{TOOK_OVER} {iterations}: {self._here}"
            if sorted(arrays) != names:  # a damaged list of contents may just be shorter
                raise ValueError("other arrays than it names")
            snapshot = Snapshot(int(iterations), told, arrays)
        except Exception as error:  # whatever a damaged file makes the readers of its parts raise
            raise ValueError("is damaged, or no checkpoint") from error
        if of != self._of:
            return None
        self.versions = versions
        return snapshot

    def keep(self, take: Callable[[], Snapshot]) -> None:
        """Write a snapshot if it is time to; what hinders it costs no trial."""
        if time.monotonic() - self._written < self._seconds:
            return
        self._written = time.monotonic()
        iterations, told, arrays = take()
        of, content = [*self._of, self.versions], io.BytesIO()
        text = json.dumps([of, iterations, told, sorted(arrays)])
        np.savez(content, told=np.frombuffer(text.encode(), np.uint8), **arrays)
        with contextlib.suppress(BadInput):
            write_bytes(self._file, content.getvalue())


class Checkpoints(NamedTuple):
    """The checkpoints beside a store, written every so many minutes; never with 0."""

    store: Path
    minutes: float

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.store.with_name(f"{self.store.name}.checkpoints")

    def of(self, name: TrialName, gpu: int | None) -> Checkpoint | None:
        """Return a trial's, on a GPU or the CPU; None of one that has none."""
        if not self.minutes or name.protocol != str(PROTOCOL) or not self.store.is_file():
            return None
        return Checkpoint(self._file(name), name, self.minutes, gpu)

    def _file(self, name: TrialName) -> Path:
        return self.folder / f"{name.key}-{name.seed}-{name.protocol}.npz"

    @contextlib.contextmanager
    def told(self, names: Iterable[TrialName], say: Callable[[str], None]) -> Iterator[None]:
        """Say first if none can be written, and on Ctrl-C how many of these trials have one."""
        place = self.folder if self.folder.exists() else self.folder.parent
        if self.minutes and not (place.is_dir() and writable(place)):
            say(f"Note: {self.folder} cannot be written, so that no checkpoints are kept.")
        try:
            yield
        except KeyboardInterrupt:
            if count := len({name for _, name in self._files()}.intersection(names)):
                told = f"How far {counted(count, 'trial')} came is kept in {self.folder}"
                say(f"{told}: the same command goes on from there.")
            raise

    def begun(self, name: TrialName, device: str, say: Callable[[str], None]) -> int:
        """Return how many iterations of a trial are done; say so, or what ails its file."""
        # Asked for only where there is a file: to name the libraries is to load them.
        kept = self.of(name, 0 if device == "gpu" else None) if self._file(name).exists() else None
        try:
            begun = kept and kept.read()
        except ValueError as error:
            say(f"Note: {self._file(name)} {error}: its trial begins anew.")
            return 0
        if not begun:
            return 0
        say(f"setting {name.key}, seed {name.seed}: goes on after iteration {begun.iterations:,}.")
        return begun.iterations

    def _files(self) -> Iterator[tuple[Path, TrialName]]:
        """The files, also such as a process left half written, and whose they are."""
        with contextlib.suppress(OSError):
            for file in sorted(self.folder.iterdir()):
                if found := re.fullmatch(r"(\w+)-(\d{1,10})-(\w+)\.npz.*", file.name):
                    yield file, TrialName(found[1], int(found[2]), found[3])

    def clear(self, ended: Callable[[TrialName], bool]) -> None:
        """Remove those of trials that have ended, and the folder with the last."""
        with contextlib.suppress(OSError):
            for file, name in self._files():
                if ended(name):
                    file.unlink()
            self.folder.rmdir()
