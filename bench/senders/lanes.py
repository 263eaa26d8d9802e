"""What senders are given, one connection each, and what is counted of the calls that they make.

Calls are counted in a turn that is not timed: what counts them takes longer than many of them.
"""

import errno
import os
import posix
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final
from unittest.mock import patch

import aiozc
from bench.contenders import Contender

SendFile = Callable[[IO[bytes], int], Awaitable[int]]
"""``await send(file, size)`` returns how many bytes from the file's start the socket has."""


async def _nothing() -> dict[str, int]:
    return {}


@dataclass(slots=True)
class Lane:
    """One connection."""

    sock: socket.socket
    stack: ExitStack
    """Closes what a sender opens for the connection."""
    buffer: int = 65536
    """Bytes that one call is to move."""
    finish: Callable[[], Awaitable[dict[str, int]]] = _nothing
    """Waits until files may be overwritten, for a sender that can tell; gives its counts."""


def opened(path: str, stack: ExitStack) -> IO[bytes]:
    """Open a file to send, until the stack ends."""
    return stack.enter_context(Path(path).open("rb"))


COUNTS: Final = Counter[str]()
"""System calls that move bytes, or submit SQEs that do, and those that moved less than asked.

A call that fails, for there is no room, counts as a call. Senders count here what is not a function
of `os` or of a socket.
"""


def _moved(how: str, asked: int, got: int) -> int:
    if 0 < got < asked:
        COUNTS[f"short_{how}s"] += 1
        COUNTS[f"short_{how}_bytes"] += got
    return got


read: Final = partial(_moved, "read")
"""``read(asked, got)`` counts what left a file, or an error's negative number; gives it."""
wrote: Final = partial(_moved, "write")
"""``wrote(asked, got)`` counts what a socket took."""


def _told(moved: int, *, shortness: bool) -> dict[str, float]:
    """Give the counts as metrics, with what a call moved on average."""
    found: dict[str, float] = {"calls": COUNTS["calls"]}
    if COUNTS["calls"]:
        found["bytes per call"] = moved / COUNTS["calls"]
    for how in ("read", "write") if shortness else ():
        found[f"short {how}s"] = short = COUNTS[f"short_{how}s"]
        if short:
            found[f"mean short {how}"] = COUNTS[f"short_{how}_bytes"] / short
    return found


_OF_OS: Final[dict[str, Callable[..., Any]]] = {
    "sendfile": lambda moved, _, __, ___, count: wrote(count, moved),
    "write": lambda moved, _, data: wrote(len(data), moved),
    "preadv": lambda moved, _, buffers, *__: read(len(buffers[0]), moved),
    "splice": lambda moved, _, __, count, **more: (read if more else wrote)(count, moved),
}
_OF_SOCKETS: Final[dict[str, Callable[..., Any]]] = {
    "send": lambda moved, _, data, *__: wrote(memoryview(data).nbytes, moved),
    "sendmsg": lambda moved, _, several, *__: wrote(
        sum(memoryview(data).nbytes for data in several), moved
    ),
}
"""What moves bytes, and how to tell by what came of it and what was asked that it was short.

A splice that is told an offset reads a file.
"""
_IO: Final = Path("/proc/self/io")
"""What a process reads and writes; not there where the kernel keeps no such account."""


@contextmanager
def counted(contender: Contender) -> Iterator[Callable[[int], dict[str, float]]]:
    """Count the calls of a block; what it gives tells them, of so many bytes that they moved."""
    COUNTS.clear()
    known, writes = not contender.own_calls or _IO.exists(), _writes(contender)
    with ExitStack() as stack:
        for of, notes in ((os, _OF_OS), (posix, _OF_OS), (socket.socket, _OF_SOCKETS)):
            for name, note in notes.items():
                steps = name == "splice" and contender.backend  # which the reactor counts
                counting = _counting(getattr(of, name), None if steps else note)
                stack.enter_context(patch.object(of, name, counting))
        if contender.backend is not None:
            stack.enter_context(_counted_by_reactor(ring=contender.backend == "io_uring"))
        yield lambda moved: _told(moved, shortness=not contender.own_calls) if known else {}
    COUNTS["calls"] += _writes(contender) - writes


def _counting(original: Callable[..., int], note: Callable[..., Any] | None) -> Callable[..., int]:
    def call(*arguments: Any, **more: Any) -> int:
        COUNTS["calls"] += 1
        # asyncio gives an iterator of buffers.
        told = [list(each) if isinstance(each, Iterator) else each for each in arguments]
        moved = original(*told, **more)
        if note is not None:
            note(moved, *told, **more)
        return moved

    return call


@contextmanager
def _counted_by_reactor(*, ring: bool) -> Iterator[None]:
    """Take what aiozc's reactor counts; where it has no ring, its calls are those of `os`.

    Its copies of small files are two calls that are not those of `os`: preadv2(2) and send(2).
    """
    reactor = aiozc.get_reactor()
    before, inline = reactor.statistics(), reactor._engine.inline
    copy = inline._copy

    def counting(sock: int, file: int, offset: int, length: int) -> int:
        moved = copy(sock, file, offset, length)
        COUNTS["calls"] += 1 if moved == -errno.ENODATA else 2
        return wrote(length, moved) if moved else moved

    with patch.object(inline, "_copy", counting):
        yield
    after = reactor.statistics()
    if ring:
        COUNTS["calls"] += after.submissions - before.submissions
    for name in ("short_reads", "short_read_bytes", "short_writes", "short_write_bytes"):
        COUNTS[name] += getattr(after, name) - getattr(before, name)


def _writes(contender: Contender) -> int:
    """Give how often a loop that makes its own calls has called write(2) or writev(2)."""
    lines = _IO.read_text().splitlines() if contender.own_calls and _IO.exists() else ["syscw: 0"]
    return next(int(line.split()[1]) for line in lines if line.startswith("syscw"))
