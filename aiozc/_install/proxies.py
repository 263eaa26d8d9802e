"""Transports for uvloop whose `write` can be refused.

uvloop's own are static types: nothing can be put in the place of their methods, and what is
written to them while a file is sent would land in the middle of it. So a protocol on an
installed loop is given a proxy. Its `write` and `writelines` are partial objects, made of the
transport's bound methods and nothing else: that costs 12 ns a call, and a `write` that somebody
has taken from the proxy earlier is refused with the others, since it is the same object. Who sets
another `write` on the proxy has it, until it is deleted again, as on asyncio's transports.

Nothing else stands between the transport and the protocol: a shim takes `connection_made`
and leaves at once, so that the protocol's other methods are called by the transport.
"""

import asyncio
import functools
from asyncio import constants
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from aiozc._api.transports import Drain, has_more_to_write
from aiozc._install.gates import (
    IN_PROGRESS,
    Gate,
    SelectorGate,
    refuse_eof,
    refuse_lines,
    refuse_write,
)

Factory = Callable[[], Any]
Create = Callable[..., Coroutine[Any, Any, Any]]


class UvloopTransport(asyncio.Transport):
    """A TCP or UNIX transport of uvloop's, and its gate."""

    __slots__ = (
        "__weakref__",
        "_ended",
        "_gate",
        "_number",
        "_real",
        "_write",
        "_writelines",
        "abort",
        "close",
        "get_extra_info",
        "get_write_buffer_size",
        "is_closing",
        "is_reading",
        "pause_reading",
        "resume_reading",
        "write",
        "writelines",
    )

    # What asyncio's sendfile looks at, and whoever asks whether the kernel can do it.
    _sendfile_compatible: ClassVar[Any] = constants._SendfileMode.TRY_NATIVE
    write: Any
    writelines: Any
    abort: Any
    close: Any
    get_extra_info: Any
    get_write_buffer_size: Any
    is_closing: Any
    is_reading: Any
    pause_reading: Any
    resume_reading: Any

    def __init__(self, real: Any) -> None:
        self._real = real
        self._number = -1
        self._gate: UvloopGate | None = None
        self._ended = False
        self.write = self._write = functools.partial(real.write)
        self.writelines = self._writelines = functools.partial(real.writelines)
        self.abort = real.abort
        self.close = real.close
        self.get_extra_info = real.get_extra_info
        self.get_write_buffer_size = real.get_write_buffer_size
        self.is_closing = real.is_closing
        self.is_reading = real.is_reading
        self.pause_reading = real.pause_reading
        self.resume_reading = real.resume_reading

    def __repr__(self) -> str:
        return f"<aiozc's proxy of {self._real!r}>"

    def __getattr__(self, name: str) -> Any:
        if name in ("write", "writelines"):  # somebody has deleted what they set
            return self._write if name == "write" else self._writelines
        return getattr(self._real, name)

    def __reduce__(self) -> Any:
        """Refuse to be copied, as the real one does."""
        return self._real.__reduce__()

    def write_eof(self) -> None:
        """See `asyncio.WriteTransport.write_eof`."""
        if self._gate is not None:
            refuse_eof()
        self._real.write_eof()
        self._ended = True

    def can_write_eof(self) -> bool:
        """See `asyncio.WriteTransport.can_write_eof`."""
        return True

    def get_protocol(self) -> Any:
        """See `asyncio.BaseTransport.get_protocol`."""
        return (self._gate or self._real).get_protocol()

    def set_protocol(self, protocol: Any) -> None:
        """See `asyncio.BaseTransport.set_protocol`."""
        (self._gate or self._real).set_protocol(protocol)

    def get_write_buffer_limits(self) -> Any:
        """See `asyncio.WriteTransport.get_write_buffer_limits`."""
        return (self._gate or self._real).get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See `asyncio.WriteTransport.set_write_buffer_limits`."""
        (self._gate or self._real).set_write_buffer_limits(high, low)


class UvloopGate:
    """The gate of a proxy.

    To hear when the write buffer is empty it stands before the protocol for that long, with
    limits of 0. What is asked and set meanwhile is what will be there afterwards.
    """

    def __init__(self, proxy: UvloopTransport) -> None:
        self._proxy = proxy
        self._real = proxy._real
        self._drain: Drain | None = None
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
            proxy._number = self._real.get_extra_info("socket").fileno()
        return proxy._number

    def is_watched(self) -> bool:
        """Return whether the loop waits for bytes from the peer."""
        reading: bool = self._real.is_reading()
        return reading

    def shut(self) -> None:
        """Refuse what is written from here on, and its end."""
        self._proxy._gate = self
        _redirect(self._proxy._write, refuse_write)
        _redirect(self._proxy._writelines, refuse_lines)

    def defer_reading(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Have these called in place of the transport's own."""
        proxy = self._proxy
        self._put = pause, resume, proxy.pause_reading, proxy.resume_reading
        proxy.pause_reading, proxy.resume_reading = pause, resume

    def open(self) -> None:
        """Let everything be as it was."""
        self._proxy._gate = None
        if self._put is not None:
            # What somebody has set meanwhile is theirs.
            pause, resume, own_pause, own_resume = self._put
            if self._proxy.pause_reading is pause:
                self._proxy.pause_reading = own_pause
            if self._proxy.resume_reading is resume:
                self._proxy.resume_reading = own_resume
        _redirect(self._proxy._write, self._real.write)
        _redirect(self._proxy._writelines, self._real.writelines)

    async def wait_empty(self) -> None:
        """Wait until the write buffer is empty; ConnectionError where the connection is lost."""
        if not await has_more_to_write(self._real):
            return
        drain = self._drain = Drain(self._real)
        try:
            await drain.wait()
        finally:
            # Before the protocol is told anything: what it sets then, it sets for good.
            self._drain = None
            drain.leave()

    def get_protocol(self) -> Any:
        """Return the user's protocol."""
        return self._drain.flow.protocol if self._drain else self._real.get_protocol()

    def set_protocol(self, protocol: Any) -> None:
        """Set the user's protocol."""
        if self._drain:
            self._drain.flow.protocol = protocol
            protocol = self._drain.flow
        self._real.set_protocol(protocol)

    def get_write_buffer_limits(self) -> Any:
        """Return the user's limits."""
        return self._drain.limits if self._drain else self._real.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None, low: int | None) -> None:
        """Set the user's limits."""
        self._real.set_write_buffer_limits(high, low)
        if self._drain:
            self._drain.limits = self._real.get_write_buffer_limits()
            self._real.set_write_buffer_limits(0)


