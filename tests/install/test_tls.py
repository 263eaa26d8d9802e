"""TLS transports take files by their `write`, on both loops."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import aiofiles
import pytest
import uvloop

import aiozc
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.loops import WITH_AIOZC
from tests.kit.tasks import outcome_of
from tests.kit.tls import contexts
from tests.kit.transports import Buffered, Recorder, close_beneath
from tests.kit.waiting import turns, until

pytestmark = pytest.mark.anyio

CONTENT = pattern(3 * MIB + 5)
PREFIX = pattern(MIB + 3, 3)
AFTER = pattern(100_000, 4)


class Sides:
    """Both ends of a TLS connection."""

    def __init__(self, transport: Any, protocol: Any, peer: Recorder) -> None:
        self.transport = transport
        self.protocol = protocol
        self.peer = peer
        self._before = self._settings()

    def _settings(self) -> tuple[object, ...]:
        transport = self.transport
        limits = transport.get_write_buffer_limits()
        return transport.get_protocol(), limits, transport.is_reading()

    def assert_as_before(self) -> None:
        """No setting of the transport is another than at first."""
        assert self._settings() == self._before

    async def finish(self) -> bytes:
        """Close, and return what arrived."""
        self.peer.transport.resume_reading()
        self.transport.close()
        await asyncio.gather(self.protocol.lost, self.peer.lost)
        return bytes(self.peer.data)


@pytest.fixture
async def sides(loop: Any, request: pytest.FixtureRequest) -> AsyncIterator[Sides]:
    """Make a TLS connection from this loop to itself, for a Recorder or another protocol."""
    for_server, for_client = contexts()
    peer, protocol = Recorder(), getattr(request, "param", Recorder)()
    server = await loop.create_server(lambda: peer, "127.0.0.1", 0, ssl=for_server)
    transport, _ = await loop.create_connection(
        lambda: protocol,
        *server.sockets[0].getsockname(),
        ssl=for_client,
        server_hostname="localhost",
    )
    while peer.transport is None:  # noqa: ASYNC110 - the loop tells no one
        await asyncio.sleep(0)
    yield Sides(transport, protocol, peer)
    for side in (protocol, peer):
        if not side.lost.done():
            side.transport.abort()
            await side.lost
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("source", ["file", "memory"])
@pytest.mark.parametrize(("offset", "count"), [(0, None), (5, 100), (4097, 2 * MIB), (9 * MIB, 1)])
async def test_a_file_arrives_between_what_is_written_before_and_after(
    offset: int, count: int | None, source: str, loop: Any, sides: Sides, make_file: MakeFile
) -> None:
    file: Any = make_file(CONTENT) if source == "file" else io.BytesIO(CONTENT)
    file.seek(1000)
    chosen = CONTENT[offset:] if count is None else CONTENT[offset : offset + count]
    sides.transport.write(PREFIX)
    assert await loop.sendfile(sides.transport, file, offset, count) == len(chosen)
    assert file.tell() == offset + len(chosen)
    sides.assert_as_before()
    sides.transport.write(AFTER)
    assert_same(await sides.finish(), PREFIX, chosen, AFTER)


async def test_an_async_file_arrives_and_what_is_no_file_is_refused(
    loop: Any, sides: Sides, make_file: MakeFile
) -> None:
    path = make_file(CONTENT).name
    for wrong in (path, None, sides.transport, asyncio.StreamReader()):
        with pytest.raises(TypeError) as caught:
            await loop.sendfile(sides.transport, wrong)
        error: Any = caught.value
        assert (error.transferred, error.lost) == (0, 0)
        assert "attribute" not in str(error)
    sides.assert_as_before()
    before = aiozc.get_reactor().statistics().fallbacks
    async with aiofiles.open(path, "rb") as file:
        assert await loop.sendfile(sides.transport, file, 5, MIB) == MIB
        assert await file.tell() == 5 + MIB
    assert aiozc.get_reactor().statistics().fallbacks == before + 1
    assert_same(await sides.finish(), CONTENT[5 : 5 + MIB])


async def test_it_is_refused_without_a_fallback(
    loop: Any, sides: Sides, make_file: MakeFile
) -> None:
    """By the exception that asyncio documents, where the method is not asyncio's own."""
    file = make_file(CONTENT)
    own = isinstance(loop, uvloop.Loop)
    expected = asyncio.SendfileNotAvailableError if own else RuntimeError
    with pytest.raises(expected, match="fallback is disabled"):
        await loop.sendfile(sides.transport, file, fallback=False)
    assert file.tell() == 0
    assert await sides.finish() == b""


async def test_a_peer_that_does_not_read_is_waited_for_and_pauses_come_in_pairs(
    loop: Any, sides: Sides, make_file: MakeFile
) -> None:
    """What a transport holds is bounded: it was not given the whole file."""
    sides.peer.transport.pause_reading()
    content = pattern(24 * MIB)
    task = asyncio.ensure_future(loop.sendfile(sides.transport, make_file(content)))
    while not sides.transport.get_write_buffer_size():  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.to_thread(lambda: None)
    await turns(100)
    assert not task.done()
    assert sides.transport.get_write_buffer_size() < MIB
    with pytest.raises(RuntimeError, match="sendfile is in progress"):
        await loop.sendfile(sides.transport, make_file(AFTER))
    sides.peer.transport.resume_reading()
    assert await task == len(content)
    sides.assert_as_before()
    assert_same(await sides.finish(), content)
    assert not sides.protocol.paused


