"""Whether calls may be made that are newer than those that Python makes itself.

A seccomp filter may answer a call that it does not know, as containers' profiles do (EPERM,
ENOSYS), or end the process for it (systemd's SystemCallFilter= without SystemCallErrorNumber=), and
nothing tells which but the call. So where there is a filter a forked child makes each of them once,
in a way that does nothing: what it lives through may be made. That takes 1 to 3 ms, once for a
process and its filters. Where there is none (`Seccomp: 0` in the status) nothing is asked.
It is looked for filters again when a reactor is made.
"""

import contextlib
import ctypes
import enum
import errno
import os
import posix
import select
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from aiozc._kernel import abi
from aiozc._kernel.abi import Call

PATIENCE_S = 2.0
"""Seconds that a child has."""


class New(enum.IntEnum):
    """What may not be known to a filter."""

    STATX = enum.auto()
    OPENAT2 = enum.auto()
    CACHESTAT = enum.auto()
    IO_URING = enum.auto()


_libc = ctypes.CDLL(None, use_errno=True)
_ALL = frozenset(New)


class _Answers:
    """What was found out for the filters there were at the last look, and what these were."""

    filters: tuple[str, str] | None = None
    permitted: frozenset[New] | None = None


def _forget() -> None:
    _Answers.permitted = None


# A child may have got filters of its own before it makes its first call.
os.register_at_fork(after_in_child=_forget)


def may_call(call: New) -> bool:
    """Return whether it may be made: whatever it answers, nobody ends the process for it."""
    permitted = _Answers.permitted
    if permitted is None:
        try:
            permitted = look()
        except OSError:
            return False
    return call in permitted


def look() -> frozenset[New]:
    """Return what may be made now: there may be more filters than at the last look.

    Raises OSError (EMFILE, ENFILE) where no descriptor is left to ask with.
    """
    filters = _filters()
    if filters[0] == "0":
        permitted = _ALL
    elif filters == _Answers.filters and _Answers.permitted is not None:
        return _Answers.permitted
    else:
        try:
            permitted = _ask()
        except BlockingIOError:
            # No task is left for a child: none is made before it can be asked.
            _Answers.filters, _Answers.permitted = None, frozenset()
            return frozenset()
    _Answers.filters, _Answers.permitted = filters, permitted
    return permitted


def _filters() -> tuple[str, str]:
    """Return this thread's mode of seccomp and the number of its filters; "" where unknown."""
    found = {"Seccomp": "", "Seccomp_filters": ""}
    try:
        status = _read("/proc/thread-self/status")
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        status = ""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = value.strip()
    return found["Seccomp"], found["Seccomp_filters"]


def read_procfs(path: str | os.PathLike[str]) -> str:
    """Return what is in a file of procfs; "" where that cannot be read.

    The kernel answers by itself, without a disk: no guard against blocking calls is to see it.
    """
    try:
        return _read(path)
    except OSError:
        return ""


def _read(path: str | os.PathLike[str]) -> str:
    fd = posix.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: posix.read(fd, 65536), b"")).decode("ascii")
    finally:
        os.close(fd)


def _ask() -> frozenset[New]:
    """Have children make the calls; one that ends before its last call is followed by another."""
    left = list(New)
    permitted: set[New] = set()
    while left:
        lived = _count_lived_through([_calls[call] for call in left])
        permitted |= set(left[:lived])
        left = left[lived + 1 :]
    return frozenset(permitted)


def _count_lived_through(calls: Sequence[Callable[[], object]]) -> int:
    """Return how many of the calls a child has made before it ended."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        with warnings.catch_warnings():
            # (That threads may hold locks: none of theirs is needed in the child.)
            warnings.simplefilter("ignore")
            child = os.fork()
    except BaseException:
        os.close(reading)
        os.close(writing)
        raise
    if child == 0:
        try:
            for call in calls:
                call()
                posix.write(writing, b".")
        finally:
            os._exit(0)
    os.close(writing)
    try:
        return _count_until_end(reading, child)
    finally:
        os.close(reading)
        # Somebody else may wait for all children there are.
        with contextlib.suppress(ChildProcessError):
            posix.waitpid(child, 0)


def _count_until_end(reading: int, child: int) -> int:
    ready = select.poll()
    ready.register(reading, select.POLLIN)
    deadline = time.monotonic() + PATIENCE_S
    lived = 0
    while (left := deadline - time.monotonic()) > 0:
        if ready.poll(left * 1000):
            told = posix.read(reading, len(New))
            if not told:
                return lived
            lived += len(told)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return lived


def _make(number: int, *arguments: Any) -> None:
    _libc.syscall(ctypes.c_long(number), *arguments)


def _make_statx() -> None:
    if hasattr(_libc, "statx"):
        _libc.statx(-1, b"", abi.AT_EMPTY_PATH, 0, None)


def _make_io_uring() -> None:
    nothing, none = ctypes.c_long(0), ctypes.c_long(-1)
    _make(Call.IO_URING_SETUP, nothing, None)
    _make(Call.IO_URING_ENTER, none, nothing, nothing, nothing, None, nothing)
    _make(Call.IO_URING_REGISTER, none, nothing, None, nothing)


_calls: dict[New, Callable[[], object]] = {
    New.STATX: _make_statx,
    New.OPENAT2: lambda: _make(abi.OPENAT2_NUMBER, ctypes.c_long(-1), b"", None, ctypes.c_long(0)),
    New.CACHESTAT: lambda: _make(
        abi.CACHESTAT_NUMBER, ctypes.c_long(-1), None, None, ctypes.c_long(0)
    ),
    New.IO_URING: _make_io_uring,
}
