"""What senders are given, one connection each, and what is counted of the calls that they make.

Calls are counted in a turn that is not timed: what counts them takes longer than many of them.
"""

import errno
import os
import posix
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Final
from unittest.mock import patch

import aiozc
from bench.contenders import Contender

SendFile = Callable[[IO[bytes], int], Awaitable[int]]
"""``await send(file, size)`` returns how many bytes from the file's start the socket has."""


@dataclass(slots=True)
class Lane:
    """One connection."""

    sock: socket.socket
    stack: ExitStack
    """Closes what a sender opens for the connection."""
    buffer: int = 65536
    """Bytes that one call is to move."""
    finish: Callable[[], Awaitable[dict[str, int]]] | None = None
    """Waits until files may be overwritten, for a sender that can tell; gives its counts."""


def opened(path: str, stack: ExitStack) -> IO[bytes]:
    """Open a file to send, until the stack ends."""
    return stack.enter_context(Path(path).open("rb"))


@dataclass(slots=True)
class Counts:
    """System calls that move bytes, or submit SQEs that do, and those that moved less than asked.

    A call that fails, for there is no room, counts as a call.
    """

    calls: int = 0
    short_reads: int = 0
    short_read_bytes: int = 0
    short_writes: int = 0
    short_write_bytes: int = 0

    def read(self, asked: int, got: int) -> int:
        """Count what left a file, or an error's negative number; give it."""
        if 0 < got < asked:
            self.short_reads += 1
            self.short_read_bytes += got
        return got

    def wrote(self, asked: int, got: int) -> int:
        """Count what a socket took, or an error's negative number; give it."""
        if 0 < got < asked:
            self.short_writes += 1
            self.short_write_bytes += got
        return got

    def told(self, moved: int, *, shortness: bool = True) -> dict[str, float]:
        """Give them as metrics, with what a call moved on average."""
        found: dict[str, float] = {"calls": self.calls}
        if self.calls:
            found["bytes per call"] = moved / self.calls
        if shortness:
            found |= {"short reads": self.short_reads, "short writes": self.short_writes}
        if self.short_reads:
            found["mean short read"] = self.short_read_bytes / self.short_reads
        if self.short_writes:
            found["mean short write"] = self.short_write_bytes / self.short_writes
        return found


COUNTS: Final = Counts()
"""Those of this process: senders count here what is not a function of `os` or of a socket."""
_OF_OS: Final[dict[str, Callable[..., Any]]] = {
    "sendfile": lambda moved, _, __, ___, count: COUNTS.wrote(count, moved),
    "write": lambda moved, _, data: COUNTS.wrote(len(data), moved),
    "preadv": lambda moved, _, buffers, *__: COUNTS.read(len(buffers[0]), moved),
    "splice": lambda moved, _, __, count, **more: _of(more)(count, moved),
}
_OF_SOCKETS: Final[dict[str, Callable[..., Any]]] = {
    "send": lambda moved, _, data, *__: COUNTS.wrote(memoryview(data).nbytes, moved),
    "sendmsg": lambda moved, _, several, *__: COUNTS.wrote(
        sum(memoryview(data).nbytes for data in several), moved
    ),
}
"""What moves bytes, and how to tell by what came of it and what was asked that it was short."""
_IO: Final = Path("/proc/self/io")
"""What a process reads and writes; not there where the kernel keeps no such account."""


def _of(more: dict[str, Any]) -> Callable[[int, int], int]:
    """Tell by its arguments whether a splice reads a file, or writes to a socket."""
    return COUNTS.read if "offset_src" in more else COUNTS.wrote


@contextmanager
def counted(contender: Contender) -> Iterator[Callable[[int], dict[str, float]]]:
    """Count the calls of a block; what it gives tells them, of so many bytes that they moved."""
    for each in fields(Counts):
        setattr(COUNTS, each.name, 0)
    known, writes = not contender.own_calls or _IO.exists(), _writes(contender)
    with ExitStack() as stack:
        for of, notes in ((os, _OF_OS), (posix, _OF_OS), (socket.socket, _OF_SOCKETS)):
            for name, note in notes.items():
                steps = name == "splice" and contender.backend  # which the reactor counts
                counting = _counting(getattr(of, name), None if steps else note)
                stack.enter_context(patch.object(of, name, counting))
        if contender.backend is not None:
            stack.enter_context(_counted_by_reactor(ring=contender.backend == "io_uring"))
        yield lambda moved: COUNTS.told(moved, shortness=not contender.own_calls) if known else {}
    COUNTS.calls += _writes(contender) - writes


def _counting(original: Callable[..., int], note: Callable[..., Any] | None) -> Callable[..., int]:
    def call(*arguments: Any, **more: Any) -> int:
        COUNTS.calls += 1
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
    before, at_once = reactor.statistics(), reactor.at_once
    copy = at_once._copy

    def counting(sock: int, file: int, offset: int, length: int) -> int:
        moved = copy(sock, file, offset, length)
        COUNTS.calls += 1 if moved == -errno.ENODATA else 2
        return COUNTS.wrote(length, moved) if moved else moved

    with patch.object(at_once, "_copy", counting):
        yield
    after = reactor.statistics()
    if ring:
        COUNTS.calls += after.submissions - before.submissions
    for each in fields(Counts)[1:]:
        more = getattr(after, each.name) - getattr(before, each.name)
        setattr(COUNTS, each.name, getattr(COUNTS, each.name) + more)


def _writes(contender: Contender) -> int:
    """Give how often a loop that makes its own calls has called write(2) or writev(2)."""
    lines = _IO.read_text().splitlines() if contender.own_calls and _IO.exists() else ["syscw: 0"]
    return next(int(line.split()[1]) for line in lines if line.startswith("syscw"))
