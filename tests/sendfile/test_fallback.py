"""What the kernel cannot send by itself goes through reads in a thread, or is refused."""

import asyncio
import bz2
import functools
import gzip
import io
import itertools
import lzma
import os
import tarfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import aiozc
from tests.kit.content import MIB, MakeFile, assert_same, pattern
from tests.kit.ends import Ends
from tests.kit.far_ends import Connect
from tests.kit.folding import each
from tests.kit.tasks import outcome_of
from tests.kit.tls import Tls
from tests.kit.waiting import turns

pytestmark = pytest.mark.anyio

CONTENT = pattern(MIB + 11)
CAN_SEEK = ["memory", "gzip", "bz2", "lzma", "gzip in a buffer", "member", "trickle"]


class Trickle(io.RawIOBase):
    """A source without a descriptor that gives some more at each read, and notes who reads."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = io.BytesIO(content)
        self._reads = 0
        self.readers: set[int] = set()

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move."""
        return self._content.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        """Give 100 bytes more than last time."""
        self.readers.add(threading.get_ident())
        self._reads += 1
        return self._content.readinto(memoryview(buffer)[: 100 * self._reads])


class Broken(Trickle):
    """A source that fails at its 21st read."""

    def readinto(self, buffer: Any) -> int:
        """Fail, or not yet."""
        if self._reads == 20:
            raise ZeroDivisionError
        return super().readinto(buffer)


class Gated(Trickle):
    """A source whose reads wait at a gate."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.waiting, self.gate, self.passed = (threading.Event() for _ in range(3))

    def readinto(self, buffer: Any) -> int:
        """Give as much as there is, once the gate is open."""
        self.waiting.set()
        self.gate.wait()
        self._reads = len(CONTENT)
        count = super().readinto(buffer)
        self.passed.set()
        return count


@functools.cache
def compress(module: Any) -> bytes:
    """Return CONTENT, which takes 0.2 s to compress."""
    return bytes(module.compress(CONTENT))


@pytest.fixture
def open_source(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Open a source of that kind, with CONTENT in it."""
    with ExitStack() as stack:

        def compressed(module: Any) -> Any:
            path = tmp_path / "compressed"
            path.write_bytes(compress(module))
            return stack.enter_context(module.open(path))

        def member() -> Any:
            path = tmp_path / "archive"
            with tarfile.open(path, "w") as archive:
                information = tarfile.TarInfo("member")
                information.size = len(CONTENT)
                archive.addfile(information, io.BytesIO(CONTENT))
            return stack.enter_context(tarfile.open(path)).extractfile("member")

        def pipe() -> Any:
            reading, writing = os.pipe()

            def write() -> None:
                with suppress(BrokenPipeError), open(writing, "wb", 0) as file:
                    file.write(CONTENT)

            thread = threading.Thread(target=write)
            thread.start()
            stack.callback(thread.join)
            return stack.enter_context(open(reading, "rb"))

        def open_source(name: str) -> Any:
            match name:
                case "memory":
                    return io.BytesIO(CONTENT)
                case "gzip":
                    return compressed(gzip)
                case "bz2":
                    return compressed(bz2)
                case "lzma":
                    return compressed(lzma)
                case "gzip in a buffer":
                    return io.BufferedReader(compressed(gzip))
                case "member":
                    return member()
                case "trickle":
                    return Trickle(CONTENT)
                case "pipe":
                    return pipe()
                case "zeros":
                    return stack.enter_context(open("/dev/zero", "rb"))
            raise LookupError(name)

        yield open_source


@pytest.mark.parametrize("name", CAN_SEEK)
async def test_a_source_that_can_seek_arrives_whole_or_in_part(
    name: str, open_source: Callable[[str], Any], connect: Connect
) -> None:
    source = open_source(name)
    size = len(CONTENT)
    for offset, count in (
        *((0, None), (0, 1), (1, 10 * MIB)),
        *((4097, 500_000), (MIB, None), (size, None), (size, 1)),
    ):
        chosen = CONTENT[offset:] if count is None else CONTENT[offset : offset + count]
        source.seek(offset)
        sock, receiver = connect()
        assert await aiozc.loop_sendfile(sock, source, offset, count) == len(chosen)
        assert source.tell() == offset + len(chosen)
        sock.close()
        assert_same(await receiver.wait_end(), chosen)


async def test_a_pipe_arrives_to_its_end(
    family: int, open_source: Callable[[str], Any], connect: Connect
) -> None:
    sock, receiver = connect(family)
    assert await aiozc.loop_sendfile(sock, open_source("pipe")) == len(CONTENT)
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


