"""What a trial found, and the version of the protocol by which it found it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# Raised whenever a change of the code moves results by more than another type of CPU does, on which
# sums are rounded otherwise and a prediction flips here and there: older trials are then run again.
# `tests/golden.json` shows what moves.
PROTOCOL = 1
EVALUATE_EVERY = 10  # iterations


@dataclass(frozen=True)
class TrialResult:
    """What a trial found.

    Attributes
    ----------
    error_rate : float
        Share of wrong predictions of the final global model on the whole test set.
    lowest_error_rate : float
        Lowest one seen, every 10 iterations and at the end (Table 3).
    iterations : int
        Iterations done.
    diverged : bool
        Whether a parameter of the global model became NaN or infinite; training ends there.
    seconds : float
        Wall-clock time of the training, data loading left out.
    curve : sequence of (iteration, error rate, training loss)
        The loss is the benign workers' mean batch loss at the model before that iteration.
    empty_workers : int
        Workers that hold no training example (of the first deal) and send zero updates.
    notes : dict of float by name
        "attacked iterations"; what an attack counts, such as "lambda not found", in how many
        iterations; "direction agreement", with partial knowledge: the share of parameters whose
        changing direction the attacker's own updates tell right (4.2), mean over the iterations.
    """

    error_rate: float
    lowest_error_rate: float
    iterations: int
    diverged: bool
    seconds: float
    curve: Sequence[tuple[int, float, float]]
    empty_workers: int
    notes: dict[str, float] = field(default_factory=dict)
