"""Notes: what rules and attacks count over a trial, beside its error rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from fltrust_repro.errors import WrongNumbers, shown

# Notes that are means, by the note that counts what over.
_MEANS = {"direction agreement": "attacked iterations", "undone": "compared with no attack"}

_LARGE = 2**63  # whole numbers from there on are seen as numpy sees them


class Notes(Counter[str]):
    """Counts by name, in fractions too: plain numbers, of whatever kind was noted.

    What is no number is refused where it is noted, with `WrongNumbers`.

    >>> import numpy as np
    >>> from fltrust_repro.notes import Notes
    >>> notes = Notes()
    >>> notes["workers kept"] += np.float32(2.5)
    >>> notes
    Notes({'workers kept': 2.5})
    """

    def __setitem__(self, name: str, noted: Any) -> None:
        super().__setitem__(name, _number(name, noted))

    def setdefault(self, name: str, noted: Any = 0) -> Any:
        """Return what is noted under a name, after noting this where there is nothing yet."""
        if name not in self:
            self[name] = noted
        return self[name]

    def update(self, /, *given: Any, **counts: Any) -> None:
        """Add to the notes, as a `Counter` does."""
        for name, noted in Counter(*given, **counts).items():
            self[name] += _number(name, noted)


def plain(notes: Mapping[str, Any]) -> dict[str, float]:
    """Return notes by names that are text, means as such."""
    told = {str(name): noted for name, noted in notes.items()}
    for mean, count in _MEANS.items():
        if mean in told and told.get(count):  # else a plug-in has a note of its own of that name
            told[mean] /= told[count]
    return told


def _number(name: object, noted: Any) -> Any:
    """A note as a plain number, whatever kind of number or array of one it is."""
    if type(noted) is float or (type(noted) is int and abs(noted) < _LARGE):  # as nearly all are
        return noted
    try:
        value = np.asarray(noted.asnumpy() if hasattr(noted, "asnumpy") else noted)
    except (TypeError, ValueError, RuntimeError):  # a ragged list, a tensor of another device
        value = np.empty(0)
    if value.size != 1 or value.dtype.kind not in "biuf":
        raise WrongNumbers(f"{name!r} is noted as {shown(noted)}; notes are numbers.")
    return (float if value.dtype.kind == "f" else int)(value.item())
