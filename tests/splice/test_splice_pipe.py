"""Offsets and positions as in `os.splice`, pipes of the caller's, and what is refused."""

import asyncio
import bz2
import contextlib
import errno
import gzip
import io
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import aiozc
from tests.kit.children import Child
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, assert_same, case, pattern
from tests.kit.ends import Ends, FileSource, StreamTarget, Told, content_of
from tests.kit.far_ends import FarEnd
from tests.kit.faults.full_disk import FULL, in_full_place
from tests.kit.folding import each
from tests.kit.loops import LoopFactory, run_on
from tests.kit.tasks import outcome_of
from tests.kit.tls import Tls
from tests.kit.waiting import turns

pytestmark = pytest.mark.anyio

SMALL = 64 * KIB + 7
LARGE = MIB + 7
CONTENT = pattern(LARGE)
OLD = pattern(100_000, 1)
KINDS = ["file", "tcp", "unix", "pipe"]
HANDLES = ["buffered", "raw", "number"]
OFFSETS = [None, 0, 1, 4095, 4096, 61_441]


class Handle:
    """A file as it is given to a transfer: an object or a number."""

    def __init__(self, name: str, ends: Ends, content: bytes, mode: str) -> None:
        self.file = ends.file(content, mode, buffering=-1 if name == "buffered" else 0)
        self.given: Any = self.file.fileno() if name == "number" else self.file

    @property
    def position(self) -> int:
        """The position as its owner sees it."""
        return self.file.tell()


# Offsets and positions


@each("name", HANDLES)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_source_is_read_at_its_offset_or_its_position(
    name: str, kind: str, ends: Ends
) -> None:
    """A number leaves the position alone; None advances it."""
    for offset in OFFSETS:
        for count in (None, 1, 4096, 50_000, 2 * LARGE):
            source = Handle(name, ends, CONTENT[:SMALL], "rb")
            source.file.seek(1000)
            target = ends.target(kind)
            start = 1000 if offset is None else offset
            chosen = CONTENT[start:SMALL] if count is None else CONTENT[start:SMALL][:count]
            moved = await aiozc.splice_pipe(source.given, target.end, count, src_offset=offset)
            assert moved == len(chosen)
            assert source.position == (1000 + moved if offset is None else 1000)
            after = source.position
            assert source.file.read(10) == CONTENT[after : min(after + 10, SMALL)]
            await target.check(chosen)


@each("size", [0, 1, SMALL])
@each("name", HANDLES)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_target_is_written_at_its_offset_or_its_position(
    size: int, name: str, kind: str, ends: Ends
) -> None:
    """A number leaves the position alone; None advances it. Nothing around it changes."""
    content = CONTENT[:size]
    for offset in (*OFFSETS, 99_999, 100_000, 150_000):
        source = ends.source(kind, content)
        target = Handle(name, ends, OLD, "r+b")
        target.file.seek(1000)
        start = 1000 if offset is None else offset
        assert await aiozc.splice_pipe(source.end, target.given, dst_offset=offset) == size
        assert target.position == (1000 + size if offset is None else 1000)
        hole = bytes(max(0, start - len(OLD)) if size else 0)
        assert_same(content_of(target.file), OLD[:start], hole, content, OLD[start + size :])


@each("name", HANDLES)
@pytest.mark.parametrize("kind", KINDS)
async def test_at_the_end_of_a_file_and_beyond_it_there_is_nothing_to_move(
    name: str, kind: str, ends: Ends
) -> None:
    source = Handle(name, ends, CONTENT[:SMALL], "rb")
    target = ends.target(kind)
    for beyond in (0, 1, 4096, 1 << 33):
        for count in (None, 1, MIB):
            source.file.seek(SMALL + beyond)
            assert await aiozc.splice_pipe(source.given, target.end, count) == 0
            assert source.position == SMALL + beyond
            offset = SMALL + beyond
            moved = await aiozc.splice_pipe(source.given, target.end, count, src_offset=offset)
            assert moved == 0
            assert source.position == SMALL + beyond
    await target.check()


