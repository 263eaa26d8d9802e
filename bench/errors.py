"""The exceptions that stand for "this was not measured", and how errors are told."""


class BenchError(Exception):
    """A measurement cannot be had or cannot be trusted; the message is one sentence."""


class BadInputError(BenchError):
    """What was asked for cannot be done, and will not be until something else is asked for."""


def describe(error: BaseException) -> str:
    """Say in one line what went wrong: of a group, its first, for all fail for one reason."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, BenchError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