def _redirect(method: Any, target: Callable[..., Any]) -> None:
    """Let a partial object call something else from here on."""
    method.__setstate__((target, (), {}, None))


def _proxy_of(transport: Any) -> UvloopTransport:
    """Return a transport's proxy; a proxy is its own.

    uvloop's `create_connection` passes a UNIX socket on to `create_unix_connection`.
    """
    return transport if isinstance(transport, UvloopTransport) else UvloopTransport(transport)


class _Shim:
    """The protocol that a transport of uvloop's is made with: the real one comes with the proxy."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.proxy: UvloopTransport | None = None

    def connection_made(self, transport: Any) -> None:
        """Leave."""
        self.proxy = _proxy_of(transport)
        transport.set_protocol(self.protocol)
        self.protocol.connection_made(self.proxy)


def _shimmed(factory: Factory) -> Factory:
    def make() -> Any:
        protocol = factory()
        # None is refused by uvloop, in its words.
        return None if protocol is None else _Shim(protocol)

    return make


def connecting(create: Create) -> Create:
    """Return a coroutine function that makes a connection by `create`, and a proxy for it."""

    @functools.wraps(create)
    async def connect(
        protocol_factory: Factory, *arguments: Any, ssl: Any = None, **options: Any
    ) -> Any:
        if ssl:
            return await create(protocol_factory, *arguments, ssl=ssl, **options)
        transport, shim = await create(_shimmed(protocol_factory), *arguments, ssl=ssl, **options)
        return shim.proxy or _proxy_of(transport), shim.protocol

    return connect


def serving(create: Create) -> Create:
    """Return a coroutine function that makes a server by `create`, with proxies."""

    @functools.wraps(create)
    async def serve(
        protocol_factory: Factory, *arguments: Any, ssl: Any = None, **options: Any
    ) -> Any:
        factory = protocol_factory if ssl else _shimmed(protocol_factory)
        return await create(factory, *arguments, ssl=ssl, **options)

    return serve


def starting_tls(start: Create) -> Create:
    """Return a coroutine function that starts TLS by `start`, on the transport itself."""

    @functools.wraps(start)
    async def start_tls(transport: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(transport, UvloopTransport):
            if transport._gate is not None:
                raise RuntimeError(f"unable to start TLS; {IN_PROGRESS}")
            transport = transport._real
        return await start(transport, *arguments, **options)

    return start_tls


def gate_of(transport: Any) -> Gate | None:
    """Return a transport's gate; None where it has none."""
    if isinstance(transport, UvloopTransport):
        return UvloopGate(transport)
    return SelectorGate(transport) if hasattr(transport, "_empty_waiter") else None
