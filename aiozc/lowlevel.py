"""What the transfers need of asyncio's transports, for programs that hold one themselves.

A socket that a transport uses is refused by every transfer: the transport reads what is to be
received, and writes into the midst of what is sent. `exclusive` has it stand aside.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

from aiozc._api.gates import Gate, check_plain, gate_of, is_bare
from aiozc._api.transports import Hold, Reading

__all__ = ["exclusive"]


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
      before is its protocol's (of a StreamReader: in its buffer; `aiozc.streams` has the
      transfers that begin with that), and comes before what
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
    return Hold(transport, _gate_for(transport), Reading.DEFERRED)


def _gate_for(transport: Any) -> Gate:
    """Return the transport's gate; raise TypeError or RuntimeError where there is none."""
    if is_bare(transport):
        raise RuntimeError(
            f"{transport!r} cannot refuse what others write to it: call aiozc.install(loop) before"
            " its connection is made"
        )
    gate = gate_of(transport)
    if gate is None:
        hint = ": give its `transport`" if isinstance(transport, asyncio.StreamWriter) else ""
        raise TypeError(f"{transport!r} is no transport of a plain stream connection{hint}")
    check_plain(transport)
    return gate
