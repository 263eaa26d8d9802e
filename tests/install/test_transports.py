"""Files through transports: in their order, with everything as it was before."""

import asyncio
import functools
import io
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import uvloop

from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.tasks import outcome_of
from tests.kit.transports import Buffered, Open, Recorder, begin
from tests.kit.waiting import turns, until

pytestmark = pytest.mark.anyio

SMALL = pattern(4 * KIB, 1)
LARGE = pattern(3 * MIB + 5, 2)
PREFIX = pattern(4 * MIB + 3, 3)
SUFFIX = pattern(100_000, 4)


async def start(send: Any) -> "asyncio.Task[int]":
    """Begin a transfer, and let it meet what it has to wait for."""
    task: asyncio.Task[int] = asyncio.ensure_future(send)
    await turns(20)
    assert not task.done()
    return task


# Order


@pytest.mark.parametrize(
    ("size", "offset", "count"),
    [
        *((0, 0, None), (1, 0, None), (4096, 0, None), (4096, 4096, None), (4096, 1, 100)),
        *((256 * KIB + 1, 0, None), (256 * KIB + 1, 3, 256 * KIB), (4096, 0, 5000)),
        *((3 * MIB + 5, 0, None), (3 * MIB + 5, 4097, 2 * MIB), (3 * MIB + 5, 5, 9 * MIB)),
    ],
)
async def test_a_file_arrives_whole_or_in_part(
    size: int, offset: int, count: int | None, loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line()
    content = pattern(size)
    chosen = content[offset:] if count is None else content[offset : offset + count]
    file = make_file(content)
    assert await loop.sendfile(line.transport, file, offset, count) == len(chosen)
    assert file.tell() == offset + len(chosen)
    line.assert_as_before()
    assert_same(await line.finish(), chosen)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("prefix", [b"", b"prefix", PREFIX], ids=["none", "little", "much"])
async def test_what_is_written_before_and_after_arrives_before_and_after(
    prefix: bytes, content: bytes, loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(limit=0, small=True)
    line.transport.write(prefix)
    # Empty pieces stay in asyncio's buffer for ever (3.12, 3.13).
    line.transport.writelines([piece for piece in (prefix[:10], prefix[10:]) if piece])
    sending = asyncio.ensure_future(loop.sendfile(line.transport, make_file(content)))
    await turns(20)
    line.peer.allow(None)
    assert await sending == len(content)
    line.assert_as_before()
    line.transport.write(SUFFIX)
    line.transport.writelines([SUFFIX, SUFFIX])
    expected = prefix, prefix, content, SUFFIX, SUFFIX, SUFFIX
    assert_same(await line.finish(), *expected)
    assert not line.protocol.paused


async def test_files_and_writes_follow_each_other_as_they_were_asked_for(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(small=True)
    expected = []
    for number in range(40):
        header = pattern(number * 701, number)
        content = pattern(number * 9001, 100 + number)
        line.transport.write(header)
        await loop.sendfile(line.transport, make_file(content))
        expected += [header, content]
    line.assert_as_before()
    assert_same(await line.finish(), *expected)


async def test_many_small_files_in_one_turn_keep_the_order(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    """More than the loop's turn may spend."""
    line = await open_line()
    content = pattern(256 * KIB)
    file = make_file(content)
    for _ in range(100):
        assert await loop.sendfile(line.transport, file) == len(content)
    line.assert_as_before()
    assert_same(await line.finish(), content * 100)


async def test_pauses_are_told_in_pairs_however_often_files_wait_for_them(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(limit=0, small=True)
    expected = []
    for number in range(8):
        line.transport.write(PREFIX[: 1 << (2 * number)])
        task = asyncio.ensure_future(loop.sendfile(line.transport, make_file(SMALL)))
        await turns(number)
        if number % 3 == 2:
            task.cancel()
        line.peer.allow(None)
        outcome = await outcome_of(task)
        sent = outcome if isinstance(outcome, int) else 0
        expected += [PREFIX[: 1 << (2 * number)], SMALL[:sent]]
        line.peer.allow(0)
    line.peer.allow(None)
    await until(lambda: not line.transport.get_write_buffer_size())
    line.assert_as_before()
    arrived = await line.finish()
    assert_same(arrived, *expected)


# Reading


@pytest.fixture(params=[Recorder, Buffered])
def protocol(request: pytest.FixtureRequest, loop: Any) -> Any:  # noqa: ARG001
    """Run the test with a protocol that is given bytes, and with one that has a buffer."""
    return request.param


@pytest.mark.parametrize("prefix", [b"", PREFIX], ids=["at once", "after a prefix"])
async def test_reading_is_paused_and_what_arrives_meanwhile_is_heard_afterwards(
    prefix: bytes, protocol: Any, loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(protocol(), limit=0, small=True)
    line.peer.send(b"before")
    await until(lambda: len(line.protocol.data) == 6)
    line.transport.write(prefix)
    task = await start(loop.sendfile(line.transport, make_file(LARGE)))
    assert not line.transport.is_reading()
    line.peer.send(b" meanwhile")
    await until(lambda: line.peer.sent == 16)
    await turns(5)
    assert line.protocol.data == b"before"
    line.peer.allow(None)
    assert await task == len(LARGE)
    await until(lambda: len(line.protocol.data) == 16)
    line.assert_as_before()
    assert_same(await line.finish(), prefix, LARGE)
    assert line.protocol.data == b"before meanwhile"


async def test_reading_that_was_paused_stays_paused(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(small=True)
    line.transport.pause_reading()
    for content in (SMALL, LARGE):
        await loop.sendfile(line.transport, make_file(content))
        assert not line.transport.is_reading()
    line.peer.send(b"later")
    await until(lambda: line.peer.sent == 5)
    await turns(5)
    assert not line.protocol.data
    line.transport.resume_reading()
    await until(lambda: line.protocol.data == b"later")
    assert_same(await line.finish(), SMALL, LARGE)


async def test_a_pause_that_is_asked_for_meanwhile_ends_with_the_file(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    """As in the stdlib, which resumes where it was reading before (`_sendfile_native`)."""
    line = await open_line(limit=0, small=True)
    task = await start(loop.sendfile(line.transport, make_file(LARGE)))
    line.transport.pause_reading()
    line.peer.allow(None)
    assert await task == len(LARGE)
    assert line.transport.is_reading()
    assert_same(await line.finish(), LARGE)


async def test_the_end_of_the_peers_stream_is_told_once(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    """As with a client that half-closes after its request."""
    line = await open_line(Recorder(keep_open=True), small=True)
    line.peer.finish()
    await until(lambda: line.protocol.ends == 1)
    for content in (SMALL, LARGE):
        assert await loop.sendfile(line.transport, make_file(content)) == len(content)
        await turns(5)
    assert line.protocol.ends == 1
    assert_same(await line.finish(), SMALL, LARGE)


class Prompt(Recorder):
    """Sends a file as soon as it is connected, in that very call."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file
        self.sending: asyncio.Task[int] | None = None

    def connection_made(self, transport: Any) -> None:
        """Send."""
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self.sending = begin(loop.sendfile(transport, self._file))


async def test_reading_is_paused_too_for_a_file_that_is_sent_as_the_connection_is_made(
    open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(Prompt(make_file(LARGE)), limit=0, small=True)
    await turns(3)
    assert not line.transport.is_reading()
    line.peer.send(b"data")
    await until(lambda: line.peer.sent == 4)
    await turns(5)
    assert not line.protocol.data
    line.peer.allow(None)
    assert await line.protocol.sending == len(LARGE)
    await until(lambda: line.protocol.data == b"data")
    assert line.transport.is_reading()
    assert_same(await line.finish(), LARGE)


# What is refused


@pytest.mark.parametrize("prefix", [b"", PREFIX], ids=["sending", "waiting"])
async def test_what_is_written_meanwhile_is_refused_and_nothing_of_it_arrives(
    prefix: bytes, loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(limit=0, small=True)
    write, writelines = line.transport.write, line.transport.writelines
    line.transport.write(prefix)
    task = await start(loop.sendfile(line.transport, make_file(LARGE)))

    def assert_refused() -> None:
        attempts: list[Callable[[], Any]] = [
            lambda: line.transport.write(b"data"),
            lambda: line.transport.writelines([b"da", b"ta"]),
            lambda: line.transport.write_eof(),
            lambda: write(b"data"),
            lambda: writelines([b"data"]),
        ]
        for refused in attempts:
            with pytest.raises(RuntimeError, match="sendfile is in progress"):
                refused()
        # As anyio's streams of before 4.15 expect it, which end before they close.
        with pytest.raises(OSError, match="sendfile is in progress"):
            line.transport.write_eof()

    assert_refused()
    with pytest.raises(RuntimeError, match="sendfile is in progress"):
        await loop.sendfile(line.transport, make_file(SMALL))
    with pytest.raises(RuntimeError, match="sendfile is in progress"):
        await loop.sendfile(line.transport, io.BytesIO(SMALL))
    assert_refused()
    line.peer.allow(None)
    assert await task == len(LARGE)
    line.assert_as_before()
    write(SMALL)
    writelines([SMALL])
    assert_same(await line.finish(), prefix, LARGE, SMALL, SMALL)


async def test_a_write_that_somebody_sets_stays_theirs_and_files_are_sent(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    """What it calls is refused during a file. Deleted again, the transport's own is there."""
    line = await open_line(limit=0, small=True)
    transport, own = line.transport, line.transport.write
    calls: list[bytes] = []
    theirs = functools.partial(calls.append)
    transport.write = theirs
    transport.writelines = calls.extend
    task = await start(loop.sendfile(transport, make_file(LARGE)))
    transport.write(b"call")
    with pytest.raises(RuntimeError, match="sendfile is in progress"):
        own(b"data")
    line.peer.allow(None)
    assert await task == len(LARGE)
    assert transport.write is theirs
    transport.write(b"call")
    transport.writelines([b"call"])
    assert calls == [b"call"] * 3
    del transport.write, transport.writelines
    with mock.patch.object(transport, "write") as mocked:
        transport.write(b"mocked")
    mocked.assert_called_once_with(b"mocked")
    line.peer.allow(line.peer.count)
    task = await start(loop.sendfile(transport, make_file(LARGE)))
    with pytest.raises(RuntimeError, match="sendfile is in progress"):
        transport.write(b"data")
    with pytest.raises(RuntimeError, match="sendfile is in progress"):
        transport.writelines([b"data"])
    line.peer.allow(None)
    assert await task == len(LARGE)
    transport.write(SMALL)
    assert_same(await line.finish(), LARGE, LARGE, SMALL)


async def test_a_write_eof_that_somebody_sets_stays_theirs(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    """Uvloop's transports let nobody set one, and neither does what stands for them."""
    line = await open_line(limit=0, small=True)
    calls: list[str] = []
    theirs = functools.partial(calls.append, "end")
    if isinstance(loop, uvloop.Loop):
        with pytest.raises(AttributeError):
            line.transport.write_eof = theirs
    else:
        line.transport.write_eof = theirs
    task = await start(loop.sendfile(line.transport, make_file(LARGE)))
    with pytest.raises(RuntimeError, match="sendfile is in progress"):
        line.transport.write_eof()
    line.peer.allow(None)
    assert await task == len(LARGE)
    line.transport.write_eof()
    assert calls == ([] if isinstance(loop, uvloop.Loop) else ["end"])
    assert_same(await line.finish(), LARGE)


async def test_after_the_end_was_written_no_file_is_taken(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line()
    line.transport.write(SMALL)
    line.transport.write_eof()
    with pytest.raises(RuntimeError, match="after write_eof"):
        await loop.sendfile(line.transport, make_file(LARGE))
    assert_same(await line.finish(), SMALL)


async def test_a_transport_that_is_closing_takes_no_file(
    loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line()
    file = make_file(SMALL)
    line.transport.close()
    with pytest.raises(RuntimeError, match="Transport is closing"):
        await loop.sendfile(line.transport, file)
    assert file.tell() == 0
    assert await line.finish() == b""


async def test_a_datagram_transport_takes_no_file(loop: Any, make_file: MakeFile) -> None:
    protocol = Recorder()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: protocol, local_addr=("127.0.0.1", 0)
    )
    for fallback in (True, False):
        with pytest.raises(RuntimeError, match="sendfile is not supported for transport"):
            await loop.sendfile(transport, make_file(SMALL), fallback=fallback)
    transport.close()
    await protocol.lost


async def test_the_transports_of_pipes_take_no_file(loop: Any, make_file: MakeFile) -> None:
    reading, writing = os.pipe()
    readers, writers = Recorder(), Recorder()
    reader, _ = await loop.connect_read_pipe(lambda: readers, io.FileIO(reading, "rb"))
    writer, _ = await loop.connect_write_pipe(lambda: writers, io.FileIO(writing, "wb"))
    for transport in (reader, writer):
        with pytest.raises(RuntimeError, match="sendfile is not supported for transport"):
            await loop.sendfile(transport, make_file(SMALL))
    writer.close()
    reader.close()
    await asyncio.gather(readers.lost, writers.lost)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((-1, None), ValueError), ((0, 0), ValueError), ((0, "1"), TypeError), ((1.5, 1), TypeError)],
)
async def test_wrong_arguments_are_refused_as_by_sock_sendfile(
    arguments: tuple[Any, Any],
    error: type[Exception],
    loop: Any,
    open_line: Open,
    make_file: MakeFile,
) -> None:
    line = await open_line()
    with pytest.raises(error):
        await loop.sendfile(line.transport, make_file(SMALL), *arguments)
    with open(os.devnull) as text, pytest.raises(ValueError, match="binary mode"):  # noqa: ASYNC230
        await loop.sendfile(line.transport, text)
    line.assert_as_before()
    assert await line.finish() == b""


# What the kernel cannot send


@pytest.mark.parametrize("prefix", [b"", PREFIX], ids=["at once", "after a prefix"])
async def test_a_file_without_a_descriptor_arrives_or_is_refused_without_a_fallback(
    prefix: bytes, loop: Any, open_line: Open
) -> None:
    line = await open_line(limit=0, small=True)
    source = io.BytesIO(LARGE)
    line.transport.write(prefix)
    line.peer.allow(None)
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await loop.sendfile(line.transport, source, fallback=False)
    assert source.tell() == 0
    line.assert_as_before()
    line.peer.allow(line.peer.count)
    task = await start(loop.sendfile(line.transport, source, 7, 2 * MIB))
    with pytest.raises(RuntimeError, match="sendfile is in progress"):
        line.transport.write(b"data")
    line.peer.allow(None)
    assert await task == 2 * MIB
    assert source.tell() == 7 + 2 * MIB
    line.assert_as_before()
    assert_same(await line.finish(), prefix, LARGE[7 : 7 + 2 * MIB])


async def test_a_device_is_refused_without_a_fallback(loop: Any, open_line: Open) -> None:
    line = await open_line()
    with io.FileIO("/dev/zero") as zeros:
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await loop.sendfile(line.transport, zeros, 0, 100, fallback=False)
        assert await loop.sendfile(line.transport, zeros, 0, 100) == 100
    assert await line.finish() == bytes(100)


# Transports that were made before


@pytest.mark.parametrize("prefix", [b"", PREFIX], ids=["at once", "after a prefix"])
async def test_through_a_transport_made_before_a_file_arrives_all_the_same(
    prefix: bytes, loop: Any, open_line: Open, make_file: MakeFile
) -> None:
    line = await open_line(limit=0, small=True, bare=True)
    line.transport.write(prefix)
    line.peer.allow(None)
    file = make_file(LARGE)
    assert await loop.sendfile(line.transport, file, 5) == len(LARGE) - 5
    assert file.tell() == len(LARGE)
    line.assert_as_before()
    line.transport.write(SUFFIX)
    assert_same(await line.finish(), prefix, LARGE[5:], SUFFIX)
    assert not line.protocol.paused
