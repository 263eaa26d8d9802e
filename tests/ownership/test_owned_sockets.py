"""Sockets that a transport uses: no transfer takes one, and no transport takes a transfer's."""

import asyncio
import inspect
import io
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

import aiozc
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, case, pattern
from tests.kit.ends import Ends, make_pipe
from tests.kit.far_ends import Connect, FarEnd, Peer

pytestmark = pytest.mark.anyio

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
SMALL, LARGE = pattern(4 * KIB), pattern(3 * MIB)
EARLY = pattern(100 * KIB, 7)


class Numbered:
    """Anything that has a descriptor."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._number


@pytest.fixture
async def connection(
    far_end: FarEnd, family: int
) -> AsyncIterator[tuple[socket.socket, Any, Peer]]:
    """Make a socket, the streams that use it, and its far end."""
    near, far = socket_pair(family)
    peer = far_end.peer(far)
    reader, writer = await asyncio.open_connection(sock=near)
    yield near, (reader, writer), peer
    writer.close()
    await asyncio.sleep(0)
    near.close()


Form = Callable[[socket.socket, Any], Any]
FORMS: dict[str, Form] = {
    "transport's": lambda _, writer: writer.get_extra_info("socket"),
    "socket": lambda near, _: near,
    "fileno": lambda near, _: Numbered(near.fileno()),
    "number": lambda near, _: near.fileno(),
    "dup": lambda near, _: near.dup(),
    "dup'd number": lambda near, _: Numbered(os.dup(near.fileno())),
}
Transfer = Callable[[Any, Any, Any], Coroutine[Any, Any, Any]]
TRANSFERS: dict[str, Transfer] = {
    "loop_sendfile": lambda sock, file, _: aiozc.loop_sendfile(sock, file),
    "loop_sendfile from memory": lambda sock, *_: aiozc.loop_sendfile(sock, io.BytesIO(SMALL)),
    "loop_recvfile": lambda sock, file, _: aiozc.loop_recvfile(sock, file),
    "loop_recvfile into memory": lambda sock, *_: aiozc.loop_recvfile(sock, io.BytesIO()),
    "splice_pipe to": lambda sock, file, _: aiozc.splice_pipe(file, sock),
    "splice_pipe from": lambda sock, file, _: aiozc.splice_pipe(sock, file, 1000),
    "relay first": lambda sock, _, other: aiozc.relay(sock, other),
    "relay second": lambda sock, _, other: aiozc.relay(other, sock),
    "sendfile_zc": lambda sock, file, _: aiozc.sendfile_zc(sock, file),
    "sendfile_zc of bytes": lambda sock, *_: aiozc.sendfile_zc(sock, SMALL),
}


@pytest.mark.parametrize("transfer", TRANSFERS.values(), ids=TRANSFERS)
async def test_a_transfer_refuses_what_a_transport_uses_before_a_byte_moves(
    transfer: Transfer, connection: Any, ends: Ends
) -> None:
    near, (reader, writer), peer = connection
    peer.send(EARLY)
    for content in (SMALL, LARGE):
        for form, make in FORMS.items():
            with case(form=form, size=len(content)):
                if form == "number" and transfer not in (
                    TRANSFERS["splice_pipe to"],
                    TRANSFERS["splice_pipe from"],
                ):
                    continue
                file = ends.file(content, "r+b")
                sock = make(near, writer)
                other = ends.target("unix").end
                told = r"File descriptor \d+ is used by transport <.*aiozc\.lowlevel\.exclusive"
                try:
                    with pytest.raises(RuntimeError, match=told):
                        await transfer(sock, file, other)
                finally:
                    if form.startswith("dup"):
                        os.close(sock.detach() if form == "dup" else sock.fileno())
                assert file.tell() == 0
                assert file.read() == content
    assert await reader.readexactly(len(EARLY)) == EARLY
    writer.write(SMALL)
    writer.close()
    await writer.wait_closed()
    assert_same(await peer.wait_end(), SMALL)


async def test_a_transport_that_closes_with_something_to_write_is_not_overtaken(
    connection: Any, make_file: MakeFile
) -> None:
    near, (_, writer), peer = connection
    peer.allow(0)
    with near.dup() as other:
        writer.write(LARGE * 4)
        writer.close()
        with pytest.raises(RuntimeError, match="is used by transport"):
            await aiozc.loop_sendfile(other, make_file(SMALL))
        peer.allow(None)
        await writer.wait_closed()
        assert await aiozc.loop_sendfile(other, make_file(SMALL)) == len(SMALL)
    assert_same(await peer.wait_end(), LARGE * 4, SMALL)


async def test_the_number_of_a_transport_that_was_closed_is_anybodys(
    connection: Any, connect: Connect, make_file: MakeFile
) -> None:
    near, (_, writer), _ = connection
    number = near.fileno()
    with pytest.raises(RuntimeError, match="is used by transport"):
        await aiozc.loop_sendfile(near, make_file(SMALL))
    writer.close()
    await writer.wait_closed()
    sock, receiver = connect()
    os.dup2(sock.fileno(), number)
    with socket.socket(fileno=number) as fresh:
        fresh.setblocking(False)
        for content in (SMALL, LARGE):
            assert await aiozc.loop_sendfile(fresh, make_file(content)) == len(content)
        assert await aiozc.splice_pipe(make_file(SMALL), number) == len(SMALL)
    sock.close()
    assert_same(await receiver.wait_end(), SMALL, LARGE, SMALL)


async def test_a_socket_that_was_sent_to_is_refused_once_a_transport_uses_it(
    connect: Connect, make_file: MakeFile
) -> None:
    """Small files by a socket that is known take no time to ask again."""
    sock, receiver = connect()
    with sock.dup() as other:
        for _ in range(3):
            await aiozc.loop_sendfile(sock, make_file(SMALL))
        _, writer = await asyncio.open_connection(sock=sock)
        for one in (sock, other):
            with pytest.raises(RuntimeError, match="is used by transport"):
                await aiozc.loop_sendfile(one, make_file(SMALL))
        writer.close()
        await writer.wait_closed()
    assert_same(await receiver.wait_end(), SMALL * 3)


async def test_a_socket_that_was_sent_to_is_refused_once_a_transport_has_its_number(
    connect: Connect, connection: Any, make_file: MakeFile, family: int
) -> None:
    """A socket object does not hear of it when its number is closed behind its back."""
    near, *_ = connection
    sock, _ = connect()
    for _ in range(3):
        await aiozc.loop_sendfile(sock, make_file(SMALL))
    fresh, far = socket_pair(family)
    number = sock.fileno()
    os.dup2(fresh.fileno(), number)
    fresh.close()
    with far, socket.socket(fileno=number) as same:
        _, other = await asyncio.open_connection(sock=same)
        for one in (near, sock, sock):
            with pytest.raises(RuntimeError, match="is used by transport"):
                await aiozc.loop_sendfile(one, make_file(SMALL))
        other.close()
        await other.wait_closed()
        sock.detach()


# Pipes


@pytest.mark.parametrize("reading", [True, False], ids=["read", "written"])
async def test_the_pipe_of_a_transport_is_refused_and_its_other_end_is_not(
    reading: bool, ends: Ends
) -> None:
    loop = asyncio.get_running_loop()
    near, far = make_pipe()[:: 1 if reading else -1]
    file = ends.file(SMALL, "r+b")
    protocol = asyncio.Protocol if reading else asyncio.BaseProtocol
    connect: Any = loop.connect_read_pipe if reading else loop.connect_write_pipe
    transport, _ = await connect(protocol, near)
    number = near.fileno()

    async def splice(end: Any, *, reads: bool) -> int:
        return await aiozc.splice_pipe(*((end, file, 10) if reads else (file, end)))

    try:
        for end in (near, number):
            with pytest.raises(RuntimeError, match=r"is used by transport .*os\.pipe"):
                await splice(end, reads=reading)
        assert file.tell() == 0
        beside, beyond = socket_pair(socket.AF_UNIX)
        with beside, beyond:
            beyond.send(SMALL)
            by_memory = aiozc.loop_sendfile if reading else aiozc.loop_recvfile
            with pytest.raises(RuntimeError, match="is used by transport"):
                await by_memory(beside, near)
        if reading:
            assert await splice(far, reads=False) == len(SMALL)
        else:
            transport.write(SMALL)
            assert await splice(far, reads=True) == 10
    finally:
        transport.close()
        await asyncio.sleep(0.01)
        far.close()


@pytest.mark.parametrize("reading", [True, False], ids=["read", "written"])
async def test_a_transport_of_a_pipe_is_known_while_it_is_paused_and_by_other_numbers(
    reading: bool, ends: Ends, connect: Connect, make_file: MakeFile
) -> None:
    """What its protocol was given comes before what would be taken, and more comes after it."""
    loop = asyncio.get_running_loop()
    sock, _ = connect()
    await aiozc.loop_sendfile(sock, make_file(SMALL))
    near, far = make_pipe()[:: 1 if reading else -1]
    protocol = asyncio.Protocol if reading else asyncio.BaseProtocol
    connecting: Any = loop.connect_read_pipe if reading else loop.connect_write_pipe
    transport, _ = await connecting(protocol, near)
    if reading:
        transport.pause_reading()
    file = ends.file(SMALL, "r+b")
    number = os.dup(near.fileno())
    try:
        for end in (near, number):
            moving = aiozc.splice_pipe(*((end, file, 10) if reading else (file, end)))
            with pytest.raises(RuntimeError, match=r"is used by transport .*os\.pipe"):
                await asyncio.wait_for(moving, 2)
        transport.close()
        await asyncio.sleep(0.01)
        there, back = (far.fileno(), number)[:: 1 if reading else -1]
        assert await aiozc.splice_pipe(file, there) == len(SMALL)
        assert os.read(back, len(SMALL)) == SMALL
    finally:
        os.close(number)
        far.close()


async def test_a_terminal_that_a_transport_reads_from_is_written_to_by_another_number() -> None:
    loop = asyncio.get_running_loop()
    master, slave = os.openpty()
    with io.FileIO(os.dup(slave), "w") as out, io.FileIO(slave) as keys:
        transport, _ = await loop.connect_read_pipe(asyncio.Protocol, keys)
        near, far = socket_pair(socket.AF_UNIX)
        with near, far:
            far.sendall(b"shown")
            assert await aiozc.loop_recvfile(near, out, count=5) == 5
            with pytest.raises(RuntimeError, match=r"is used by transport .*close the transport"):
                await aiozc.loop_sendfile(near, keys, count=5)
        assert os.read(master, 10) == b"shown"
        transport.close()
        await asyncio.sleep(0.01)
    os.close(master)


# A transport that begins


Begin = Callable[[Any, socket.socket], Coroutine[Any, Any, Any]]
BEGINNINGS: dict[str, Begin] = {
    "connect_accepted_socket": lambda loop, sock: loop.connect_accepted_socket(
        asyncio.Protocol, sock
    ),
    "by name": lambda loop, sock: loop.connect_accepted_socket(asyncio.Protocol, sock=sock),
    "open_connection": lambda _, sock: asyncio.open_connection(sock=sock),
    "open_unix_connection": lambda _, sock: asyncio.open_unix_connection(sock=sock),
    "start_server": lambda _, sock: asyncio.start_server(lambda *_: None, sock=sock),
    "start_unix_server": lambda _, sock: asyncio.start_unix_server(lambda *_: None, sock=sock),
}


@pytest.mark.parametrize("installed", [None, "before", "meanwhile", "no longer"], ids=str)
async def test_no_transport_is_made_of_a_socket_that_a_transfer_uses(
    installed: str | None, family: int, far_end: FarEnd, ends: Ends
) -> None:
    loop: Any = asyncio.get_running_loop()
    if installed in ("before", "no longer"):
        aiozc.install(loop)
    try:
        for receives in (True, False):
            near, far = socket_pair(family, sndbuf=64 * KIB, rcvbuf=64 * KIB)
            with near, near.dup() as other:
                peer = far_end.peer(far, limit=1000)
                file = ends.file(b"" if receives else LARGE, "r+b")
                move = aiozc.loop_recvfile if receives else aiozc.loop_sendfile
                task = asyncio.ensure_future(move(near, file))
                await (asyncio.sleep(0.01) if receives else peer.wait_arrived(1000))
                if installed == "meanwhile":
                    aiozc.install(loop)
                elif installed == "no longer":
                    aiozc.uninstall(loop)
                for name, begin in BEGINNINGS.items():
                    if ("unix" in name) == (family == socket.AF_UNIX) or name == "by name":
                        with case(name=name, receives=receives):
                            for sock in (near, other):
                                with pytest.raises(RuntimeError, match="await that transfer first"):
                                    await begin(loop, sock)
                assert not task.done()
                peer.allow(None)
                if receives:
                    peer.send(LARGE, end=True)
                assert await task == len(LARGE)
                # And then it may.
                _, writer = await asyncio.open_connection(sock=near)
                writer.write(SMALL)
                writer.close()
                await writer.wait_closed()
            assert_same(await peer.wait_end(), b"" if receives else LARGE, SMALL)
    finally:
        aiozc.uninstall(loop)


class Held(io.BufferedRandom):
    """A file object that is written out once it may be."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.let_go = threading.Event()

    def flush(self) -> None:
        """Wait until it may."""
        self.let_go.wait(10)
        super().flush()


