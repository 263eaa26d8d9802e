"""What arrives by a socket and is written straight into a file."""

import asyncio
import errno
import gzip
import io
import itertools
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import aiozc
from tests.kit.children import Child
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, assert_same, pattern
from tests.kit.ends import Ends, Source, StreamSource, Told, content_of
from tests.kit.far_ends import FarEnd
from tests.kit.faults.full_disk import FULL, in_full_place
from tests.kit.loops import LoopFactory, run_on
from tests.kit.tasks import outcome_of
from tests.kit.tls import Tls
from tests.kit.waiting import turns, until
from tests.kit.ways import splice_upload

pytestmark = pytest.mark.anyio

SMALL = 64 * KIB + 7
LARGE = 2 * MIB + 7
CONTENT = pattern(LARGE)
OLD = pattern(100_000, 1)

Receive = Callable[..., Coroutine[Any, Any, int]]


@pytest.fixture(params=["loop_recvfile", "splice_pipe"])
def receive(request: pytest.FixtureRequest) -> Receive:
    """Receive into a file by each function that can."""
    return splice_upload if request.param == "splice_pipe" else aiozc.loop_recvfile


@pytest.fixture
def kind(family: int) -> str:
    """Return the name of a source of that family."""
    return "tcp" if family == socket.AF_INET else "unix"


def written(old: bytes, offset: int, new: bytes) -> tuple[bytes, ...]:
    """Return what a file holds when `new` has been written into it."""
    hole = bytes(max(0, offset - len(old)))
    return old[:offset], hole, new, old[offset + len(new) :]


@pytest.mark.parametrize("buffering", [-1, 0], ids=["buffered", "raw"])
async def test_an_offset_and_a_count_choose_where_it_stands(
    buffering: int, kind: str, receive: Receive, ends: Ends
) -> None:
    """What the file holds around it stays, and what it does not hold yet is zero."""
    for offset, (size, count) in itertools.product(
        (0, 1, 4095, 4096, 99_999, 100_000, 100_001, 200_000),
        ((0, None), (1, None), (SMALL, None), (SMALL, 4097), (3 * SMALL, SMALL + 1)),
    ):
        content = CONTENT[:size]
        chosen = content if count is None else content[:count]
        source = ends.source(kind, content, end=count is None)
        file = ends.file(OLD, "r+b", at=1000, buffering=buffering)
        received = await receive(source.end, file, offset, count)
        assert received == len(chosen), (offset, size, count)
        assert file.tell() == offset + len(chosen)
        file.close()
        expected = written(OLD, offset, chosen) if chosen else (OLD,)
        assert_same(content_of(file), *expected)


@pytest.mark.parametrize("start", [(4 << 30) - MIB, (5 << 30) + 1])
async def test_bytes_are_written_beyond_4_gib(
    start: int, kind: str, receive: Receive, ends: Ends, tmp_path: Path
) -> None:
    source = ends.source(kind, CONTENT)
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        assert await receive(source.end, file, start) == LARGE
        assert file.tell() == start + LARGE
        assert os.fstat(file.fileno()).st_size == start + LARGE
        assert_same(os.pread(file.fileno(), LARGE + 1, start), CONTENT)


async def test_what_was_written_into_a_buffer_before_is_written_before(
    kind: str, receive: Receive, ends: Ends
) -> None:
    source = ends.source(kind, CONTENT)
    file = ends.file(b"", "wb")
    file.write(b"a header")
    assert await receive(source.end, file, 8) == LARGE
    assert file.write(b"a trailer") == 9
    file.close()
    assert_same(content_of(file), b"a header", CONTENT, b"a trailer")


async def test_what_was_read_into_a_buffer_before_is_not_read_again(
    kind: str, receive: Receive, ends: Ends
) -> None:
    for place in (0, 10, 5000):
        source = ends.source(kind, CONTENT[:SMALL])
        file = ends.file(OLD, "r+b")
        assert file.read(10) == OLD[:10]
        assert await receive(source.end, file, place) == SMALL
        assert file.read(10) == OLD[place + SMALL :][:10]
        file.seek(0)
        assert_same(file.read(), *written(OLD, place, CONTENT[:SMALL]))


@pytest.mark.parametrize("opening", ["temporary", "named", "memory file", "w+b", "xb"])
async def test_no_kind_of_regular_file_needs_the_fallback(
    opening: str, kind: str, ends: Ends, tmp_path: Path
) -> None:
    source = ends.source(kind, CONTENT)
    file: Any
    match opening:
        case "temporary":
            file = tempfile.TemporaryFile(dir=tmp_path)  # noqa: SIM115 - closed below
        case "named":
            file = tempfile.NamedTemporaryFile(dir=tmp_path)  # noqa: SIM115
        case "memory file":
            file = io.FileIO(os.memfd_create(opening), "w+")
        case _:
            file = (tmp_path / "new").open(opening)
    with file:
        assert await aiozc.loop_recvfile(source.end, file, fallback=False) == LARGE
        assert file.tell() == LARGE
        file.flush()
        path = f"/proc/self/fd/{file.fileno()}"
        assert_same(await asyncio.to_thread(Path(path).read_bytes), CONTENT)


