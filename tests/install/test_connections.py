"""Connections on an installed loop, however they are made; above all uvloop's proxies."""

import asyncio
import copy
import errno
import functools
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

import aiozc
from aiozc._api.gates import Proxy, ProxyGate
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.loops import WITH_AIOZC, run_on
from tests.kit.transports import Buffered, Open, Recorder
from tests.kit.waiting import until

pytestmark = pytest.mark.anyio

CONTENT = pattern(MIB + 5)


class Serving(Recorder):
    """Answers with a file, by what `connection_made` was given."""

    def __init__(self, make_file: MakeFile) -> None:
        super().__init__()
        self._make_file = make_file
        self.sending: asyncio.Task[int] | None = None

    def connection_made(self, transport: Any) -> None:
        """Send."""
        super().connection_made(transport)
        self.sending = asyncio.ensure_future(self._send())

    async def _send(self) -> int:
        loop = asyncio.get_running_loop()
        self.transport.write(b"<")
        sent = await loop.sendfile(self.transport, self._make_file(CONTENT), fallback=False)
        self.transport.write(b">")
        self.transport.close()
        return sent


Serve = Callable[[Callable[[], Any]], Any]


@pytest.fixture(params=["port", "path", "socket", "accepted"])
async def connected(
    request: pytest.FixtureRequest, loop: Any, tmp_path: Path, make_file: MakeFile
) -> AsyncIterator[tuple[Serving, Recorder]]:
    """Connect to a server on this loop in each way that there is; both sides' protocols."""
    serving, client = Serving(make_file), Recorder()
    server: Any = None
    path = str(tmp_path / "socket")
    match request.param:
        case "port":
            server = await loop.create_server(lambda: serving, "localhost", 0)
            port = server.sockets[0].getsockname()[1]
            await loop.create_connection(lambda: client, "localhost", port)
        case "path":
            server = await loop.create_unix_server(lambda: serving, path=path)
            await loop.create_unix_connection(lambda: client, path)
        case "socket":
            listener = socket.create_server(("127.0.0.1", 0))
            server = await loop.create_server(lambda: serving, sock=listener, backlog=5)
            near = socket.create_connection(listener.getsockname())
            near.setblocking(False)
            await loop.create_connection(lambda: client, sock=near)
        case "accepted":
            near, far = socket_pair()
            await loop.connect_accepted_socket(lambda: serving, far)
            await loop.create_connection(lambda: client, sock=near)
    yield serving, client
    if server is not None:
        server.close()
        await server.wait_closed()


async def test_each_way_to_connect_gives_a_transport_that_the_kernel_sends_by(
    connected: tuple[Serving, Recorder],
) -> None:
    serving, client = connected
    await client.lost
    assert serving.sending is not None
    assert await serving.sending == len(CONTENT)
    await serving.lost
    assert_same(bytes(client.data), b"<", CONTENT, b">")


async def test_a_transport_is_what_libraries_take_it_for(open_line: Open, family: int) -> None:
    line = await open_line()
    transport = line.transport
    assert isinstance(transport, asyncio.Transport)
    assert transport.get_protocol() is line.protocol
    assert transport.get_extra_info("socket").family == family
    assert transport.get_extra_info("sslcontext") is None
    assert transport.get_extra_info("nothing", 5) == 5
    assert transport.get_extra_info("socket").fileno() > 0
    assert transport.can_write_eof()
    assert transport.get_write_buffer_size() == 0
    assert not transport.is_closing()
    assert "ransport" in repr(transport)
    assert repr(transport).count("proxy") <= 1
    assert weakref.ref(transport)() is transport
    assert len({transport, transport}) == 1
    transport.write_eof()
    assert await line.finish() == b""
    assert transport.is_closing()


class Deaf:
    """Stands for a transport whose socket cannot be shut."""

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._refuse, name)

    def _refuse(self, name: str) -> None:
        raise OSError(errno.ENOTCONN, name)


def test_an_end_that_could_not_be_written_does_not_count() -> None:
    proxy = Proxy(Deaf())
    with pytest.raises(OSError, match="write_eof"):
        proxy.write_eof()
    ProxyGate(proxy).check_open()


