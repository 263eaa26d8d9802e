"""Senders that know when the file may be overwritten, and one that needs not.

Sends, completions, and completions that say that the kernel has made a copy after all are what the
kernel's tools/testing/selftests/net/msg_zerocopy counts.
"""

import asyncio
import errno
import mmap
import os
import socket
import struct
from functools import cache
from typing import IO, Final

import aiozc
from bench.senders.lanes import AwaitFile, Lane
from bench.units import KIB

_SO_ZEROCOPY: Final = 60  # include/uapi/asm-generic/socket.h
_MSG_ZEROCOPY: Final = 0x4000000  # include/linux/socket.h
_EXTENDED_ERR: Final = struct.Struct("=IBBBBII")  # include/uapi/linux/errqueue.h
_CODE_COPIED: Final = 1
_PIECE: Final = 64 * KIB


async def memory(lane: Lane) -> AwaitFile:
    """`sock_sendall` from memory, copied: what there is in place of a safe sendfile."""
    loop = asyncio.get_running_loop()
    read = cache(lambda file: memoryview(os.pread(file.fileno(), os.stat(file.name).st_size, 0)))

    async def send(file: IO[bytes], size: int) -> int:
        await loop.sock_sendall(lane.sock, read(file)[:size])
        return size

    return send


async def each_file(lane: Lane) -> AwaitFile:
    """`sendfile_zc`, and a wait after each file."""

    async def send(file: IO[bytes], size: int) -> int:
        await (await aiozc.sendfile_zc(lane.sock, file, 0, size, fallback=False)).released()
        return size

    return send


async def each_piece(lane: Lane) -> AwaitFile:
    """`sendfile_zc` of 64 KiB, and a wait after each."""

    async def send(file: IO[bytes], size: int) -> int:
        for at in range(0, size, _PIECE):
            piece = min(_PIECE, size - at)
            await (await aiozc.sendfile_zc(lane.sock, file, at, piece)).released()
        return size

    lane.finish = _told
    return send


async def pipelined(lane: Lane) -> AwaitFile:
    """`sendfile_zc`, and one wait at the end."""
    sends: list[aiozc.ZeroCopySend] = []

    async def send(file: IO[bytes], size: int) -> int:
        sends.append(await aiozc.sendfile_zc(lane.sock, file, 0, size))
        return size

    async def finish() -> dict[str, int]:
        while sends:
            await sends.pop().released()
        return await _told()

    lane.finish = finish
    return send


async def _told() -> dict[str, int]:
    told = aiozc.get_reactor().statistics()
    return {"sends": told.zero_copies, "completions": told.notifications, "copies": told.copies}


async def error_queue(lane: Lane) -> AwaitFile:
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
