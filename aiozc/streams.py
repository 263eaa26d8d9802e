"""The transfers on asyncio's own streams, on asyncio's loop and on uvloop, installed or not.

What a stream holds in user space keeps its place: what was written before leaves before, and what a
reader has read ahead arrives first. A writer that sends refuses what others write, and a reader
that is read refuses others who read, each with a RuntimeError; behind a transfer both are as they
were. The bytes of plain connections and of pipes are moved by the kernel. What TLS carries passes
through memory, as on any other transport that no descriptor stands for.

Each exception of a transfer has `transferred` and `lost`, numbers of bytes as of the functions of
`aiozc` (a pair each for `relay`). Where `lost` is 0 the streams can be used on after a
cancellation: a writer behind what was sent, a reader with all that is still to be read.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from aiozc._api.ahead import Moved, Moving, ReadAhead, ended_socket, into_file
from aiozc._api.arguments import check_count, plain_file, shown
from aiozc._api.gates import (
    ReaderGate,
    are_of_one,
    can_be_held,
    check_plain,
    encrypts,
    is_pipe,
    refused,
    refusing,
    standing_in,
    transport_of,
    wait_for_bytes,
)
from aiozc._api.relay import relay_behind
from aiozc._api.sendfile import loop_sendfile
from aiozc._api.splice import splice_pipe
from aiozc._api.transports import Hold, Reading, send_through, write_file
from aiozc._errors import annotate, connection_lost, nothing_moved
from aiozc._resources.records import reset_connection
from aiozc._runtime.runtime import current

__all__ = ["receive_file", "relay", "send_file", "splice"]


async def send_file(
    writer: asyncio.StreamWriter,
    file: Any,
    offset: int = 0,
    count: int | None = None,
    *,
    fallback: bool = True,
) -> int:
    """Send a file over a stream; return the number of bytes sent. See `aiozc.loop_sendfile`.

    `file`, `offset` and `count` are what `loop_sendfile` takes. The reader can be used meanwhile,
    and the writer closed: that ends it. Over TLS, or where `loop_sendfile` says so, the file is
    read in a worker thread, unless `fallback` is false. Of TLS the bytes sent are those that the
    transport was given.

    Raises, beside what `aiozc.loop_sendfile` does:
        TypeError: what is no asyncio.StreamWriter; one whose connection has been encrypted since.
        RuntimeError: another transfer is sending, or `write_eof` was called.
        ConnectionError: in place of the OSError of a connection that is lost, or was closed.
    """
    with nothing_moved(0):
        by_kernel = _by_kernel_or_fallback(_transport_of(writer), fallback=fallback)
    if by_kernel:

        async def send(sock: Any) -> int:
            return await loop_sendfile(sock, file, offset, count, fallback=fallback)

        held, gate = refusing(writer.transport)
        with standing_in(writer, held):
            return await send_through(held, gate, send, Reading.GOES_ON)
    with refused(writer) as transport:
        return await write_file(transport, file, offset, count, Reading.GOES_ON)


async def receive_file(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    file: Any,
    offset: int = 0,
    count: int | None = None,
    *,
    fallback: bool = True,
) -> int:
    """Receive from a stream into a file; return the bytes written. See `aiozc.loop_recvfile`.

    `reader` and `writer` are of one connection; the writer can be used meanwhile. `file`, `offset`
    and `count` are what `loop_recvfile` takes: with None as `count` all is received until the peer
    ends the stream, of which the reader tells afterwards too.

    Raises, beside what `aiozc.loop_recvfile` does:
        TypeError: what is no asyncio.StreamReader, or no StreamWriter.
        ValueError: a reader and a writer that are of two connections.
        RuntimeError: somebody else is reading.
        ConnectionError: in place of the OSError of a connection that is lost, or was closed; and
            what else the reader was told by its transport.
    """
    with nothing_moved(0):
        _reader(reader)
        by_kernel = _by_kernel_or_fallback(_transport_of(writer), fallback=fallback)
        if by_kernel:
            _check_one(reader, writer)
        moving = Moving(count, into_file(plain_file(file), offset, fallback=fallback))
    with moving.telling():
        if by_kernel:
            held, _ = refusing(writer.transport)
            with standing_in(writer, held):
                async with _read_from(reader, held) as (ahead, sock):
                    await moving.take_ahead(ahead)
                    await moving.take(sock)
        else:
            await _take_from_reader(reader, moving)
    return moving.moved


async def splice(
    src: asyncio.StreamReader, dst: asyncio.StreamWriter, count: int | None = None
) -> int:
    """Move bytes from a reader to a writer; return how many arrived. See `aiozc.splice_pipe`.

    Each is of a connection or of a subprocess's pipe: `splice(process.stdout, writer)` sends what
    a program says, `splice(reader, process.stdin)` has it read what arrives. `count` bytes (1 or
    more) are moved or, with None, all until the end of `src`; `dst` is not ended by that.

    Raises:
        TypeError: what is no asyncio.StreamReader, or no StreamWriter; a count that is no integer.
        ValueError: a count below 1.
        RuntimeError: somebody else is reading, or sending.
        OSError: of a pipe or connection that is lost a ConnectionError (BrokenPipeError where
            nobody reads any more).
    """
    with nothing_moved(0):
        source, target = transport_of(_reader(src)), _transport_of(dst)
        check_count(count)
    if not (_goes_by_kernel(source) and _goes_by_kernel(target)):
        moving = Moved(count)
        with moving.telling(), refused(dst) as transport:
            await _copy(src, dst, transport, moving)
        return moving.moved
    with _holding(dst, Reading.GOES_ON) as hold:
        async with hold as sink:

            async def move(sock: Any, _: int, left: int | None) -> int:
                return await splice_pipe(sock, sink, left)

            moving = Moving(count, move)
            with moving.telling():
                async with _read_from(src, source) as (ahead, sock):
                    await moving.take_ahead(ahead)
                    await moving.take(sock)
    return moving.moved


Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def relay(a: Side, b: Side) -> tuple[int, int]:
    """Copy both ways between two connections; return the bytes from `a` to `b`, and back.

    Each is a reader and a writer. See `aiozc.relay`: half-closes and resets are passed on, and
    both stay the caller's to close. TLS has no half-closes: where a side is encrypted, the end of
    the other is not passed on to it, and its own end is the end of both ways.

    Raises, beside what `aiozc.relay` does:
        TypeError: what is no pair of an asyncio.StreamReader and a StreamWriter.
        ValueError: a reader and a writer that are of two connections; `a` and `b` that are one.
        RuntimeError: somebody else is reading, or sending, or `write_eof` was called.
        ConnectionError: in place of the OSError of a connection that is lost, or was closed.
    """
    with nothing_moved((0, 0)):
        a, b = _side(a), _side(b)
        if a[0] is b[0] or a[1] is b[1]:
            raise ValueError(f"{shown(a)} cannot be relayed to itself")
        by_kernel = all(can_be_held(writer.transport) for _, writer in (a, b))
        if by_kernel:
            _check_one(*a)
            _check_one(*b)
    if not by_kernel:
        return await _relay_by_memory(a, b)
    socks: list[Any] = []
    gates = []
    async with contextlib.AsyncExitStack() as stack:
        with nothing_moved((0, 0)):
            for reader, writer in (a, b):
                hold = stack.enter_context(_holding(writer, Reading.DEFERRED))
                gates.append(stack.enter_context(ReaderGate(reader)))
                socks.append(await stack.enter_async_context(hold))
        for gate in gates:
            gate.take()
        ahead = [ReadAhead(gate.chunks).pieces() for gate in gates]
        return await relay_behind(*socks, *ahead)


# What is looked at, and held.


_WANTED = (
    "the functions of aiozc.streams take what asyncio.open_connection and start_server give;"
    " aiozc.loop_sendfile, loop_recvfile, relay and splice_pipe take sockets, pipes and files"
)


def _side(side: Any) -> Side:
    """Return a pair. Raises TypeError where it is none, or of other things."""
    if not isinstance(side, tuple | list) or len(side) != 2:
        raise TypeError(f"{shown(side)} is no pair (reader, writer) of one connection: {_WANTED}")
    reader, writer = side
    _transport_of(writer)
    return _reader(reader), writer


def _reader(reader: Any) -> asyncio.StreamReader:
    if not isinstance(reader, asyncio.StreamReader):
        raise TypeError(f"{shown(reader)} is no asyncio.StreamReader: {_WANTED}")
    return reader


def _transport_of(writer: Any) -> Any:
    """Return a writer's transport. Raises TypeError where it would write beneath TLS."""
    if not isinstance(writer, asyncio.StreamWriter):
        raise TypeError(f"{shown(writer)} is no asyncio.StreamWriter: {_WANTED}")
    if can_be_held(writer.transport):
        check_plain(writer.transport)
    return writer.transport


