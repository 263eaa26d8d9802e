"""Senders that are awaited: each is a function that prepares a lane, and gives what sends one file.

Those that read the file themselves do so in the loop's thread, as most programs do.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import IO, cast

import aiozc
from bench.send.lanes import CountingSocket, Lane

AwaitFile = Callable[[IO[bytes], int], Awaitable[None]]
"""``await send(file, size)`` returns when the socket has so many bytes from the file's start."""


async def sock_sendfile(lane: Lane) -> AwaitFile:
    """`loop.sock_sendfile`."""
    loop = asyncio.get_running_loop()

    async def send(file: IO[bytes], size: int) -> None:
        await loop.sock_sendfile(lane.sock, file, 0, size)

    return send


async def sock_sendall(lane: Lane) -> AwaitFile:
    """`file.read`, then `loop.sock_sendall`, a buffer's worth each time."""
    loop, sock = asyncio.get_running_loop(), CountingSocket(lane)

    async def send(file: IO[bytes], size: int) -> None:
        for piece in _pieces(lane, file, size):
            await loop.sock_sendall(sock, piece)

    return send


async def to_thread(lane: Lane) -> AwaitFile:
    """`asyncio.to_thread(os.sendfile, ...)` on a socket that blocks."""
    lane.sock.setblocking(True)
    out = lane.sock.fileno()

    async def send(file: IO[bytes], size: int) -> None:
        offset = 0
        while offset < size:
            offset += await asyncio.to_thread(
                os.sendfile, out, file.fileno(), offset, size - offset
            )

    return send


async def streams(lane: Lane) -> AwaitFile:
    """`file.read`, `writer.write` and `drain`, a buffer's worth each time.

    The transport below is the loop's: asyncio's, or uvloop's.
    """
    _, writer = await asyncio.open_connection(sock=CountingSocket(lane))
    transport = writer.transport
    lane.stack.callback(transport.abort)
    # The far end's answer is not for it.
    cast(asyncio.Transport, transport).pause_reading()

    async def send(file: IO[bytes], size: int) -> None:
        for piece in _pieces(lane, file, size):
            writer.write(piece)
            await writer.drain()
        # `drain` returns while up to 64 KiB are still in the transport.
        transport.set_write_buffer_limits(0)
        await writer.drain()
        transport.set_write_buffer_limits()

    return send


async def loop_sendfile(lane: Lane) -> AwaitFile:
    """`aiozc.loop_sendfile`."""

    async def send(file: IO[bytes], size: int) -> None:
        await aiozc.loop_sendfile(lane.sock, file, 0, size)

    return send


async def sendfile_zc(lane: Lane) -> AwaitFile:
    """`aiozc.sendfile_zc`, until the file may be overwritten."""

    async def send(file: IO[bytes], size: int) -> None:
        sent = await aiozc.sendfile_zc(lane.sock, file, 0, size, fallback=False)
        await sent.released()

    return send


def _pieces(lane: Lane, file: IO[bytes], size: int) -> Iterator[bytes]:
    file.seek(0)
    while size:
        piece = file.read(min(lane.buffer, size))
        if not piece:
            raise EOFError("the file has become shorter")
        lane.counts.calls += 1
        size -= len(piece)
        yield piece