async def test_a_file_goes_on_where_another_protocol_is_set_meanwhile(
    loop: Any, sides: Sides, make_file: MakeFile
) -> None:
    """That one hears the resumption."""
    sides.peer.transport.pause_reading()
    content = pattern(12 * MIB)
    task = asyncio.ensure_future(loop.sendfile(sides.transport, make_file(content)))
    _, high = sides.transport.get_write_buffer_limits()
    await until(lambda: sides.transport.get_write_buffer_size() > high)
    another = asyncio.Protocol()
    sides.transport.set_protocol(another)
    sides.peer.transport.resume_reading()
    assert await task == len(content)
    assert sides.transport.get_protocol() is another
    sides.transport.set_protocol(sides.protocol)
    assert_same(await sides.finish(), content)


@pytest.mark.parametrize("sides", [Recorder, Buffered], indirect=True)
async def test_who_reads_on_meanwhile_hears_what_arrives(
    loop: Any, sides: Sides, make_file: MakeFile
) -> None:
    sides.peer.transport.pause_reading()
    content = pattern(24 * MIB)
    task = asyncio.ensure_future(loop.sendfile(sides.transport, make_file(content)))
    while not sides.transport.get_write_buffer_size():  # noqa: ASYNC110
        await asyncio.sleep(0)
    sides.transport.resume_reading()
    sides.peer.transport.write(AFTER)
    await until(lambda: len(sides.protocol.data) == len(AFTER) or sides.protocol.lost.done())
    assert_same(bytes(sides.protocol.data), AFTER)
    sides.peer.transport.resume_reading()
    assert await task == len(content)
    sides.assert_as_before()
    assert_same(await sides.finish(), content)


@pytest.mark.parametrize("number", [0, 1, 2, 5, 20, 100, 1000])
async def test_cancelled_at_any_time_the_position_is_right_and_the_transport_works(
    number: int, loop: Any, sides: Sides, make_file: MakeFile
) -> None:
    sides.peer.transport.pause_reading()
    sides.transport.write(PREFIX)
    content = pattern(24 * MIB)
    file = make_file(content)
    task = asyncio.ensure_future(loop.sendfile(sides.transport, file))
    await turns(number)
    task.cancel()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)
    sent = file.tell()
    sides.assert_as_before()
    sides.transport.write(AFTER)
    sides.peer.transport.resume_reading()
    await until(lambda: not sides.transport.get_write_buffer_size())
    assert not sides.protocol.paused
    assert_same(await sides.finish(), PREFIX, content[:sent], AFTER)


@pytest.mark.parametrize("who", ["peer", "transport"])
async def test_a_connection_that_is_lost_meanwhile_is_a_connection_error(
    who: str, loop: Any, sides: Sides, make_file: MakeFile
) -> None:
    sides.peer.transport.pause_reading()
    content = pattern(24 * MIB)
    task = asyncio.ensure_future(loop.sendfile(sides.transport, make_file(content)))
    while not sides.transport.get_write_buffer_size():  # noqa: ASYNC110
        await asyncio.sleep(0)
    (sides.peer.transport if who == "peer" else sides.transport).abort()
    assert isinstance(await outcome_of(task), ConnectionError)
    await sides.protocol.lost
    assert len(sides.protocol.losses) == 1


@pytest.mark.parametrize("name", WITH_AIOZC)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_loop_that_is_closed_meanwhile_leaves_nothing_to_complain_of(name: str) -> None:
    for_server, for_client = contexts()

    class Silent(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.pause_reading()

    async def connect(loop: Any) -> Any:
        server = await loop.create_server(Silent, "127.0.0.1", 0, ssl=for_server)
        address = server.sockets[0].getsockname()
        transport, _ = await loop.create_connection(
            asyncio.Protocol, *address, ssl=for_client, server_hostname="localhost"
        )
        server.close()
        return transport

    close_beneath(WITH_AIOZC[name](), connect)


@pytest.mark.parametrize("size", [4 * KIB, 3 * MIB])
async def test_a_stream_takes_files_before_and_after_it_starts_tls(
    size: int, loop: Any, make_file: MakeFile
) -> None:
    for_server, for_client = contexts()
    content = pattern(size)
    received: asyncio.Future[bytes] = loop.create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plain = await reader.readexactly(3 + size)
        writer.write(b"ready")
        await writer.start_tls(for_server)
        secret = await reader.read()
        writer.close()
        await writer.wait_closed()
        # Last: who waits for it ends the loop.
        received.set_result(plain + secret)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(*address[:2])
    writer.write(b"one")
    assert await loop.sendfile(writer.transport, make_file(content)) == size
    assert await reader.readexactly(5) == b"ready"
    await writer.start_tls(for_client, server_hostname="localhost")
    writer.write(b"two")
    assert await loop.sendfile(writer.transport, make_file(content)) == size
    writer.write(b"three")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert_same(await received, b"one", content, b"two", content, b"three")
    server.close()
    await server.wait_closed()
