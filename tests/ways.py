"""The transfers, and the ends that they move bytes between.

A body that is written for a way, a source and a target tests each transfer function of the
library over each pair of ends that it is for.
"""

import asyncio
import functools
import inspect
import io
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import aiozc

from .support import KIB, FarEnd, Peer, Receiver, assert_same, case, pattern, socket_pair, until

FAMILIES = {"tcp": socket.AF_INET, "unix": socket.AF_UNIX}
STREAMS = ("tcp", "unix", "pipe")
BEFORE = 12_345  # bytes that stand in a file before those that are moved
OLD = pattern(BEFORE, 99)


# Files into sockets: the ways that are called as `loop.sock_sendfile` is


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


# Ways


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


Test = Callable[..., Coroutine[Any, Any, None]]


def of_ways(ways: list[Way]) -> Callable[[Test], Test]:
    """Run the test by each way, those of one function one after the other on one loop."""
    return of_groups([(way, {"way": way}) for way in ways])


def of_groups(cases: list[tuple[Way, dict[str, Any]]]) -> Callable[[Test], Test]:
    """Run the test with the arguments of each case, those of one function in one test."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for way, arguments in cases:
        groups.setdefault(way.function, []).append(arguments)

    def decorate(body: Test) -> Test:
        async def test(group: list[dict[str, Any]], ends: Ends, **others: Any) -> None:
            for arguments in group:
                with case(**arguments), ends.apart() as own:
                    await body(**arguments, **others, ends=own)

        signature = inspect.signature(body)
        kept = [one for name, one in signature.parameters.items() if name not in cases[0][1]]
        group = inspect.Parameter("group", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        functools.update_wrapper(test, body)
        test.__signature__ = signature.replace(parameters=[group, *kept])  # type: ignore[attr-defined]
        grouped: Test = pytest.mark.parametrize("group", groups.values(), ids=groups)(test)
        return grouped

    return decorate


@dataclass(frozen=True)
class Told:
    """What the outcome of a transfer says of the bytes: how many arrived, how many are lost."""

    transferred: int
    lost: int


def told(way: Way, outcome: object, source: "Source") -> Told:
    """Return what an outcome says; a file's position must say the same."""
    if isinstance(outcome, int):
        return Told(outcome, 0)
    assert isinstance(outcome, OSError | asyncio.CancelledError | RuntimeError), repr(outcome)
    transferred, lost = outcome.transferred, outcome.lost  # type: ignore[union-attr]
    if way.function == "loop_sendfile":
        assert transferred == source.moved
    if way.function == "relay":
        assert transferred[1] == lost[1] == 0
        transferred, lost = transferred[0], lost[0]
    assert type(transferred) is type(lost) is int
    return Told(transferred, lost)


# Ends


class Source(ABC):
    """An end that a transfer reads, with `content` behind it."""

    def __init__(self, end: Any, content: bytes) -> None:
        self.end = end
        self.content = content

    @property
    @abstractmethod
    def moved(self) -> int:
        """How many bytes have left it, as far as can be seen."""

    @abstractmethod
    def allow(self, limit: int | None) -> None:
        """Let it give up to `limit` bytes in all, or all."""

    @abstractmethod
    async def rest(self) -> bytes:
        """Have it give all it has, and end; return what the transfer has left of it."""

    @abstractmethod
    async def check_left(self, told: Told) -> None:
        """Check that all the bytes are accounted for: behind those that it is said to have
        given stand the others.
        """


class FileSource(Source):
    """A file that stands at BEFORE."""

    def __init__(self, file: BinaryIO, content: bytes) -> None:
        super().__init__(file, content)
        self.file = file

    @property
    def moved(self) -> int:
        return os.lseek(self.file.fileno(), 0, os.SEEK_CUR) - BEFORE

    def allow(self, limit: int | None) -> None:
        """A file gives what is asked for."""

    async def rest(self) -> bytes:
        return self.file.read()

    async def check_left(self, told: Told) -> None:
        """A file's position says what the target got: nothing of it can be lost."""
        assert told.lost == 0
        assert self.file.tell() == BEFORE + told.transferred
        assert_same(await self.rest(), self.content[told.transferred :])


class StreamSource(Source):
    """A socket or a pipe, fed by a far end."""

    def __init__(
        self, owner: socket.socket | BinaryIO, content: bytes, peer: Peer, far_end: FarEnd
    ) -> None:
        super().__init__(owner, content)
        self.owner = owner
        self.peer = peer
        self._far_end = far_end

    @property
    def moved(self) -> int:
        raise NotImplementedError("a stream does not tell")

    def allow(self, limit: int | None) -> None:
        self.peer.allow_sending(limit)

    async def rest(self) -> bytes:
        self.peer.send(b"", end=True)
        left: Any = self.owner
        return await self._far_end.receive(left).wait_end()

    async def check_left(self, told: Told) -> None:
        fed = self.peer.finish()
        rest = await self.rest()
        assert told.transferred + told.lost + len(rest) == fed
        assert_same(rest, self.content[told.transferred + told.lost : fed])


class Target(ABC):
    """An end that a transfer writes into."""

    def __init__(self, end: Any) -> None:
        self.end = end

    @property
    @abstractmethod
    def count(self) -> int:
        """How many bytes have arrived."""

    @abstractmethod
    def allow(self, limit: int | None) -> None:
        """Let up to `limit` bytes arrive in all, or all."""

    @abstractmethod
    async def wait_arrived(self, count: int) -> None:
        """Wait until that many bytes have arrived."""

    @abstractmethod
    async def check(self, *moved: bytes) -> None:
        """End it, and check that this has arrived, and nothing else."""