def _check_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if not are_of_one(reader, writer):
        raise ValueError(f"{shown(reader)} and {shown(writer)} are not of one connection")


def _by_kernel_or_fallback(transport: Any, *, fallback: bool) -> bool:
    by_kernel = can_be_held(transport)
    if not (by_kernel or fallback):
        raise asyncio.SendfileNotAvailableError(f"{transport!r} is of no plain connection")
    return by_kernel


def _goes_by_kernel(transport: Any) -> bool:
    """Return whether the bytes of a transport are those of a descriptor."""
    if transport is None:
        return False
    return is_pipe(transport) or (can_be_held(transport) and not encrypts(transport))


@contextlib.contextmanager
def _holding(writer: asyncio.StreamWriter, reading: Reading) -> Iterator[Hold]:
    """Give what holds the transport of a writer, which refuses what is written."""
    held, gate = refusing(writer.transport)
    with nothing_moved(0):
        gate.check_not_ended()
    with standing_in(writer, held):
        yield Hold(held, gate, reading)


@contextlib.asynccontextmanager
async def _read_from(
    reader: asyncio.StreamReader, transport: Any
) -> AsyncIterator[tuple[ReadAhead, Any]]:
    """Give what a reader has read ahead, and the socket, or pipe, that it reads from."""
    async with contextlib.AsyncExitStack() as stack:
        gate = stack.enter_context(ReaderGate(reader))
        piped = is_pipe(transport)
        while piped and transport.is_closing() and not gate.ended:  # noqa: ASYNC110
            await asyncio.sleep(0)  # it has ended, of which the reader is told in a later turn
        gate.take()
        if gate.ended:  # its transport may be closed
            sock = stack.enter_context(ended_socket(b""))
            yield ReadAhead(gate.chunks), sock
        else:
            hold = Hold(*refusing(transport), Reading.DEFERRED, writing=False)
            held = await stack.enter_async_context(hold)
            if piped:
                # What comes of a subprocess is passed on to its reader in the next turn.
                await asyncio.sleep(0)
            gate.take()
            yield ReadAhead(gate.chunks), held


