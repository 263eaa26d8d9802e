"""Files into and out of asyncio's streams: `aiozc.streams.send_file` and `receive_file`."""

import asyncio
import errno
import io
import os
import socket
import threading
from asyncio.selector_events import BaseSelectorEventLoop
from typing import Any, BinaryIO

import pytest

from aiozc._api.gates import is_bare
from aiozc.lowlevel import exclusive
from aiozc.streams import receive_file, relay, send_file, splice
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.tasks import outcome_of
from tests.kit.tls import contexts
from tests.kit.transports import begin
from tests.kit.waiting import turns, until
from tests.streams.conftest import Connect, Line

pytestmark = pytest.mark.anyio

kinds = pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
plain_kinds = pytest.mark.parametrize("kind", ["tcp", "unix"])
SIZES = [0, 1, 4097, 65_537, MIB + 1, 4 * MIB]
LIMIT = 64 * KIB
"""What a reader reads ahead, before it pauses at twice as much."""
AHEAD = [0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT - 1, 2 * LIMIT, 2 * LIMIT + 1, MIB]


def memory_file() -> BinaryIO:
    """Make a file to receive into."""
    return open(os.memfd_create("upload"), "w+b")


def content_of(file: BinaryIO) -> bytes:
    """Return all that a file holds."""
    file.seek(0)
    return file.read()


def transferred(outcome: Any, kind: type[BaseException]) -> int:
    """Return how far a transfer came that has ended so, and has lost nothing."""
    assert isinstance(outcome, kind)
    told: Any = outcome
    assert told.lost == 0
    count: int = told.transferred
    return count


@kinds
async def test_files_of_any_size_leave_between_what_is_written_before_and_after(
    kind: str, connect: Connect, make_file: MakeFile
) -> None:
    line = await connect(kind)
    before, due = pattern(300 * KIB, 3), []
    for seed, size in enumerate(SIZES):
        content = pattern(size, seed)
        line.writer.write(before)
        file = make_file(content)
        assert await send_file(line.writer, file) == size == file.tell()
        line.writer.write(b"after")
        due += [before, content, b"after"]
    assert line.writer.transport is line.transport
    assert_same(await line.finish(), *due)


@kinds
async def test_a_part_of_an_object_without_a_descriptor_is_sent(
    kind: str, connect: Connect
) -> None:
    line = await connect(kind)
    content = pattern(MIB)
    file = io.BytesIO(content)
    assert await send_file(line.writer, file, 100, 700_000) == 700_000
    assert file.tell() == 700_100
    assert_same(await line.finish(), content[100:700_100])


@kinds
async def test_what_was_read_ahead_arrives_first_and_the_reader_hears_of_the_end(
    kind: str, connect: Connect
) -> None:
    for size in AHEAD:
        line = await connect(kind)
        content = pattern(size)
        line.peer.send(b"header\n" + content, end=True)
        assert await line.reader.readline() == b"header\n"
        await until(lambda: line.read_ahead >= min(size, 2 * LIMIT))  # noqa: B023
        with memory_file() as file:
            assert await receive_file(line.reader, line.writer, file) == size == file.tell()
            assert_same(content_of(file), content)
        assert await line.reader.read() == b""
        assert line.reader.at_eof()


@kinds
async def test_a_count_leaves_the_rest_to_the_reader(kind: str, connect: Connect) -> None:
    line = await connect(kind)
    content = pattern(2 * MIB)
    line.peer.send(content, end=True)
    place = len(await line.reader.readexactly(1))
    with memory_file() as file:
        for count in (1, 10, 70_000, LIMIT, 2 * LIMIT, 2 * LIMIT + 1, 300_000):
            await until(lambda: line.read_ahead > 0)
            assert await receive_file(line.reader, line.writer, file, place, count) == count
            place += count
            assert file.tell() == place
            assert await line.reader.readexactly(2) == content[place : place + 2]
            file.write(content[place : place + 2])
            place += 2
        assert_same(content_of(file)[1:], content[1:place])
    assert_same(await line.reader.read(), content[place:])


@kinds
async def test_the_end_that_a_reader_knows_of_is_the_end_of_a_file(
    kind: str, connect: Connect
) -> None:
    line = await connect(kind)
    line.peer.send(b"some", end=True)
    assert await line.reader.readexactly(1) == b"s"
    await until(lambda: line.reader._eof)  # type: ignore[attr-defined]
    with memory_file() as file:
        assert await receive_file(line.reader, line.writer, file, 5) == 3
        assert await receive_file(line.reader, line.writer, file, 2, 1) == 0
        assert file.tell() == 2
        assert content_of(file) == bytes(5) + b"ome"
    assert line.reader.at_eof()


