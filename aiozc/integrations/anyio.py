"""The transfers on anyio's socket streams, on its asyncio backend (uvloop too) and on trio.

What a stream of the asyncio backend holds in user space keeps its place: what it has not sent
yet leaves before the file, and what it has read ahead arrives before what is in the socket.
anyio shows neither, nor the transport that reads ahead, nor its guards against two at once. So
this looks into the stream: one that has no such things holds nothing.

A stream that is encrypted is none of these (`anyio.streams.tls.TLSStream` is no SocketStream):
its raw socket would send what is to be secret as it is.
"""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

from anyio import BrokenResourceError, ClosedResourceError
from anyio.abc import SocketAttribute, SocketStream
from anyio.lowlevel import checkpoint

from aiozc import loop_sendfile
from aiozc._api.ahead import Moving, ReadAhead, into_file
from aiozc._api.arguments import plain_file
from aiozc._api.gates import can_be_held, refusing
from aiozc._api.relay import relay_behind
from aiozc._api.transports import Hold, Reading, TransportSocket
from aiozc._errors import nothing_moved, tells_of_lost_connection


async def send_file(
    stream: SocketStream,
    file: Any,
    offset: int = 0,
    count: int | None = None,
    *,
    fallback: bool = True,
) -> int:
    """Send a file over a stream; return the number of bytes sent. See `aiozc.loop_sendfile`.

    `file` is what `loop_sendfile` takes, an `anyio.AsyncFile` for one. Sending by the
    stream meanwhile is a BusyResourceError.

    Raises, beside what `aiozc.loop_sendfile` does:
        TypeError: what is no SocketStream, a TLS stream for one.
        anyio.BusyResourceError: another task is sending.
        anyio.BrokenResourceError, anyio.ClosedResourceError: in place of the OSError of a
            connection that is lost, or was closed meanwhile.
    """
    hold = _hold(stream)
    await checkpoint()
    with _guarding(stream, "_send_guard"), _in_words_of_anyio(stream):
        async with hold as sock:
            return await loop_sendfile(sock, file, offset, count, fallback=fallback)


async def receive_file(
    stream: SocketStream,
    file: Any,
    offset: int = 0,
    count: int | None = None,
    *,
    fallback: bool = True,
) -> int:
    """Receive from a stream into a file; return the bytes written. See `aiozc.loop_recvfile`.

    `file` is a file object opened for writing in binary mode, or an `anyio.AsyncFile` of one.
    Receiving by the stream meanwhile is a BusyResourceError; it may go on behind `count`.

    Raises, beside what `aiozc.loop_recvfile` does: what `send_file` does.
    """
    sock = _socket_of(stream)
    moving = Moving(count, into_file(plain_file(file), offset, fallback=fallback))
    with _guarding(stream, "_receive_guard"), _in_words_of_anyio(stream), moving.telling():
        with _read_ahead(stream) as ahead:
            await moving.take_ahead(ahead)
        await moving.take(sock)
    return moving.moved


async def relay(a: SocketStream, b: SocketStream) -> tuple[int, int]:
    """Copy both ways between two streams; return the bytes from `a` to `b`, and back.

    See `aiozc.relay`: half-closes and resets are passed on, and both stay the caller's to close.

    Raises, beside what `aiozc.relay` does: what `send_file` does.
    """
    sides = (a, _hold(a)), (b, _hold(b))
    async with contextlib.AsyncExitStack() as stack:
        socks: list[Any] = []
        with nothing_moved((0, 0)):
            await checkpoint()
            for stream, hold in sides:
                stack.enter_context(_in_words_of_anyio(stream))
                stack.enter_context(_guarding(stream, "_send_guard"))
                stack.enter_context(_guarding(stream, "_receive_guard"))
                socks.append(await stack.enter_async_context(hold))
        ahead = [stack.enter_context(_read_ahead(stream)).pieces() for stream in (a, b)]
        return await relay_behind(*socks, *ahead)


def _hold(stream: SocketStream) -> contextlib.AbstractAsyncContextManager[Any]:
    """Return what holds the stream's transport, and gives its socket; there may be no transport.

    Nobody but the stream writes to it, and that has guards against two at once. It goes on reading.
    """
    transport = _transport_of(stream)
    if transport is None:
        return contextlib.nullcontext(_socket_of(stream))
    return Hold(*refusing(transport), Reading.GOES_ON)


def _socket_of(stream: SocketStream) -> Any:
    """Return the stream's socket, to receive from."""
    transport = _transport_of(stream)
    if transport is None:
        return stream.extra(SocketAttribute.raw_socket)
    return TransportSocket(*refusing(transport))


def _transport_of(stream: SocketStream) -> Any:
    """Return a transport of asyncio's or uvloop's, or None."""
    if not isinstance(stream, SocketStream):
        raise TypeError(f"{stream!r} is no anyio.abc.SocketStream: only plain sockets will do")
    transport = getattr(stream, "_transport", None)
    return transport if transport is None or can_be_held(transport) else None


def _guarding(stream: SocketStream, name: str) -> contextlib.AbstractContextManager[object]:
    """Return the stream's own guard against two who do the same with it, where it has one."""
    return getattr(stream, name, None) or contextlib.nullcontext()


@contextlib.contextmanager
def _read_ahead(stream: SocketStream) -> Iterator[ReadAhead]:
    """Give what a stream of the asyncio backend has read ahead; from here on it reads no more."""
    protocol = getattr(stream, "_protocol", None)
    chunks: deque[bytes] = getattr(protocol, "read_queue", deque())
    transport = getattr(stream, "_transport", None)
    if transport is not None and not transport.is_closing():
        transport.pause_reading()
    had_some = bool(chunks)
    try:
        yield ReadAhead(chunks)
    finally:
        if protocol is not None and had_some and not chunks:
            protocol.read_event.clear()


@contextlib.contextmanager
def _in_words_of_anyio(stream: SocketStream) -> Iterator[None]:
    """Raise what the stream itself would, of a connection that is lost or was closed."""
    try:
        yield
    except OSError as error:
        cause = _cause_in_words_of_anyio(stream, error)
        if cause is None:
            raise
        for name in ("transferred", "lost"):
            if hasattr(error, name):
                setattr(cause, name, getattr(error, name))
        raise cause from error


def _cause_in_words_of_anyio(stream: SocketStream, error: OSError) -> Exception | None:
    # The asyncio backend's streams and trio's say that they are closed; UNIX ones that they are
    # closing.
    closed = getattr(stream, "_closed", False) or getattr(stream, "_closing", False)
    transport = getattr(stream, "_transport", None)
    closing = closed or (transport is not None and transport.is_closing())
    if not tells_of_lost_connection(error, closing=closing):
        return None
    return ClosedResourceError() if closed else BrokenResourceError()
