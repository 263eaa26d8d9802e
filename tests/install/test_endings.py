"""Transfers that are cancelled or lose their connection, and what the transport is then."""

import asyncio
import contextlib
import errno
import io
import os
from typing import Any

import pytest

from aiozc._engines.inline import Inline
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.loops import WITH_AIOZC
from tests.kit.tasks import outcome_of
from tests.kit.transports import Line, Open, Recorder, close_beneath
from tests.kit.waiting import turns, until

pytestmark = pytest.mark.anyio

CONTENT = pattern(3 * MIB + 5, 2)
PREFIX = pattern(4 * MIB + 3, 3)
AFTER = pattern(100_000, 4)


@pytest.fixture(params=[b"", PREFIX], ids=["sending", "waiting"])
def prefix(request: pytest.FixtureRequest) -> bytes:
    """Run the test with a transfer that sends, and with one that waits for what was written."""
    prefix: bytes = request.param
    return prefix


async def start(line: Line, prefix: bytes, file: Any) -> "asyncio.Task[int]":
    """Write the prefix and begin a transfer; the far end reads nothing."""
    line.transport.write(prefix)
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(loop.sendfile(line.transport, file))
    await turns(20)
    assert not task.done()
    return task


# Cancelling


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 20])
@pytest.mark.parametrize("source", ["file", "memory"])
async def test_cancelled_at_any_time_the_position_is_right_and_the_transport_works(
    source: str, number: int, prefix: bytes, loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(limit=0, small=True)
    file: Any = make_file(CONTENT) if source == "file" else io.BytesIO(CONTENT)
    line.transport.write(prefix)
    task = asyncio.ensure_future(loop.sendfile(line.transport, file))
    await turns(number)
    task.cancel()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)
    sent = file.tell()
    line.assert_as_before()
    line.transport.write(AFTER)
    line.peer.allow(None)
    file = make_file(CONTENT)
    assert await loop.sendfile(line.transport, file) == len(CONTENT)
    line.assert_as_before()
    assert_same(await line.finish(), prefix, CONTENT[:sent], AFTER, CONTENT)
    assert not line.protocol.paused


async def test_cancelled_in_the_middle_it_sends_no_more(
    open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(limit=0, small=True)
    file = make_file(CONTENT)
    task = await start(line, b"", file)
    line.peer.allow(MIB)
    await line.peer.wait_arrived(MIB)
    task.cancel()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)
    assert MIB <= file.tell() < len(CONTENT)
    line.transport.write(AFTER)
    line.assert_as_before()
    assert_same(await line.finish(), CONTENT[: file.tell()], AFTER)


async def test_a_timeout_ends_it_too(loop: Any, open_line: Open, make_file: MakeFile) -> None:
    line = await open_line(limit=0, small=True)
    file = make_file(CONTENT)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await loop.sendfile(line.transport, file)
    line.assert_as_before()
    assert_same(await line.finish(), CONTENT[: file.tell()])


# The connection is lost


