"""Transports as targets: their sockets by number, their flow control, and files by `write`."""

import asyncio
from asyncio import constants
from collections.abc import Callable
from typing import Any

from aiozc._api.arguments import (
    check_binary,
    check_count,
    check_offset,
    check_readable,
    plain_file,
)
from aiozc._drivers.fallback import READ, TICK, read_some, seek, seek_if_it_can
from aiozc._engines.reactor import count_fallback
from aiozc._errors import connection_lost, nothing_moved, tell
from aiozc._resources.owners import owners_of
from aiozc._resources.records import HasFileno, check_sendable
from aiozc._runtime.hosts import Loop, in_thread, in_thread_that_may_be_left

UVLOOP_PLAIN = {"TCPTransport", "UnixTransport"}
"""uvloop's transports of streams without TLS."""


class TransportSocket:
    """A transport's socket, non-blocking and of type SOCK_STREAM: -1 once the transport closes.

    The transport closes its socket a turn of the loop after it says that it is closing. `number`
    gives -1 where somebody else has closed it, if that can be known, so that it is never one
    that was given to something else.
    """

    __slots__ = ("_is_closing", "_number")

    def __init__(self, is_closing: Callable[[], bool], number: Callable[[], int]) -> None:
        self._is_closing = is_closing
        self._number = number

    def __repr__(self) -> str:
        return f"<the transport's socket, fd={self.fileno()}>"

    def fileno(self) -> int:
        """Return the number, or -1."""
        return -1 if self._is_closing() else self._number()

    def end(self) -> None:
        """Be no socket any more."""
        self._is_closing = _yes

    def gettimeout(self) -> float:
        """Say that it is non-blocking."""
        return 0.0

    def is_connected(self) -> bool:
        """Return whether it could take bytes still: a lost connection says so for ever."""
        try:
            check_sendable(self.fileno())
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def _yes() -> bool:
    return True


def check_unowned(loop: Loop, stream: HasFileno) -> None:
    """Raise RuntimeError where a transport of the loop uses it, and is not held for a transfer."""
    if type(stream) is not TransportSocket:
        owners_of(loop).check(stream)


