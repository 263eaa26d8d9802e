"""`aiozc.lowlevel.exclusive`: a transport stands aside while its socket is held for transfers."""

import asyncio
import io
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import aiozc
from aiozc.lowlevel import exclusive
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.ends import Ends, content_of
from tests.kit.far_ends import FarEnd, Peer
from tests.kit.tasks import outcome_of
from tests.kit.tls import CERTIFICATE
from tests.kit.waiting import turns

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("installed")]

SMALL, LARGE = pattern(4 * KIB), pattern(3 * MIB)
EARLY, LATE = pattern(50 * KIB, 7), pattern(60 * KIB, 8)


class Line:
    """A transport by streams, and its far end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer):
        self.reader = reader
        self.writer = writer
        self.transport: Any = writer.transport
        self.peer = peer

    async def finish(self) -> bytes:
        """Close, and return what has arrived at the far end."""
        self.writer.close()
        await self.writer.wait_closed()
        return await self.peer.wait_end()


@pytest.fixture
async def line(far_end: FarEnd, family: int) -> AsyncIterator[Line]:
    """Make a transport with small buffers."""
    near, far = socket_pair(family, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    made = Line(*await asyncio.open_connection(sock=near), far_end.peer(far))
    yield made
    made.writer.close()
    await turns(3)


async def test_what_was_written_before_leaves_before_and_nothing_comes_between(
    line: Line, make_file: MakeFile
) -> None:
    line.peer.allow(0)
    line.writer.write(LARGE)
    hold = exclusive(line.transport)
    entering = asyncio.ensure_future(hold.__aenter__())
    await turns(5)
    assert not entering.done()
    with pytest.raises(RuntimeError):
        line.writer.write(b"never")
    line.peer.allow(None)
    sock = await entering
    assert line.transport.get_write_buffer_size() == 0
    acts: list[Callable[[], object]] = [
        lambda: line.writer.write(b"never"),
        lambda: line.writer.writelines([b"never"]),
        line.writer.write_eof,
    ]
    for act in acts:
        with pytest.raises(RuntimeError):
            act()
    assert await aiozc.loop_sendfile(sock, make_file(SMALL)) == len(SMALL)
    assert (await aiozc.sendfile_zc(sock, SMALL)).sent == len(SMALL)
    await hold.__aexit__(None, None, None)
    line.writer.write(EARLY)
    assert_same(await line.finish(), LARGE, SMALL, SMALL, EARLY)


async def test_nothing_is_read_meanwhile_and_everything_after(line: Line, ends: Ends) -> None:
    line.peer.send(EARLY)
    assert await line.reader.readexactly(10) == EARLY[:10]
    while len(line.reader._buffer) < len(EARLY) - 10:  # type: ignore[attr-defined]
        await turns(1)
    file = ends.file(b"", "wb")
    async with exclusive(line.transport) as sock:
        assert not line.transport.is_reading()
        line.peer.send(LARGE + LATE, end=True)
        line.transport.resume_reading()
        assert await line.reader.readexactly(len(EARLY) - 10) == EARLY[10:]
        assert await aiozc.loop_recvfile(sock, file, 0, len(LARGE)) == len(LARGE)
        assert not line.transport.is_reading()
    assert await line.reader.read() == LATE
    assert_same(await line.finish())
    assert_same(content_of(file), LARGE)


@pytest.mark.parametrize("paused", [True, False], ids=["paused before", "paused meanwhile"])
async def test_who_has_paused_reading_finds_it_paused(line: Line, paused: bool) -> None:
    if paused:
        line.transport.pause_reading()
    async with exclusive(line.transport):
        if not paused:
            line.transport.pause_reading()
    assert not line.transport.is_reading()
    line.transport.resume_reading()
    assert line.transport.is_reading()
    line.peer.send(EARLY)
    assert await line.reader.readexactly(len(EARLY)) == EARLY


async def test_two_held_transports_are_relayed(family: int, line: Line, far_end: FarEnd) -> None:
    near, far = socket_pair(family)
    other = Line(*await asyncio.open_connection(sock=near), far_end.peer(far))
    async with exclusive(line.transport) as a, exclusive(other.transport) as b:
        line.peer.send(LARGE, end=True)
        other.peer.send(EARLY, end=True)
        assert await aiozc.relay(a, b) == (len(LARGE), len(EARLY))
    assert await line.reader.read() == await other.reader.read() == b""
    assert_same(await line.finish(), EARLY)
    assert_same(await other.finish(), LARGE)


async def test_a_second_hold_and_a_file_through_the_transport_are_refused(
    line: Line, make_file: MakeFile
) -> None:
    loop: Any = asyncio.get_running_loop()
    async with exclusive(line.transport) as sock:
        with pytest.raises(RuntimeError, match="in progress"):
            await exclusive(line.transport).__aenter__()
        with pytest.raises(RuntimeError, match="in progress"):
            await loop.sendfile(line.transport, make_file(SMALL))
        with pytest.raises(RuntimeError, match="is used by transport"):
            await aiozc.splice_pipe(make_file(SMALL), sock.fileno())
    async with exclusive(line.transport) as sock:
        await aiozc.loop_sendfile(sock, make_file(EARLY))
    assert_same(await line.finish(), EARLY)


async def test_what_it_gave_is_of_no_use_behind_the_block(line: Line, make_file: MakeFile) -> None:
    line.peer.allow(1000)
    file = make_file(LARGE)
    async with exclusive(line.transport) as sock:
        left = asyncio.ensure_future(aiozc.loop_sendfile(sock, file))
        await line.peer.wait_arrived(1000)
    # The transfer that was left behind is over, or the next bytes would land in its midst.
    assert left.done()
    assert isinstance(await outcome_of(left), OSError)
    line.writer.write(SMALL)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await aiozc.loop_sendfile(sock, make_file(SMALL))
    line.peer.allow(None)
    assert_same(await line.finish(), LARGE[: file.tell()], SMALL)


@pytest.mark.parametrize("when", ["before", "while it waits", "meanwhile"])
@pytest.mark.parametrize("by", ["close", "abort", "peer"])
async def test_a_connection_that_is_lost_is_a_connection_error(
    when: str, by: str, line: Line, make_file: MakeFile
) -> None:
    if by == "peer" and when == "before":
        return

    def lose() -> None:
        if by == "peer":
            line.peer.reset()
        else:
            getattr(line.transport, by)()

    line.peer.allow(1000)
    if when == "while it waits":
        line.writer.write(LARGE)
    elif when == "before":
        lose()

    async def hold() -> None:
        async with exclusive(line.transport) as sock:
            await aiozc.loop_sendfile(sock, make_file(LARGE))

    task = asyncio.ensure_future(hold())
    if when == "meanwhile":
        await line.peer.wait_arrived(1000)
    await turns(5)
    if when != "before":
        assert not task.done()
        lose()
    if by == "close" and when == "while it waits":
        line.peer.allow(None)
    assert isinstance(await outcome_of(task), ConnectionError)
    if by == "peer":
        with pytest.raises(ConnectionError):
            await line.writer.wait_closed()


async def test_a_hold_that_is_cancelled_while_it_waits_leaves_all_as_it_was(line: Line) -> None:
    line.peer.allow(0)
    line.writer.write(LARGE)
    limits = line.transport.get_write_buffer_limits()
    task = asyncio.ensure_future(exclusive(line.transport).__aenter__())
    await turns(5)
    task.cancel()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)
    assert line.transport.get_write_buffer_limits() == limits
    assert line.transport.is_reading()
    line.writer.write(SMALL)
    line.peer.allow(None)
    assert_same(await line.finish(), LARGE, SMALL)


async def test_an_exception_in_the_block_is_raised_as_it_is(line: Line) -> None:
    for error in (ValueError("mine"), OSError(5, "a disk's"), asyncio.CancelledError()):
        with pytest.raises(type(error)) as caught:
            async with exclusive(line.transport):
                raise error
        assert caught.value is error
    line.writer.write(SMALL)
    assert_same(await line.finish(), SMALL)


async def test_a_stream_that_was_ended_can_be_received_from(line: Line, ends: Ends) -> None:
    line.writer.write(SMALL)
    line.writer.write_eof()
    file = ends.file(b"", "wb")
    line.peer.send(b"", end=False)
    async with exclusive(line.transport) as sock:
        line.peer.send(LARGE, end=True)
        assert await aiozc.loop_recvfile(sock, file) == len(LARGE)
        with pytest.raises(BrokenPipeError):
            await aiozc.loop_sendfile(sock, io.BytesIO(SMALL))
    assert_same(await line.peer.wait_end(), SMALL)


# What cannot be held


async def test_what_is_no_plain_transport_is_refused_in_a_sentence(line: Line) -> None:
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    os.close(writing)
    pipe, _ = await loop.connect_read_pipe(asyncio.Protocol, io.FileIO(reading))
    for other in (line.writer, line.writer.get_extra_info("socket"), 5, pipe):
        with pytest.raises(TypeError, match="is no transport of a plain stream connection"):
            exclusive(other)
    with pytest.raises(TypeError, match="give its `transport`"):
        exclusive(line.writer)
    pipe.close()
    await turns(3)


async def test_a_transport_that_encrypts_is_refused() -> None:
    loop = asyncio.get_running_loop()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(CERTIFICATE)
    client_side = ssl._create_unverified_context()
    near, far = socket_pair(socket.AF_UNIX)
    serving = asyncio.ensure_future(
        loop.connect_accepted_socket(asyncio.Protocol, far, ssl=server_side)
    )
    plain, _ = await loop.create_unix_connection(asyncio.Protocol, sock=near)
    secret = await loop.start_tls(
        plain, asyncio.Protocol(), client_side, server_hostname="localhost"
    )
    server, _ = await serving
    for transport in (plain, secret, server):
        with pytest.raises(TypeError):
            exclusive(transport)
    for transport in (secret, server):
        assert transport is not None
        transport.abort()
    await turns(3)


async def test_a_transport_of_uvloop_that_cannot_refuse_is_refused_in_a_sentence(
    far_end: FarEnd,
) -> None:
    loop: Any = asyncio.get_running_loop()
    aiozc.uninstall(loop)
    near, far = socket_pair(socket.AF_UNIX)
    peer = far_end.peer(far)
    _, writer = await asyncio.open_connection(sock=near)
    if type(loop).__module__.startswith("uvloop"):
        with pytest.raises(RuntimeError, match=r"call aiozc\.install\(loop\) before"):
            exclusive(writer.transport)
    else:
        async with exclusive(writer.transport) as sock:
            await aiozc.loop_sendfile(sock, io.BytesIO(SMALL))
    writer.close()
    await writer.wait_closed()
    await peer.wait_end()