@each("count", [1, 65_536, 65_537, MIB])
async def test_a_pipe_arrives_to_the_count_and_keeps_the_rest(
    count: int, open_source: Callable[[str], Any], connect: Connect
) -> None:
    sock, receiver = connect()
    pipe = open_source("pipe")
    assert await aiozc.loop_sendfile(sock, pipe, 0, count) == count
    assert_same(await asyncio.to_thread(pipe.read), CONTENT[count:])
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT[:count])


@each("count", [1, 100_000, 3 * MIB])
async def test_a_device_arrives_to_the_count(
    count: int, open_source: Callable[[str], Any], connect: Connect
) -> None:
    sock, receiver = connect()
    assert await aiozc.loop_sendfile(sock, open_source("zeros"), 0, count) == count
    sock.close()
    assert_same(await receiver.wait_end(), bytes(count))


@pytest.fixture(params=["/proc/version", "/proc/cpuinfo", "/proc/kallsyms"])
def proc_file(request: pytest.FixtureRequest) -> Iterator[BinaryIO]:
    """Open a file that says it is empty and is not."""
    with open(request.param, "rb") as file:
        yield file


async def test_a_file_that_says_it_is_empty_and_is_not_arrives(
    proc_file: BinaryIO, connect: Connect
) -> None:
    content = proc_file.read()
    assert content
    assert os.fstat(proc_file.fileno()).st_size == 0
    proc_file.seek(0)
    sock, receiver = connect()
    assert await aiozc.loop_sendfile(sock, proc_file) == len(content)
    assert proc_file.tell() == len(content)
    sock.close()
    assert_same(await receiver.wait_end(), content)


async def test_no_source_is_read_in_the_thread_of_the_loop(connect: Connect) -> None:
    source: Any = Trickle(CONTENT)
    sock, receiver = connect()
    await aiozc.loop_sendfile(sock, source)
    assert source.readers
    assert threading.get_ident() not in source.readers
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


async def test_an_error_of_the_source_comes_through_and_the_position_is_right(
    connect: Connect,
) -> None:
    source: Any = Broken(CONTENT)
    sock, receiver = connect()
    with pytest.raises(ZeroDivisionError) as caught:
        await aiozc.loop_sendfile(sock, source, 10)
    sent = sum(range(0, 2001, 100))
    error: Any = caught.value
    assert (error.transferred, error.lost) == (sent, 0)
    assert source.tell() == 10 + sent
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT[10 : 10 + sent])


@pytest.mark.parametrize("name", [*CAN_SEEK, "pipe", "zeros"])
async def test_without_a_fallback_it_is_refused(
    name: str, open_source: Callable[[str], Any], connect: Connect
) -> None:
    source = open_source(name)
    sock, receiver = connect()
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await aiozc.loop_sendfile(sock, source, 0, 10, fallback=False)
    if name in CAN_SEEK:
        assert source.tell() == 0
    sock.close()
    assert await receiver.wait_end() == b""


@pytest.mark.parametrize("name", ["memory", "gzip", "trickle"])
async def test_a_fallback_cancelled_and_resumed_again_and_again_arrives_once(
    name: str, open_source: Callable[[str], Any], connect: Connect
) -> None:
    source = open_source(name)
    sock, receiver = connect(sndbuf=30_000)
    for number in itertools.count():
        start = source.tell()
        task = asyncio.create_task(aiozc.loop_sendfile(sock, source, start))
        await turns(number)
        task.cancel()
        outcome = await outcome_of(task)
        if outcome == len(CONTENT) - start:
            break
        assert isinstance(outcome, asyncio.CancelledError)
    assert source.tell() == len(CONTENT)
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


async def test_a_read_that_ends_after_the_cancellation_neither_sends_nor_moves_anything(
    connect: Connect,
) -> None:
    source: Any = Gated(CONTENT)
    sock, receiver = connect()
    task = asyncio.create_task(aiozc.loop_sendfile(sock, source, 10))
    await asyncio.to_thread(source.waiting.wait)
    task.cancel()
    await turns(5)
    source.gate.set()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)
    await asyncio.to_thread(source.passed.wait)
    assert source.tell() == 10
    sock.close()
    assert await receiver.wait_end() == b""


@pytest.fixture(params=["/sys/kernel/fscaps", "/sys/kernel/mm/transparent_hugepage/enabled"])
def sys_file(request: pytest.FixtureRequest) -> Iterator[BinaryIO]:
    """Open a file that says it has more than it has."""
    with open(request.param, "rb") as file:
        yield file


