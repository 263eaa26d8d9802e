"""Transports to send by, and protocols that note what they hear."""

import asyncio
import contextlib
import gc
import io
import select
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from tests.kit.connections import socket_pair
from tests.kit.content import MIB
from tests.kit.far_ends import FarEnd, Peer
from tests.kit.waiting import are_threads_at_rest, until, wait_until

T = TypeVar("T")


class Recorder(asyncio.Protocol):
    """A protocol that notes what it hears."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.transport: Any = None
        self.data = bytearray()
        self.pauses: list[str] = []
        self.ends = 0
        self.keep_open = keep_open
        self.losses: list[BaseException | None] = []
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Note the transport."""
        assert self.transport is None
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Note the bytes."""
        self.data += data

    def eof_received(self) -> bool:
        """Note the end."""
        self.ends += 1
        return self.keep_open

    def pause_writing(self) -> None:
        """Note it; it never comes twice in a row."""
        assert not self.paused
        self.pauses.append("pause")

    def resume_writing(self) -> None:
        """Note it; it comes after a pause alone."""
        assert self.paused
        self.pauses.append("resume")

    @property
    def paused(self) -> bool:
        """Whether a pause was the last that was heard."""
        return bool(self.pauses) and self.pauses[-1] == "pause"

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note the cause."""
        self.losses.append(exc)
        self.lost.set_result(exc)


class Buffered(asyncio.BufferedProtocol):
    """The same with a buffer of its own; what it shares it borrows."""

    def __init__(self) -> None:
        self._recorder = Recorder()
        self._buffer = bytearray(1000)

    def __getattr__(self, name: str) -> Any:
        if name == "data_received":
            raise AttributeError(name)
        return getattr(self._recorder, name)

    def connection_made(self, transport: Any) -> None:
        """Pass it on."""
        self._recorder.connection_made(transport)

    def get_buffer(self, sizehint: int) -> Any:  # noqa: ARG002
        """Return the buffer. (asyncio's TLS reads into a copy of what has slices that are one.)"""
        return memoryview(self._buffer)

    def buffer_updated(self, nbytes: int) -> None:
        """Note the bytes."""
        self._recorder.data += self._buffer[:nbytes]

    def eof_received(self) -> bool:
        """Pass it on."""
        return self._recorder.eof_received()

    def pause_writing(self) -> None:
        """Pass it on."""
        self._recorder.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._recorder.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Pass it on."""
        self._recorder.connection_lost(exc)


def begin(sending: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Do what an eager task does, which Python has from 3.12 on: begin at once."""
    waited = sending.send(None)

    async def rest() -> T:
        return await _Rest(sending, waited)

    return asyncio.ensure_future(rest())


class _Rest(Awaitable[T]):
    """What is left of a coroutine that was begun."""

    def __init__(self, begun: Coroutine[Any, Any, T], waited: Any) -> None:
        self._begun = begun
        self._waited = waited

    def __await__(self) -> Generator[Any, Any, T]:
        waited = self._waited
        try:
            while True:
                # A future says so of itself when it is awaited, and a task takes it back.
                if waited is not None:
                    waited._asyncio_future_blocking = True
                yield waited
                waited = self._begun.send(None)
        except StopIteration as ended:
            sent: T = ended.value
            return sent


def close_beneath(loop: Any, connect: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
    """Close a loop while a file waits for its peer, and throw the transfer away after that."""

    async def start() -> Any:
        transport = await connect(loop)
        task = loop.create_task(loop.sendfile(transport, io.BytesIO(bytes(24 * MIB))))
        room = select.poll()
        room.register(transport.get_extra_info("socket"), select.POLLOUT)
        await until(lambda: not room.poll(0) and are_threads_at_rest())
        assert not task.done()
        return task

    task = loop.run_until_complete(start())
    loop.close()
    task._log_destroy_pending = False
    task.get_coro().close()
    del task
    # What it was about to read on a machine that is busy holds it.
    wait_until(are_threads_at_rest)
    gc.collect()  # the transports that nobody has closed


class Line:
    """A transport, its protocol and the far end; and how the transport was when it was made."""

    def __init__(self, transport: Any, protocol: Any, peer: Peer) -> None:
        self.transport = transport
        self.protocol = protocol
        self.peer = peer
        self._before = self._settings()

    def _settings(self) -> tuple[object, ...]:
        transport = self.transport
        return (
            transport.get_protocol(),
            transport.get_write_buffer_limits(),
            transport.is_reading(),
            sorted(set(getattr(transport, "__dict__", {})) - {"_extra"}),
        )

    def assert_as_before(self) -> None:
        """No setting of the transport is another than at first."""
        assert self._settings() == self._before

    async def finish(self) -> bytes:
        """Close, and return all that arrived at the far end."""
        self.transport.close()
        arrived = await self.peer.wait_end()
        await self.protocol.lost
        assert self.protocol.losses == [None]
        return arrived


class Open:
    """Make lines; see `open_line`."""

    def __init__(self, far_end: FarEnd, family: int, stack: contextlib.ExitStack) -> None:
        self._far_end = far_end
        self._family = family
        self._stack = stack
        self._lines: list[Line] = []

    async def __call__(
        self,
        protocol: Any = None,
        *,
        limit: int | None = None,
        small: bool = False,
        bare: bool = False,
    ) -> Line:
        """Make a line whose far end reads `limit` bytes; `small` buffers; `bare`: no proxy."""
        size = 30_000 if small else None
        near, far = socket_pair(self._family, sndbuf=size, rcvbuf=size)
        self._stack.callback(near.close)
        peer = self._far_end.peer(far, limit=limit)
        made: Any = protocol if protocol is not None else Recorder()
        loop: Any = asyncio.get_running_loop()
        connect = type(loop).create_connection.__get__(loop) if bare else loop.create_connection
        transport, returned = await connect(lambda: made, sock=near)
        assert returned is made
        if not bare:
            assert transport is made.transport
        line = Line(transport, made, peer)
        self._lines.append(line)
        return line

    async def close(self) -> None:
        """End them all."""
        for line in self._lines:
            if not line.protocol.lost.done():
                line.transport.abort()
                await line.protocol.lost
