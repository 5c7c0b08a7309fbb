"""Errors that the user can mend: one sentence each, shown without a traceback (exit code 2)."""


class BadInput(ValueError):
    """A value is wrong; the message names it, what is allowed, and what to do."""


class DataUnavailable(BadInput):
    """A data set is neither at hand nor to be had; other experiments can still run."""


class UnknownName(BadInput):
    """A name that nothing is registered under; a plug-in that is not loaded may have it."""