class Flow:
    """Stands before a transport's protocol for a while, to be told itself when to pause.

    Everything else reaches the protocol. Pauses and resumptions alternate: when it leaves, the
    protocol has to hear the last of them if there was an odd number, and nothing else.

    uvloop's transports without TLS do not tell whether they are paused. One that holds more
    bytes than its upper limit is, and says when it no longer is.
    """

    def __init__(self, transport: Any) -> None:
        self.protocol: Any = transport.get_protocol()
        if isinstance(self.protocol, Flow):
            raise RuntimeError("sendfile is in progress already")
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._lost = False
        self._error: BaseException | None = None
        self._odd: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._tells = hasattr(transport, "_protocol_paused")
        self._paused = self._tells and bool(transport._protocol_paused)
        self.heed_size()
        transport.set_protocol(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.protocol, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Be of the protocol's kind for `isinstance`: those with a buffer are called otherwise."""
        return type(self.protocol)

    @property
    def is_over(self) -> bool:
        """Whether the protocol was told that the connection is lost, or its loop is closed."""
        return self._lost or self._loop.is_closed()

    def pause_writing(self) -> None:
        """Keep the pause."""
        self._paused = True
        self._odd = None if self._odd else "pause_writing"

    def resume_writing(self) -> None:
        """Wake who waits."""
        self._paused = False
        self._odd = None if self._odd else "resume_writing"
        self._wake()

    def connection_lost(self, error: BaseException | None) -> None:
        """Wake who waits, and tell the protocol."""
        self._lost = True
        self._error = error
        self._wake()
        self.protocol.connection_lost(error)

    def heed_size(self) -> None:
        """Take a transport for paused that holds too much, where it does not tell."""
        if not self._tells:
            _, high = self._transport.get_write_buffer_limits()
            self._paused = self._paused or self._transport.get_write_buffer_size() > high

    async def wait_next_resumption(self) -> None:
        """Wait for it whether or not the pause before was heard; else as `wait_resumed`."""
        self._paused = True
        await self.wait_resumed()

    async def wait_resumed(self) -> None:
        """Wait until the transport is not paused; ConnectionError where it closes."""
        while self._is_paused() and not self._lost and not self._transport.is_closing():
            self._waiter = self._loop.create_future()
            # Who sets another protocol keeps the resumption from us.
            tick = self._loop.call_later(TICK, self._wake)
            try:
                await self._waiter
            finally:
                self._waiter = None
                tick.cancel()
        if self._lost or self._transport.is_closing():
            raise connection_lost(self._error)

    def _is_paused(self) -> bool:
        if self._paused and self._transport.get_protocol() is not self:
            low, _ = self._transport.get_write_buffer_limits()
            self._paused = self._transport.get_write_buffer_size() > low
        return self._paused

    def leave(self) -> None:
        """Give the transport its protocol back."""
        if self.is_over:
            return
        if self._transport.get_protocol() is self:
            self._transport.set_protocol(self.protocol)
        if self._odd:
            self._tell(self._odd)

    def _tell(self, name: str) -> None:
        """Call the protocol as a transport does, whose own affair an exception is not."""
        try:
            getattr(self.protocol, name)()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            context = {
                "message": f"protocol.{name}() failed",
                "exception": error,
                "transport": self._transport,
                "protocol": self.protocol,
            }
            self._loop.call_exception_handler(context)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def socket_beneath(transport: Any) -> TransportSocket | None:
    """Return the socket into which a transport's bytes go as they are, or None.

    There is one beneath the transports of asyncio's selector loop and of uvloop, TLS apart.
    Who sends by it waits for the transport's own bytes first (`wait_written`), and lets nobody
    write to the transport meanwhile.
    """
    kind = type(transport)
    plain = getattr(transport, "_sendfile_compatible", None) is constants._SendfileMode.TRY_NATIVE
    if plain or (kind.__module__ == "uvloop.loop" and kind.__name__ in UVLOOP_PLAIN):
        return TransportSocket(transport.is_closing, transport.get_extra_info("socket").fileno)
    return None


async def wait_written(transport: Any) -> None:
    """Wait until a transport's write buffer is empty; ConnectionError where it closes."""
    if await has_more_to_write(transport):
        drain = Drain(transport)
        try:
            await drain.wait()
        finally:
            drain.leave()


async def has_more_to_write(transport: Any) -> bool:
    """Return whether more was written than could leave at once; ConnectionError where it closes."""
    if transport.get_write_buffer_size():
        # uvloop may write at the end of the loop's turn.
        await asyncio.sleep(0)
    if transport.is_closing():
        raise connection_lost(None)
    return bool(transport.get_write_buffer_size())


class Drain:
    """A transport that is told to say when its write buffer is empty, by limits of 0 meanwhile."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.flow = Flow(transport)
        self.limits: tuple[int, int] = transport.get_write_buffer_limits()
        """What will be set when it has ended: low and high."""

    async def wait(self) -> None:
        """Wait until it is empty; ConnectionError where the transport closes."""
        self._transport.set_write_buffer_limits(0)
        await self.flow.wait_next_resumption()

    def leave(self) -> None:
        """Let the transport be as it was."""
        try:
            if not self.flow.is_over:
                low, high = self.limits
                self._transport.set_write_buffer_limits(high, low)
        finally:
            self.flow.leave()


async def write_file(transport: Any, file: Any, offset: int, count: int | None) -> int:
    """Send a file by the transport's own `write`; return the number of bytes written.

    For TLS, whose records the transport makes, and for transports whose `write` nobody can
    refuse to others. The file's position is `offset` plus what was handed to the transport.
    """
    with nothing_moved(0):
        file = plain_file(file)
        check_binary(file)
        check_count(count)
        check_offset(offset)
        check_readable(file, offset)
        reading = transport.is_reading()
        transport.pause_reading()
        flow = Flow(transport)
    count_fallback(asyncio.get_running_loop())
    written = 0
    seekable = False
    try:
        seekable = await seek_if_it_can(file, offset, 0)
        read = in_thread if seekable else in_thread_that_may_be_left
        while count is None or written < count:
            size = READ if count is None else min(READ, count - written)
            data: bytes | None = await read(read_some, file, size)
            if not data:
                break
            await flow.wait_resumed()
            transport.write(data)
            flow.heed_size()
            written += len(data)
        return written
    except BaseException as error:
        tell(error, written, 0)
        if isinstance(error, GeneratorExit):
            seekable = False  # a coroutine that is thrown away cannot wait any more
        raise
    finally:
        try:
            flow.leave()
        finally:
            if reading and not flow.is_over and not transport.is_closing():
                transport.resume_reading()
        if seekable:
            await seek(file, offset + written)
