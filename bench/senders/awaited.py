"""Senders that are awaited: each is a function that prepares a lane, and gives what sends one file.

Those that read the file themselves do so in the loop's thread, as most programs do.
"""

import asyncio
import os
from collections.abc import Iterator
from typing import IO, cast

import aiozc
from bench.senders.lanes import AwaitFile, CountingSocket, Lane


async def sock_sendfile(lane: Lane) -> AwaitFile:
    """`loop.sock_sendfile`."""
    call, sock = asyncio.get_running_loop().sock_sendfile, lane.sock
    return lambda file, size: call(sock, file, 0, size)


async def loop_sendfile(lane: Lane) -> AwaitFile:
    """`aiozc.loop_sendfile`."""
    call, sock = aiozc.loop_sendfile, lane.sock
    return lambda file, size: call(sock, file, 0, size)


async def system_call(lane: Lane) -> AwaitFile:
    """`os.sendfile`, nothing checked, no position kept, the disk waited for."""
    out = lane.sock.fileno()

    async def send(file: IO[bytes], size: int) -> int:
        sent = 0
        while sent < size:
            try:
                sent += os.sendfile(out, file.fileno(), sent, size - sent)
            except BlockingIOError:
                await asyncio.sleep(0)
        return sent

    return send


async def sock_sendall(lane: Lane) -> AwaitFile:
    """`file.read`, then `loop.sock_sendall`, a buffer's worth each time."""
    loop, sock = asyncio.get_running_loop(), CountingSocket(lane)

    async def send(file: IO[bytes], size: int) -> int:
        for piece in _pieces(lane, file, size):
            await loop.sock_sendall(sock, piece)
        return size

    return send


async def to_thread(lane: Lane) -> AwaitFile:
    """`asyncio.to_thread(os.sendfile, ...)` on a socket that blocks."""
    lane.sock.setblocking(True)
    out = lane.sock.fileno()

    async def send(file: IO[bytes], size: int) -> int:
        sent = 0
        while sent < size:
            sent += await asyncio.to_thread(os.sendfile, out, file.fileno(), sent, size - sent)
        return sent

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

    async def send(file: IO[bytes], size: int) -> int:
        for piece in _pieces(lane, file, size):
            writer.write(piece)
            await writer.drain()
        # `drain` returns while up to 64 KiB are still in the transport.
        transport.set_write_buffer_limits(0)
        await writer.drain()
        transport.set_write_buffer_limits()
        return size

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
