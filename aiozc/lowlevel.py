"""What the transfers need of asyncio's transports, for programs that hold one themselves.

A socket that a transport uses is refused by every transfer: the transport reads what is to be
received, and writes into the midst of what is sent. `exclusive` has it stand aside.
"""

import asyncio
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any

from aiozc._api.transports import UVLOOP_PLAIN, TransportSocket
from aiozc._errors import connection_lost
from aiozc._install.gates import Gate, lost_beneath, shut
from aiozc._install.proxies import gate_of
from aiozc._resources.records import identity, is_free

__all__ = ["exclusive"]

_LOOK = 0.005
"""Seconds between two looks whether a transfer that was left behind has ended."""


def exclusive(transport: Any) -> AbstractAsyncContextManager[Any]:
    """Hold the socket of a transport for transfers, in an `async with`:

        async with aiozc.lowlevel.exclusive(writer.transport) as sock:
            await aiozc.loop_sendfile(sock, file)

    `transport` is one of a plain TCP or UNIX stream connection (a StreamWriter's is
    `writer.transport`). What it gives stands for the socket in each of the five transfers, one
    after the other or at once, and has a `fileno()`; it is of no use behind the block.

    - What was written to the transport before has left when the block begins.
    - `write`, `writelines` and `write_eof` are a RuntimeError in the block.
    - The transport reads nothing in the block, whatever is resumed meanwhile. What it has read
      before is its protocol's (of a StreamReader: in its buffer), and comes before what
      `loop_recvfile` or `relay` receive; what they leave in the socket comes to the protocol
      afterwards.
    - The transport may be closed and aborted: a transfer ends then.
    - Behind the block everything is as it was. What `relay` has done to the socket stays done:
      one whose stream it has ended takes no more bytes.
    - A transfer that is still under way at the end of the block is ended, with an OSError (EBADF).

    On asyncio's selector loop that is so for each such transport. On uvloop, whose transports
    cannot refuse what is written to them, it is for the connections that are made after
    `aiozc.install(loop)` (or on a loop of `aiozc.run` or `aiozc.new_event_loop`).

    Raises:
        TypeError: what is no such transport; one that encrypts.
        RuntimeError: it is held already, or a file is sent through it; a transport of uvloop
            that was made without `install`.
        ConnectionError: the connection is lost, or was closed; also in place of the OSError by
            which a transfer in the block tells so. The protocol is told too.
    """
    return _Hold(transport)


class _Hold:
    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._gate = _gate_for(transport)
        self._sock = TransportSocket(transport.is_closing, self._gate.number)
        self._shut: AbstractContextManager[None] | None = None
        self._identity = (0, 0)

    async def __aenter__(self) -> TransportSocket:
        transport, gate = self._transport, self._gate
        if self._shut is not None:
            raise RuntimeError("this hold was begun already")
        gate.check_open()
        if transport.is_closing():
            raise connection_lost(None)
        watched = gate.is_watched()
        self._shut = shut(transport, gate, deferring=True)
        self._shut.__enter__()
        try:
            if not watched:
                # Reading may begin, and be paused, in the loop's next turn: see `shut`.
                await asyncio.sleep(0)
            await gate.wait_empty()
            self._identity = identity(self._sock.fileno())
        except BaseException:
            self._shut.__exit__(None, None, None)
            raise
        return self._sock

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._shut is not None
        lost = self._lost_by(error)
        try:
            if not isinstance(error, GeneratorExit):  # then nothing can be waited for
                await self._end_transfers()
        finally:
            self._sock.end()
            self._shut.__exit__(None, None, None)
        if lost is not None:
            raise lost from lost.__cause__

    async def _end_transfers(self) -> None:
        """Return when no transfer uses the socket any more."""
        cancelled: asyncio.CancelledError | None = None
        while not is_free(self._identity):
            self._sock.end()
            try:
                await asyncio.sleep(_LOOK)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _lost_by(self, error: BaseException | None) -> ConnectionError | None:
        """Return what to raise in place of an error in the block."""
        if not isinstance(error, OSError):
            return None
        lost = lost_beneath(self._transport, self._sock, error)
        return None if lost is error else lost


def _gate_for(transport: Any) -> Gate:
    """Return the transport's gate; raise TypeError or RuntimeError where there is none."""
    kind = type(transport)
    if kind.__module__ == "uvloop.loop" and kind.__name__ in UVLOOP_PLAIN:
        raise RuntimeError(
            f"{transport!r} cannot refuse what others write to it: call aiozc.install(loop) before"
            " its connection is made"
        )
    gate = gate_of(transport)
    if gate is None:
        hint = ": give its `transport`" if isinstance(transport, asyncio.StreamWriter) else ""
        raise TypeError(f"{transport!r} is no transport of a plain stream connection{hint}")
    if type(transport.get_protocol()).__name__ == "SSLProtocol":
        raise TypeError(f"{transport!r} carries what is encrypted: it is no plain connection")
    return gate
