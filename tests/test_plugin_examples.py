"""The plug-ins of experiments/plug-ins.md: short, and each runs as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from invoked import told_by

from fltrust_repro import datasets

PAGE = Path(__file__).parent.parent / "experiments" / "plug-ins.md"
MOST_LINES = 15
FILE = re.compile(r"```python\n# (\w+\.py)\n(.+?)```", re.DOTALL)
EXAMPLES = dict(FILE.findall(PAGE.read_text(encoding="utf-8")))
USES = {
    "middle_half.py": ["--rule", "middle-half"],
    "momentum_median.py": ["--rule", "momentum-median:beta1=0.5"],
    "quantized.py": ["--pre", "quantized:levels=4+clip", "--rule", "median"],
    "inner_product.py": ["--attack", "inner-product", "--rule", "mean"],
    "distance_defense.py": ["--defense", "farthest", "--rule", "median"],
    "mlp.py": ["--model", "mlp"],
    "my_data.py": ["--dataset", "my-data"],
}


def run(folder: Path, *options: str) -> dict:
    """What `run` prints for one short trial."""
    told = {"--dataset": "digits", "--rule": "mean", "--workers": "10", "--compromised": "2"}
    told |= {"--iterations": "100", "--jobs": "0", "--device": "cpu", "--data-dir": str(folder)}
    told |= dict(zip(options[::2], options[1::2]))
    words = [word for option in told.items() for word in option]
    return json.loads(told_by("run", *words, "--json"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300).astype(np.int32)
    x = (y[:, None] == np.arange(3)) + 0.1 * rng.standard_normal((300, 3))
    np.savez(tmp_path / "my-data.npz", x=x.astype(np.float32).reshape(-1, 1, 1, 3), y=y)
    return tmp_path


def test_every_example_of_the_page_is_used():
    assert list(EXAMPLES) == list(USES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short(name):
    assert len(EXAMPLES[name].strip().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_learns(folder, name):
    (folder / name).write_text(EXAMPLES[name], encoding="utf-8")
    told = run(folder, "--plugin", name, *USES[name])
    assert told["mean_error_rate"] < 0.6


def test_a_data_set_and_a_model_bring_their_own_defaults(folder):
    for name in ("my_data.py", "mlp.py"):
        (folder / name).write_text(EXAMPLES[name], encoding="utf-8")
    data = run(folder, "--plugin", "my_data.py", *USES["my_data.py"])["setting"]
    assert (data["batch_size"], data["learning_rate"]) == (16, 0.2)


def test_trials_on_data_in_another_folder_are_read_again(folder, monkeypatch):
    (folder / "my_data.py").write_text(EXAMPLES["my_data.py"], encoding="utf-8")
    (folder / "mine").mkdir()
    (folder / "my-data.npz").rename(folder / "mine" / "my-data.npz")
    own = ["--plugin", "my_data.py", "--data-dir", "mine"]
    run(folder, *own, *USES["my_data.py"])
    chosen = [*USES["my_data.py"], "--workers", "10"]
    monkeypatch.setattr(datasets, "_digests", {})  # as a process that begins has it
    assert "my-data" in told_by("trials", *own, *chosen)
    monkeypatch.setattr(datasets, "_digests", {})
    with pytest.raises(AssertionError, match=r"--data-dir or \$FLTRUST_DATA names the folder"):
        told_by("trials", "--plugin", "my_data.py", *chosen)


def test_the_attack_counts_what_it_notes(folder):
    (folder / "inner_product.py").write_text(EXAMPLES["inner_product.py"], encoding="utf-8")
    run(folder, "--plugin", "inner_product.py", *USES["inner_product.py"])
    small = ["--dataset", "digits", "--workers", "10", "--compromised", "2", "--iterations", "100"]
    shown = told_by("show", "--plugin", "inner_product.py", *small, *USES["inner_product.py"])
    assert '"rounds turned": 100' in shown