@pytest.mark.parametrize("way", ["loop_recvfile", "splice_pipe", "fallback"])
async def test_a_transport_that_begins_while_a_file_is_written_out_is_noticed(
    way: str, far_end: FarEnd, ends: Ends
) -> None:
    """What a file object holds is written in a thread, before the transfer has the socket."""
    near, far = socket_pair()
    peer = far_end.peer(far)
    path = ends.file(b"", "w+b").name
    file = Held(io.FileIO(path, "w+"), MIB)
    file.write(SMALL)
    moves: dict[str, Callable[[], Coroutine[Any, Any, int]]] = {
        "loop_recvfile": lambda: aiozc.loop_recvfile(near, file, len(SMALL)),
        "splice_pipe": lambda: aiozc.splice_pipe(near, file),
        "fallback": lambda: aiozc.loop_recvfile(near, file, len(SMALL)),
    }
    if way == "fallback":
        near.setblocking(True)
        asyncio.get_running_loop().set_debug(False)
    task = asyncio.ensure_future(moves[way]())
    await asyncio.sleep(0)
    assert not task.done()
    near.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=near)
    file.let_go.set()
    peer.send(EARLY, end=True)
    with pytest.raises(RuntimeError, match="is used by transport"):
        await task
    assert await reader.read() == EARLY
    writer.close()
    await writer.wait_closed()
    file.close()


