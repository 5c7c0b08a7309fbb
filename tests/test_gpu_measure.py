"""`experiments/gpu/measure.py` where there is no GPU: each part says so, and stops no other."""

import subprocess
import sys
from pathlib import Path

import pytest

from fltrust_repro import backend

MEASURE = Path(__file__).parent.parent / "experiments" / "gpu" / "measure.py"


@pytest.mark.long
@pytest.mark.skipif(backend.gpu_count() > 0, reason="would measure the GPU")
def test_parts_say_what_is_missing_and_are_not_run_again(tmp_path):
    parts = ["--part", "stages", "--part", "resnet20"]
    command = [sys.executable, MEASURE, "--minutes", "2", "--out", "found", *parts]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = {file.name: file.read_text() for file in (tmp_path / "found").iterdir()}
    assert found.keys() == {"stages.failed.txt", "resnet20.txt"}
    assert "Traceback" in found["stages.failed.txt"]
    assert "MXNet sees no NVIDIA GPU" in found["resnet20.txt"]
    assert "exit code 2" in found["resnet20.txt"]
    assert "==== resnet20.txt" in first.stdout
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "==== stages.failed.txt" in again.stdout  # what failed is tried again
    assert "resnet20" not in again.stdout
