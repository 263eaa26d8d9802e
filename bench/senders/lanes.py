"""What senders are given: one connection and a size for the buffer, and what they count on it."""

import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO

SendFile = Callable[[IO[bytes], int], None]
"""``send(file, size)`` sends so many bytes from the file's start."""
AwaitFile = Callable[[IO[bytes], int], Awaitable[int]]
"""``await send(file, size)`` returns how many bytes from the file's start the socket has."""


class Counts(Counter[str]):
    """System calls that move bytes, or submit SQEs that do, and those that moved less than asked.

    A call that fails, for there is no room, counts as a call.
    """

    def moved(self, how: str, asked: int, got: int) -> None:
        """Count what left a file ("read"), or what a socket took ("write")."""
        if got < asked:
            self[f"short_{how}s"] += 1
            self[f"short_{how}_bytes"] += got


def told(several: Iterable[Counts], *, shortness: bool = True) -> dict[str, float]:
    """Give the counts of all together, as metrics."""
    total: Counter[str] = sum(several, Counter())
    found: dict[str, float] = {"calls": total["calls"]}
    for how in ("read", "write") if shortness else ():
        found[f"short {how}s"] = total[f"short_{how}s"]
        if total[f"short_{how}s"]:
            found[f"mean short {how}"] = total[f"short_{how}_bytes"] / total[f"short_{how}s"]
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
        self._counts["calls"] += 1
        asked, got = memoryview(data).nbytes, super().send(data, *flags)
        self._counts.moved("write", asked, got)
        return got

    def sendmsg(self, buffers, *rest):  # type: ignore[no-untyped-def]
        self._counts["calls"] += 1
        several = list(buffers)  # asyncio gives an iterator
        asked = sum(memoryview(data).nbytes for data in several)
        got = super().sendmsg(several, *rest)
        self._counts.moved("write", asked, got)
        return got