async def test_no_transport_is_made_of_a_pipe_end_that_a_transfer_uses(ends: Ends) -> None:
    loop = asyncio.get_running_loop()
    reading, writing = ends.pipe()
    file = ends.file(b"", "wb")
    task = asyncio.ensure_future(aiozc.splice_pipe(reading, file, len(SMALL)))
    await asyncio.sleep(0.01)
    with pytest.raises(RuntimeError, match="await that transfer first"):
        await loop.connect_read_pipe(asyncio.Protocol, reading)
    # The other end is nobody's.
    transport, _ = await loop.connect_write_pipe(
        asyncio.BaseProtocol, os.fdopen(os.dup(writing.fileno()), "wb", 0)
    )
    transport.write(SMALL)
    assert await task == len(SMALL)
    transport.close()
    await asyncio.sleep(0.01)


async def test_the_loops_own_methods_look_as_before(connection: Any, make_file: MakeFile) -> None:
    """They are wrapped on the loop, once a transfer has asked for its transports."""
    loop: Any = asyncio.get_running_loop()
    with pytest.raises(RuntimeError):
        await aiozc.loop_sendfile(connection[0], make_file(SMALL))
    for name in ("connect_accepted_socket", "create_connection", "create_server"):
        with case(name=name):
            wrapped, own = getattr(loop, name), getattr(type(loop), name)
            assert asyncio.iscoroutinefunction(wrapped)
            assert wrapped.__name__ == own.__name__
            assert wrapped.__doc__ == own.__doc__
            parameters = list(inspect.signature(wrapped).parameters)
            assert parameters == list(inspect.signature(own).parameters)[1:]
