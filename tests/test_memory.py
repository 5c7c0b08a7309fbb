"""Rules aggregate without a copy of the updates: their memory grows with d, not with m d."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
M, D = 100, 1_000_000
UPDATES = 4 * M * D / 2**20  # 381 MiB
BLOCK = 32  # MiB: some blocks of columns, and what the libraries take for themselves


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this system does not tell peaks"
)
@pytest.mark.parametrize(
    "options", [[], pytest.param(["--non-finite"], marks=pytest.mark.slow)], ids=["finite", "not"]
)
def test_no_rule_copies_the_updates(options, tmp_path):
    script = REPOSITORY / "experiments" / "benchmarks" / "memory.py"
    done = subprocess.run(
        [sys.executable, script, "--workers", str(M), "--parameters", str(D), *options],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    table = done.stdout.split("\n\n")[1]
    rows = {row["rule"]: row for row in csv.DictReader(table.splitlines())}
    assert set(rows) == {"mean", "trimmed-mean", "median", "krum", "bulyan"}
    for name, row in rows.items():
        result = float(row["result, MiB"])
        assert 0.5 * result < float(row["on top, MiB"]) < 4 * result + BLOCK < UPDATES / 6, name
