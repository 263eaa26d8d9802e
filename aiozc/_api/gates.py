"""Gates: what is written to a transport while its socket is held for a transfer is refused.

Written bytes would land in the middle of a file. All that is private of CPython's transports and
streams, and of uvloop's transports, stands here.

asyncio's look in each `write` whether a future waits for their buffer to be empty, `_empty_waiter`,
and tell it when that is so: it is how the loop's own `_sendfile_native` shuts them, in each Python
from 3.7 on. What is put there here is the gate itself, since a future that has its result already
cannot take the exception that a transport gives it when the connection is lost later.

uvloop's are static types: nothing can be put in the place of their methods. So who is to be refused
is given a proxy. Its `write` and `writelines` are partial objects, made of the transport's bound
methods and nothing else: that costs 12 ns a call, and a `write` that somebody has taken from the
proxy earlier is refused with the others, since it is the same object. Who sets another `write` on
the proxy has it, until it is deleted again, as on asyncio's transports.
"""

import asyncio
import contextlib
import functools
import selectors
from asyncio import constants
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NoReturn, Self

from aiozc._engines.backend import TICK_S
from aiozc._errors import connection_lost

Mode = constants._SendfileMode
IN_PROGRESS = "sendfile is in progress"

_WRITES = ("write", "writelines")
_KEPT = (
    *("abort", "close", "get_extra_info", "get_write_buffer_size", "is_closing", "is_reading"),
    *("pause_reading", "resume_reading"),
)
"""What a proxy has of its transport, without a call of its own."""
_SETTINGS = (
    *("get_protocol", "set_protocol", "get_write_buffer_limits", "set_write_buffer_limits"),
)
"""What a gate may have changed: it says what will be there afterwards."""
_UVLOOP_PLAIN = {"TCPTransport", "UnixTransport"}
_UVLOOP_TLS = {"_SSLProtocolTransport"}
_UVLOOP_PIPES = {"ReadUnixTransport", "WriteUnixTransport"}


def mode_of(transport: Any) -> Any:
    """Return what `loop.sendfile` may do with a transport; uvloop's own do not say it."""
    default = Mode.FALLBACK if _is_uvloop(transport, _UVLOOP_PLAIN | _UVLOOP_TLS) else None
    return getattr(transport, "_sendfile_compatible", default or Mode.UNSUPPORTED)


def is_bare(transport: Any) -> bool:
    """Return whether it is a plain one of uvloop's, which cannot refuse what is written to it."""
    return _is_uvloop(transport, _UVLOOP_PLAIN)


def can_be_held(transport: Any) -> bool:
    """Return whether a transport's bytes go as they are into a socket that transfers may use."""
    return mode_of(transport) is Mode.TRY_NATIVE or is_bare(transport)


def encrypts(transport: Any) -> bool:
    """Return whether what a plain transport carries is encrypted by its protocol."""
    return type(transport.get_protocol()).__name__ == "SSLProtocol"


def check_plain(transport: Any) -> None:
    """Raise TypeError where a plain transport carries what is encrypted by its protocol."""
    if encrypts(transport):
        raise TypeError(f"{transport!r} carries what is encrypted: it is no plain connection")


def is_pipe(transport: Any) -> bool:
    """Return whether it is one of a pipe, as of a subprocess."""
    return _is_uvloop(transport, _UVLOOP_PIPES) or transport.get_extra_info("pipe") is not None


def force_close(transport: Any, error: BaseException) -> None:
    """Have a transport close as if it had met the error: its protocol is told."""
    # asyncio's transports of pipes have the latter.
    close = getattr(transport, "_force_close", None) or transport._close
    close(error)


def _is_uvloop(transport: Any, names: set[str]) -> bool:
    kind = type(transport)
    return kind.__module__ == "uvloop.loop" and kind.__name__ in names


