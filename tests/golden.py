"""Golden trials: tiny ones, whose error curves `golden.json` keeps for each kind of machine.

`python tests/golden.py` writes this machine's anew, with the kernels that OpenBLAS takes by itself
and with others that the CPU knows; it belongs to a change of `training.PROTOCOL`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from fltrust_repro import machine, trial_process
from fltrust_repro.settings import Setting
from fltrust_repro.training import PROTOCOL
from fltrust_repro.trials import Trial

FILE = Path(__file__).with_name("golden.json")
COMMAND = "python tests/golden.py"

_LR = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 100}
_CNN = {
    "dataset": "breast-cancer", "model": "cnn", "workers": 20, "compromised": 4, "iterations": 30
}  # fmt: skip
_RESNET20 = {
    "dataset": "digits", "model": "resnet20", "workers": 6, "compromised": 1, "iterations": 6
}  # fmt: skip
TRIALS = {
    "lr krum": Setting(**_LR, rule="krum", attack="krum"),
    "lr krum partial": Setting(**_LR, rule="krum", attack="krum", knowledge="partial"),
    "lr trimmed-mean": Setting(**_LR, rule="trimmed-mean", attack="trimmed-mean"),
    "lr bulyan": Setting(**_LR, rule="bulyan", attack="krum"),
    "lr err": Setting(**_LR, rule="median", attack="trimmed-mean", defense="err"),
    "cnn median": Setting(**_CNN, rule="median", attack="trimmed-mean"),
    "cnn bulyan": Setting(**_CNN, rule="bulyan", attack="krum"),
    "cnn krum err": Setting(**_CNN, rule="krum", attack="krum", defense="err"),
    "resnet20 krum": Setting(**_RESNET20, rule="krum", attack="krum"),
    "resnet20 trimmed-mean": Setting(**_RESNET20, rule="trimmed-mean", attack="trimmed-mean"),
}


def curve(setting: Setting) -> str:
    """Run a trial; its curve as the store keeps it."""
    told = trial_process.run(setting, 0, str(PROTOCOL), "cpu", None)
    assert isinstance(told, Trial), told.details
    return told.row()["curve"]


def stored() -> dict:
    """Return `golden.json`: the protocol, and by kind of machine and trial the curves."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def nearest(kind: str, known: Iterable[str]) -> str:
    """Return the kind of machine that is described most alike."""
    return get_close_matches(kind, list(known), 1, cutoff=0)[0]


def problem(name: str, found: str, kind: str, known: dict) -> str | None:
    """Say what is wrong with a trial's curve on a kind of machine; None where nothing is."""
    machines = known["machines"]
    if known["protocol"] != PROTOCOL:
        return (
            f"training.PROTOCOL is {PROTOCOL}, tests/golden.json is of {known['protocol']}; write "
            f"it anew: `{COMMAND}`"
        )
    if kind not in machines:
        like = nearest(kind, machines)
        if alike(found, machines[like][name]):
            return None
        return (
            f"{name} differs by more than machines do from what {like} gives; if {kind} is right, "
            f"add it: `{COMMAND}`"
        )
    if found == machines[kind][name]:
        return None
    return (
        f"{name} moved, but training.PROTOCOL is still {PROTOCOL}, so that trials of before and "
        "after count as equal; if it is meant to move, raise PROTOCOL and write tests/golden.json "
        f"anew: `{COMMAND}`"
    )


def alike(found: str, stored: str) -> bool:
    """Compare loosely: other kernels round otherwise, and a few predictions may flip."""
    curves = [json.loads(text) for text in (found, stored)]
    return len(curves[0]) == len(curves[1]) and all(
        i == j and abs(error - other) <= 0.05 and math.isclose(loss, other_loss, rel_tol=0.05)
        for (i, error, loss), (j, other, other_loss) in zip(*curves)
    )


def coretypes() -> list[str | None]:
    """Return what OPENBLAS_CORETYPE can be on this CPU; None leaves it unset."""
    emulated = {"AVX-512": ["Prescott", "Haswell", "SkylakeX"], "AVX2": ["Prescott", "Haswell"]}
    return [None, *emulated.get(machine.cpu().vectors, [])]


def main() -> None:
    """Write this machine's curves to `golden.json`; those of other machines stay."""
    known = stored() if FILE.exists() else {}
    kinds = known["machines"] if known.get("protocol") == PROTOCOL else {}
    for coretype in coretypes():
        variables = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
        if coretype is not None:
            variables["OPENBLAS_CORETYPE"] = coretype
        told = subprocess.run(
            [sys.executable, __file__, "print"], env=variables, stdout=subprocess.PIPE, check=True
        )
        kinds |= json.loads(told.stdout)
        print(f"OPENBLAS_CORETYPE {coretype or 'not set'}: done")
    text = json.dumps({"protocol": PROTOCOL, "machines": kinds}, indent=1, sort_keys=True)
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["print"]:
        print(json.dumps({machine.kind(): {name: curve(one) for name, one in TRIALS.items()}}))
    else:
        main()
