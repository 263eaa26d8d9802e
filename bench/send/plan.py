"""What a run does: sweeps, each of some senders over some points."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.send.table import SENDERS, sender_named
from bench.units import KIB, MIB, show_size

BUFFER: Final = 64 * KIB


@dataclass(frozen=True, slots=True)
class Point:
    """One thing that senders do in turns."""

    size: int
    times: int
    """How often each connection sends a file, one after another."""
    connections: int = 1
    buffer: int = BUFFER

    @property
    def title(self) -> str:
        """What tables call it."""
        files = f"{self.times} x " if self.times > 1 else ""
        over = f", {self.connections} connections" if self.connections > 1 else ""
        return f"{files}{show_size(self.size)}{over}, buffer {show_size(self.buffer)}"


@dataclass(frozen=True, slots=True)
class Sweep:
    """Points, and who takes turns at them."""

    name: str
    title: str
    senders: Sequence[str]
    points: Sequence[Point]

    def takes_part(self, name: str, point: Point, baseline: str) -> bool:
        """Whether a sender has a turn: one that has no buffer only at the first size of it.

        The baseline always has one, for the ratios to it.
        """
        if name == baseline or sender_named(name).buffered:
            return True
        return point.buffer == self.points[0].buffer


def standard(*, quick: bool) -> list[Sweep]:
    """Give the sweeps of a run that asks for nothing else."""
    everybody = [sender.name for sender in SENDERS]
    if quick:
        sizes, turn, large = [4 * KIB, 64 * KIB, MIB], 4 * MIB, 8 * MIB
        buffers, pieces = [2 * KIB, 8 * KIB, 32 * KIB], [4 * KIB, 64 * KIB]
    else:
        sizes = [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 16 * MIB, 128 * MIB]
        turn, large = 128 * MIB, 128 * MIB
        buffers = [2 * KIB, 4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB]
        pieces = [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB]
    return [
        Sweep(
            "sizes",
            "Every sender, over the size of the file",
            everybody,
            [Point(size, _times(size, turn)) for size in sizes],
        ),
        Sweep(
            "buffers",
            "The plain system calls, over the bytes that one call moves",
            ["read+write", "mmap+write", "splice", "sendfile"],
            [Point(large, 1, buffer=buffer) for buffer in buffers],
        ),
        Sweep(
            "linked",
            "io_uring's SQEs one at a time and linked, over the bytes that one SQE moves",
            [
                "read+write",
                "io_uring",
                "io_uring linked",
                "io_uring splice",
                "io_uring splice linked",
            ],
            [Point(large, 1, buffer=buffer) for buffer in pieces],
        ),
    ]


def _times(size: int, turn: int) -> int:
    return max(1, min(1000, turn // size))


def own(
    sizes: Sequence[int],
    times: Sequence[int] | None,
    connections: Sequence[int],
    buffers: Sequence[int],
) -> Sweep:
    """Give the sweep over all that was asked for, each with each."""
    points = [
        Point(size, time, connection, buffer)
        for size, connection, buffer in itertools.product(sizes, connections, buffers)
        for time in times or [_times(size, 16 * MIB)]
    ]
    return Sweep("own", "What was asked for", [sender.name for sender in SENDERS], points)