@pytest.mark.parametrize("make", [Recorder, Buffered])
async def test_a_protocol_hears_what_it_would_hear(make: Any, open_line: Open) -> None:
    line = await open_line(make())
    data = pattern(300 * KIB)
    line.peer.send(data, end=True)
    await until(lambda: line.protocol.ends == 1)
    assert_same(bytes(line.protocol.data), data)
    await line.protocol.lost


async def test_a_connection_that_has_ended_is_not_kept_alive(loop: Any) -> None:
    near, far = socket_pair()
    transport, protocol = await loop.create_connection(Recorder, sock=near)
    references = [weakref.ref(transport), weakref.ref(protocol)]
    transport.close()
    await protocol.lost
    far.close()
    protocol.transport = None
    del transport, protocol
    await asyncio.sleep(0)
    gc.collect()  # asyncio's transports hold themselves
    assert not any(reference() for reference in references)


async def test_what_is_raised_while_connecting_is_raised(loop: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await loop.create_connection(Recorder, "127.0.0.1", port)
    with pytest.raises(FileNotFoundError):
        await loop.create_unix_connection(Recorder, str(tmp_path / "nothing"))
    with pytest.raises(TypeError):
        await loop.create_connection(Recorder, "127.0.0.1", port, no_such_option=1)
    with pytest.raises(ValueError, match="ssl"):
        await loop.create_connection(Recorder, "127.0.0.1", port, server_hostname="localhost")

    near, far = socket_pair()

    def failing() -> Recorder:
        raise LookupError

    with near, far, pytest.raises(LookupError):
        await loop.create_connection(failing, sock=near)


async def test_a_protocol_that_fails_when_it_is_connected_has_the_outcome_that_it_has_without(
    loop: Any,
) -> None:
    class Failing(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            raise LookupError

    outcomes = []
    for create in (loop.create_connection, type(loop).create_connection.__get__(loop)):
        faults: list[Any] = []
        loop.set_exception_handler(lambda _, context, faults=faults: faults.append(context))
        near, far = socket_pair()
        transport, protocol = await create(Failing, sock=near)
        assert isinstance(protocol, Failing)
        transport.abort()
        await protocol.lost
        far.close()
        outcomes.append([type(fault["exception"]) for fault in faults])
    loop.set_exception_handler(None)
    assert outcomes == [[LookupError]] * 2


async def test_streams_take_files_between_their_writes(loop: Any, make_file: MakeFile) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = await reader.readline()
        writer.write(name)
        await loop.sendfile(writer.transport, make_file(CONTENT))
        writer.writelines([b"the ", b"end"])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    for number in range(3):
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"%d\n" % number)
        assert_same(await reader.read(), b"%d\n" % number, CONTENT, b"the end")
        writer.close()
        await writer.wait_closed()
    server.close()
    await server.wait_closed()


# uvloop alone


def test_a_transport_can_be_copied_no_more_than_uvloops_own() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        near, far = socket_pair()
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        with pytest.raises(TypeError) as own:
            copy.copy(transport._real)
        with pytest.raises(TypeError) as ours:
            copy.copy(transport)
        assert str(ours.value) == str(own.value)
        transport.abort()
        await protocol.lost
        far.close()

    run_on(WITH_AIOZC["uvloop"], main())


def test_a_transport_of_uvloops_made_before_refuses_without_a_fallback(
    make_file: MakeFile,
) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        near, far = socket_pair()
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        aiozc.install(loop)
        file = make_file(CONTENT)
        with pytest.raises(RuntimeError, match="fallback is disabled"):
            await loop.sendfile(transport, file, fallback=False)
        assert file.tell() == 0
        transport.abort()
        await protocol.lost
        far.close()

    run_on(uvloop.new_event_loop, main())


def test_connections_after_uninstalling_have_uvloops_own_transports() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        kinds = []
        for change in (aiozc.uninstall, aiozc.install):
            change(loop)
            near, far = socket_pair()
            transport, protocol = await loop.create_connection(Recorder, sock=near)
            kinds.append(type(transport).__module__.split(".")[0])
            transport.abort()
            await protocol.lost
            far.close()
        assert kinds == ["uvloop", "aiozc"]

    run_on(WITH_AIOZC["uvloop"], main())
