"""One library's rules since 2017, timed: a script for any Python that has the library and numpy.

    PYTHON experiments/benchmarks/field_peers.py LIBRARY M D SECONDS

`field.py` runs it, since some libraries cannot be installed beside each other. It prints a line of
JSON per case: our name for it, and median and minimum in seconds or why there are none. Updates are
standard normal, c is a fifth of m.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Case = Callable[[], Any]
MOST_FOR_SUBSETS = 20  # workers: other libraries' MDA tries every subset of m - c


def ours(matrix: np.ndarray, c: int) -> Iterator[tuple[str, Case]]:
    """All registered rules and pre-aggregations; the judge of the server's examples is free."""
    from fltrust_repro.aggregation import rules
    from fltrust_repro.preaggregations import preaggregations
    from fltrust_repro.server import ServerState

    def judge(models: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(models)), np.linspace(0, 1, len(models))

    layers = tuple(slice(a[0], a[-1] + 1) for a in np.array_split(np.arange(matrix.shape[1]), 8))
    kept = {"root": matrix[0], "judge": judge, "layers": layers}
    for name in rules:
        state = ServerState(**kept)  # its memory goes on from call to call, as in a trial
        yield name, lambda name=name, state=state: rules[name](matrix, c=c, state=state)
    for name, step in preaggregations.items():
        known = {**vars(ServerState(**kept)), "c": c, "beta": c}
        given = {asked: known[asked] for asked in step.parameters}
        yield f"{name}+", lambda step=step, given=given: step.function(matrix, **given)


def byzfl(matrix: np.ndarray, c: int) -> Iterator[tuple[str, Case]]:
    """ByzFL on torch's tensors, which is its faster way."""
    import byzfl
    import torch

    tensor = torch.from_numpy(matrix)
    for name, rule in {
        "krum": byzfl.Krum(c),
        "multi-krum": byzfl.MultiKrum(c),
        "geometric-median": byzfl.GeometricMedian(),
        "centered-clipping": byzfl.CenteredClipping(),
        "meamed": byzfl.Meamed(c),
        "caf": byzfl.CAF(c),
        "nnm+": byzfl.NNM(c),
        "bucketing+": byzfl.Bucketing(2),
    }.items():
        yield name, lambda rule=rule: rule(tensor)
    clip, arc = byzfl.Clipping(float(np.sqrt(matrix.shape[1]))), byzfl.ARC(c)
    yield "clip+", lambda: clip(tensor.clone())  # they shorten what they are given
    yield "arc+", lambda: arc(tensor.clone())
    if len(matrix) <= MOST_FOR_SUBSETS:
        yield "mda", lambda: byzfl.MDA(c)(tensor)


def byzpy(matrix: np.ndarray, c: int) -> Iterator[tuple[str, Case]]:
    """Byzpy on a list of torch's tensors, in this process."""
    import torch
    from byzpy.aggregators.coordinate_wise.mean_of_medians import MeanOfMedians
    from byzpy.aggregators.geometric_wise import geometric_median, krum, minimum_diameter_average
    from byzpy.aggregators.norm_wise import caf, center_clipping
    from byzpy.pre_aggregators import arc, bucketing, clipping, nnm

    rows, long = list(torch.from_numpy(matrix)), float(np.sqrt(matrix.shape[1]))
    for name, rule in {
        "krum": krum.Krum(c),
        "multi-krum": krum.MultiKrum(c, len(rows) - c - 2),
        "geometric-median": geometric_median.GeometricMedian(),
        "centered-clipping": center_clipping.CenteredClipping(c_tau=long, M=1),
        "meamed": MeanOfMedians(c),
        "caf": caf.CAF(c),
    }.items():
        yield name, lambda rule=rule: rule.aggregate(rows)
    for name, step in {
        "nnm+": nnm.NearestNeighborMixing(c),
        "bucketing+": bucketing.Bucketing(2),
        "arc+": arc.ARC(c),
        "clip+": clipping.Clipping(long),
    }.items():
        yield name, lambda step=step: step.pre_aggregate(rows)
    if len(rows) <= MOST_FOR_SUBSETS:
        mda = minimum_diameter_average.MinimumDiameterAveraging(c)
        yield "mda", lambda: mda.aggregate(rows)


def krum(matrix: np.ndarray, c: int) -> Iterator[tuple[str, Case]]:
    """The library `krum` of EPFL's, on a torch tensor."""
    import torch
    from krum.primitives.aggregators import brute, geometric_median, multikrum
    from krum.primitives.aggregators import krum as own

    tensor, given = torch.from_numpy(matrix), {"n": len(matrix), "f": c}
    for name, rule in {
        "krum": own.Krum,
        "multi-krum": multikrum.MultiKrum,
        "geometric-median": geometric_median.GeometricMedian,
    }.items():
        yield name, lambda rule=rule: rule.aggregate(tensor, **given)
    if len(matrix) <= MOST_FOR_SUBSETS:
        yield "mda", lambda: brute.Brute.aggregate(tensor, **given)


def flower(matrix: np.ndarray, c: int) -> Iterator[tuple[str, Case]]:
    """Flower, one layer per client."""
    from flwr.server.strategy import aggregate as flower

    def results() -> list:
        return [([row], 1) for row in matrix]

    yield "krum", lambda: flower.aggregate_krum(results(), c, 0)
    yield "multi-krum", lambda: flower.aggregate_krum(results(), c, len(matrix) - c - 2)


LIBRARIES = {
    "fltrust_repro": ours,
    "byzfl": byzfl,
    "byzpy": byzpy,
    "krum": krum,
    "flower": flower,
}


def seconds(case: Case, budget: float) -> list[float]:
    """Times of a case after a first call: as many as the budget holds, at least 3."""
    case()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 21):
        started = time.perf_counter()
        case()
        times.append(time.perf_counter() - started)
    return times


def main(library: str, m: int, d: int, budget: float) -> None:
    """Print what each case takes."""
    if "torch" in sys.modules or library not in ("fltrust_repro", "flower"):
        import torch

        torch.set_num_threads(1)
    matrix = np.random.default_rng(0).standard_normal((m, d), dtype=np.float32)
    for name, case in LIBRARIES[library](matrix, m // 5):
        told: dict[str, Any] = {"case": name}
        try:
            times = seconds(case, budget)
            told |= {
                "median": statistics.median(times),
                "minimum": min(times),
                "repeats": len(times),
            }
        except Exception as error:  # whatever a library raises at this size
            told["note"] = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
