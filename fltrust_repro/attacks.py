"""Attacks of compromised workers (paper, Sections 3 and 4.1), in the space of updates.

With `delta_i = w_i - w_re` the received global model is the origin: the crafted local model
`w'_1 = w_re - lambda s` (3.2) is the update `-lambda s`. An attack gets the before-attack updates
that the attacker knows, all m with full knowledge and the c own ones with partial knowledge, the
compromised workers' always first, and returns the c updates they send instead.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fltrust_repro import backend
from fltrust_repro.aggregation import Limit, krum_choice, rules, trimmed_mean
from fltrust_repro.backend import array_view, as_numbers, as_updates, take_rows, to_ndarray
from fltrust_repro.distances import lengths_and_slopes, squared_distances
from fltrust_repro.errors import BadInput
from fltrust_repro.lambda_search import KrumProblem, solve_full, solve_partial
from fltrust_repro.poisoning import PoisonedSet, flip_labels, poisoned_set
from fltrust_repro.registry import Registry, is_built_in, place_of, summary

if TYPE_CHECKING:
    from fltrust_repro.backend import NDArray
    from fltrust_repro.settings import Setting


@dataclass(frozen=True)
class Round:
    """What an attack is given in one iteration.

    Attributes
    ----------
    known : NDArray (m, d) with full knowledge, (c, d) with partial
        Before-attack updates that the attacker knows; rows 0..c-1 are the compromised workers'.
    c : int
        How many compromised workers take part, at least 1.
    w_re : NDArray (d,)
        The global model that the workers received.
    setting : Setting
    rng : numpy.random.Generator
        The attacker's own.
    notes : Counter
        What an attack wants counted over the trial, by name; numbers, or arrays of shape (1,) as
        `array_view` shows them, so that no iteration waits for a GPU to tell.

    Numpy arrays are taken, too. `BadInput` where the arrays and c do not fit each other.
    """

    known: NDArray
    c: int
    w_re: NDArray
    setting: Setting
    rng: np.random.Generator
    notes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", as_updates(self.known, "an attack"))
        rows, d = self.known.shape
        w_re = as_numbers(self.w_re, (d,), "an attack", "the received model", self.known.ctx)
        object.__setattr__(self, "w_re", w_re)
        fits = self.c == rows if self.partial else 1 <= self.c < rows
        if not fits:
            wanted = f"exactly these, {rows}" if self.partial else f"from 1 to {rows - 1}"
            raise BadInput(f"c is {self.c}, but {rows} updates are known; it must be {wanted}.")

    @property
    def partial(self) -> bool:
        """Whether the attacker knows the compromised workers only."""
        return self.setting.knowledge == "partial"


Craft = Callable[[Round], "NDArray"]
Poison = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Attack:
    """A named attack: on the updates sent (`craft`), or on data.

    Data are attacked by the labels of the compromised workers' batches (`poison`), or by examples
    that they hold beside their own (`inject`: Dataset, share, generator, folders, function to call
    after each step -> PoisonedSet).
    """

    name: str
    craft: Craft | None = None
    poison: Poison | None = None
    inject: Callable[..., PoisonedSet] | None = None
    has_knowledge: bool = False
    limit: Limit | None = None
    against: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.craft is not None:
            object.__setattr__(self, "craft", _checked(self.name, self.craft))

    def __call__(
        self,
        updates: Any,
        *,
        c: int,
        knowledge: str = "full",
        seed: int = 0,
        w_re: Any = None,
        **fields: Any,
    ) -> Any:
        """Craft what the c compromised workers send, in one iteration and outside of a trial.

        Parameters
        ----------
        updates : NDArray or numpy array (m, d)
            Before-attack updates of all m workers, the compromised ones' in rows 0..c-1; with
            partial knowledge the others are not looked at.
        c : int
        knowledge : {"full", "partial"}
        seed : int
            Of the attacker's draws.
        w_re : NDArray or numpy array (d,), optional
            The global model the workers received; by default zeros.
        **fields
            Fields of `Setting` that the attack reads, as `epsilon=0.1`.

        Returns
        -------
        NDArray (c, d), float32; a numpy array if the updates were no NDArray.

        Raises
        ------
        BadInput
            Arrays, c or fields that do not fit, or an attack that crafts no updates.
        """
        from fltrust_repro.settings import Setting  # which knows all attacks

        if self.craft is None:
            raise BadInput(f"attack {self.name!r} crafts no updates; it changes data, or nothing.")
        rows = as_updates(updates, f"attack {self.name!r}")
        told = {"rule": "median", "attack": self.name, "knowledge": knowledge, **fields}
        setting = Setting.from_dict({"workers": len(rows), "compromised": c, **told})
        known = rows[:c] if setting.knowledge == "partial" else rows
        received = backend.nd.zeros(rows.shape[1], ctx=rows.ctx) if w_re is None else w_re
        sent = self.craft(Round(known, c, received, setting, np.random.default_rng(seed)))
        return sent if isinstance(updates, backend.NDArray) else sent.asnumpy()

    @property
    def summary(self) -> str:
        """What `list` prints beside the name."""
        function = self.craft or self.poison or self.inject
        return summary(function) if function else "The compromised workers behave."


def _checked(name: str, craft: Craft) -> Craft:
    """The same attack, of which what comes back is checked; a plug-in's gets copies to change."""

    @functools.wraps(craft)
    def checked(step: Round) -> NDArray:
        given = step
        if not is_built_in(craft):
            given = dataclasses.replace(step, known=step.known.copy(), w_re=step.w_re.copy())
        shape = (step.c, step.known.shape[1])
        user = f"attack {name!r}{place_of(craft)}"
        with np.errstate(over="ignore", invalid="ignore"):  # workers may have sent anything
            sent = craft(given)
        return as_numbers(sent, shape, user, "what it sends", step.known.ctx)

    return checked


