"""Data poisoning: how labels are changed, and examples made that do their work."""

from __future__ import annotations

import io
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import reference
from click.testing import CliRunner

from fltrust_repro import datasets, poisoning, trial_pictures
from fltrust_repro.__main__ import commands
from fltrust_repro.attacks import attacks
from fltrust_repro.errors import BadInput
from fltrust_repro.gradients import cross_entropy
from fltrust_repro.partition import Shards
from fltrust_repro.poisoning import (
    BackGradient,
    descend,
    flip_labels,
    optimise,
    outer_gradient,
    with_bias,
)
from fltrust_repro.settings import Setting
from fltrust_repro.training import generator, poisoned_examples, run_trial


@pytest.mark.parametrize("classes", [2, 8, 10])
def test_every_label_flips_as_the_paper_says(classes):
    labels = np.arange(classes, dtype=np.int32).reshape(1, -1)
    flipped = flip_labels(labels, classes)
    assert flipped.tolist() == [[reference.flip(label, classes) for label in range(classes)]]
    assert flipped.dtype == labels.dtype
    assert labels.tolist() == [list(range(classes))]
    assert flip_labels(flipped, classes).tolist() == labels.tolist()


def test_label_flipping_is_an_attack_on_data_alone():
    entry = attacks["label-flip"]
    assert entry.craft is None
    assert entry.poison(np.array([0, 1, 9]), 10).tolist() == [9, 8, 0]


# --- the back-gradient attack


def one_hot(labels, classes, dtype):
    return np.eye(classes, dtype=dtype)[labels]


def loss_of(w, x, y):
    return cross_entropy(x @ w.T, y.argmax(axis=1)).mean()


def problem(seed, q=3, n=8, features=4, classes=3):
    rng = np.random.default_rng(seed)
    poisoned, clean = rng.random((q, features)), rng.random((n, features))
    y = one_hot(rng.integers(0, classes, n), classes, np.float64)
    return poisoned, one_hot(rng.integers(0, classes, q), classes, np.float64), clean, y


def loss_after_training(poisoned, poisoned_y, clean, clean_y, steps, rate):
    x = with_bias(np.concatenate([poisoned, clean]))
    w, _, _ = descend(x, np.concatenate([poisoned_y, clean_y]), steps, rate)
    return loss_of(w, with_bias(clean), clean_y)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize(("steps", "rate"), [(1, 0.1), (7, 0.5), (100, 0.1), (200, 2.0)])
def test_the_outer_gradient_is_that_of_the_whole_inner_training(classes, steps, rate):
    case = problem(steps, classes=classes)
    gradient, loss = poisoning.outer_gradient(*case, steps, rate)
    assert loss == pytest.approx(loss_after_training(*case, steps, rate))
    poisoned, expected, h = case[0], np.empty_like(case[0]), 1e-5
    for place in np.ndindex(poisoned.shape):
        ends = []
        for sign in (1, -1):
            moved = poisoned.copy()
            moved[place] += sign * h
            ends.append(loss_after_training(moved, *case[1:], steps, rate))
        expected[place] = (ends[0] - ends[1]) / (2 * h)
    assert np.abs(gradient - expected).max() < 1e-5 * np.abs(expected).max()


def test_inner_training_is_gradient_descent_on_the_mean_loss():
    _, _, x, y = problem(0)
    x = with_bias(x)
    w, models, probabilities = descend(x, y, 2, 0.3)
    first = -0.3 * ((1 / 3 - y).T @ x) / len(x)
    np.testing.assert_allclose(models[0], 0)
    np.testing.assert_allclose(models[1], first)
    powers = np.exp(x @ first.T)
    p = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities[1], p)
    np.testing.assert_allclose(w, first - 0.3 * ((p - y).T @ x) / len(x))


QUICK = BackGradient(examples=80, inner_steps=30, inner_rate=1.0, outer_steps=15, outer_rate=1.0)


def digits():
    data = datasets.load("digits", np.random.default_rng(0))
    return data, data.train_x.reshape(len(data.train_x), -1)