async def test_a_file_deleted_in_mid_transfer_makes_no_difference(
    kind: str, receive: Receive, ends: Ends
) -> None:
    source = ends.source(kind, CONTENT, limit=SMALL)
    file = ends.file(b"", "w+b")
    task = asyncio.create_task(receive(source.end, file))
    await until(lambda: os.fstat(file.fileno()).st_size >= SMALL)
    os.unlink(file.name)
    source.allow(None)
    assert await task == LARGE
    assert_same(os.pread(file.fileno(), LARGE + 1, 0), CONTENT)


@pytest.mark.usefixtures("installed")
async def test_the_socket_of_a_transport_that_is_held_will_do(
    receive: Receive, ends: Ends, far_end: FarEnd
) -> None:
    near, far = socket_pair(socket.AF_UNIX)
    reader, writer = await asyncio.open_connection(sock=near)
    file = ends.file(b"", "wb")
    async with aiozc.lowlevel.exclusive(writer.transport) as sock:
        far_end.peer(far).send(CONTENT)
        assert await receive(sock, file, 0, LARGE - 5) == LARGE - 5
    assert await reader.readexactly(5) == CONTENT[-5:]
    writer.close()
    await writer.wait_closed()
    assert_same(content_of(file), CONTENT[:-5])


# Two at once


