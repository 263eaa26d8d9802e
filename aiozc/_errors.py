"""The library's exceptions, and error numbers made into exceptions in one place."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any


class RingUnavailableError(RuntimeError):
    """No ring can be had here: the sentence says what was tried and what refused.

    Raised for named set-up causes alone: liburing missing, too old or of another
    layout; io_uring refused by the kernel, a sysctl, a seccomp filter or a security
    module; no memory that may be locked.

    `remedy` says in one line what would lift it, and `lines` are what to run or to write
    for that, a line each; both may be empty.
    """

    def __init__(self, cause: str, remedy: str = "", lines: Sequence[str] = ()) -> None:
        super().__init__(cause)
        self.remedy = remedy
        self.lines = tuple(lines)
        if remedy:
            self.add_note(f"What would lift it: {remedy}")


def error_from(number: int, doing: str) -> OSError:
    """Return the OSError (of the matching subclass) for a positive error number."""
    return OSError(number, f"{os.strerror(number)} ({doing})")


@contextlib.contextmanager
def nothing_moved(none: Any) -> Iterator[None]:
    """Say so in the OSErrors of what is done before a transfer; `none` is what 0 is there."""
    try:
        yield
    except OSError as error:
        tell(error, none, none)
        raise


def tell(error: BaseException, transferred: Any, lost: Any) -> None:
    """Say in an exception how many bytes reached the target, and how many nobody has."""
    error.transferred = transferred  # type: ignore[attr-defined]
    error.lost = lost  # type: ignore[attr-defined]