class SelectorGate:
    """The gate of a transport of asyncio's selector loop."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._empty: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._put: dict[str, tuple[Any, Any]] = {}

    def check_open(self) -> None:
        """Raise RuntimeError where it is shut already."""
        if self._transport._empty_waiter is not None:
            raise RuntimeError(f"unable to send; {IN_PROGRESS}")

    def check_not_ended(self) -> None:
        """Raise RuntimeError where the stream was ended by `write_eof`."""
        if self._transport._eof:
            raise RuntimeError("Cannot call sendfile() after write_eof()")

    def number(self) -> int:
        """Return the number of the transport's socket; -1 where that was closed beneath it."""
        number: int = self._transport._sock.fileno()
        return number

    def is_watched(self) -> bool:
        """Return whether the loop waits for bytes from the peer.

        A transport whose protocol stayed open at the end of the stream says that it reads, and
        does not. If it were to resume, the protocol would be told of the end once more.
        """
        if not self._transport.is_reading():
            return False
        watched = self._transport._loop._selector.get_map().get(self._transport._sock_fd)
        return watched is not None and bool(watched.events & selectors.EVENT_READ)

    def shut(self) -> None:
        """Refuse what is written from here on, and its end."""
        self._transport._empty_waiter = self
        self._put_method("write_eof", _refuse_end)

    def defer_reading(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Have these called in place of the transport's own."""
        self._put_method("pause_reading", pause)
        self._put_method("resume_reading", resume)

    def _put_method(self, name: str, method: Any) -> None:
        methods = vars(self._transport)
        self._put[name] = method, methods.get(name)
        methods[name] = method

    def open(self) -> None:
        """Open it: everything is as it was before."""
        if self._transport._empty_waiter is self:
            self._transport._empty_waiter = None
        # What somebody has set, before or meanwhile, is theirs.
        methods = vars(self._transport)
        for name, (method, before) in self._put.items():
            if methods.get(name) is method:
                del methods[name]
                if before is not None:
                    methods[name] = before

    async def wait_empty(self) -> None:
        """Wait until the write buffer is empty; ConnectionError where the connection is lost."""
        if self._transport.get_write_buffer_size():
            self._empty = asyncio.get_running_loop().create_future()
            await self._empty
        if self._transport.is_closing():
            raise connection_lost(self._error)

    # What the transport calls of a future.

    def set_result(self, _: None) -> None:
        """Note that the buffer is empty."""
        if self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def set_exception(self, error: BaseException) -> None:
        """Note that the connection is lost."""
        self._error = self._error or error
        self.set_result(None)


class Proxy(asyncio.Transport):
    """Stands for a transport, and its gate."""

    __slots__ = (
        *("__weakref__", "_ended", "_gate", "_number", "_real", "_refused", "_stands"),
        *(*_WRITES, *_KEPT, *_SETTINGS),
    )

    pause_reading: Any
    resume_reading: Any

    def __init__(self, real: Any) -> None:
        self._real = real
        self._number = -1
        self._gate: ProxyGate | None = None
        self._ended = False
        self._refused: dict[str, Any] = {}
        self._stands = 0

    def __repr__(self) -> str:
        return f"<aiozc's proxy of {self._real!r}>"

    def __getattr__(self, name: str) -> Any:
        if name in _SETTINGS:
            return getattr(self._gate or self._real, name)
        value = self.refusable(name) if name in _WRITES else getattr(self._real, name)
        if name in _WRITES or name in _KEPT:  # for the first time, or somebody's own was deleted
            setattr(self, name, value)
        return value

    def __reduce__(self) -> Any:
        """Refuse to be copied, as the real one does."""
        return self._real.__reduce__()

    def refusable(self, name: str) -> Any:
        """Return the method of this name that a gate shuts."""
        if name not in self._refused:
            self._refused[name] = functools.partial(getattr(self._real, name))
        return self._refused[name]

    def to_encrypt(self) -> Any:
        """Return the transport itself, for TLS to be started on."""
        if self._gate is not None:
            raise RuntimeError(f"unable to start TLS; {IN_PROGRESS}")
        return self._real

    def write_eof(self) -> None:
        """See `asyncio.WriteTransport.write_eof`."""
        if self._gate is not None:
            _refuse_end()
        self._real.write_eof()
        self._ended = True

    def can_write_eof(self) -> bool:
        """See `asyncio.WriteTransport.can_write_eof`."""
        return True


class UvloopProxy(Proxy):
    """Stands for a plain transport of uvloop's: asyncio's sendfile looks at what it says."""

    __slots__ = ()
    _sendfile_compatible: ClassVar[Any] = Mode.TRY_NATIVE


class ProxyGate:
    """The gate of a proxy.

    To hear when the write buffer is empty it stands before the protocol for that long, with
    limits of 0. What is asked and set meanwhile is what will be there afterwards.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._real = proxy._real
        self._flow: Flow | None = None
        self._limits = (0, 0)
        self._put: tuple[Any, Any, Any, Any] | None = None

    def check_open(self) -> None:
        """Raise RuntimeError where it is shut already."""
        if self._proxy._gate is not None:
            raise RuntimeError(f"unable to send; {IN_PROGRESS}")

    def check_not_ended(self) -> None:
        """Raise RuntimeError where the stream was ended by `write_eof`."""
        if self._proxy._ended:
            raise RuntimeError("Cannot call sendfile() after write_eof()")

    def number(self) -> int:
        """Return the number of the transport's socket."""
        proxy = self._proxy
        if proxy._number < 0:
            known = self._real.get_extra_info
            proxy._number = (known("socket") or known("pipe")).fileno()
        return proxy._number

    def is_watched(self) -> bool:
        """Return whether the loop waits for bytes from the peer."""
        reading: bool = self._real.is_reading()
        return reading

    def shut(self) -> None:
        """Refuse what is written from here on, and its end."""
        self._proxy._gate = self
        for name in _WRITES:
            # The same object calls something else from here on.
            self._proxy.refusable(name).__setstate__((_refuse, (name,), {}, None))

    def defer_reading(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Have these called in place of the transport's own."""
        proxy = self._proxy
        self._put = pause, resume, proxy.pause_reading, proxy.resume_reading
        proxy.pause_reading, proxy.resume_reading = pause, resume

    def open(self) -> None:
        """Open it: everything is as it was before."""
        if self._put is not None:
            # What somebody has set meanwhile is theirs.
            pause, resume, own_pause, own_resume = self._put
            if self._proxy.pause_reading is pause:
                self._proxy.pause_reading = own_pause
            if self._proxy.resume_reading is resume:
                self._proxy.resume_reading = own_resume
        if self._proxy._gate is not self:
            return
        self._proxy._gate = None
        for name in _WRITES:
            method = getattr(self._real, name)
            self._proxy.refusable(name).__setstate__((method, (), {}, None))

    async def wait_empty(self) -> None:
        """Wait until the write buffer is empty; ConnectionError where the connection is lost."""
        real = self._real
        if real.get_write_buffer_size():
            # uvloop may write at the end of the loop's turn.
            await asyncio.sleep(0)
        if real.is_closing():
            raise connection_lost(None)
        if not real.get_write_buffer_size():
            return
        self._flow = flow = Flow(real)
        self._limits = real.get_write_buffer_limits()
        try:
            real.set_write_buffer_limits(0)
            await flow.wait_next_resumption()
        finally:
            # Before the protocol is told anything: what it sets then, it sets for good.
            self._flow = None
            try:
                if not flow.is_over:
                    low, high = self._limits
                    real.set_write_buffer_limits(high, low)
            finally:
                flow.leave()

    def get_protocol(self) -> Any:
        """Return the user's protocol."""
        return self._flow.protocol if self._flow else self._real.get_protocol()

    def set_protocol(self, protocol: Any) -> None:
        """Set the user's protocol."""
        if self._flow:
            self._flow.protocol = protocol
            protocol = self._flow
        self._real.set_protocol(protocol)

    def get_write_buffer_limits(self) -> Any:
        """Return the user's limits."""
        return self._limits if self._flow else self._real.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the user's limits."""
        self._real.set_write_buffer_limits(high, low)
        if self._flow:
            self._limits = self._real.get_write_buffer_limits()
            self._real.set_write_buffer_limits(0)


def _refuse(name: str, *_: object) -> NoReturn:
    raise RuntimeError(f"unable to {name}; {IN_PROGRESS}")


class EndRefusedError(RuntimeError, OSError):
    """The refusal of `write_eof`, as an OSError too: anyio before 4.15 calls it in `aclose`."""


def _refuse_end() -> NoReturn:
    raise EndRefusedError(f"unable to write_eof; {IN_PROGRESS}")


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
            tick = self._loop.call_later(TICK_S, self._wake)
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


Gate = SelectorGate | ProxyGate


def refusing(transport: Any) -> tuple[Any, Gate]:
    """Return a transport that can refuse what is written, that one or a proxy, and its gate."""
    gate = gate_of(transport)
    if gate is not None:
        return transport, gate
    proxy = UvloopProxy(transport) if is_bare(transport) else Proxy(transport)
    return proxy, ProxyGate(proxy)


def gate_of(transport: Any) -> Gate | None:
    """Return a transport's gate; None where it has none."""
    if isinstance(transport, Proxy):
        return ProxyGate(transport)
    return SelectorGate(transport) if hasattr(transport, "_empty_waiter") else None


# Of asyncio's streams.


def transport_of(reader: asyncio.StreamReader) -> Any:
    """Return the transport that a reader pauses and resumes; None where it has none."""
    return reader._transport  # type: ignore[attr-defined]


def are_of_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Return whether a reader and a writer have the same transport."""
    return _beneath(transport_of(reader)) is _beneath(writer.transport)


def _beneath(transport: Any) -> Any:
    return transport._real if isinstance(transport, Proxy) else transport


@contextlib.contextmanager
def standing_in(writer: asyncio.StreamWriter, transport: Any) -> Iterator[None]:
    """Have a writer write to this transport for a while: its own, or a proxy of that."""
    held: Any = writer
    if transport is held._transport and not getattr(transport, "_stands", 0):
        yield
        return
    transport._stands += 1  # of several transfers
    held._transport = transport
    try:
        yield
    finally:
        transport._stands -= 1
        if not transport._stands and held._transport is transport:
            held._transport = transport._real


@contextlib.contextmanager
def refused(writer: asyncio.StreamWriter) -> Iterator[Any]:
    """Refuse what is written by a writer; give a transport that writes all the same."""
    transport = writer.transport
    proxy = transport if isinstance(transport, Proxy) else Proxy(transport)
    gate = ProxyGate(proxy)
    gate.check_open()
    with standing_in(writer, proxy):
        gate.shut()
        try:
            yield proxy._real
        finally:
            gate.open()


async def wait_for_bytes(reader: asyncio.StreamReader) -> None:
    """Wait until a reader has some, or will have no more. Raises what its `read` would."""
    held: Any = reader
    if held._exception is not None:
        raise held._exception
    if not held._buffer and not held._eof:
        await held._wait_for_data("a transfer")


class ReaderGate:
    """Takes what a reader has read ahead, and refuses who reads meanwhile.

    A reader that waits has a future as `_waiter`, and a second one who waits is refused: so it is
    the gate that stands there.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader: Any = reader
        self.chunks: deque[Any] = deque()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the reader has been told of the end."""
        return self._ended or bool(self._reader._eof)

    def __enter__(self) -> Self:
        reader = self._reader
        if reader._exception is not None:
            raise reader._exception
        if reader._waiter is not None:
            raise RuntimeError("another coroutine is already waiting for incoming data")
        reader._waiter = self
        # Who reads at the end of a stream is not refused.
        self._ended, reader._eof = reader._eof, False
        self.take()
        return self

    def take(self) -> None:
        """Take what has come since."""
        buffer = self._reader._buffer
        if buffer:
            self.chunks.append(memoryview(bytes(buffer)))
            buffer.clear()

    def __exit__(self, *_: object) -> None:
        """Give back what was left."""
        reader = self._reader
        reader._waiter = None
        reader._eof = self.ended
        reader._buffer[:0] = b"".join(self.chunks)
        reader._maybe_resume_transport()

    # What the reader calls of a future, which it has done with then.

    def cancelled(self) -> bool:
        """Say that it is to be told."""
        return False

    def set_result(self, _: None) -> None:
        """Refuse on."""
        self._reader._waiter = self

    def set_exception(self, _: BaseException) -> None:
        """Refuse on."""
        self._reader._waiter = self
