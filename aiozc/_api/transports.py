"""Transports as targets: one way to hold their sockets for transfers, and files by `write`."""

import asyncio
import enum
import errno
import functools
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from aiozc._api.arguments import (
    check_binary,
    check_count,
    check_offset,
    check_readable,
    plain_file,
)
from aiozc._api.gates import Flow, Gate, force_close
from aiozc._drivers.fallback import READ, read_some, seek, seek_if_it_can
from aiozc._engines.registry import count_fallback
from aiozc._errors import annotate, connection_lost, nothing_moved, tells_of_lost_connection
from aiozc._kernel.sockets import has_error
from aiozc._kernel.status import identity
from aiozc._resources.owners import owners_of
from aiozc._resources.records import HasFileno, check_sendable, is_readable, is_used
from aiozc._runtime.threads import in_thread, in_thread_that_may_be_left
from aiozc._runtime.waiting import Loop

_POLL_S = 0.005
"""Seconds between two looks whether a transfer that was left behind has ended."""


class TransportSocket:
    """A transport's socket, non-blocking and of type SOCK_STREAM: -1 once the transport closes.

    The transport closes its socket a turn of the loop after it says that it is closing. `number`
    gives -1 where somebody else has closed it, if that can be known, so that it is never one
    that was given to something else.
    """

    __slots__ = ("_is_closing", "_number")

    def __init__(self, transport: Any, gate: Gate) -> None:
        self._is_closing: Callable[[], bool] = transport.is_closing
        self._number = gate.number

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
        number = self.fileno()
        try:
            check_sendable(number)
        except BlockingIOError:
            return True
        except OSError as error:
            return error.errno == errno.ENOTSOCK and not has_error(number)
        return True

    def can_be_read(self) -> bool:
        """Return whether it has bytes, may get some, or has ended in order."""
        return is_readable(self.fileno()) or self.is_connected()


def _yes() -> bool:
    return True


def check_unowned(loop: Loop, stream: HasFileno) -> None:
    """Raise RuntimeError where a transport of the loop uses it, and is not held for a transfer."""
    if type(stream) is not TransportSocket:
        owners_of(loop).check(stream)


Send = Callable[[TransportSocket], Coroutine[Any, Any, int]]
"""Sends a file into a socket, and returns how many bytes that were."""


class Reading(enum.Enum):
    """What a transport reads while it is held."""

    GOES_ON = enum.auto()
    PAUSED = enum.auto()
    """Nothing, unless somebody resumes it: as in asyncio's own `sendfile`."""
    DEFERRED = enum.auto()
    """Nothing: who resumes it does so at the end."""


