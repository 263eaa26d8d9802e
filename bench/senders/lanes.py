"""What senders are given: one connection and a size for the buffer, and what they count on it."""

import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO

SendFile = Callable[[IO[bytes], int], None]
"""``send(file, size)`` sends so many bytes from the file's start."""
AwaitFile = Callable[[IO[bytes], int], Awaitable[int]]
"""``await send(file, size)`` returns how many bytes from the file's start the socket has."""


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

    def read(self, asked: int, got: int) -> None:
        """Count what left a file."""
        if got < asked:
            self.short_reads += 1
            self.short_read_bytes += got

    def wrote(self, asked: int, got: int) -> None:
        """Count what a socket took."""
        if got < asked:
            self.short_writes += 1
            self.short_write_bytes += got

    def clear(self) -> None:
        """Begin anew."""
        for name in self.__slots__:
            setattr(self, name, 0)


def told(several: Iterable[Counts], *, shortness: bool = True) -> dict[str, float]:
    """Give the counts of all together, as metrics."""
    total = Counts()
    for counts in several:
        for name in Counts.__slots__:
            setattr(total, name, getattr(total, name) + getattr(counts, name))
    found: dict[str, float] = {"calls": total.calls}
    if shortness:
        found |= {"short reads": total.short_reads, "short writes": total.short_writes}
    if total.short_reads:
        found["mean short read"] = total.short_read_bytes / total.short_reads
    if total.short_writes:
        found["mean short write"] = total.short_write_bytes / total.short_writes
    return found


@dataclass(slots=True)
class Lane:
    """One connection."""

    sock: socket.socket
    stack: ExitStack
    """Closes what a sender opens for the connection."""
    buffer: int = 65536
    """Bytes that one call is to move."""
    counts: Counts = field(default_factory=Counts)
    finish: Callable[[], Awaitable[dict[str, int]]] | None = None
    """Waits until files may be overwritten, for a sender that can tell; gives its counts."""


class CountingSocket(socket.socket):
    """A copy of a lane's socket for a loop that sends by its methods, which are counted."""

    def __init__(self, lane: Lane) -> None:
        super().__init__(fileno=lane.sock.dup().detach())
        self.setblocking(False)
        self._counts = lane.counts
        lane.stack.enter_context(self)

    def send(self, data, *flags):  # type: ignore[no-untyped-def]  # as the base class's
        self._counts.calls += 1
        asked, got = memoryview(data).nbytes, super().send(data, *flags)
        self._counts.wrote(asked, got)
        return got

    def sendmsg(self, buffers, *rest):  # type: ignore[no-untyped-def]
        self._counts.calls += 1
        several = list(buffers)  # asyncio gives an iterator
        asked = sum(memoryview(data).nbytes for data in several)
        got = super().sendmsg(several, *rest)
        self._counts.wrote(asked, got)
        return got