async def test_the_statistics_count_what_the_kernel_did_not_do(
    connect: Connect, make_file: MakeFile, ends: Ends
) -> None:
    """The first of them too, before the loop has a reactor."""
    sock, receiver = connect()
    memory, file = io.BytesIO(CONTENT), make_file(CONTENT, again=True)
    assert await aiozc.loop_sendfile(sock, memory) == len(CONTENT)
    reactor = aiozc.get_reactor()
    assert reactor.statistics().fallbacks == 1
    assert await aiozc.loop_sendfile(sock, file) == len(CONTENT)
    assert reactor.statistics().fallbacks == 1
    source = ends.source("tcp", CONTENT).end
    assert await aiozc.loop_recvfile(source, io.BytesIO()) == len(CONTENT)
    assert reactor.statistics().fallbacks == 2
    await aiozc.sendfile_zc(sock, memory)
    assert reactor.statistics().fallbacks == 3
    async with await aiozc.sendfile_zc(sock, file) as send:
        sock.close()
        assert_same(await receiver.wait_end(), CONTENT * 4)
    assert reactor.statistics().fallbacks == (3 if reactor._engine.lends else 4)
    assert send.copied is not None
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await aiozc.loop_sendfile(connect()[0], memory, fallback=False)
    tls = Tls()
    assert await aiozc.loop_sendfile(tls.sock, file, 0, 10) == 10
    tls.end()
    statistics = reactor.statistics()
    assert (statistics.fallbacks, statistics.transfers) == (
        (4, 2) if reactor._engine.lends else (5, 2)
    )


async def test_a_file_that_says_it_has_more_than_it_has_arrives(
    sys_file: BinaryIO, connect: Connect
) -> None:
    content = sys_file.read()
    assert len(content) < os.fstat(sys_file.fileno()).st_size
    sock, receiver = connect()
    assert await aiozc.loop_sendfile(sock, sys_file) == len(content)
    assert sys_file.tell() == len(content)
    sock.close()
    assert_same(await receiver.wait_end(), content)


async def test_an_offset_into_a_pipe_is_refused(
    open_source: Callable[[str], Any], connect: Connect
) -> None:
    """As asyncio's fallback refuses it: what cannot seek cannot be sent from elsewhere."""
    sock, receiver = connect()
    with pytest.raises(io.UnsupportedOperation):
        await aiozc.loop_sendfile(sock, open_source("pipe"), 3, 5)
    sock.close()
    assert await receiver.wait_end() == b""


# TLS


@pytest.fixture
async def tls() -> AsyncIterator[Tls]:
    """Make a connection, and wait for its handshake."""
    connection = await asyncio.to_thread(Tls)
    yield connection
    await asyncio.to_thread(connection.end)


@pytest.mark.parametrize(
    ("offset", "count"), [(0, None), (0, 1), (1, 100_000), (4096, None), (len(CONTENT), None)]
)
async def test_a_file_arrives_whole_or_in_part_by_tls(
    offset: int, count: int | None, tls: Tls, make_file: MakeFile
) -> None:
    chosen = CONTENT[offset:] if count is None else CONTENT[offset : offset + count]
    file = make_file(CONTENT)
    file.seek(offset)
    tls.proceed.set()
    assert await aiozc.loop_sendfile(tls.sock, file, offset, count) == len(chosen)
    assert file.tell() == offset + len(chosen)
    assert_same(await asyncio.to_thread(tls.end), chosen)


async def test_files_follow_each_other_by_tls(tls: Tls, make_file: MakeFile) -> None:
    tls.proceed.set()
    contents = [pattern(100_000, seed) for seed in range(4)]
    for content in contents:
        assert await aiozc.loop_sendfile(tls.sock, make_file(content)) == len(content)
    assert_same(await asyncio.to_thread(tls.end), *contents)


async def test_a_tls_socket_is_refused_without_a_fallback(tls: Tls, make_file: MakeFile) -> None:
    file = make_file(CONTENT)
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await aiozc.loop_sendfile(tls.sock, file, fallback=False)
    assert file.tell() == 0
    assert await asyncio.to_thread(tls.end) == b""


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 10, 100, 1000])
async def test_cancelled_by_tls_the_position_says_what_arrives(
    number: int, tls: Tls, make_file: MakeFile
) -> None:
    """The peer reads nothing before the cancellation."""
    file = make_file(CONTENT)
    task = asyncio.create_task(aiozc.loop_sendfile(tls.sock, file))
    await turns(number)
    task.cancel()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)
    position = file.tell()
    assert_same(await asyncio.to_thread(tls.end), CONTENT[:position])


async def test_a_tls_socket_closed_in_mid_transfer_ends_it_with_an_oserror(
    tls: Tls, make_file: MakeFile
) -> None:
    file = make_file(CONTENT)
    task = asyncio.create_task(aiozc.loop_sendfile(tls.sock, file))
    await turns(1000)
    assert not task.done()
    tls.sock.close()
    assert isinstance(await outcome_of(task), OSError)
    assert_same(await asyncio.to_thread(tls.end), CONTENT[: file.tell()])
