"""What senders are given: one connection and a size for the buffer, and what they count on it."""

import socket
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field


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

    def add(self, other: "Counts") -> None:
        """Add those of another connection."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)

    def clear(self) -> None:
        """Begin anew."""
        for name in asdict(self):
            setattr(self, name, 0)


@dataclass(slots=True)
class Lane:
    """One connection."""

    sock: socket.socket
    buffer: int
    """Bytes that one call is to move."""
    stack: ExitStack
    """Closes what a sender opens for the connection."""
    counts: Counts = field(default_factory=Counts)


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