attacks: Registry[Attack] = Registry("attack")


def attack(
    name: str,
    has_knowledge: bool = True,
    limit: Limit | None = None,
    against: tuple[str, ...] = (),
) -> Callable:
    """Register a function `(Round) -> NDArray (c, d)` as attack `name`.

    `has_knowledge` says whether full and partial knowledge make a difference; without it the
    attack is given all m before-attack updates. What the function returns, as an NDArray or a
    numpy array, is checked: `BadInput` for another shape or for no numbers.
    """

    def register(craft: Craft) -> Craft:
        entry = Attack(name, craft=craft, has_knowledge=has_knowledge, limit=limit, against=against)
        attacks.add(name, entry)
        return entry.craft

    return register


attacks.add("none", Attack("none"))
attacks.add("label-flip", Attack("label-flip", poison=flip_labels))
attacks.add("back-gradient", Attack("back-gradient", inject=poisoned_set))


def changing_direction(known: NDArray, setting: Setting, everyone: bool) -> Any:
    """Signs s of how the global model would change (3.1): +1 where it grows, else -1.

    The sign of the mean of the known before-attack updates; with `direction="rule"`, where these
    are everyone's, of what the aggregation rule itself would output.
    """
    array, xp = array_view(known)
    if setting.direction == "rule" and everyone:
        _, c, beta = setting.at_master
        change, _ = array_view(rules[setting.rule](known, c=c, beta=beta))
    else:
        change = array.mean(axis=0)
    one = xp.ones_like(change)
    return xp.where(change > 0, one, -one)


def direction_agreement(updates: NDArray, c: int, setting: Setting) -> Any:
    """Share of the parameters whose direction the c own updates tell as all updates do (4.2).

    Shape (1,), where the updates are.
    """
    partial = changing_direction(updates[:c], setting, everyone=False)
    full = changing_direction(updates, setting, everyone=True)
    return (partial == full).mean(axis=0, keepdims=True)


@attack("gaussian", has_knowledge=False)
def gaussian(step: Round) -> NDArray:
    """Samples of the Gaussian that fits each parameter of all before-attack models (4.1)."""
    known, _ = array_view(step.known)
    noise = backend.normal(step.rng, (step.c, known.shape[1]), step.known)
    noise *= known.std(axis=0)
    noise += known.mean(axis=0)
    return to_ndarray(noise)


# --- Krum (3.2)


@attack(
    "krum",
    limit=Limit("m - 2c - 1", lambda m, c, beta: m - 2 * c - 1),
    against=("krum", "bulyan"),
)
def krum_attack(step: Round) -> NDArray:
    """Make Krum pick w'_1 = w_re - lambda s for the largest lambda found (3.2).

    With the deviation goal (Appendix B), w'_1 = w_re - lambda.
    """
    known, xp = array_view(step.known)
    if step.setting.goal == "deviation":
        direction = xp.ones_like(known[0])
    else:
        direction = changing_direction(step.known, step.setting, not step.partial)
    problem, base = krum_problem(step, direction)
    scale, found = largest_lambda(problem, step)
    step.notes["lambda not found"] += 1 - found.astype(np.int64)
    return to_ndarray(_supporters(base - scale.astype(np.float32) * direction, step, xp))


