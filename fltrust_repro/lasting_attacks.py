"""Attacks since 2017 that remember: where a trial began, where it was last, who stands apart.

In the space of updates, of the benign ones that `oblivious_attacks` tells of. What is kept is the
attack's `memory` of the trial.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from fltrust_repro.attacks import attack
from fltrust_repro.errors import BadInput
from fltrust_repro.oblivious_attacks import benign_rows, by_all, exact_moments, number, z_max
from fltrust_repro.threat import Round


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


def base_model(step: Round) -> np.ndarray:
    """The model that an attacker drags the global one to: float64 (d,), the same in all iterations.

    Drawn in its first, without anything known of the data: each parameter normal, of the root mean
    square that the received model has then (1 where that is 0).
    """
    if "base" not in step.memory:
        w = step.w_re.astype(np.float64)
        spread = math.sqrt(w @ w / w.size) or 1.0
        step.memory["base"] = spread * step.rng.standard_normal(w.size)
    base: np.ndarray = step.memory["base"]
    return base


@attack("mpaf", has_knowledge=False)
def mpaf(step: Round, *, scale: float = 1e6) -> np.ndarray:
    """Drag the global model to a base model w', by scale (w' - w_re) (Cao and Gong, CVPRW 2022).

    w' is `base_model`. No benign update is looked at; a scale as the default's makes mean diverge
    in a few iterations.

    >>> import fltrust_repro as fl
    >>> fl.attacks["mpaf:scale=10"]([[1, 2], [2, 1], [1, 1]], c=1, w_re=[3, 3], seed=1).round(1)
    array([[-19.6,  -5.4]], dtype=float32)
    """
    w = step.w_re.astype(np.float64)
    return by_all(scale * (base_model(step) - w), step.c)


_PERIOD, _DECAY, _LEAST = 50, 0.7, 0.5  # of PoisonedFL's scale: test every e, times b, not below
_QUANTILE = NormalDist().inv_cdf(0.99)  # of its test, at p = 0.01


@attack("poisonedfl", has_knowledge=False)
def poisonedfl(step: Round, *, scale: float = 8.0) -> np.ndarray:
    """Push the same way in all iterations, along a random s (PoisonedFL; Xie et al., CVPR 2025).

    s in {-1, 1}^d is drawn when the trial begins; no benign update is looked at. With h what the
    global model has changed by since the last attacked iteration and k what all sent in that
    (Section 4 of the paper), each parameter's magnitude is v, where h is not by k, and all send

        scale |h| s v/|v|,    v = abs(h - k |h|/|k|),

    zeros in the first iteration. Every 50 attacked iterations scale is multiplied by 0.7, not to
    below 0.5, unless the model has moved along s since the last 50: in more parameters than the 99%
    quantile of tossing d coins, by their normal distribution d/2 + 2.33 sqrt(d)/2. Defaults are
    those of the authors' scripts. As in their code, where h is 0 nothing is ever sent until it is
    not, and a parameter that has not moved counts by its own sign. Notes: "scale lowered".

    >>> import fltrust_repro as fl
    >>> fl.attacks["poisonedfl"]([[1, 2], [2, 1], [1, 1]], c=1, w_re=[3, 3])
    array([[0., 0.]], dtype=float32)
    """
    memory, w = step.memory, step.w_re.astype(np.float64)
    if "s" not in memory:
        memory["s"] = step.rng.choice(np.array([-1, 1], dtype=np.float32), w.size)
        memory.update(t=0, scale=scale, start=w, w=w, sent=0 * w)
    if memory["t"] and memory["t"] % _PERIOD == 0:
        _lower_unless_it_moves(step, w)
        memory["start"] = w
    h, sent, long = w - memory["w"], memory["sent"], float(np.linalg.norm(w - memory["w"]))
    v = _unit(np.abs(h - long * _unit(sent)))
    memory.update(t=memory["t"] + 1, w=w, sent=memory["scale"] * long * memory["s"] * v)
    return by_all(memory["sent"], step.c)


def _lower_unless_it_moves(step: Round, w: np.ndarray) -> None:
    """Test whether the model moves along s: PoisonedFL's feedback."""
    memory, moved = step.memory, w - step.memory["start"]
    along = np.sign(np.where(moved == 0, w, moved)) == memory["s"]
    needed = w.size / 2 + _QUANTILE * math.sqrt(w.size) / 2
    if along.sum() < needed and _DECAY * memory["scale"] >= _LEAST:
        memory["scale"] *= _DECAY
        step.notes["scale lowered"] += 1


