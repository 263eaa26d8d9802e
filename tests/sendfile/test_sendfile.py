"""What arrives: every size, offset and count, over every kind of connection."""

import asyncio
import io
import logging
import os
import select
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

import aiozc
from tests.kit.connections import fill
from tests.kit.content import KIB, MIB, MakeFile, assert_same, case, pattern, write_out
from tests.kit.far_ends import Connect, FarEnd
from tests.kit.folding import each
from tests.kit.tasks import outcome_of
from tests.kit.waiting import turns, until
from tests.kit.ways import Send

pytestmark = pytest.mark.anyio

SIZES = [
    *(0, 1, 4095, 4096, 4097, 65535, 65536, 65537),
    *(MIB - 1, MIB, MIB + 1),
]
SMALL = 64 * KIB + 7  # sent at once, if it is cached
LARGE = 2 * MIB + 7  # sent by the ring


@each("size", SIZES)
async def test_a_file_of_any_size_arrives_whole(
    size: int, send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(size)
    sock, receiver = connect(family)
    file = make_file(content, again=True)
    assert await send(sock, file) == size
    assert file.tell() == size
    sock.close()
    assert_same(await receiver.wait_end(), content)


async def test_a_file_of_64_mib_arrives_whole(
    send: Send, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(64 * MIB)
    sock, receiver = connect()
    file = make_file(content)
    assert await send(sock, file) == 64 * MIB
    assert file.tell() == 64 * MIB
    sock.close()
    assert_same(await receiver.wait_end(), content)


@each("size", [SMALL, LARGE])
@each("offset", [0, 1, 4095, 4096, 8192, 61_441])
async def test_an_offset_and_a_count_choose_what_arrives(
    size: int, offset: int, send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(size)
    file = make_file(content, again=True)
    for count in (None, 1, 4096, 40_000, SMALL, 10 * LARGE):
        chosen = content[offset:] if count is None else content[offset : offset + count]
        sock, receiver = connect(family)
        assert await send(sock, file, offset, count) == len(chosen)
        assert file.tell() == offset + len(chosen)
        sock.close()
        assert_same(await receiver.wait_end(), chosen)


@each("size", [0, SMALL, LARGE])
async def test_at_the_end_and_beyond_it_there_is_nothing_to_send(
    size: int, send: Send, connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect()
    file = make_file(pattern(size), again=True)
    for beyond in (0, 1, 4096, 1 << 33):
        for count in (None, 1, MIB):
            assert await send(sock, file, size + beyond, count) == 0
            assert file.tell() == size + beyond
    sock.close()
    assert await receiver.wait_end() == b""


@each("before", [0, 1, 4095, 3 * MIB])
async def test_bytes_beyond_4_gib_of_a_sparse_file_arrive(
    before: int, send: Send, connect: Connect, tmp_path: Path
) -> None:
    """The first bytes sent lie `before` the mark of 4 GiB; the last lie beyond it."""
    content = pattern(4 * MIB + 1)
    first, start = (4 << 30) - 3 * MIB, (4 << 30) - before
    chosen = content[start - first :]
    sock, receiver = connect()
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.truncate(5 << 30)
        file.seek(first)
        file.write(content)
        file.flush()
        count = len(chosen) + 100  # and some of the hole behind it
        assert await send(sock, file, start, count) == count
        assert file.tell() == start + count
    sock.close()
    assert_same(await receiver.wait_end(), chosen, bytes(100))


async def test_the_end_of_a_file_of_5_gib_arrives(
    send: Send, connect: Connect, tmp_path: Path
) -> None:
    content = pattern(MIB + 5)
    sock, receiver = connect()
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.truncate(5 << 30)
        file.seek((5 << 30) - len(content))
        file.write(content)
        file.flush()
        start = (5 << 30) - 3 * MIB - 11
        assert await send(sock, file, start) == 3 * MIB + 11
        assert file.tell() == 5 << 30
    sock.close()
    assert_same(await receiver.wait_end(), bytes(2 * MIB + 6), content)


@each("size", [SMALL, LARGE])
@each("buffering", [-1, 0])
async def test_the_position_before_does_not_choose_what_arrives(
    size: int, buffering: int, send: Send, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(size)
    sock, receiver = connect()
    file = make_file(content, again=True, buffering=buffering)
    file.seek(1000)
    assert await send(sock, file, 10, 50_000) == 50_000
    assert file.tell() == 50_010
    assert file.read(10) == content[50_010:50_020]
    sock.close()
    assert_same(await receiver.wait_end(), content[10:50_010])


@each("size", [4096, SMALL, LARGE])
async def test_transfers_follow_each_other_on_one_connection(
    size: int, send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    contents = [pattern(size, seed) for seed in range(5)]
    sock, receiver = connect(family)
    for content in contents:
        assert await send(sock, make_file(content, again=True)) == size
    sock.close()
    assert_same(await receiver.wait_end(), *contents)


@each("size", [1, SMALL, LARGE])
async def test_what_was_sent_before_arrives_before(
    size: int, send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """The send buffer is full when the transfer starts."""
    content = pattern(size)
    sock, receiver = connect(family, limit=0)
    filler = fill(sock)
    sending = asyncio.create_task(send(sock, make_file(content, again=True)))
    await turns(5)
    assert not sending.done()
    receiver.allow(None)
    assert await sending == size
    sock.close()
    assert_same(await receiver.wait_end(), bytes(filler), content)


@each("size", [4096, MIB, 3 * MIB + 1])
@each("warm", [0, 4096, 700_000])
async def test_a_file_that_is_not_cached_arrives_whole(
    size: int, warm: int, send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """The first `warm` bytes are cached, and what the kernel read ahead with them."""
    content = pattern(size)
    sock, receiver = connect(family)
    file = make_file(content, again=True, buffering=0)
    write_out(file)
    assert len(os.pread(file.fileno(), warm, 0)) == min(warm, size)
    assert await send(sock, file) == size
    assert file.tell() == size
    sock.close()
    assert_same(await receiver.wait_end(), content)


@each("size", [4096, LARGE])
@pytest.mark.usefixtures("installed")
async def test_the_socket_of_a_transport_that_is_held_will_do(
    size: int, send: Send, far_end: FarEnd, make_file: MakeFile
) -> None:
    content = pattern(size)
    near, far = socket.socketpair()
    receiver = far_end.receive(far)
    _, writer = await asyncio.open_connection(sock=near)
    writer.write(b"before ")
    async with aiozc.lowlevel.exclusive(writer.transport) as sock:
        assert await send(sock, make_file(content, again=True)) == size
    writer.write(b" after")
    writer.close()
    await writer.wait_closed()
    assert_same(await receiver.wait_end(), b"before ", content, b" after")


class Numbered:
    """Anything that has a descriptor."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._number


@each("size", [4096, LARGE])
async def test_anything_with_the_descriptor_of_a_stream_socket_will_do(
    size: int, send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(size)
    sock, receiver = connect(family)
    assert await send(Numbered(sock.fileno()), make_file(content, again=True)) == size
    sock.close()
    assert_same(await receiver.wait_end(), content)


async def test_a_blocking_socket_does_not_block_the_loop(
    family: int, connect: Connect, make_file: MakeFile, caplog: pytest.LogCaptureFixture
) -> None:
    """Outside of debug mode it passes the checks, as the loop's own method lets it.

    One line says so, and the statistics count them.
    """
    caplog.set_level(logging.DEBUG, "aiozc")
    for size in (4096, LARGE):
        with case(size=size):
            asyncio.get_running_loop().set_debug(False)
            content = pattern(size)
            sock, receiver = connect(family, limit=0)
            filler = fill(sock)
            sock.setblocking(True)
            sending = asyncio.create_task(aiozc.loop_sendfile(sock, make_file(content, again=True)))
            await turns(5)
            receiver.allow(None)
            assert await sending == size
            sock.close()
            assert_same(await receiver.wait_end(), bytes(filler), content)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "setblocking(False)" in record.getMessage()
    statistics = aiozc.get_reactor().statistics()
    assert (statistics.fallbacks, statistics.transfers) == (2, 0)


async def raised_by(*arguments: Any, **options: Any) -> tuple[int, int]:
    """Return what a call says in what it raises: how much was sent, and lost."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of every kind
        await aiozc.loop_sendfile(*arguments, **options)
    error: Any = caught.value
    return error.transferred, error.lost


async def test_what_is_raised_says_how_much_was_sent(
    connect: Connect, make_file: MakeFile, family: int
) -> None:
    """By every way: also of a file that goes at once, and before anything went."""
    aiozc.get_reactor()
    sock, receiver = connect(family, limit=0, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    small, large = (make_file(pattern(size)) for size in (4096, LARGE))
    for wrong in (None, io.StringIO(), io.BytesIO()):
        assert await raised_by(sock, wrong, fallback=False) == (0, 0)
    assert await raised_by(sock, small, -1) == (0, 0)
    assert await raised_by(None, small) == (0, 0)
    for source in (large, io.BytesIO(pattern(LARGE))):
        task = asyncio.create_task(aiozc.loop_sendfile(sock, source))
        await until(lambda: not is_writable(sock))
        for busy in (small, make_file(pattern(LARGE))):
            assert await raised_by(sock, busy) == (0, 0)
        task.cancel()
        outcome: Any = await outcome_of(task)
        assert (outcome.transferred, outcome.lost) == (source.tell(), 0)
        assert isinstance(outcome, asyncio.CancelledError)
        assert source.tell() > 0
        receiver.allow(None)
        await until(lambda: is_writable(sock))
        receiver.allow(0)
    receiver.reset()
    await until(lambda: not is_connected(sock))
    for source in (small, make_file(pattern(LARGE)), io.BytesIO(b"memory")):
        assert await raised_by(sock, source) == (0, 0)
        source.close()
        assert await raised_by(sock, source) == (0, 0)


def is_writable(sock: socket.socket) -> bool:
    """Say whether there is room."""
    return bool(select.select([], [sock], [], 0)[1])


def is_connected(sock: socket.socket) -> bool:
    """Say whether the peer is there, and leave the error to be told to the next who asks."""
    return not select.select([sock], [], [], 0)[0]


async def test_one_file_is_sent_to_many_at_once(
    send: Send, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(LARGE)
    file = make_file(content, again=True)
    connections = [connect() for _ in range(8)]
    sent = await asyncio.gather(
        *(send(sock, file, place) for place, (sock, _) in enumerate(connections))
    )
    assert sent == [LARGE - place for place in range(8)]
    for place, (sock, receiver) in enumerate(connections):
        sock.close()
        assert_same(await receiver.wait_end(), content[place:])


KINDS = ["FileIO", "open for update", "NamedTemporaryFile", "TemporaryFile", "memory file"]


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[IO[bytes]]:
    """Open an empty file of that kind."""
    with ExitStack() as stack:
        match kind:
            case "NamedTemporaryFile":
                yield stack.enter_context(tempfile.NamedTemporaryFile(dir=folder))
            case "TemporaryFile":
                yield stack.enter_context(tempfile.TemporaryFile(dir=folder))
            case "open for update":
                yield stack.enter_context((folder / "file").open("w+b"))
            case "memory file":
                yield stack.enter_context(open(os.memfd_create(kind), "w+b"))
            case _:
                yield stack.enter_context(io.FileIO(folder / "file", "w+"))


@each("size", [SMALL, LARGE])
@pytest.mark.parametrize("kind", KINDS)
async def test_no_kind_of_regular_file_needs_the_fallback(
    size: int, kind: str, connect: Connect, tmp_path: Path
) -> None:
    content = pattern(size)
    sock, receiver = connect()
    with opened(kind, tmp_path) as file:
        file.write(content)
        file.seek(0)
        assert await aiozc.loop_sendfile(sock, file, 0, None, fallback=False) == size
        assert file.tell() == size
    sock.close()
    assert_same(await receiver.wait_end(), content)


@each(
    "offset, count", [(0, None), (0, 4096), (4096, 4096), (4096, None), (0, MIB), (8192, 64 * KIB)]
)
async def test_a_file_opened_for_direct_access_arrives(
    offset: int, count: int | None, send: Send, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(2 * MIB)
    chosen = content[offset:] if count is None else content[offset : offset + count]
    sock, receiver = connect()
    cached = make_file(content, again=True)
    write_out(cached)
    with io.FileIO(os.open(cached.name, os.O_RDONLY | os.O_DIRECT)) as file:
        assert await send(sock, file, offset, count) == len(chosen)
        assert file.tell() == offset + len(chosen)
    sock.close()
    assert_same(await receiver.wait_end(), chosen)