def krum_problem(step: Round, direction: Any) -> tuple[KrumProblem, Any]:
    """What Krum will see of the models that the attacker knows to be benign (3.2).

    Partial knowledge: the c own before-attack ones; full: those of the m - c others. Returns the
    update, shape (d,), from which w'_1 lies lambda against the direction, too.
    """
    known, xp = array_view(step.known)
    distances = squared_distances(step.known)
    benign = slice(0, None) if step.partial else slice(step.c, None)
    base, gaps = xp.zeros_like(direction), known[benign]
    if step.setting.base == "before-attack":
        assumed = 0 if step.partial else step.setting.at_master.c
        chosen = krum_choice(distances, max(len(known) - assumed - 2, 1))
        base = array_view(take_rows(step.known, chosen))[0][0]
        gaps = gaps - base
    offsets, slopes = lengths_and_slopes(gaps, direction)
    return KrumProblem(distances[benign, benign], offsets, slopes, d=known.shape[1]), base


def largest_lambda(problem: KrumProblem, step: Round) -> tuple[Any, Any]:
    """Return the attacker's lambda, by Equation 4 or 2, and whether it was found; (1,) each."""
    if step.partial:
        return solve_partial(problem, step.c, step.setting.attacker_assumes)
    return solve_full(problem, step.c, step.setting.at_master.c)


def _supporters(crafted: Any, step: Round, xp: Any) -> Any:
    """w'_1 and c - 1 models around it: distance epsilon * U(0, 1), uniform direction (3.2)."""
    out = backend.normal(step.rng, (step.c, crafted.size), step.known)
    lengths = xp.sqrt(xp.einsum("ij,ij->i", out, out))  # without a second matrix for the squares
    radius = step.setting.epsilon * step.rng.random(step.c)
    radius[0] = 0.0
    radii, _ = array_view(backend.nd.array(radius, ctx=step.known.ctx))
    out *= (radii / lengths).reshape(-1, 1)
    out += crafted
    return out


# --- trimmed mean (3.3), also used against median (3.4) and mean


def benign_interval(step: Round, direction: Any) -> tuple[Any, Any]:
    """Full knowledge: from the extreme of the benign models to b times as far (3.3).

    Returns the near and the far end for each parameter, as updates. With
    `interval_space="model"` the interval is taken on local models, not on updates.
    """
    known, xp = array_view(step.known)
    received, _ = array_view(step.w_re)
    b = step.setting.b
    benign = known[step.c :]
    near = xp.where(direction < 0, benign.max(axis=0), benign.min(axis=0))
    shift = received if step.setting.interval_space == "model" else xp.zeros_like(near)
    near = near + shift
    outward = (direction < 0) == (near > 0)
    far = xp.where(outward, near * b, near / b)
    return near - shift, far - shift


def estimated_interval(step: Round, direction: Any) -> tuple[Any, Any]:
    """Partial knowledge: mu + 3 sigma to mu + 4 sigma against the direction (3.3)."""
    known, _ = array_view(step.known)
    mu, sigma = known.mean(axis=0), known.std(axis=0)
    return mu - 3 * direction * sigma, mu - 4 * direction * sigma


@attack("trimmed-mean")
def trimmed_mean_attack(step: Round) -> NDArray:
    """Put all compromised values beyond the benign ones, against the changing direction (3.3).

    With the deviation goal (Appendix B), on the side where that moves trimmed mean further.
    """
    if step.setting.goal == "deviation":
        direction = -farther_side(step)
    else:
        direction = changing_direction(step.known, step.setting, not step.partial)
    interval = estimated_interval if step.partial else benign_interval
    near, far = interval(step, direction)
    out = backend.uniform(step.rng, (step.c, near.size), step.known)
    out *= far - near
    out += near
    return to_ndarray(out)


def farther_side(step: Round) -> Any:
    """+1 where values above all benign ones move trimmed mean further than values below, else -1.

    "Further" is from what trimmed mean gives before the attack (Equation 5).
    """
    known, xp = array_view(step.known)
    beta = step.setting.at_master.beta
    before, _ = array_view(trimmed_mean(step.known, beta))
    one = xp.ones_like(before)

    def moved(side: Any) -> Any:
        near, _ = benign_interval(step, -side)
        crafted = xp.concatenate([near + xp.zeros_like(known[: step.c]), known[step.c :]])
        return xp.abs(array_view(trimmed_mean(to_ndarray(crafted), beta))[0] - before)

    return xp.where(moved(one) > moved(-one), one, -one)