@kinds
async def test_what_others_do_with_streams_that_are_used_is_refused(
    kind: str, connect: Connect, make_file: MakeFile
) -> None:
    line, other = await connect(kind, limit=1), await connect("tcp")
    content = pattern(24 * MIB)
    line.peer.send(b"ahead")
    assert await line.reader.readexactly(1) == b"a"
    with memory_file() as target:
        sending = asyncio.ensure_future(send_file(line.writer, make_file(content)))
        receiving = asyncio.ensure_future(receive_file(*line.both, target))
        await line.peer.wait_arrived(1)
        await until(lambda: os.fstat(target.fileno()).st_size == 4)
        for use in (line.writer.write, lambda data: line.writer.writelines([data])):
            with pytest.raises(RuntimeError):
                use(b"never")
        for wait in (
            lambda: line.reader.read(1),
            lambda: line.reader.readline(),
            lambda: line.reader.readexactly(1),
            lambda: send_file(line.writer, make_file(b"x")),
            lambda: splice(other.reader, line.writer),
            lambda: splice(line.reader, other.writer),
            lambda: receive_file(*line.both, io.BytesIO()),
            lambda: relay(line.both, other.both),
            lambda: relay(other.both, line.both),
        ):
            with pytest.raises(RuntimeError):
                await wait()
        line.peer.send(b" of it", end=kind != "tls")
        if kind == "tls":
            await until(lambda: os.fstat(target.fileno()).st_size == 10)
            receiving.cancel()
            assert transferred(await outcome_of(receiving), asyncio.CancelledError) == 10
        else:
            assert await receiving == 10
        assert content_of(target) == b"head of it"
        line.peer.allow(None)
        assert await sending == len(content)
    line.writer.write(b"after")
    assert_same(await line.finish(), content, b"after")
    other.writer.write(b"and the other")
    assert await other.finish() == b"and the other"


@kinds
async def test_a_file_is_sent_while_another_is_received(
    kind: str, connect: Connect, make_file: MakeFile
) -> None:
    """Each side sends first, and reads then: it would stop for ever if one waited."""
    line = await connect(kind, limit=0)
    there, back = pattern(6 * MIB), pattern(5 * MIB, 1)
    line.peer.send(back)
    with memory_file() as target:
        sending = asyncio.ensure_future(send_file(line.writer, make_file(there)))
        assert await receive_file(*line.both, target, count=len(back)) == len(back)
        line.peer.allow(None)
        assert await sending == len(there)
        assert_same(content_of(target), back)
    assert_same(await line.finish(), there)


@plain_kinds
async def test_what_is_received_stays_in_order_where_others_pause_and_resume_the_transport(
    kind: str, connect: Connect, make_file: MakeFile
) -> None:
    line = await connect(kind, limit=1)
    there, back = pattern(24 * MIB), pattern(200_000, 1)
    loop = asyncio.get_running_loop()
    installed = getattr(loop, "_aiozc_installed", None)
    with memory_file() as target:
        if installed or isinstance(loop, BaseSelectorEventLoop):
            sending = asyncio.ensure_future(loop.sendfile(line.transport, make_file(there)))
        else:
            sending = asyncio.ensure_future(send_file(line.writer, make_file(there)))
        await line.peer.wait_arrived(1)
        receiving = asyncio.ensure_future(receive_file(*line.both, target, count=len(back)))
        line.peer.send(back, limit=100_000)
        await until(lambda: os.fstat(target.fileno()).st_size == 100_000)
        stands: Any = line.writer.transport
        stands.pause_reading()
        stands.resume_reading()
        line.peer.allow(None)
        assert await sending == len(there)
        await turns(3)
        stands.resume_reading()
        line.peer.allow_sending(None)
        assert await receiving == len(back)
        assert_same(content_of(target), back)
    assert line.transport.is_reading()
    assert line.writer.transport is line.transport
    assert_same(await line.finish(), there)


@plain_kinds
async def test_a_transport_that_is_held_is_not_received_from(kind: str, connect: Connect) -> None:
    line = await connect(kind)
    if is_bare(line.transport):
        return  # it cannot be held
    line.peer.send(b"some")
    async with exclusive(line.transport):
        with pytest.raises(RuntimeError, match="is held"):
            await receive_file(*line.both, io.BytesIO())
    with memory_file() as target:
        receiving = asyncio.ensure_future(receive_file(*line.both, target))
        await until(lambda: os.fstat(target.fileno()).st_size == 4)
        with pytest.raises(RuntimeError, match="is held"):
            await exclusive(line.transport).__aenter__()
        line.peer.send(b" more", end=True)
        assert await receiving == 9