def test_optimised_examples_raise_the_loss_step_by_step_and_stay_pixels():
    data, x = digits()
    losses = []
    made = optimise(QUICK, x, data.train_y, 10, np.random.default_rng(0), losses.append)
    poisoned, labels, start = made
    assert len(losses) == 15
    assert losses[-1] > losses[0] * 1.03
    assert losses == sorted(losses)
    assert poisoned.shape == start.shape == (80, 64)
    assert poisoned.dtype == np.float32
    assert 0 <= poisoned.min() <= poisoned.max() <= 1
    assert (np.abs(poisoned - start).max(axis=1) > 0.1).all()
    # Starts are examples of the data set, under another label.
    for image, label in zip(start, labels):
        (where,) = np.nonzero((x == image).all(axis=1))
        assert data.train_y[where[0]] != label
    again = optimise(QUICK, x, data.train_y, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(again[0], poisoned)


def test_optimised_examples_harm_more_than_those_they_started_from():
    data, x = digits()
    made = optimise(QUICK, x, data.train_y, 10, np.random.default_rng(0))
    test_x = with_bias(data.test_x.reshape(len(data.test_x), -1))

    test_y = one_hot(data.test_y, 10, np.float32)

    def loss(extra):
        rows = with_bias(np.concatenate([x, extra]))
        y = one_hot(np.concatenate([data.train_y, made[1][: len(extra)]]), 10, np.float32)
        w, _, _ = descend(rows, y, 60, 1.0)
        return loss_of(w, test_x, test_y)

    assert loss(made[0]) > 1.1 * loss(made[2])
    assert loss(made[2]) > loss(x[:0])


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(poisoning, "BackGradient", lambda examples=1: BackGradient(
        examples, inner_steps=10, inner_rate=1.0, outer_steps=3))  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where sets are kept, in a cache folder that is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fltrust_repro" / "back-gradient"


def files_of(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_set_is_made_once_per_data_share_and_seed_and_then_read(cache, quick, tmp_path):
    setting = Setting(dataset="digits", attack="back-gradient")
    first = poisoned_examples(setting, 3, None)
    assert len(first.x) == round(0.04 * 1437)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    steps = []
    again = poisoned_examples(setting, 3, None, steps.append)
    assert steps == []
    np.testing.assert_array_equal(first.x, again.x)
    np.testing.assert_array_equal(first.labels, again.labels)
    for other in (4, 5):
        poisoned_examples(setting, other, None)
    poisoned_examples(
        Setting(dataset="digits", attack="back-gradient", poisoned_share=0.1), 3, None
    )
    assert len(files_of(cache)) == 4
    assert not files_of(tmp_path / "data")


def test_without_the_variable_sets_lie_in_the_home(cache, quick, tmp_path, monkeypatch):
    for wrong in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", wrong)
        monkeypatch.setenv("HOME", str(tmp_path / f"home{wrong}"))
        poisoned_examples(Setting(dataset="digits", attack="back-gradient"), 3, None)
        assert files_of(tmp_path / f"home{wrong}" / ".cache" / "fltrust_repro" / "back-gradient")


def test_interrupted_it_leaves_no_file_and_no_folder(cache, quick, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    setting = Setting(dataset="digits", attack="back-gradient")
    with pytest.raises(KeyboardInterrupt):
        poisoned_examples(setting, 3, None, stop)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("os.fsync", stop)  # as it is being written
    with pytest.raises(KeyboardInterrupt):
        poisoned_examples(setting, 3, None)
    assert not cache.exists()


def test_the_command_stopped_says_so_and_leaves_nothing(cache, tmp_path, monkeypatch):
    steps = []

    def stopped(*given):
        steps.append(given)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return outer_gradient(*given)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(poisoning, "outer_gradient", stopped)
    done = CliRunner().invoke(commands, ["poison", "--dataset", "digits", "--picture", "new/p.png"])
    assert done.exit_code == 130
    said = ["Stopped. The examples are kept only when all are made: the same command begins anew."]
    assert done.output.splitlines()[-1:] == said
    assert files_of(tmp_path) == []


@pytest.mark.slow
def test_two_processes_at_once_keep_one_whole_set(tmp_path):
    code = (
        "from fltrust_repro import poisoning, training\n"
        "from fltrust_repro.settings import Setting\n"
        "quick = poisoning.BackGradient\n"
        "poisoning.BackGradient = lambda examples: quick(examples, inner_steps=9, outer_steps=3)\n"
        "setting = Setting(dataset='digits', attack='back-gradient')\n"
        "print(training.poisoned_examples(setting, 3, None).x.sum())\n"
    )
    told = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": told}
    both = [subprocess.Popen([sys.executable, "-c", code], **how) for _ in range(2)]
    sums = {process.communicate() for process in both}
    assert len(sums) == 1
    assert {process.returncode for process in both} == {0}
    [kept] = files_of(tmp_path / "fltrust_repro" / "back-gradient")
    assert kept.endswith(".npz")


@pytest.mark.slow
def test_without_a_cache_it_is_made_and_said_once(cache, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(poisoning, "cache_folders", lambda program: iter([Path("/proc/none")]))
    done = CliRunner().invoke(commands, ["poison", "--dataset", "digits"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "poisoned.png").is_file()
    note = "Note: the poisoned examples cannot be kept, and are made anew each time: no cache"
    assert done.output.count(note) == 1


def test_a_full_disk_costs_no_set(cache, quick, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert len(poisoned_examples(Setting(dataset="digits", attack="back-gradient"), 3, None).x)
    assert "No space left on device" in capsys.readouterr().err
    assert not cache.exists()


SIZE = 57  # 4% of 1,437
RIGHT = {
    "x": np.zeros((SIZE, 1, 8, 8), np.float32),
    "labels": np.zeros(SIZE, np.int32),
    "start": np.zeros((SIZE, 1, 8, 8), np.float32),
}


class Evil:
    """Leaves a file where it is unpickled."""

    def __reduce__(self):
        return (open, ("unpickled", "w"))


def npz(**changed) -> bytes:
    content = io.BytesIO()
    arrays = {**RIGHT, **changed}
    np.savez_compressed(content, **{name: a for name, a in arrays.items() if a is not None})
    return content.getvalue()


def npz_of(name: str, content: bytes) -> bytes:
    """A right file but for the bytes of one array."""
    out = io.BytesIO(npz(**{name: None}))
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def npy(header: str, values: bytes = b"", version: bytes = b"\1\0") -> bytes:
    size = 2 if version == b"\1\0" else 4
    return b"\x93NUMPY" + version + len(header).to_bytes(size, "little") + header.encode() + values


LABELS = "{'descr': '<i4', 'fortran_order': False, 'shape': (%s,)}\n"
HOSTILE = {
    "empty": (b"", "is not an .npz file"),
    "text": (b"my thesis", "is not an .npz file"),
    "a pickle": (pickle.dumps(Evil()), "is not an .npz file"),
    "an array of pickles": (npz(labels=np.array([Evil()] * SIZE, object)), "holds object labels"),
    "truncated": (npz()[:-100], "not an .npz file|whole compressed file"),
    "cut inside": (npz_of("x", npy(LABELS % 57)[:20]), "EOF|cannot|header|ended|cut short"),
    "lacks one": (npz(start=None), "lacks the array 'start'"),
    "other name": (npz(labels=None, label=RIGHT["labels"]), "lacks the array 'labels'"),
    "other shape": (npz(x=RIGHT["x"][:, :, :4]), r"holds float32 x \(57, 1, 4, 8\), not"),
    "too many": (npz(labels=np.zeros(58, np.int32)), r"holds int32 labels \(58,\)"),
    "other type": (npz(labels=np.zeros(SIZE)), "holds float64 labels"),
    "by columns": (npz(x=np.asfortranarray(RIGHT["x"][:, :, :, ::1])), None),
    "label 10": (npz(labels=np.full(SIZE, 10, np.int32)), r"holds labels outside 0\.\.9"),
    "label -1": (npz(labels=np.full(SIZE, -1, np.int32)), r"holds labels outside 0\.\.9"),
    "nan": (npz(x=np.full_like(RIGHT["x"], np.nan)), r"holds pixels outside 0\.\.1"),
    "bright": (npz(start=np.full_like(RIGHT["x"], 7)), r"holds pixels outside 0\.\.1"),
    "declared size": (npz_of("labels", npy(LABELS % 10**15)), r"holds int32 labels \(10{15},\)"),
    "fewer values": (npz_of("labels", npy(LABELS % 57, bytes(4))), "is cut short"),
    "bomb": (npz_of("labels", npy(LABELS % 57, bytes(1 << 24))), "holds more than the 228 bytes"),
    "huge header": (npz_of("labels", npy(" " * 65_000 + "\n")), "eader"),
    "huge new header": (
        npz_of("labels", npy(" " * (1 << 24), version=b"\2\0")),
        r"format \(2, 0\)",
    ),
    "deep header": (npz_of("labels", npy("(" * 9_000 + "\n")), "cannot|eader"),
    "no header": (npz_of("labels", b"PK\3\4"), "magic|cut short|EOF|cannot"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_kept_set_is_one_sentence_and_runs_nothing(
    case, tmp_path, monkeypatch, quick, cache
):
    content, fault = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(poisoning, "_digest", lambda *_: "0")
    cache.mkdir(parents=True)
    file = cache / f"digits-{SIZE}-0.npz"
    file.write_bytes(content)
    setting = Setting(dataset="digits", attack="back-gradient")
    if fault is None:
        assert len(poisoned_examples(setting, 3, None).x) == SIZE
        return
    with pytest.raises(BadInput, match=fault) as caught:
        poisoned_examples(setting, 3, None)
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith("delete it, and it will be made again.")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "unpickled").exists()
    file.unlink()
    assert len(poisoned_examples(setting, 3, None).x) == SIZE


def test_poisoned_examples_are_drawn_as_the_pictures_name_says(tmp_path):
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        few = poisoning.PoisonedSet(*(array[:2] for array in RIGHT.values()))
        trial_pictures.draw_poisoned(few, [1, None], tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)


def test_the_picture_names_rows_and_the_labels_before_and_after(tmp_path):
    data, _ = digits()
    start = data.train_x[:2]
    made = poisoning.PoisonedSet(start + 0.25, np.array([8, 9]), start)
    labels = poisoning.labels_before(made, data)
    assert labels == data.train_y[:2].tolist()
    trial_pictures.draw_poisoned(made, labels, tmp_path / "p.svg", "mine")
    drawn = re.findall(r"<!-- (.*?) -->", (tmp_path / "p.svg").read_text(encoding="utf-8"))
    assert [text for text in drawn if text in ("before", "after")] == ["before", "after"]
    assert drawn.count("8") == 1 + labels.count(8)
    assert {"mine", *map(str, labels), "2 of 2 examples; above each, its label"} <= set(drawn)
    moved = made._replace(start=start + 0.5)
    assert poisoning.labels_before(moved, data) == [None, None]


def test_examples_are_appended_to_what_their_holders_have():
    shards = Shards.of([np.array([0, 1]), np.array([2]), np.array([], dtype=np.int64)])
    out = shards.with_examples(np.array([1, 0, 1]), 3)
    assert [out[i].tolist() for i in range(3)] == [[0, 1, 4], [2, 3, 5], []]


@pytest.mark.parametrize("distribution", ["single-worker", "uniform"])
def test_only_compromised_workers_hold_poisoned_examples(distribution):
    held = poisoning.holders(400, distribution, 20, np.random.default_rng(0))
    expected = {0} if distribution == "single-worker" else set(range(20))
    assert set(held.tolist()) == expected


def test_a_trial_trains_on_the_poisoned_examples(tmp_path, quick, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fields = {"dataset": "digits", "rule": "mean", "workers": 10, "compromised": 4,
              "iterations": 40, "learning_rate": 0.5}  # fmt: skip
    plain = run_trial(Setting(**fields), 0)
    poisoned = run_trial(Setting(**fields, attack="back-gradient", poisoned_share=0.5), 0)
    assert poisoned.error_rate > plain.error_rate
    central = Setting(**{**fields, "workers": 1, "compromised": 0}, attack="back-gradient")
    assert 0 < run_trial(central, 0).error_rate < 0.6


def test_features_that_are_no_pixels_and_a_single_label_are_refused():
    with pytest.raises(BadInput, match=r"'breast-cancer' has features from -.*pixels from 0 to 1"):
        poisoned_examples(Setting(dataset="breast-cancer", attack="back-gradient"), 0, None)
    data, _ = digits()
    zeros = data.train_y == 0
    alone = datasets.Dataset(
        data.train_x[zeros], data.train_y[zeros], data.test_x, data.test_y, 10, "zeros"
    )
    with pytest.raises(BadInput, match="'zeros' has training examples of one label only"):
        poisoning.poisoned_set(alone, 0.1, generator(0, "back-gradient"))


@pytest.mark.parametrize("share", [0, -0.1, 1.01])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(BadInput, match=r"poisoned_share is .*in \(0, 1\]"):
        Setting(attack="back-gradient", poisoned_share=share)