async def test_a_peer_that_resets_makes_a_connection_error_that_the_protocol_hears_of(
    prefix: bytes, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(limit=0, small=True)
    task = await start(line, prefix, make_file(CONTENT))
    line.peer.reset()
    outcome = await outcome_of(task)
    assert isinstance(outcome, ConnectionError)
    assert line.transport.is_closing()
    assert isinstance(await line.protocol.lost, ConnectionError)
    assert len(line.protocol.losses) == 1
    assert not line.protocol.paused or prefix


async def test_a_peer_that_resets_ends_a_source_in_memory_too(
    prefix: bytes, open_line: Open
) -> None:
    line = await open_line(limit=0, small=True)
    task = await start(line, prefix, io.BytesIO(CONTENT))
    line.peer.reset()
    assert isinstance(await outcome_of(task), ConnectionError)
    assert isinstance(await line.protocol.lost, ConnectionError)


async def test_a_peer_that_was_gone_before_is_a_connection_error(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    """Reading is paused, so that nothing but the transfer can find out."""
    line = await open_line(limit=0)
    line.transport.pause_reading()
    line.peer.reset()
    file = make_file(CONTENT[: 4 * KIB])
    with pytest.raises(ConnectionError):
        await loop.sendfile(line.transport, file)
    assert file.tell() == 0
    assert isinstance(await line.protocol.lost, ConnectionError)


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_transport_that_is_closed_meanwhile_ends_it_with_a_connection_error(
    end: str, prefix: bytes, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(limit=0, small=True)
    file = make_file(CONTENT)
    task = await start(line, prefix, file)
    getattr(line.transport, end)()
    line.peer.allow(None)
    assert isinstance(await outcome_of(task), ConnectionError)
    assert await line.protocol.lost is None
    assert len(line.protocol.losses) == 1
    sent = PREFIX + CONTENT if prefix else CONTENT
    arrived = await line.peer.wait_end()
    if end == "close":
        assert_same(arrived, prefix, CONTENT[: file.tell()])
    else:
        assert_same(arrived, sent[: len(arrived)])


async def test_a_transport_closed_meanwhile_leaves_its_number_to_others(
    open_line: Open, make_file: MakeFile
) -> None:
    """Connections made at once take the number; nothing of the file reaches them."""
    line = await open_line(limit=0, small=True)
    task = await start(line, b"", make_file(CONTENT))
    line.transport.abort()
    await line.protocol.lost
    strangers = [await open_line() for _ in range(5)]
    assert isinstance(await outcome_of(task), ConnectionError)
    for stranger in strangers:
        assert await stranger.finish() == b""


async def test_a_protocol_that_closes_when_it_is_resumed_makes_a_connection_error(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    class Closing(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            loop.call_soon(self.transport.close)

    line = await open_line(Closing(), limit=0, small=True)
    line.transport.write(PREFIX)
    task = asyncio.ensure_future(loop.sendfile(line.transport, make_file(CONTENT)))
    await turns(20)
    line.peer.allow(len(PREFIX))  # of the file it takes no byte: the close comes in the middle
    assert isinstance(await outcome_of(task), ConnectionError)
    line.peer.allow(None)
    assert await line.protocol.lost is None


async def test_a_protocol_that_writes_when_it_is_resumed_is_refused_and_the_file_arrives(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    class Pumping(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.write(AFTER)

    faults: list[Any] = []
    loop.set_exception_handler(lambda _, context: faults.append(context["exception"]))
    line = await open_line(Pumping(), limit=0, small=True)
    line.transport.write(PREFIX)
    task = asyncio.ensure_future(loop.sendfile(line.transport, make_file(CONTENT)))
    await turns(20)
    line.peer.allow(None)
    assert await task == len(CONTENT)
    loop.set_exception_handler(None)
    assert [str(fault) for fault in faults] == ["unable to write; sendfile is in progress"]
    line.assert_as_before()
    assert_same(await line.finish(), PREFIX, CONTENT)


# The file fails


class Failing(io.BytesIO):
    """A source that fails after some bytes."""

    def readinto(self, buffer: Any) -> int:
        """Fail, or not yet."""
        if self.tell() >= 10_000:
            raise OSError(errno.EIO, "the disk is gone")
        return super().readinto(memoryview(buffer)[:1000])


async def test_an_error_of_the_file_is_raised_and_leaves_the_transport_usable(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line()
    source = Failing(CONTENT)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        await loop.sendfile(line.transport, source)
    assert caught.value.errno == errno.EIO
    assert source.tell() == 10_000
    line.assert_as_before()
    assert await loop.sendfile(line.transport, make_file(AFTER)) == len(AFTER)
    assert_same(await line.finish(), CONTENT[:10_000], AFTER)


LOST = [errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE]


class Remote(io.RawIOBase):
    """A source far away, that fails after some bytes as a connection does."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._position = 0

    def readable(self) -> bool:
        """Say so."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fail, or not yet."""
        if self._position:
            raise OSError(self._number, os.strerror(self._number))
        self._position = 1000
        buffer[:1000] = CONTENT[:1000]
        return 1000


async def test_a_lost_connection_of_the_files_own_leaves_the_transport_usable(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(small=True)
    line.transport.write(PREFIX)
    for number in LOST:
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            await loop.sendfile(line.transport, Remote(number))
        assert caught.value.errno == number
        line.assert_as_before()
    assert await loop.sendfile(line.transport, make_file(AFTER)) == len(AFTER)
    assert_same(await line.finish(), PREFIX, CONTENT[:1000] * len(LOST), AFTER)


async def test_so_does_one_that_the_kernel_tells_of(
    loop: Any, open_line: Open, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a file of NFS or FUSE whose server is gone."""
    line = await open_line()
    for number in LOST:
        with monkeypatch.context() as patch:
            patch.setattr(Inline, "send", lambda *_, number=number: -number)
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                await loop.sendfile(line.transport, make_file(CONTENT), 0, 5000)
        assert caught.value.errno == number
        line.assert_as_before()
    assert await loop.sendfile(line.transport, make_file(AFTER)) == len(AFTER)
    assert_same(await line.finish(), AFTER)


async def test_a_file_closed_meanwhile_is_an_oserror_and_leaves_the_transport_usable(
    open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(limit=0, small=True)
    file = make_file(CONTENT)
    task = await start(line, b"", file)
    file.close()
    outcome = await outcome_of(task)
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.EBADF
    line.assert_as_before()
    line.transport.write(AFTER)
    arrived = await line.finish()
    sent = len(arrived) - len(AFTER)
    assert_same(arrived, CONTENT[:sent], AFTER)


# The loop is closed


@pytest.mark.parametrize("name", WITH_AIOZC)
@pytest.mark.parametrize("size", [0, len(PREFIX)], ids=["sending", "waiting"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_loop_that_is_closed_meanwhile_leaves_nothing_to_complain_of(
    size: int, name: str
) -> None:
    near, far = socket_pair(sndbuf=30_000, rcvbuf=30_000)

    async def connect(loop: Any) -> Any:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        transport.write(PREFIX[:size])
        return transport

    with near, far:
        close_beneath(WITH_AIOZC[name](), connect)


# What the user sets meanwhile


async def test_a_protocol_set_meanwhile_stays_and_hears_the_rest(
    prefix: bytes, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(limit=0, small=True)
    task = await start(line, prefix, make_file(CONTENT))
    later = Recorder()
    later.pauses += line.protocol.pauses
    line.transport.set_protocol(later)
    assert line.transport.get_protocol() is later
    line.peer.send(b"data")
    line.peer.allow(None)
    assert await task == len(CONTENT)
    assert line.transport.get_protocol() is later
    await until(lambda: later.data == b"data")
    line.transport.close()
    await later.lost
    line.protocol.lost.set_result(None)


async def test_a_protocol_that_the_last_resumption_sets_stays_and_hears_the_rest(
    open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(limit=0, small=True)
    task = await start(line, PREFIX, make_file(CONTENT))
    later = Recorder()
    resume = line.protocol.resume_writing

    def resume_and_leave() -> None:
        resume()
        line.transport.set_protocol(later)
        line.transport.set_write_buffer_limits(5000, 50)

    line.protocol.resume_writing = resume_and_leave
    line.peer.send(b"data")
    line.peer.allow(None)
    assert await task == len(CONTENT)
    assert line.transport.get_protocol() is later
    assert line.transport.get_write_buffer_limits() == (50, 5000)
    await until(lambda: later.data == b"data")
    line.transport.close()
    await later.lost
    line.protocol.lost.set_result(None)


async def test_limits_set_meanwhile_stay(
    prefix: bytes, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(limit=0, small=True)
    task = await start(line, prefix, make_file(CONTENT))
    line.transport.set_write_buffer_limits(5000, 50)
    assert line.transport.get_write_buffer_limits() == (50, 5000)
    line.peer.allow(None)
    assert await task == len(CONTENT)
    assert line.transport.get_write_buffer_limits() == (50, 5000)
    assert_same(await line.finish(), prefix, CONTENT)


@pytest.mark.parametrize("size", [1000, len(CONTENT)])
async def test_a_socket_that_its_owner_has_closed_beneath_the_transport_sends_to_nobody_else(
    size: int, loop: Any, make_file: MakeFile
) -> None:
    """On asyncio its number is at once that of another socket, whose peer gets nothing."""
    near, far = socket_pair()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
    transport.pause_reading()
    near.close()
    stranger, peer = socket_pair()
    with far, stranger, peer:
        with contextlib.suppress(OSError):
            await loop.sendfile(transport, make_file(CONTENT[:size]), 0, 1000)
        transport.abort()
        for sock in (stranger, peer):
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        await turns(5)
