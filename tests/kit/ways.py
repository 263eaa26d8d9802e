"""The transfers, and the ends that they move bytes between.

A body that is written for a way, a source and a target tests each transfer function of the
library over each pair of ends that it is for.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

import aiozc
from tests.kit import tasks
from tests.kit.content import KIB, pattern
from tests.kit.ends import FAMILIES, STREAMS, Ends, Source, Target, Told
from tests.kit.folding import each
from tests.kit.tasks import Task
from tests.kit.waiting import until


async def splice_file(sock: Any, file: Any, offset: int = 0, count: int | None = None) -> int:
    """Do by `splice_pipe` what `loop_sendfile` does."""
    file.seek(offset)
    return await aiozc.splice_pipe(file, sock, count)


async def send_uncopied(sock: Any, file: Any, offset: int = 0, count: int | None = None) -> int:
    """Do by `sendfile_zc` what `loop_sendfile` does."""
    return (await aiozc.sendfile_zc(sock, file, offset, count)).sent


async def splice_upload(sock: Any, file: Any, offset: int = 0, count: int | None = None) -> int:
    """Do by `splice_pipe` what `loop_recvfile` does."""
    file.seek(offset)
    return await aiozc.splice_pipe(sock, file, count)


@dataclass(frozen=True)
class Way:
    """A transfer function, and the kinds of ends that it is to move bytes between."""

    function: str
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.function}-{self.source}-{self.target}"

    @property
    def has_count(self) -> bool:
        """Whether it can be told to end before the source does."""
        return self.function != "relay"

    async def move(self, source: Any, target: Any, count: int | None = None) -> int:
        """Move bytes from where the source stands to where the target stands."""
        match self.function:
            case "loop_sendfile":
                return await aiozc.loop_sendfile(target, source, source.tell(), count)
            case "loop_recvfile":
                return await aiozc.loop_recvfile(source, target, target.tell(), count)
            case "relay":
                assert count is None
                there, back = await aiozc.relay(source, target)
                assert back == 0
                return there
            case _:
                return await aiozc.splice_pipe(source, target, count)


WAYS = [
    *(Way("loop_sendfile", "file", kind) for kind in FAMILIES),
    *(Way("loop_recvfile", kind, "file") for kind in FAMILIES),
    *(Way("relay", *kinds) for kinds in (("tcp", "tcp"), ("unix", "unix"), ("tcp", "unix"))),
    *(
        Way("splice_pipe", source, target)
        for source in ("file", *STREAMS)
        for target in ("file", *STREAMS)
        if (source, target) != ("unix", "tcp")
    ),
]


def each_way(ways: list[Way]) -> pytest.MarkDecorator:
    """Run the test by each way; those of one function are folded."""
    return each("way", ways, group=lambda way: way.function)


def told(way: Way, outcome: object, source: "Source") -> Told:
    """Return what an outcome says; a file's position must say the same."""
    if isinstance(outcome, int):
        return Told(outcome, 0)
    assert isinstance(outcome, (OSError, RuntimeError, *tasks.CANCELLED)), repr(outcome)
    transferred, lost = outcome.transferred, outcome.lost  # type: ignore[union-attr]
    if way.function == "loop_sendfile":
        assert transferred == source.moved
    if way.function == "relay":
        assert transferred[1] == lost[1] == 0
        transferred, lost = transferred[0], lost[0]
    assert type(transferred) is type(lost) is int
    return Told(transferred, lost)


SEEN = 200_000  # bytes that have arrived
SIZE = 4 * 1024 * KIB
CONTENT = pattern(SIZE)
Stalled = str  # "source": it gives no more; "target": it takes no more
STUCK = [
    *((way, "source") for way in WAYS if way.source in STREAMS),
    *((way, "target") for way in WAYS if way.target in STREAMS),
]


def each_stuck(
    chosen: Callable[[Way, Stalled], bool] = lambda *_: True, *, together: bool = False
) -> pytest.MarkDecorator:
    """Run the test by each way whose source, or whose target, stalls.

    Those of one function are folded or, where they run `together`, all.
    """
    cases = {f"{way}-stalled_{side}": (way, side) for way, side in STUCK if chosen(way, side)}
    group = None if together else lambda way, _: way.function
    return each("way, stalled", cases, group=group, together=together)


@dataclass
class Stuck:
    """A transfer that is far from its end and cannot go on, since one side has stalled."""

    way: Way
    source: Source
    target: Target
    task: Task[int]

    def release(self) -> None:
        """Let it go on to its end."""
        self.source.allow(None)
        self.target.allow(None)

    async def check(self, outcome: object) -> Told:
        """Check that every byte is accounted for, after any outcome; return what it told."""
        said = told(self.way, outcome, self.source)
        await self.target.check(self.source.content[: said.transferred])
        await self.source.check_left(said)
        return said


async def get_stuck(
    ends: Ends, way: Way, stalled: Stalled, content: bytes = CONTENT, *, unread: bytes = b""
) -> Stuck:
    """Start a transfer, and wait until it cannot go on.

    `unread` is sent to the source's peer before, which does not read it.
    """
    source = ends.source(
        way.source, content, limit=SEEN if stalled == "source" else None, small=True
    )
    target = ends.target(way.target, limit=SEEN if stalled == "target" else None, small=True)
    if unread:
        source.end.send(unread)
    task = tasks.start(way.move(source.end, target.end))
    await until(lambda: target.count >= SEEN or task.done())
    assert not task.done(), task
    return Stuck(way, source, target, task)


class Send(Protocol):
    """Send a file, as `aiozc.loop_sendfile` does."""

    def __call__(
        self, sock: Any, file: Any, offset: int = ..., count: int | None = ..., /
    ) -> Coroutine[Any, Any, int]: ...


SENDS: dict[str, Send] = {
    "loop_sendfile": aiozc.loop_sendfile,
    "splice_pipe": splice_file,
    "sendfile_zc": send_uncopied,
}