def content_of(file: BinaryIO) -> bytes:
    """Return what the file on the disk holds, whatever has become of the object."""
    return Path(file.name).read_bytes()


class FileTarget(Target):
    """A file that holds OLD and stands at its end."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.file = file

    @property
    def count(self) -> int:
        return os.stat(self.file.name).st_size - BEFORE

    def allow(self, limit: int | None) -> None:
        """A file takes what comes."""

    async def wait_arrived(self, count: int) -> None:
        await until(lambda: self.count >= count)

    async def check(self, *moved: bytes) -> None:
        if not self.file.closed:
            assert self.file.tell() == BEFORE + sum(map(len, moved))
        assert_same(content_of(self.file), OLD, *moved)


class StreamTarget(Target):
    """A socket or a pipe with a far end that receives."""

    def __init__(self, owner: socket.socket | BinaryIO, receiver: Receiver) -> None:
        super().__init__(owner)
        self.owner = owner
        self.receiver = receiver

    @property
    def count(self) -> int:
        return self.receiver.count

    def allow(self, limit: int | None) -> None:
        self.receiver.allow(limit)

    async def wait_arrived(self, count: int) -> None:
        await self.receiver.wait_arrived(count)

    async def check(self, *moved: bytes) -> None:
        self.owner.close()
        assert_same(await self.receiver.wait_end(), *moved)


class Ends:
    """Makes ends of each kind, and closes them."""

    def __init__(self, far_end: FarEnd, folder: Path, stack: ExitStack) -> None:
        self._far_end = far_end
        self._folder = folder
        self._stack = stack
        self._files = 0

    @contextmanager
    def apart(self) -> Iterator["Ends"]:
        """Make ends that are closed before the others are."""
        with ExitStack() as stack:
            yield Ends(self._far_end, self._folder, stack)

    def source(
        self,
        kind: str,
        content: bytes,
        *,
        limit: int | None = None,
        end: bool = True,
        piece: int = 256 * KIB,
        small: bool = False,
    ) -> Source:
        """Make an end to read: `limit` bytes of `content` can be had, in pieces, of a stream.

        `end`: the stream ends behind the content. `small`: its buffers are.
        """
        if kind == "file":
            return FileSource(self.file(OLD + content, "rb", at=BEFORE), content)
        buffer = 64 * KIB if small else None
        far: Any
        near: Any
        if kind == "pipe":
            near, far = make_pipe()
        else:
            far, near = socket_pair(FAMILIES[kind], sndbuf=buffer, rcvbuf=buffer)
        peer = self._far_end.peer(far, limit=0)
        peer.send(content, limit=limit, end=end, piece=piece)
        return StreamSource(self._stack.enter_context(near), content, peer, self._far_end)

    def target(self, kind: str, *, limit: int | None = None, small: bool = False) -> Target:
        """Make an end to write into, whose far end reads no more than `limit` bytes.

        It reads on when that is allowed.
        """
        if kind == "file":
            return FileTarget(self.file(OLD, "r+b", at=BEFORE))
        buffer = 64 * KIB if small else None
        far: Any
        near: Any
        if kind == "pipe":
            far, near = make_pipe()
            self._stack.enter_context(near)
            return StreamTarget(near, self._far_end.receive(far, limit=limit))
        near, far = socket_pair(FAMILIES[kind], sndbuf=buffer, rcvbuf=buffer)
        peer = self._far_end.peer(far, limit=limit)
        peer.send(b"", end=True)
        return StreamTarget(self._stack.enter_context(near), peer)

    def file(self, content: bytes, mode: str, *, at: int = 0, buffering: int = -1) -> BinaryIO:
        """Make a file with that content, open in that mode, at that position."""
        self._files += 1
        path = self._folder / f"end-{self._files}"
        path.write_bytes(content)
        file: Any = open(path, mode, buffering)  # noqa: SIM115 - closed by the stack
        self._stack.enter_context(file)
        self._stack.callback(path.unlink, missing_ok=True)
        file.seek(at)
        return file  # type: ignore[no-any-return]

    def receiver(self, reading: int) -> Receiver:
        """Receive by the end of a pipe."""
        return self._far_end.receive(io.FileIO(reading))

    def pipe(self) -> tuple[BinaryIO, BinaryIO]:
        """Make a pipe: its end to read from and its end to write into, both non-blocking."""
        ends = make_pipe()
        for end in ends:
            self._stack.enter_context(end)
        return ends


def make_pipe() -> tuple[BinaryIO, BinaryIO]:
    """Make a pipe that its user closes."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    ends: Any = io.FileIO(reading), io.FileIO(writing, "w")
    return ends  # type: ignore[no-any-return]


# A transfer that cannot go on


SEEN = 200_000  # bytes that have arrived
SIZE = 4 * 1024 * KIB
CONTENT = pattern(SIZE)
Stalled = str  # "source": it gives no more; "target": it takes no more
STUCK = [
    *((way, "source") for way in WAYS if way.source in STREAMS),
    *((way, "target") for way in WAYS if way.target in STREAMS),
]


def of_stuck(
    chosen: Callable[[Way, Stalled], bool] = lambda *_: True,
) -> Callable[[Test], Test]:
    """Run the test by each way whose source, or whose target, stalls."""
    cases = [one for one in STUCK if chosen(*one)]
    return of_groups([(way, {"way": way, "stalled": stalled}) for way, stalled in cases])


@dataclass
class Stuck:
    """A transfer that is far from its end and cannot go on, since one side has stalled."""

    way: Way
    source: Source
    target: Target
    task: "asyncio.Task[int]"

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
    task = asyncio.create_task(way.move(source.end, target.end))
    await until(lambda: target.count >= SEEN or task.done())
    assert not task.done(), task
    return Stuck(way, source, target, task)
