"""Senders that block: each prepares a lane, and gives what sends one file without ever waiting.

io_uring is driven as a C program drives it: one io_uring_enter(2) to submit, and another to wait
where not all is done by then. The numbers of READ and SEND are those of
include/uapi/linux/io_uring.h, as `aiozc._kernel.abi` has the others.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import socket
from collections.abc import Callable
from typing import IO, Final

from aiozc._kernel import abi
from aiozc._kernel.ring import Ring, Sqe, prep_splice
from bench.senders.lanes import COUNTS, Lane, SendFile, read, wrote

_READ: Final = 22
_SEND: Final = 26
_ALL: Final = int(socket.MSG_WAITALL | socket.MSG_NOSIGNAL)
_GETEVENTS: Final = 1  # IORING_ENTER_GETEVENTS
_PIPE: Final = 64 * 1024

Take = Callable[[int, int, int], tuple[int, int]]
"""``take(descriptor, offset, length)`` takes bytes from a file; gives how many, and how many of
these the socket has already."""
Give = Callable[[int, int], int]
"""``give(start, length)`` gives the socket bytes of those taken, from one on; gives how many."""


async def read_write(lane: Lane) -> SendFile:
    """Copy each piece into memory and out of it: preadv(2), send(2)."""
    memory, sock = memoryview(bytearray(lane.buffer)), lane.sock
    return _in_pieces(
        lane,
        lambda file, offset, asked: (os.preadv(file, (memory[:asked],), offset), 0),
        lambda start, length: sock.send(memory[start : start + length]),
    )


async def mmap_write(lane: Lane) -> SendFile:
    """Map the file, and let send(2) copy out of its cached pages."""

    async def send(file: IO[bytes], size: int) -> int:
        with (
            mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as memory,
        ):
            start = 0
            while start < size:
                with memory[start : start + lane.buffer - start % lane.buffer] as piece:
                    start += lane.sock.send(piece)
        return size

    return send


async def send_file(lane: Lane) -> SendFile:
    """Have the kernel move it by sendfile(2), a buffer's worth with each call."""
    out = lane.sock.fileno()

    def take(file: int, offset: int, asked: int) -> tuple[int, int]:
        moved = os.sendfile(out, file, offset, asked)
        return moved, moved

    return _in_pieces(lane, take, lambda *_: 0)


async def splice_twice(lane: Lane) -> SendFile:
    """Have the kernel move it by splice(2), from the file to a pipe and from that to the socket."""
    (read_end, write_end), out = _pipe(lane), lane.sock.fileno()
    return _in_pieces(
        lane,
        lambda file, offset, asked: (os.splice(file, write_end, asked, offset_src=offset), 0),
        lambda _, length: os.splice(read_end, out, length),
    )


async def by_ring(lane: Lane, *, splices: bool, linked: bool) -> SendFile:
    """Move each piece by two SQEs, each submitted and waited for by itself, or linked together."""
    queue, (fill, drain) = _Queue(lane), _splicing(lane) if splices else _copying(lane)

    def take(file: int, offset: int, asked: int) -> tuple[int, int]:
        filling = fill(file, offset, asked, abi.SqeFlag.IO_LINK if linked else 0)
        took, *gave = queue.run(filling, *([drain(0, asked)] if linked else []))
        # A short step cancels what is linked to it.
        return read(asked, took), wrote(asked, gave[0]) if gave and took == asked else 0

    return _in_pieces(
        lane, take, lambda start, length: wrote(length, queue.run(drain(start, length))[0])
    )


# What they share.


def _in_pieces(lane: Lane, take: Take, give: Give) -> SendFile:
    """Send files a buffer's worth at a time."""

    async def send(file: IO[bytes], size: int) -> int:
        descriptor, offset = file.fileno(), 0
        while offset < size:
            held, given = take(descriptor, offset, min(lane.buffer, size - offset))
            if not held:
                raise EOFError("the file has become shorter")
            while given < held:
                given += give(given, held - given)
            offset += held
        return size

    return send


Prep = tuple[Callable[[int, int, int, int], Sqe], Callable[[int, int], Sqe]]
"""What takes, by descriptor, offset, length and flags; and what gives, by start and length."""


def _copying(lane: Lane) -> Prep:
    """Prepare READ and SEND."""
    memory, out = (ctypes.c_char * lane.buffer)(), lane.sock.fileno()
    at, rest = ctypes.addressof(memory), (0,) * 6
    lane.stack.callback(lambda: memory)  # it stays as long as the lane
    return (
        lambda file, offset, length, flags: (_READ, flags, 0, file, offset, at, length, 0, *rest),
        lambda start, length: (_SEND, 0, 0, out, 0, at + start, length, _ALL, *rest),
    )


def _splicing(lane: Lane) -> Prep:
    """Prepare a SPLICE into a pipe, and one out of it."""
    (read_end, write_end), out, here = _pipe(lane), lane.sock.fileno(), abi.NO_OFFSET
    return (
        lambda file, at, length, flags: prep_splice(file, at, write_end, here, length, 0, 0, flags),
        lambda _, length: prep_splice(read_end, here, out, here, length, 0, 0, 0),
    )


def _pipe(lane: Lane) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        lane.stack.callback(os.close, end)
    if lane.buffer > _PIPE:
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, lane.buffer)
    return ends


class _Queue:
    """A ring that waits for all that it has submitted."""

    def __init__(self, lane: Lane) -> None:
        self._ring = Ring(entries=8)
        lane.stack.callback(self._ring.close)
        self._call = ctypes.CDLL(None, use_errno=True).syscall

    def run(self, *sqes: Sqe) -> list[int]:
        """Submit SQEs by one call; give their results in their order, of those not done 0."""
        # The user data of each is its place.
        chain = [(*sqe[:8], place, *sqe[9:]) for place, sqe in enumerate(sqes)]
        results: dict[int, int] = {}
        self._ring.submit(chain)
        COUNTS["calls"] += 1
        while True:
            results.update((done.user_data, done.result) for done in self._ring.drain())
            if len(results) == len(chain):
                break
            COUNTS["calls"] += 1
            number, more = ctypes.c_long(abi.Call.IO_URING_ENTER), len(chain) - len(results)
            if self._call(number, self._ring.fd, 0, more, _GETEVENTS, None, 0) < 0:
                raise OSError(ctypes.get_errno(), "io_uring_enter")
        for result in results.values():
            if result < 0 and result != -errno.ECANCELED:
                raise OSError(-result, os.strerror(-result))
        return [max(results[place], 0) for place in range(len(chain))]
