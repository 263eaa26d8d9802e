"""The library's exceptions, and error numbers made into exceptions in one place."""

import contextlib
import errno
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
    """Give what is raised in the block `transferred` and `lost` of `none`: 0, or (0, 0)."""
    try:
        yield
    except BaseException as error:
        annotate(error, none, none)
        raise


def annotate(error: BaseException, transferred: Any, lost: Any) -> None:
    """Give an exception the attributes `transferred` and `lost`, in bytes."""
    error.transferred = transferred  # type: ignore[attr-defined]
    error.lost = lost  # type: ignore[attr-defined]


def annotate_behind(error: BaseException, transferred: int) -> None:
    """Have what a part of a transfer raised say how many bytes all of it moved.

    `transferred` of these were moved before that part.
    """
    part = getattr(error, "transferred", 0)
    annotate(error, transferred + part, getattr(error, "lost", 0))


def lacks_descriptors(error: OSError) -> bool:
    """Return whether it says that this process, or the system, may open no more."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


# What a socket answers whose peer is gone, beside the numbers that make a ConnectionError.
_LOST = frozenset(
    {
        *(errno.ENOTCONN, errno.ETIMEDOUT, errno.ENETRESET),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    }
)


def tells_of_lost_connection(error: OSError, *, closing: bool) -> bool:
    """Return whether a transfer into a transport's socket ended because of the connection.

    `closing`: the transport is, so that EBADF says that its socket is no longer there.
    """
    if isinstance(error, ConnectionError) or error.errno in _LOST:
        return True
    return closing and error.errno == errno.EBADF


def connection_lost(cause: BaseException | None) -> ConnectionError:
    """Return the ConnectionError for a connection that was lost by `cause`, or was closed."""
    if isinstance(cause, ConnectionError):
        return cause
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno != errno.EBADF:
        error = ConnectionError(cause.errno, cause.strerror)
    else:
        error = ConnectionAbortedError(errno.ECONNABORTED, "the connection was closed")
    error.__cause__ = cause
    return error