async def test_one_socket_sends_and_receives_at_once(
    family: int, receive: Receive, ends: Ends, far_end: FarEnd
) -> None:
    near, far = socket_pair(family, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    with near:
        peer = far_end.peer(far)
        sent, received = ends.file(CONTENT, "rb"), ends.file(b"", "wb")
        sending = asyncio.create_task(aiozc.loop_sendfile(near, sent))
        receiving = asyncio.create_task(receive(near, received))
        peer.send(CONTENT[::-1], end=True)
        assert await receiving == await sending == LARGE
        assert_same(content_of(received), CONTENT[::-1])
        near.shutdown(socket.SHUT_WR)
        assert_same(await peer.wait_end(), CONTENT)


async def test_two_are_written_into_one_file_object_at_once(
    kind: str, receive: Receive, ends: Ends
) -> None:
    one, two = ends.source(kind, CONTENT), ends.source(kind, CONTENT[::-1])
    file = ends.file(b"", "wb")
    both = await asyncio.gather(receive(one.end, file, 0), receive(two.end, file, LARGE))
    assert list(both) == [LARGE, LARGE]
    assert_same(content_of(file), CONTENT, CONTENT[::-1])


# A file that does not take it


async def refused(receive: Receive, source: Source, file: BinaryIO, number: int) -> None:
    """Check that it is refused with that errno, and nothing is lost."""
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        await receive(source.end, file)
    error: Any = caught.value
    assert error.errno == number
    assert (error.transferred, error.lost) == (0, 0)
    assert_same(await source.rest(), source.content)


async def test_a_socket_that_listens_is_refused(
    kind: str, receive: Receive, ends: Ends, tmp_path: Path
) -> None:
    """Nothing ever arrives at it."""
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind(str(tmp_path / "socket") if kind == "unix" else ("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        with pytest.raises(OSError, match=r"listens|Invalid|not connected") as caught:
            await receive(listener, ends.file(OLD, "r+b"))
        assert caught.value.errno in (errno.ENOTCONN, errno.EINVAL)
        assert caught.value.transferred == 0  # type: ignore[attr-defined]


async def test_a_read_only_file_is_refused_and_nothing_is_lost(
    kind: str, receive: Receive, ends: Ends
) -> None:
    source = ends.source(kind, CONTENT[:5000])
    file = ends.file(OLD, "rb")
    await refused(receive, source, file, errno.EBADF)
    assert_same(content_of(file), OLD)


async def test_a_file_opened_for_appending_is_refused_and_nothing_is_lost(
    kind: str, receive: Receive, ends: Ends
) -> None:
    for mode in ("ab", "a+b"):
        source = ends.source(kind, CONTENT[:5000])
        file = ends.file(OLD, mode)
        await refused(receive, source, file, errno.EINVAL)
        assert_same(content_of(file), OLD)


@pytest.mark.parametrize("full", FULL)
@pytest.mark.parametrize("way", ["loop_recvfile", "splice_pipe"])
def test_a_disk_that_is_full_holds_what_came_before(
    way: str, full: str, family: int, loop_factory: LoopFactory, tmp_path: Path
) -> None:
    """What had left the socket is told lost, and the rest is still there."""
    receive = splice_upload if way == "splice_pipe" else aiozc.loop_recvfile

    async def main(folder: Path, number: int, room: int) -> None:
        loop = asyncio.get_running_loop()
        near, far = socket_pair(family)
        with near, far, (folder / "file").open("w+b") as file:
            sending = loop.create_task(loop.sock_sendall(far, CONTENT))
            task = loop.create_task(receive(near, file))
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                await task
            error: Any = caught.value
            assert error.errno == number
            assert error.transferred == file.tell() == room
            file.seek(0)
            assert_same(file.read(), CONTENT[:room])
            rest = b""
            while len(rest) < LARGE - room - error.lost:
                rest += await loop.sock_recv(near, MIB)
            assert_same(rest, CONTENT[room + error.lost :])
            await sending

    run_on(loop_factory, warm_up())  # imports all there is to import
    Child(lambda: in_full_place(full, tmp_path, lambda *of: run_on(loop_factory, main(*of)))).wait()


async def warm_up() -> None:
    """Use what a child will."""
    near, far = socket.socketpair()
    with near, far, tempfile.TemporaryFile() as file:
        near.setblocking(False)
        far.sendall(b"abc")
        assert await aiozc.loop_recvfile(near, file, 0, 3) == 3
        far.sendall(b"abc")
        assert await aiozc.splice_pipe(near, file, 3) == 3


# What the kernel cannot write by itself


class Plain(io.RawIOBase):
    """A target without a descriptor that takes a part of what it is given, and notes who writes."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.content = io.BytesIO()
        self.writers: set[int] = set()
        self._writes = 0
        self._fails_at = fails_at

    def writable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move."""
        return self.content.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self.content.tell()

    def write(self, data: Any) -> int:
        """Take up to 1000 bytes more than last time."""
        self.writers.add(threading.get_ident())
        self._writes += 1
        if self._writes == self._fails_at:
            raise ZeroDivisionError
        return self.content.write(memoryview(data)[: 1000 * self._writes])


@pytest.mark.parametrize(("offset", "count"), [(0, None), (0, 1), (5, 100_000), (4096, None)])
async def test_memory_is_received_into(
    offset: int, count: int | None, kind: str, ends: Ends
) -> None:
    for target in (io.BytesIO(OLD[:8000]), Plain()):
        chosen = CONTENT if count is None else CONTENT[:count]
        source = ends.source(kind, CONTENT)
        assert await aiozc.loop_recvfile(source.end, target, offset, count) == len(chosen)
        assert target.tell() == offset + len(chosen)
        await source.check_left(Told(len(chosen), 0))
        if isinstance(target, io.BytesIO):
            assert_same(target.getvalue(), *written(OLD[:8000], offset, chosen))
        else:
            assert_same(target.content.getvalue(), bytes(offset), chosen)


async def test_a_compressed_file_is_received_into(kind: str, ends: Ends, tmp_path: Path) -> None:
    source = ends.source(kind, CONTENT)
    with gzip.open(tmp_path / "compressed", "wb") as target:
        assert await aiozc.loop_recvfile(source.end, target) == LARGE
        assert target.tell() == LARGE
    with gzip.open(tmp_path / "compressed") as file:
        assert_same(file.read(), CONTENT)


async def test_no_target_is_written_in_the_thread_of_the_loop(kind: str, ends: Ends) -> None:
    target = Plain()
    await aiozc.loop_recvfile(ends.source(kind, CONTENT).end, target)
    assert target.writers
    assert threading.get_ident() not in target.writers


async def test_an_error_of_the_target_comes_through_and_the_rest_is_accounted_for(
    kind: str, ends: Ends
) -> None:
    target = Plain(fails_at=5)
    source = ends.source(kind, CONTENT)
    with pytest.raises(ZeroDivisionError):
        await aiozc.loop_recvfile(source.end, target, 10)
    moved = 1000 * (1 + 2 + 3 + 4)
    assert target.tell() == 10 + moved
    assert_same(target.content.getvalue(), bytes(10), CONTENT[:moved])


@pytest.mark.parametrize("limit", [0, 100_000, None])
async def test_cancelled_in_the_fallback_every_byte_is_accounted_for(
    limit: int | None, kind: str, ends: Ends
) -> None:
    for number in (1, 2, 3, 5, 10, 30):
        source = ends.source(kind, CONTENT, limit=limit)
        target = io.BytesIO()
        task = asyncio.create_task(aiozc.loop_recvfile(source.end, target))
        await turns(number)
        asked = task.cancel()
        error: Any = await outcome_of(task)
        assert isinstance(error, asyncio.CancelledError) == asked
        transferred, lost = (error.transferred, error.lost) if asked else (error, 0)
        assert transferred == target.tell()
        assert_same(target.getvalue(), CONTENT[:transferred])
        assert isinstance(source, StreamSource)
        fed = source.peer.finish()
        assert_same(await source.rest(), CONTENT[transferred + lost : fed])


class Telling(io.BytesIO):
    """A target that tells when it is asked for its position: before a transfer, and after it."""

    def __init__(self, at_end: Callable[[], object]) -> None:
        super().__init__()
        self._asked = 0
        self._at_end = at_end

    def tell(self) -> int:
        """Return the position."""
        self._asked += 1
        if self._asked == 2:
            self._at_end()
        return super().tell()


async def test_cancelled_at_the_very_end_of_the_fallback_it_tells_what_was_written(
    kind: str, ends: Ends
) -> None:
    loop = asyncio.get_running_loop()
    target = Telling(lambda: loop.call_soon_threadsafe(task.cancel))
    source = ends.source(kind, CONTENT)
    task = asyncio.create_task(aiozc.loop_recvfile(source.end, target))
    error: Any = await outcome_of(task)
    assert isinstance(error, asyncio.CancelledError)
    assert (error.transferred, error.lost) == (len(CONTENT), 0)  # type: ignore[attr-defined]
    assert_same(target.getvalue(), CONTENT)


@pytest.mark.parametrize("target", ["memory", "compressed", "plain", "pipe"])
async def test_without_a_fallback_it_is_refused_and_nothing_is_lost(
    target: str, kind: str, ends: Ends, tmp_path: Path
) -> None:
    source = ends.source(kind, CONTENT[:5000])
    file: Any
    match target:
        case "memory":
            file = io.BytesIO()
        case "compressed":
            file = gzip.open(tmp_path / "compressed", "wb")  # noqa: SIM115 - closed below
        case "plain":
            file = Plain()
        case _:
            _, file = ends.pipe()
    with file, pytest.raises(asyncio.SendfileNotAvailableError):
        await aiozc.loop_recvfile(source.end, file, fallback=False)
    assert_same(await source.rest(), source.content)


async def test_a_blocking_socket_does_not_block_the_loop(kind: str, ends: Ends) -> None:
    """Outside of debug mode it passes the checks, as with `loop.sock_sendfile`."""
    asyncio.get_running_loop().set_debug(False)
    source = ends.source(kind, CONTENT, limit=1000)
    source.end.setblocking(True)
    file = ends.file(b"", "wb")
    task = asyncio.create_task(aiozc.loop_recvfile(source.end, file))
    await turns(10)
    assert not task.done()
    source.allow(None)
    assert await task == LARGE
    assert_same(content_of(file), CONTENT)


# TLS


@pytest.mark.parametrize(("offset", "count"), [(0, None), (0, 1), (1, 100_000), (4096, None)])
async def test_what_comes_by_tls_arrives(offset: int, count: int | None, ends: Ends) -> None:
    tls = await asyncio.to_thread(Tls, CONTENT)
    chosen = CONTENT if count is None else CONTENT[:count]
    file = ends.file(b"", "wb")
    tls.proceed.set()
    try:
        assert await aiozc.loop_recvfile(tls.sock, file, offset, count) == len(chosen)
        assert file.tell() == offset + len(chosen)
    finally:
        await asyncio.to_thread(tls.end)
    file.close()
    assert_same(content_of(file), bytes(offset), chosen)


async def test_a_tls_socket_is_refused_without_a_fallback(ends: Ends) -> None:
    tls = await asyncio.to_thread(Tls, CONTENT)
    file = ends.file(b"", "wb")
    try:
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await aiozc.loop_recvfile(tls.sock, file, fallback=False)
    finally:
        await asyncio.to_thread(tls.end)
    assert file.tell() == 0


@pytest.mark.parametrize("number", [1, 3, 30, 300])
async def test_cancelled_by_tls_the_file_holds_what_is_told(number: int, ends: Ends) -> None:
    tls = await asyncio.to_thread(Tls, CONTENT)
    file = ends.file(b"", "wb")
    tls.proceed.set()
    try:
        task = asyncio.create_task(aiozc.loop_recvfile(tls.sock, file))
        await turns(number)
        asked = task.cancel()
        outcome: Any = await outcome_of(task)
        assert isinstance(outcome, asyncio.CancelledError) == asked
        transferred = outcome.transferred if asked else outcome
        assert file.tell() == transferred
    finally:
        await asyncio.to_thread(tls.end)
    file.close()
    assert_same(content_of(file), CONTENT[:transferred])
