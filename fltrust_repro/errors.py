"""Errors that the user can mend: one sentence each, shown without a traceback (exit code 2)."""


class BadInput(ValueError):
    """A value is wrong; the message names it, what is allowed, and what to do."""


class DataUnavailable(BadInput):
    """A data set is neither at hand nor to be had; other experiments can still run."""