# By memory.


async def _take_from_reader(reader: asyncio.StreamReader, moving: Moving) -> None:
    """Move what a reader reads, without ever having it in hand."""
    with ended_socket(b"") as nothing:
        await moving.take(nothing)  # the file is looked at first
    while moving.left != 0:
        await wait_for_bytes(reader)
        with ReaderGate(reader) as gate:
            if not gate.chunks:
                return
            await moving.take_ahead(ReadAhead(gate.chunks))


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, transport: Any, moving: Moved
) -> None:
    """Copy to the end, or as many as are left; `transport` is the writer's own."""
    while moving.left != 0:
        await wait_for_bytes(reader)
        with ReaderGate(reader) as gate:
            if not gate.chunks:
                return
            if transport.is_closing():
                raise connection_lost(None)
            data = gate.chunks.popleft()
            if moving.left is not None:
                gate.chunks.appendleft(data[moving.left :])
                data = data[: moving.left]
            transport.write(data)
            moving.moved += len(data)
            await writer.drain()


async def _relay_by_memory(a: Side, b: Side) -> tuple[int, int]:
    there, back = Moved(), Moved()
    try:
        with refused(a[1]) as to_a, refused(b[1]) as to_b, contextlib.suppress(EOFError):
            ways = _one_way(a, to_a, b, to_b, there), _one_way(b, to_b, a, to_a, back)
            await current().run_all(ways)
    except BaseException as error:
        annotate(error, (there.moved, back.moved), (there.lost, back.lost))
        raise
    return there.moved, back.moved


async def _one_way(source: Side, at_source: Any, sink: Side, at_sink: Any, moving: Moved) -> None:
    try:
        await _copy(source[0], sink[1], at_sink, moving)
    except OSError:
        for transport in (at_source, at_sink):
            _reset(transport)
        raise
    if at_sink.can_write_eof():
        at_sink.write_eof()
    if not at_source.can_write_eof():
        raise EOFError  # TLS ends both ways


def _reset(transport: Any) -> None:
    """End a connection as an error would: its peer must not take a part for the whole."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        reset_connection(sock)
    transport.abort()
