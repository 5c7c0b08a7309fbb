"""Attacks that plant a backdoor: what has a trigger shall be taken for the target class."""

from __future__ import annotations

import numpy as np

from fltrust_repro.attacks import attack
from fltrust_repro.errors import BadInput
from fltrust_repro.oblivious_attacks import number
from fltrust_repro.pixels import WHITE
from fltrust_repro.poisoning import Backdoor
from fltrust_repro.threat import Round

_PLACES = ((2, 2), (3, 3), (2, 4), (4, 2))  # from the last row and column
_EVERY = 20  # features


def pattern(x: np.ndarray) -> np.ndarray:
    """Return examples with the trigger of FLTrust's evaluation (Section VI).

    Four white pixels near the lower right corner of each channel, those of BadNets (Gu et al.,
    2017); examples that are no images, lower or narrower than 4, have every 20th feature set to 0.
    """
    if min(x.shape[2:]) >= max(map(max, _PLACES)):
        for row, column in _PLACES:
            x[:, :, -row, -column] = WHITE if x.dtype == np.uint8 else 1
        return x
    features = x.reshape(len(x), -1)
    if features.shape[1] < _EVERY:
        raise BadInput(
            f"the trigger sets every {_EVERY}th feature to 0, and examples of shape {x.shape[1:]} "
            f"have {features.shape[1]}; take a data set of at least {_EVERY} features."
        )
    features[:, _EVERY - 1 :: _EVERY] = 0
    return features.reshape(x.shape)


@attack("scaling", has_knowledge=False, backdoor=Backdoor(pattern, target=0, share=0.3))
def scaling(step: Round, *, factor: float | None = None) -> np.ndarray:
    """Plant a backdoor and send `factor` times one's update (Bagdasaryan et al., AISTATS 2020).

    Model replacement: with factor = m, the default, a single worker's update outlives the mean. As
    FLTrust evaluates it (Cao et al., NDSS 2021, Section VI), the c workers train on their own
    examples and on copies with a trigger and the target's label. FLTrust adds copies of a share p
    of a worker's examples, p uniform in (0, 1], by which a batch holds p/(1 + p) of them, in the
    mean 1 - log 2 = 0.31; here an example of a batch is a copy with probability 0.3. The target is
    class 0, for features too (the code of SAFEFL has 1 there). A trial notes the "attack success
    rate".

    >>> import fltrust_repro as fl
    >>> fl.attacks["scaling"]([[1, -2], [5, 5], [6, 6]], c=1)
    array([[ 3., -6.]], dtype=float32)
    """
    chosen = step.master.m if factor is None else number("scaling", "factor", factor)
    return np.float32(chosen) * step.known[: step.c]