@each("offset", [None, 500])
async def test_what_a_reader_has_read_ahead_is_moved_all_the_same(
    offset: int | None, ends: Ends
) -> None:
    """Its position is the one that its user sees, not the one of the file beneath it."""
    source = ends.file(CONTENT, "rb")
    assert source.read(10) == CONTENT[:10]
    assert os.lseek(source.fileno(), 0, os.SEEK_CUR) > 10
    target = ends.target("tcp")
    start = 10 if offset is None else offset
    assert await aiozc.splice_pipe(source, target.end, 70_000, src_offset=offset) == 70_000
    after = 70_010 if offset is None else 10
    assert source.tell() == after
    assert source.read(100) == CONTENT[after : after + 100]
    await target.check(CONTENT[start : start + 70_000])


@each("offset", [None, 4, 10, 20])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_writer_has_not_written_yet_is_written_before(
    offset: int | None, kind: str, ends: Ends
) -> None:
    source = ends.source(kind, CONTENT[:SMALL])
    target = ends.file(b"", "wb")
    target.write(b"0123456789")
    assert await aiozc.splice_pipe(source.end, target, dst_offset=offset) == SMALL
    start = 10 if offset is None else offset
    after = 10 + SMALL if offset is None else 10
    assert target.tell() == after
    target.write(b"after")
    target.close()
    expected = bytearray(b"0123456789" + bytes(max(0, start - 10)))
    expected[start:] = CONTENT[:SMALL]
    expected[after : after + 5] = b"after"
    assert_same(content_of(target), bytes(expected))


async def test_cancelled_while_that_is_written_it_tells_that_nothing_was_moved(ends: Ends) -> None:
    for move in (aiozc.splice_pipe, aiozc.loop_recvfile):
        source, target = ends.source("tcp", CONTENT[:SMALL]), ends.file(b"", "wb")
        target.write(b"0123456789")
        task = asyncio.create_task(move(source.end, target))
        await turns(1)
        task.cancel()
        error: Any = await outcome_of(task)
        assert isinstance(error, asyncio.CancelledError)
        assert error.transferred == error.lost == 0  # type: ignore[attr-defined]


@each("offset", [None, 0, 50])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_random_file_has_read_ahead_is_not_read_again_when_it_was_written(
    offset: int | None, kind: str, ends: Ends
) -> None:
    source = ends.source(kind, CONTENT[:5000])
    target = ends.file(OLD, "r+b")
    assert target.read(10) == OLD[:10]
    assert await aiozc.splice_pipe(source.end, target, dst_offset=offset) == 5000
    start = 10 if offset is None else offset
    expected = OLD[:start] + CONTENT[:5000] + OLD[start + 5000 :]
    after = 5010 if offset is None else 10
    assert target.tell() == after
    assert target.read(100) == expected[after : after + 100]
    target.seek(0)
    assert_same(target.read(), expected)


@each("offset", [None, 3])
async def test_what_is_in_a_random_files_buffer_is_moved_from_it(
    offset: int | None, ends: Ends
) -> None:
    """It was written and is not in the file yet."""
    source = ends.file(OLD, "r+b")
    source.write(b"new bytes")
    if offset is None:
        source.seek(3)
    target = ends.target("unix")
    assert await aiozc.splice_pipe(source, target.end, 100, src_offset=offset) == 100
    assert source.tell() == (103 if offset is None else 9)
    await target.check(b" bytes", OLD[9:103])


async def test_both_ends_may_be_parts_of_one_file(ends: Ends) -> None:
    file = ends.file(CONTENT, "r+b")
    file.seek(77)
    moved = await aiozc.splice_pipe(file, file, 300_000, src_offset=1, dst_offset=500_001)
    assert moved == 300_000
    assert file.tell() == 77
    assert_same(content_of(file), CONTENT[:500_001], CONTENT[1:300_001], CONTENT[800_001:])


