"""Nothing that a guard against blocking calls watches for is called in the loop's thread.

The guard is blockbuster, which aiohttp, anyio and Starlette switch on in their own tests: it has
functions of its own in the places of those that may block, and raises where a loop runs.
"""

import asyncio
import io
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.abc
import pytest
from blockbuster import BlockBuster

import aiozc
from aiozc._engines.opening import open_regular, read_cached
from aiozc._kernel.refusals import HERE
from aiozc.integrations.anyio import receive_file, send_file
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern, write_out
from tests.kit.ends import Ends
from tests.kit.far_ends import Connect
from tests.kit.folding import each
from tests.kit.loops import WITH_AIOZC, run_on
from tests.kit.tls import Tls, contexts
from tests.kit.transports import Recorder
from tests.kit.ways import WAYS, Way, each_way

SIZES = (1, 4 * KIB, 64 * KIB, 2 * MIB + 5)
LARGE = pattern(2 * MIB + 5)


@pytest.fixture
def guard() -> Iterator[BlockBuster]:
    """Make one that minds what this package does."""
    guard = BlockBuster("aiozc")
    yield guard
    guard.deactivate()


@pytest.fixture
async def guarded(each_backend: str, guard: BlockBuster) -> AsyncIterator[None]:
    """Have the guard, before the loop has its reactor and until that has ended."""
    guard.activate()
    async with aiozc.Reactor(backend=each_backend):
        yield


@pytest.mark.anyio
@pytest.mark.usefixtures("guarded")
@each_way(WAYS)
@each("size", SIZES)
async def test_no_transfer_makes_a_blocking_call(size: int, way: Way, ends: Ends) -> None:
    content = pattern(size)
    source, target = ends.source(way.source, content), ends.target(way.target)
    assert await way.move(source.end, target.end) == size
    await target.check(content)


@pytest.mark.anyio
@pytest.mark.usefixtures("guarded")
async def test_nor_do_sends_without_a_copy_and_what_the_kernel_cannot_do(
    connect: Connect, make_file: MakeFile, ends: Ends
) -> None:
    cold = make_file(LARGE)
    write_out(cold)
    with tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(LARGE)
        sources: list[Any] = [cold, make_file(LARGE), io.BytesIO(LARGE), spooled]
        for source in sources:
            for direct in (False, True):
                sock, receiver = connect()
                await aiozc.loop_sendfile(sock, source, 5)
                send = await aiozc.sendfile_zc(sock, [b"head", source], direct=direct)
                sock.close()
                assert_same(await receiver.wait_end(), LARGE[5:], b"head", LARGE)
                await send.released()
        tls = Tls()
        tls.proceed.set()
        assert await aiozc.loop_sendfile(tls.sock, spooled) == len(LARGE)
        assert_same(await asyncio.to_thread(tls.end), LARGE)
        for target in (io.BytesIO(), spooled):
            given = ends.source("tcp", LARGE)
            assert await aiozc.loop_recvfile(given.end, target, 7) == len(LARGE)
    path = cold.name
    fd, size = await open_regular(path)
    with open(fd, "rb") as again:  # noqa: ASYNC230
        assert read_cached(again.fileno(), 0, size) in (LARGE, None)


@pytest.mark.anyio
@pytest.mark.usefixtures("guarded")
async def test_nor_do_transfers_on_streams_of_anyio(ends: Ends) -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    source, target = ends.file(LARGE, "rb"), ends.file(b"", "wb")

    async def receive(stream: Any) -> None:
        await stream.receive(3)
        assert await receive_file(stream, target) == len(LARGE)
        await stream.aclose()

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, receive)
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"one")
            assert await send_file(stream, source) == len(LARGE)
            await stream.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        group.cancel_scope.cancel()
    assert_same(content_of(target.name), LARGE)


def content_of(path: str) -> bytes:
    """Read a file."""
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("name", WITH_AIOZC)
def test_nor_does_a_loop_that_it_is_installed_on(
    name: str, guard: BlockBuster, make_file: MakeFile
) -> None:
    for_server, for_client = contexts()

    async def main(server_side: Any, client_side: Any) -> None:
        loop: Any = asyncio.get_running_loop()
        near, far = socket_pair()
        peer, protocol = Recorder(), Recorder()
        accepting = loop.connect_accepted_socket(lambda: peer, far, **server_side)
        connecting = loop.create_connection(lambda: protocol, sock=near, **client_side)
        await asyncio.gather(accepting, connecting)
        for source in (make_file(LARGE), make_file(LARGE[: 4 * KIB]), io.BytesIO(LARGE)):
            assert await loop.sendfile(protocol.transport, source) > 0
        protocol.transport.close()
        await asyncio.gather(peer.lost, protocol.lost)
        assert_same(bytes(peer.data), LARGE, LARGE[: 4 * KIB], LARGE)

    guard.activate()
    run_on(WITH_AIOZC[name], main({}, {}))
    tls = {"ssl": for_client, "server_hostname": "localhost"}
    run_on(WITH_AIOZC[name], main({"ssl": for_server}, tls))


@pytest.mark.anyio
async def test_nor_does_it_where_who_refuses_the_ring_is_looked_for(guard: BlockBuster) -> None:
    guard.activate()
    assert HERE.status("Pid").isdecimal()
    assert aiozc.probe().backend
