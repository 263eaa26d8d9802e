"""The ends that transfers move bytes between: files, sockets and pipes."""

import io
import itertools
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tests.kit.connections import socket_pair
from tests.kit.content import KIB, assert_same, pattern
from tests.kit.far_ends import FarEnd, Peer, Receiver
from tests.kit.waiting import until

FAMILIES = {"tcp": socket.AF_INET, "unix": socket.AF_UNIX}
STREAMS = ("tcp", "unix", "pipe")
BEFORE = 12_345  # bytes that stand in a file before those that are moved
OLD = pattern(BEFORE, 99)


@dataclass(frozen=True)
class Told:
    """What the outcome of a transfer says of the bytes: how many arrived, how many are lost."""

    transferred: int
    lost: int


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

    def __init__(
        self, far_end: FarEnd, folder: Path, stack: ExitStack, numbers: Iterator[int] | None = None
    ) -> None:
        self._far_end = far_end
        self._folder = folder
        self._stack = stack
        self._numbers = numbers or itertools.count(1)  # of files

    @contextmanager
    def apart(self) -> Iterator["Ends"]:
        """Make ends that are closed before the others are."""
        with ExitStack() as stack:
            yield Ends(self._far_end, self._folder, stack, self._numbers)

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
        path = self._folder / f"end-{next(self._numbers)}"
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