async def test_bytes_beyond_4_gib_are_moved_from_file_to_file(tmp_path: Path) -> None:
    for start in ((4 << 30) - MIB // 2, (5 << 30) + 1):
        with (
            case(start=start),
            tempfile.TemporaryFile(dir=tmp_path) as one,
            tempfile.TemporaryFile(dir=tmp_path) as two,
        ):
            os.pwrite(one.fileno(), CONTENT, start)
            moved = await aiozc.splice_pipe(one, two, src_offset=start, dst_offset=start + 3)
            assert moved == LARGE
            assert_same(os.pread(two.fileno(), LARGE + 1, start + 3), CONTENT)


# Pipes and devices


def dup(file: BinaryIO, mode: str) -> io.FileIO:
    """Open another number of the same file."""
    return io.FileIO(os.dup(file.fileno()), mode)


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
@pytest.mark.parametrize("name", HANDLES)
@pytest.mark.parametrize("kind", KINDS)
async def test_two_transfers_meet_in_a_pipe_of_any_make(
    kind: str, name: str, blocking: bool, ends: Ends
) -> None:
    """It stays blocking or not, as it was, and the loop never waits for it."""
    source, target = ends.source(kind, CONTENT), ends.target(kind)
    reading, writing = ends.pipe()
    for end in (reading, writing):
        os.set_blocking(end.fileno(), blocking)
    given: list[Any] = [reading, writing]
    if name == "buffered":
        given = [io.BufferedReader(dup(reading, "r")), io.BufferedWriter(dup(writing, "w"))]
    elif name == "number":
        given = [reading.fileno(), writing.fileno()]
    out = asyncio.create_task(aiozc.splice_pipe(given[0], target.end))
    into = asyncio.create_task(aiozc.splice_pipe(source.end, given[1]))
    assert await into == LARGE
    assert os.get_blocking(reading.fileno()) == os.get_blocking(writing.fileno()) == blocking
    if name == "buffered":
        given[1].close()
    writing.close()
    assert await out == LARGE
    if name == "buffered":
        given[0].close()
    await target.check(CONTENT)


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_written_into_a_pipes_buffer_before_comes_before(
    blocking: bool, kind: str, ends: Ends
) -> None:
    source = ends.source(kind, CONTENT)
    reading, writing = os.pipe()
    os.set_blocking(writing, blocking)
    receiver = ends.receiver(reading)
    with io.BufferedWriter(io.FileIO(writing, "w")) as file:
        file.write(b"a header")
        assert await aiozc.splice_pipe(source.end, file) == LARGE
        file.write(b"a trailer")
    assert_same(await receiver.wait_end(), b"a header", CONTENT, b"a trailer")


@pytest.mark.parametrize("kind", KINDS)
async def test_no_pipe_of_the_librarys_own_stands_where_one_end_is_a_pipe(
    kind: str, ends: Ends
) -> None:
    async with aiozc.Reactor(entries=8) as reactor:
        source, target = ends.source(kind, CONTENT), ends.target("pipe")
        assert await aiozc.splice_pipe(source.end, target.end) == LARGE
        await target.check(CONTENT)
        source, target = ends.source("pipe", CONTENT), ends.target(kind)
        assert await aiozc.splice_pipe(source.end, target.end) == LARGE
        assert reactor.statistics().pipes == 0
        await target.check(CONTENT)


@pytest.mark.parametrize("kind", ["tcp", "unix", "pipe"])
async def test_a_pipe_whose_reader_has_gone_breaks_and_the_rest_is_accounted_for(
    kind: str, ends: Ends
) -> None:
    source, target = ends.source(kind, CONTENT), ends.target("pipe")
    assert isinstance(target, StreamTarget)
    target.receiver.close()
    with pytest.raises(BrokenPipeError) as caught:
        await aiozc.splice_pipe(source.end, target.end)
    error: Any = caught.value
    assert error.transferred == 0
    await source.check_left(Told(0, error.lost))


@pytest.mark.parametrize("kind", KINDS)
async def test_devices_give_and_take(kind: str, ends: Ends) -> None:
    target = ends.target(kind)
    with io.FileIO("/dev/zero") as zeros, io.FileIO("/dev/null", "w") as nothing:
        assert await aiozc.splice_pipe(zeros, target.end, 300_001) == 300_001
        await target.check(bytes(300_001))
        assert await aiozc.splice_pipe(ends.source(kind, CONTENT).end, nothing) == LARGE


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kind", KINDS)
async def test_the_socket_of_a_transport_that_is_held_gives_and_takes(
    kind: str, ends: Ends, far_end: FarEnd
) -> None:
    near, far = socket_pair(socket.AF_UNIX)
    peer = far_end.peer(far)
    _, writer = await asyncio.open_connection(sock=near)
    async with aiozc.lowlevel.exclusive(writer.transport) as sock:
        peer.send(CONTENT)
        target = ends.target(kind)
        assert await aiozc.splice_pipe(sock, target.end, LARGE) == LARGE
        await target.check(CONTENT)
        assert await aiozc.splice_pipe(ends.source(kind, OLD).end, sock) == len(OLD)
    writer.close()
    await writer.wait_closed()
    assert_same(await peer.wait_end(), OLD)


# What cannot be read or written


@each("mode, number", [("rb", errno.EBADF), ("ab", errno.EINVAL)])
@each("name", HANDLES)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_file_that_cannot_be_written_at_a_place_is_refused_and_nothing_is_lost(
    mode: str, number: int, name: str, kind: str, ends: Ends
) -> None:
    source = ends.source(kind, CONTENT[:5000])
    target = Handle(name, ends, OLD, mode)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        await aiozc.splice_pipe(source.end, target.given)
    error: Any = caught.value
    assert error.errno == number
    assert (error.transferred, error.lost) == (0, 0)
    if isinstance(source, FileSource):
        assert source.moved == 0
    assert_same(await source.rest(), CONTENT[:5000])
    assert_same(content_of(target.file), OLD)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_file_that_cannot_be_read_is_refused(kind: str, ends: Ends) -> None:
    source, target = ends.file(OLD, "ab"), ends.target(kind)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        await aiozc.splice_pipe(source, target.end, src_offset=0)
    error: Any = caught.value
    assert error.errno == errno.EBADF
    assert (error.transferred, error.lost) == (0, 0)
    await target.check()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_wrong_end_of_a_pipe_is_refused(kind: str, ends: Ends) -> None:
    reading, writing = ends.pipe()
    source, target = ends.source(kind, CONTENT[:5000]), ends.target(kind)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await aiozc.splice_pipe(writing, target.end)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        await aiozc.splice_pipe(source.end, reading)
    error: Any = caught.value
    assert (error.transferred, error.lost) == (0, 0)
    assert_same(await source.rest(), CONTENT[:5000])
    await target.check()


@pytest.mark.parametrize("full", FULL)
@pytest.mark.parametrize("kind", ["file", "unix", "pipe"])
def test_a_disk_that_is_full_holds_what_came_before(
    kind: str, full: str, loop_factory: LoopFactory, ends: Ends, tmp_path: Path
) -> None:
    """A file as the source stands behind what was written; a stream has told what is lost."""
    content = pattern(2 * MIB)
    file = ends.file(content, "rb")

    async def main(folder: Path, number: int, room: int) -> None:
        loop = asyncio.get_running_loop()
        near, far = socket_pair(socket.AF_UNIX)
        sending = loop.create_task(loop.sock_sendall(far, content))
        reading, writing = os.pipe2(os.O_NONBLOCK)
        source: Any = {"file": file, "unix": near, "pipe": io.FileIO(reading)}[kind]
        if kind == "pipe":
            filling = loop.create_task(aiozc.splice_pipe(near, writing))
        with (folder / "file").open("w+b") as target:
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                await aiozc.splice_pipe(source, target)
            error: Any = caught.value
            assert error.errno == number
            assert error.transferred == target.tell() == room
            target.seek(0)
            assert_same(target.read(), content[:room])
        if kind == "file":
            assert error.lost == 0
            assert file.tell() == room
        if kind == "pipe":
            assert error.lost == 0
            rest = b""
            while len(rest) < 1000:
                with contextlib.suppress(BlockingIOError):
                    rest += os.read(reading, 1000 - len(rest))
                await asyncio.sleep(0)
            assert_same(rest, content[room : room + 1000])
            filling.cancel()
            await outcome_of(filling)
        if kind == "unix":
            rest = await loop.sock_recv(near, 1000)
            assert_same(rest, content[room + error.lost :][: len(rest)])
        sending.cancel()
        await outcome_of(sending)

    run_on(loop_factory, warm_up())  # imports all there is to import
    Child(lambda: in_full_place(full, tmp_path, lambda *of: run_on(loop_factory, main(*of)))).wait()


async def warm_up() -> None:
    """Use what a child will."""
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as two:
        assert await aiozc.splice_pipe(one, two) == 0


# Arguments


WRONG_NUMBERS: list[tuple[dict[str, Any], type[Exception]]] = [
    *(({"count": value}, ValueError) for value in (0, -1, False)),
    *(({"count": value}, TypeError) for value in (1.0, "1", b"")),
    *(({"src_offset": value}, ValueError) for value in (-1, -(1 << 40))),
    *(({"dst_offset": value}, ValueError) for value in (-1, -(1 << 40))),
    *(({"src_offset": value}, TypeError) for value in (1.0, "1")),
    *(({"dst_offset": value}, TypeError) for value in (1.0, "1")),
]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_wrong_number_is_refused(kind: str, ends: Ends) -> None:
    from_file = ends.source("file", CONTENT[:5000]), ends.target(kind)
    into_file = ends.source(kind, CONTENT[:5000]), ends.target("file")
    for wrong, error in WRONG_NUMBERS:
        source, target = into_file if "dst_offset" in wrong else from_file
        with case(wrong=wrong), pytest.raises(error):
            await aiozc.splice_pipe(source.end, target.end, **wrong)
    for source, target in (from_file, into_file):
        await target.check()
        assert_same(await source.rest(), CONTENT[:5000])


@pytest.mark.parametrize("kind", ["tcp", "unix", "pipe"])
async def test_an_offset_for_what_cannot_seek_is_refused(kind: str, ends: Ends) -> None:
    source, target = ends.source(kind, CONTENT[:5000]), ends.target(kind)
    for other in KINDS:
        for offset in (0, 1):
            with pytest.raises(ValueError):  # noqa: PT011 - the words are the library's
                await aiozc.splice_pipe(source.end, ends.target(other).end, src_offset=offset)
            with pytest.raises(ValueError):  # noqa: PT011
                await aiozc.splice_pipe(ends.source(other, b"x").end, target.end, dst_offset=offset)
    assert_same(await source.rest(), CONTENT[:5000])
    await target.check()


WRONG: dict[str, Callable[[ExitStack, Path], Any]] = {
    "a text file": lambda stack, path: stack.enter_context(path.open("w+")),
    "memory": lambda *_: io.BytesIO(b"x"),
    "text in memory": lambda *_: io.StringIO("x"),
    "gzip": lambda stack, path: stack.enter_context(gzip.GzipFile(path, "wb")),
    "bz2": lambda stack, path: stack.enter_context(bz2.BZ2File(path, "wb")),
    "gzip in a buffer": lambda stack, path: stack.enter_context(
        io.BufferedWriter(gzip.GzipFile(path, "wb"))
    ),
    "a datagram socket": lambda stack, _: stack.enter_context(nonblocking(socket.SOCK_DGRAM)),
    "a blocking socket": lambda stack, _: stack.enter_context(socket.socket()),
}


def nonblocking(kind: int) -> socket.socket:
    """Make a non-blocking socket of that type."""
    sock = socket.socket(type=kind)
    sock.setblocking(False)
    return sock


@each("wrong", WRONG)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_cannot_be_spliced_is_refused(
    wrong: Callable[[ExitStack, Path], Any], kind: str, ends: Ends, tmp_path: Path
) -> None:
    source, target = ends.source(kind, CONTENT[:5000]), ends.target(kind)
    with ExitStack() as stack:
        end = wrong(stack, tmp_path / "wrong")
        with pytest.raises(ValueError):  # noqa: PT011 - the words are the library's
            await aiozc.splice_pipe(end, target.end)
        with pytest.raises(ValueError):  # noqa: PT011
            await aiozc.splice_pipe(source.end, end)
    assert_same(await source.rest(), CONTENT[:5000])
    await target.check()


async def test_a_tls_socket_is_refused(ends: Ends) -> None:
    tls = await asyncio.to_thread(Tls)
    source, target = ends.source("tcp", CONTENT[:5000]), ends.target("tcp")
    try:
        for pair in ((tls.sock, target.end), (source.end, tls.sock)):
            with pytest.raises(ValueError):  # noqa: PT011 - the words are the library's
                await aiozc.splice_pipe(*pair)
            with pytest.raises(ValueError):  # noqa: PT011
                await aiozc.relay(*pair)
    finally:
        assert await asyncio.to_thread(tls.end) == b""
    assert_same(await source.rest(), CONTENT[:5000])
    await target.check()