@kinds
async def test_a_send_that_is_cancelled_goes_on_where_it_was(
    kind: str, connect: Connect, make_file: MakeFile
) -> None:
    line = await connect(kind, limit=200_000)
    content = pattern(24 * MIB)
    file = make_file(content)
    sending = asyncio.ensure_future(send_file(line.writer, file))
    await line.peer.wait_arrived(200_000)
    sending.cancel()
    place = transferred(await outcome_of(sending), asyncio.CancelledError)
    assert 200_000 <= place == file.tell() < len(content)
    line.peer.allow(None)
    assert await send_file(line.writer, file, place) == len(content) - place
    assert_same(await line.finish(), content)


async def test_a_send_by_memory_that_is_cancelled_at_its_end_tells_what_was_sent(
    connect: Connect,
) -> None:
    class Slow(io.BytesIO):
        asked, goes_on = threading.Event(), threading.Event()

        def tell(self) -> int:
            place = super().tell()
            if place == len(content):
                self.asked.set()
                self.goes_on.wait()
            return place

    line = await connect("tls")
    content = pattern(MIB)
    file = Slow(content)
    sending = asyncio.ensure_future(send_file(line.writer, file))
    await until(file.asked.is_set)
    sending.cancel()
    await turns(3)
    file.goes_on.set()
    assert transferred(await outcome_of(sending), asyncio.CancelledError) == len(content)
    assert_same(await line.finish(), content)


@kinds
async def test_a_receipt_that_is_cancelled_goes_on_where_it_was(
    kind: str, connect: Connect
) -> None:
    line = await connect(kind)
    content = pattern(4 * MIB)
    line.peer.send(content, limit=MIB)
    with memory_file() as target:
        assert await line.reader.readexactly(1) == content[:1]
        await line.reads_ahead()
        receiving = asyncio.ensure_future(receive_file(*line.both, target, 1))
        await until(lambda: os.fstat(target.fileno()).st_size > 3 * LIMIT)
        receiving.cancel()
        place = 1 + transferred(await outcome_of(receiving), asyncio.CancelledError)
        assert place == target.tell()
        line.peer.allow_sending(None)
        count = 2 * MIB
        assert await receive_file(*line.both, target, place, count) == count
        arrived = content_of(target)[1:]
    line.peer.send(b"", end=True)
    assert_same(arrived + await line.reader.read(), content[1:])


@kinds
async def test_what_is_left_of_the_read_ahead_by_an_error_is_the_readers(
    kind: str, connect: Connect, make_file: MakeFile
) -> None:
    line = await connect(kind)
    line.peer.send(b"some")
    for ahead in (False, True):
        if ahead:
            await line.reads_ahead()
        with pytest.raises(OSError, match="not open for writing") as caught:
            await receive_file(*line.both, make_file(b"x"))
        assert caught.value.errno == errno.EBADF
        assert caught.value.transferred == 0  # type: ignore[attr-defined]
    assert await line.reader.readexactly(4) == b"some"


@plain_kinds
async def test_a_peer_that_resets_is_a_connection_error_for_all(
    kind: str, connect: Connect, make_file: MakeFile
) -> None:
    line = await connect(kind, limit=100_000)
    sending = asyncio.ensure_future(send_file(line.writer, make_file(pattern(24 * MIB))))
    await line.peer.wait_arrived(100_000)
    line.peer.send(b"unread")
    line.peer.reset()
    assert 100_000 <= transferred(await outcome_of(sending), ConnectionError) < 24 * MIB
    with pytest.raises(ConnectionError):
        await line.writer.wait_closed()


async def test_a_reset_while_it_is_received_from_is_told_to_the_reader_too(
    connect: Connect,
) -> None:
    line = await connect("tcp")
    line.peer.send(b"some")
    with memory_file() as target:
        receiving = asyncio.ensure_future(receive_file(*line.both, target))
        await until(lambda: os.fstat(target.fileno()).st_size == 4)
        line.peer.reset()
        assert transferred(await outcome_of(receiving), ConnectionResetError) == 4
        with pytest.raises(ConnectionResetError):
            await line.reader.read()
        with pytest.raises(ConnectionError):
            await receive_file(*line.both, target)


@kinds
async def test_a_writer_that_is_closed_meanwhile_ends_both(
    kind: str, connect: Connect, make_file: MakeFile
) -> None:
    line = await connect(kind, limit=1)
    with memory_file() as target:
        sending = asyncio.ensure_future(send_file(line.writer, make_file(pattern(24 * MIB))))
        receiving = asyncio.ensure_future(receive_file(*line.both, target))
        await line.peer.wait_arrived(1)
        line.writer.transport.abort()
        assert isinstance(await outcome_of(sending), ConnectionError)
        received = await outcome_of(receiving)
        assert isinstance(received, ConnectionError) or (kind == "tls" and received == 0)
        with pytest.raises(ConnectionError):
            await send_file(line.writer, make_file(b"x"))


