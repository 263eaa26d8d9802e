"""Senders that are awaited: each is a function that prepares a lane, and gives what sends one file.

Those that read the file themselves do so in the loop's thread, as most programs do.
"""

import asyncio
import errno
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from functools import cache
from typing import IO, Final, cast

import aiozc
from bench.senders.lanes import COUNTS, Lane, SendFile


async def one_call(lane: Lane, *, ours: bool) -> SendFile:
    """`aiozc.loop_sendfile`, or `loop.sock_sendfile`."""
    call = aiozc.loop_sendfile if ours else asyncio.get_running_loop().sock_sendfile
    sock = lane.sock
    return lambda file, size: call(sock, file, 0, size)


async def system_call(lane: Lane) -> SendFile:
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


async def sock_sendall(lane: Lane) -> SendFile:
    """`file.read`, then `loop.sock_sendall`, a buffer's worth each time."""
    loop, sock = asyncio.get_running_loop(), lane.sock

    async def send(file: IO[bytes], size: int) -> int:
        for piece in _pieces(lane, file, size):
            await loop.sock_sendall(sock, piece)
        return size

    return send


async def to_thread(lane: Lane) -> SendFile:
    """`asyncio.to_thread(os.sendfile, ...)` on a socket that blocks."""
    lane.sock.setblocking(True)
    out = lane.sock.fileno()

    async def send(file: IO[bytes], size: int) -> int:
        sent = 0
        while sent < size:
            sent += await asyncio.to_thread(os.sendfile, out, file.fileno(), sent, size - sent)
        return sent

    return send


async def streams(lane: Lane) -> SendFile:
    """`file.read`, `writer.write` and `drain`, a buffer's worth each time.

    The transport below is the loop's: asyncio's, or uvloop's.
    """
    _, writer = await asyncio.open_connection(sock=lane.sock.dup())
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
        COUNTS["calls"] += 1
        size -= len(piece)
        yield piece


# Those that know when the file may be overwritten, and one that needs not. Sends, completions, and
# completions that say that the kernel has made a copy after all are what the kernel's
# tools/testing/selftests/net/msg_zerocopy counts.

_SO_ZEROCOPY: Final = 60  # include/uapi/asm-generic/socket.h
_MSG_ZEROCOPY: Final = 0x4000000  # include/linux/socket.h
_EXTENDED_ERR: Final = struct.Struct("=IBBBBII")  # include/uapi/linux/errqueue.h
_CODE_COPIED: Final = 1


async def memory(lane: Lane) -> SendFile:
    """`sock_sendall` from memory, copied: what there is in place of a safe sendfile."""
    loop = asyncio.get_running_loop()
    read = cache(lambda file: memoryview(os.pread(file.fileno(), os.stat(file.name).st_size, 0)))

    async def send(file: IO[bytes], size: int) -> int:
        await loop.sock_sendall(lane.sock, read(file)[:size])
        return size

    return send


async def zero_copies(lane: Lane, *, piece: int = 0, each: bool = False) -> SendFile:
    """`sendfile_zc` of whole files or of pieces, and a wait after ``each``, or one at the end."""
    sends: list[aiozc.ZeroCopySend] = []

    async def send(file: IO[bytes], size: int) -> int:
        for at in range(0, size, piece or size):
            count = min(piece or size, size - at)
            sends.append(await aiozc.sendfile_zc(lane.sock, file, at, count, fallback=False))
            if each:
                await sends.pop().released()
        return size

    async def finish() -> dict[str, int]:
        while sends:
            await sends.pop().released()
        told = aiozc.get_reactor().statistics()
        return {"sends": told.zero_copies, "completions": told.notifications, "copies": told.copies}

    lane.finish = finish
    return send


async def error_queue(lane: Lane) -> SendFile:
    """MSG_ZEROCOPY of the mapped file, its completions read from the socket's error queue.

    See Documentation/networking/msg_zerocopy.rst.
    """
    sock, counts = lane.sock, {"sends": 0, "completions": 0, "copies": 0}
    sock.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    mapped = cache(lambda file: memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))

    def read_errors() -> bool:
        """Take in the completions that are there, if any: ranges of the sends' numbers."""
        before = counts["completions"]
        while True:
            try:
                _, told, _, _ = sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
            except BlockingIOError:
                return counts["completions"] > before
            for _, _, data in told:
                _, _, _, code, _, first, last = _EXTENDED_ERR.unpack_from(data)
                counts["completions"] += last - first + 1
                counts["copies"] += (last - first + 1) * (code == _CODE_COPIED)

    async def send(file: IO[bytes], size: int) -> int:
        offset = 0
        while offset < size:
            try:
                offset += sock.send(mapped(file)[offset:size], _MSG_ZEROCOPY)
                counts["sends"] += 1
            except OSError as full:
                if full.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    raise
                if not read_errors():
                    await _ready(sock)
        return size

    async def finish() -> dict[str, int]:
        while counts["completions"] < counts["sends"]:
            if not read_errors():
                await asyncio.sleep(0.0001)
        return dict(counts)

    lane.finish = finish
    return send


async def _ready(sock: socket.socket) -> None:
    """Wait for room, or for a completion: epoll tells both to a writer."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(sock, ready.set)
    await ready.wait()
    loop.remove_writer(sock)
