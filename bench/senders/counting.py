"""How many system calls a sender makes that is awaited, and which of them were short."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import aiozc
from bench.senders.lanes import Counts
from bench.senders.table import Sender

_IO: Final = Path("/proc/self/io")
"""What a process reads and writes; not there where the kernel keeps no such account."""
_MOVERS: Final[dict[str, Callable[[Counts, Any, int], None]]] = {
    "sendfile": lambda counts, asked, moved: counts.wrote(asked[3], moved),
    "write": lambda counts, asked, moved: counts.wrote(len(asked[1]), moved),
    "preadv": lambda counts, asked, moved: counts.read(len(asked[1][0]), moved),
    "splice": lambda *_: None,  # the reactor's steps, which it counts
}
"""The calls by which asyncio and aiozc move bytes, and how to tell that one was short."""


def possible(sender: Sender) -> bool:
    """Whether the calls of a sender can be counted here."""
    return sender.shortness or _IO.exists()


@contextmanager
def calls(sender: Sender) -> Iterator[Counts]:
    """Count calls: those of `os` that move bytes, a ring's, and what a loop writes by itself."""
    counts = Counts()
    originals = {name: getattr(os, name) for name in _MOVERS}
    for name, original in originals.items():
        setattr(os, name, _counting(counts, original, _MOVERS[name]))
    writes = 0 if sender.shortness else _writes()
    try:
        if sender.backend is None:
            yield counts
        else:
            with _counted_by_reactor(counts, ring=sender.backend == "io_uring"):
                yield counts
    finally:
        for name, original in originals.items():
            setattr(os, name, original)
        counts.calls += 0 if sender.shortness else _writes() - writes


def _counting(
    counts: Counts, original: Callable[..., int], note: Callable[[Counts, Any, int], None]
) -> Callable[..., int]:
    def call(*arguments: Any, **more: Any) -> int:
        counts.calls += 1
        moved = original(*arguments, **more)
        note(counts, arguments, moved)
        return moved

    return call


@contextmanager
def _counted_by_reactor(counts: Counts, *, ring: bool) -> Iterator[None]:
    """Take what aiozc's reactor counts; where it has no ring, its calls are those of `os`.

    Its copies of small files are two calls that are not those of `os`: preadv2(2) and send(2).
    """
    reactor = aiozc.get_reactor()
    before, at_once = reactor.statistics(), reactor.at_once
    copy = at_once._copy

    def counting(sock: int, file: int, offset: int, length: int) -> int:
        moved = copy(sock, file, offset, length)
        counts.calls += 1 if moved == -errno.ENODATA else 2
        if moved > 0:
            counts.wrote(length, moved)
        return moved

    at_once._copy = counting
    yield
    at_once._copy = copy
    after = reactor.statistics()
    if ring:
        counts.calls += after.submissions - before.submissions
    for name in Counts.__slots__[1:]:
        more = getattr(after, name) - getattr(before, name)
        setattr(counts, name, getattr(counts, name) + more)


def _writes() -> int:
    """Give how often this process has called write(2) or writev(2), by the kernel's own count."""
    lines = _IO.read_text().splitlines() if _IO.exists() else ["syscw: 0"]
    return next(int(line.split()[1]) for line in lines if line.startswith("syscw"))