async def test_a_file_is_received_and_sent_in_the_turn_in_which_a_connection_is_made(
    make_file: MakeFile,
) -> None:
    """An eager task begins there, before the transport reads."""
    content = pattern(MIB)
    with memory_file() as target, socket.create_server(("127.0.0.1", 0)) as listener:
        begun: list[asyncio.Task[int]] = []

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async def answer() -> int:
                received = await receive_file(reader, writer, target)
                await send_file(writer, make_file(content))
                writer.close()
                return received

            begun.append(begin(answer()))

        server = await asyncio.start_server(serve, sock=listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(content)
        writer.write_eof()
        assert_same(await reader.read(), content)
        assert await begun[0] == len(content)
        assert_same(content_of(target), content)
        writer.close()
        server.close()
        await server.wait_closed()


async def test_without_a_fallback_tls_is_refused(connect: Connect, make_file: MakeFile) -> None:
    line = await connect("tls")
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await send_file(line.writer, make_file(b"x"), fallback=False)
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await receive_file(*line.both, io.BytesIO(), fallback=False)


async def test_what_has_become_tls_is_encrypted(connect: Connect, make_file: MakeFile) -> None:
    """The transport beneath would send the file as it is, and is no longer the writer's."""
    line = await connect("tcp")
    beneath = line.writer.transport
    old = asyncio.StreamWriter(beneath, line.writer._protocol, None, line.writer._loop)  # type: ignore[attr-defined]
    starting = asyncio.ensure_future(
        line.writer.start_tls(contexts()[1], server_hostname="localhost")
    )
    await line.peer.wait_arrived(100)
    for call in (send_file(old, make_file(b"secret")), receive_file(line.reader, old, None)):
        with pytest.raises(TypeError, match="encrypted"):
            await call
    starting.cancel()
    await outcome_of(starting)
    beneath.abort()
    assert b"secret" not in await line.peer.wait_end()


@kinds
async def test_what_is_no_stream_and_no_number_is_refused(
    kind: str, connect: Connect, make_file: MakeFile
) -> None:
    line, other = await connect(kind), await connect(kind)
    wrong: Any = object()
    file = make_file(b"content")
    for call in (
        send_file(wrong, file),
        receive_file(wrong, line.writer, io.BytesIO()),
        receive_file(line.reader, wrong, io.BytesIO()),
        receive_file(line.reader, line.writer, "name"),
        splice(wrong, line.writer),
        splice(line.reader, wrong),
        relay((line.reader, wrong), other.both),
        relay(other.both, (wrong, line.writer)),
        send_file(line.writer, file, 0.5),  # type: ignore[arg-type]
        receive_file(*line.both, io.BytesIO(), 0, "1"),  # type: ignore[arg-type]
        splice(line.reader, other.writer, 1.5),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            await call
    for call in (
        send_file(line.writer, file, -1),
        send_file(line.writer, file, 0, 0),
        receive_file(*line.both, io.BytesIO(), -1),
        receive_file(*line.both, io.BytesIO(), 0, -1),
        splice(line.reader, other.writer, 0),
    ):
        with pytest.raises(ValueError, match=r"offset must be|count must be"):
            await call
    assert await line.finish() == b""


@plain_kinds
async def test_streams_of_two_connections_and_ended_ones_are_refused(
    kind: str, connect: Connect, make_file: MakeFile
) -> None:
    line, other = await connect(kind), await connect(kind)
    for call in (
        receive_file(line.reader, other.writer, io.BytesIO()),
        relay((line.reader, other.writer), (other.reader, line.writer)),
    ):
        with pytest.raises(ValueError, match="not of one connection"):
            await call
    line.writer.write_eof()
    if not hasattr(line.writer.transport, "_ended") and "uvloop" in type(line.transport).__module__:
        return  # uvloop's own transports do not tell it
    for call in (
        send_file(line.writer, make_file(b"x")),
        splice(other.reader, line.writer),
        relay(line.both, other.both),
    ):
        with pytest.raises(RuntimeError, match="write_eof"):
            await call


@plain_kinds
async def test_who_has_paused_reading_finds_it_paused(kind: str, connect: Connect) -> None:
    line: Line = await connect(kind)
    line.peer.send(b"1234")
    line.transport.pause_reading()
    with memory_file() as target:
        assert await receive_file(*line.both, target, 0, 2) == 2
    assert not line.transport.is_reading()
    line.transport.resume_reading()
    assert await line.reader.readexactly(2) == b"34"