@attack("rop")
def rop(
    step: Round,
    *,
    z: float | None = None,
    angle: float = 90.0,
    relocation: float = 1.0,
    reference: float = 0.9,
) -> np.ndarray:
    """Relocated orthogonal perturbation, of the last change (Ozfatura et al., IEEE TIFS 2024).

    Against centered clipping, which clips around v, the last change of the global model (here since
    the last attacked iteration; 0 in the first). With mu the benign mean and
    u = reference v + (1 - reference) mu, in the first iteration mu, all send

        relocation v + (1 - relocation) mu + rho (sin(angle) p + cos(angle) u/|u|),

    p the part of the vector of ones that is perpendicular to u, of length 1. Defaults are those of
    the authors' code, whose angle of 270 for gradients is 90 for updates. There rho = z, `z_max` as
    in ALIE unless given, whatever the gradients' norms are; here it is z times the median norm of
    the benign updates. Those of softmax regression add up to 0 over the classes: there p is, until
    v leans that way, the vector of ones, which moves all scores alike.

    >>> import fltrust_repro as fl
    >>> fl.attacks["rop:z=1"]([[0, 0], [0, 3], [0, 5]], c=1).round(2)
    array([[4., 0.]], dtype=float32)
    """
    benign = benign_rows(step)
    mu, _ = exact_moments(benign)
    last, w = step.memory.get("w"), step.w_re.astype(np.float64)
    step.memory["w"] = w
    v = np.zeros_like(w) if last is None else w - last
    u = _unit(mu if last is None else reference * v + (1 - reference) * mu)
    p = _unit(1.0 - u.sum() * u)
    chosen = z_max(step.master.m, step.c) if z is None else number("rop", "z", z)
    rho = chosen * float(np.median(np.linalg.norm(benign, axis=1)))
    turn = math.radians(angle)
    where = relocation * v + (1 - relocation) * mu
    return by_all(where + rho * (math.sin(turn) * p + math.cos(turn) * u), step.c)


@attack("mimic")
def mimic(step: Round, *, warmup: int = 1) -> np.ndarray:
    """All copy one benign worker, who thereby counts c + 1 times (Karimireddy et al., ICLR 2022).

    The one farthest along z, which comes the nearer to the direction in which the benign updates
    vary most, the more `warmup` iterations Oja's rule has for it; the authors' code takes one. In
    iteration t = 0, 1, ... of these, z starting at random,

        mu <- (t mu + mean of x_i) / (t + 1),    a = sum_i (x_i - mu) ((x_i - mu) . z),
        z <- (t z + a/|a|) / (t + 1), to length 1,    i* = argmax_i x_i . z,

    after which i* stays: a row of what the attacker knows, and a worker where all take part. With
    partial knowledge it is one of its own. Every row sent is one that a benign worker sends.

    >>> import fltrust_repro as fl
    >>> fl.attacks["mimic"]([[0, 0], [0, 0], [1, 0], [-1, 0], [9, 0]], c=2)
    array([[9., 0.],
           [9., 0.]], dtype=float32)
    """
    if warmup < 1:
        raise BadInput(f"attack 'mimic': warmup is {warmup}; it must be at least 1.")
    rows = step.known if step.partial else step.known[step.c :]
    t = step.memory.get("t", 0)
    if t < warmup:
        step.memory["row"] = _farthest(step, rows, t)
        step.memory["t"] = t + 1
    return by_all(rows[min(step.memory["row"], len(rows) - 1)], step.c)


def _farthest(step: Round, rows: np.ndarray, t: int) -> int:
    """One step of Oja's rule, and the row farthest along z; of those that are finite."""
    memory, benign = step.memory, benign_rows(step)
    average, _ = exact_moments(benign)
    if t == 0:
        memory["mu"], memory["z"] = average, step.rng.standard_normal(average.size)
    memory["mu"] = (t * memory["mu"] + average) / (t + 1)
    gaps = benign - memory["mu"]
    if np.any(along := _unit((gaps @ memory["z"]) @ gaps)):
        memory["z"] = _unit(t * memory["z"] + along)
    reach = rows @ memory["z"]
    return int(np.argmax(np.where(np.isfinite(reach), reach, -np.inf)))