class Hold:
    """A transport that stands aside for transfers into its socket, which its `async with` gives.

    What is written to the transport is refused in the block; what was written before has left when
    it begins; not so where `writing` is false, for who only reads. A connection that is lost is a
    ConnectionError, in place of what a transfer raises, and the protocol hears of it. A transfer
    that goes on behind the block is ended.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _later: asyncio.Handle | None = None
    _reads = False
    _identity = (0, 0)

    def __init__(
        self, transport: Any, gate: Gate, reading: Reading, *, writing: bool = True
    ) -> None:
        self.sock = TransportSocket(transport, gate)
        self._transport = transport
        self._gate = gate
        self._reading = reading
        self._writing = writing

    def begin(self) -> None:
        """Refuse what is written from here on, and read nothing."""
        if self._loop is not None:
            return
        if self._writing:
            self._gate.check_open()
        self._pause = self._transport.pause_reading
        if self._reading is Reading.DEFERRED and _is_deferred(self._pause):
            raise RuntimeError(f"{self._transport!r} is held: another transfer reads from it")
        self._loop = asyncio.get_running_loop()
        if self._reading is not Reading.GOES_ON:
            self._pause_reading()
            if not self._reads:
                # Of a connection that is being made the loop watches the socket behind
                # `connection_made`, where an eager task may be. (asyncio's loop has not read from
                # it when this is called; uvloop's may have read once.)
                self._later = self._loop.call_soon(self._pause_reading)
        if self._writing:
            self._gate.shut()
        if self._reading is Reading.DEFERRED:
            self._gate.defer_reading(
                functools.partial(self._set_reads, False), functools.partial(self._set_reads, True)
            )

    def end(self) -> None:
        """Let everything be as it was."""
        if self._loop is None:
            return
        if self._later is not None:
            self._later.cancel()
        self._gate.open()
        if self._reads and not self._loop.is_closed():
            # Another hold may have come since, and defer that.
            self._transport.resume_reading()

    def _pause_reading(self) -> None:
        if self._gate.is_watched():
            self._pause()
            self._reads = True

    def _set_reads(self, reads: bool) -> None:
        self._reads = reads

    async def __aenter__(self) -> TransportSocket:
        with nothing_moved(0):
            if self._loop is not None:
                raise RuntimeError("this hold was begun already")
            if self._transport.is_closing():
                raise connection_lost(None)
            self.begin()
            try:
                if self._later is not None:
                    await asyncio.sleep(0)
                if self._writing:
                    await self._gate.wait_empty()
                self._identity = identity(self.sock.fileno())
            except BaseException:
                self.end()
                raise
        return self.sock

    async def __aexit__(self, _: object, error: BaseException | None, *trace: object) -> None:
        lost = self.lost_by(error)
        try:
            if not isinstance(error, GeneratorExit):  # then nothing can be waited for
                await self._end_transfers()
        finally:
            self.sock.end()
            self.end()
        if lost is not None and lost is not error:
            raise lost from lost.__cause__

    async def _end_transfers(self) -> None:
        """Return when no transfer uses the socket any more."""
        cancelled: asyncio.CancelledError | None = None
        while is_used(self.sock, self._identity):
            self.sock.end()
            try:
                await asyncio.sleep(_POLL_S)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def lost_by(self, error: BaseException | None) -> ConnectionError | None:
        """Return what to raise where a transfer failed since the connection is lost.

        The protocol hears of it from the transport.
        """
        if not isinstance(error, OSError):
            return None
        closing = self._transport.is_closing()
        if not tells_of_lost_connection(error, closing=closing):
            return None
        # A file on a network, or in another process, fails with the same numbers.
        if not closing and (self.sock.is_connected() if self._writing else self.sock.can_be_read()):
            return None
        lost = connection_lost(error)
        for name in ("transferred", "lost", "send"):
            if hasattr(error, name):
                setattr(lost, name, getattr(error, name))
        if not closing:
            # Another one: this one's traceback holds frames, which hold the transport.
            force_close(self._transport, type(lost)(*lost.args))
        return lost


def _is_deferred(pause: Any) -> bool:
    return isinstance(getattr(getattr(pause, "func", None), "__self__", None), Hold)


async def send_through(
    transport: Any,
    gate: Gate,
    send: Send,
    reading: Reading = Reading.PAUSED,
) -> int:
    """Send a file by `send`, into the socket of a transport that is held; return the bytes sent.

    What goes at once, in the turn of the loop in which it was asked for, needs no hold: nothing
    else runs meanwhile. So the transfer is begun first, and the transport held when it waits.
    """
    hold = Hold(transport, gate, reading)
    try:
        gate.check_open()
        gate.check_not_ended()
        if transport.get_write_buffer_size():
            hold.begin()
            await gate.wait_empty()
    except BaseException as error:
        hold.end()
        annotate(error, 0, 0)
        raise
    sending = send(hold.sock)
    try:
        waited = sending.send(None)
        hold.begin()
        return await _rest(sending, waited)
    except StopIteration as ended:
        sent: int = ended.value
        return sent
    except OSError as error:
        lost = hold.lost_by(error)
        if lost is None:
            raise
        raise lost from lost.__cause__
    finally:
        hold.end()


@types.coroutine
def _rest(sending: Coroutine[Any, Any, int], waited: Any) -> Generator[Any, Any, int]:
    """Go on with a coroutine that was begun and waits for `waited`, as `yield from` would."""
    try:
        while True:
            try:
                answer = yield waited
            except GeneratorExit:
                sending.close()
                raise
            except BaseException as error:
                waited = sending.throw(error)
            else:
                waited = sending.send(answer)
    except StopIteration as ended:
        sent: int = ended.value
        return sent


async def write_file(
    transport: Any,
    file: Any,
    offset: int,
    count: int | None,
    reading: Reading = Reading.PAUSED,
) -> int:
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
        pauses = reading is Reading.PAUSED and transport.is_reading()
        if pauses:
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
        annotate(error, written, 0)
        if isinstance(error, GeneratorExit):
            seekable = False  # a coroutine that is thrown away cannot wait any more
        raise
    finally:
        try:
            flow.leave()
        finally:
            if pauses and not flow.is_over and not transport.is_closing():
                transport.resume_reading()
        if seekable:
            try:
                await seek(file, offset + written)
            except BaseException as error:  # it may be cancelled here too
                annotate(error, written, 0)
                raise
