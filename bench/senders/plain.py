"""Senders that block: each prepares a lane, and gives what sends one file without ever waiting.

io_uring is driven as a C program drives it: one io_uring_enter(2) to submit, and another to wait
where not all is done by then. The numbers of READ and SEND are those of
include/uapi/linux/io_uring.h, as `aiozc._kernel.abi` has the others.
"""

import ctypes
import fcntl
import mmap
import os
import socket
from collections.abc import Callable
from typing import IO, Final

from aiozc._kernel import abi
from aiozc._kernel.ring import Ring, Sqe, prep_splice
from bench.senders.lanes import COUNTS, Lane, SendFile, read, wrote

_OP_READ: Final = 22
_OP_SEND: Final = 26
_ALL: Final = int(socket.MSG_WAITALL | socket.MSG_NOSIGNAL)
_GETEVENTS: Final = 1  # IORING_ENTER_GETEVENTS
_PIPE: Final = 64 * 1024

Take = Callable[[int, int, int], int]
"""``take(descriptor, offset, length)`` takes bytes from a file; gives how many, or an error."""
Give = Callable[[int, int], int]
"""``give(start, length)`` gives the socket bytes of those taken, from one on; gives how many."""
Both = Callable[[int, int, int], tuple[int, int]]
"""``both(descriptor, offset, length)`` takes and gives at once; gives how many of each."""


async def read_write(lane: Lane) -> SendFile:
    """Copy each piece into memory and out of it: preadv(2), send(2)."""
    memory, sock = memoryview(bytearray(lane.buffer)), lane.sock
    return _in_pieces(
        lane,
        lambda file, offset, asked: os.preadv(file, (memory[:asked],), offset),
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

    async def send(file: IO[bytes], size: int) -> int:
        offset = 0
        while offset < size:
            asked = min(lane.buffer, size - offset)
            offset += _some(os.sendfile(out, file.fileno(), offset, asked))
        return size

    return send


async def splice_twice(lane: Lane) -> SendFile:
    """Have the kernel move it by splice(2), from the file to a pipe and from that to the socket."""
    (read_end, write_end), out = _pipe(lane), lane.sock.fileno()
    return _in_pieces(
        lane,
        lambda file, offset, asked: os.splice(file, write_end, asked, offset_src=offset),
        lambda _, length: os.splice(read_end, out, length),
    )


# What they share.


Prep = tuple[Callable[[int, int, int, int], Sqe], Callable[[int, int], Sqe]]
"""What takes, by descriptor, offset, length and flags; and what gives, by start and length."""


def _copying(lane: Lane) -> Prep:
    """Prepare READ and SEND."""
    memory, out = (ctypes.c_char * lane.buffer)(), lane.sock.fileno()
    start_of = ctypes.addressof(memory)
    lane.stack.callback(lambda: memory)  # it stays as long as the lane

    def fill(file: int, offset: int, length: int, flags: int) -> Sqe:
        return (_OP_READ, flags, 0, file, offset, start_of, length, 0, 0, 0, 0, 0, 0, 0)

    def send(start: int, length: int) -> Sqe:
        return (_OP_SEND, 0, 0, out, 0, start_of + start, length, _ALL, 0, 0, 0, 0, 0, 0)

    return fill, send


def _splicing(lane: Lane) -> Prep:
    """Prepare a SPLICE into a pipe, and one out of it."""
    (read_end, write_end), out, here = _pipe(lane), lane.sock.fileno(), abi.NO_OFFSET

    def fill(file: int, offset: int, length: int, flags: int) -> Sqe:
        return prep_splice(file, offset, write_end, here, length, 0, 0, flags)

    def drain(_: int, length: int) -> Sqe:
        return prep_splice(read_end, here, out, here, length, 0, 0, 0)

    return fill, drain


async def by_ring(lane: Lane, *, splices: bool, linked: bool) -> SendFile:
    """Move each piece by two SQEs, each submitted and waited for by itself, or linked together."""
    queue, (take, give) = _Queue(lane), _splicing(lane) if splices else _copying(lane)

    def both(file: int, offset: int, asked: int) -> tuple[int, int]:
        took, gave = queue.run(take(file, offset, asked, abi.SqeFlag.IO_LINK), give(0, asked))
        # A short step cancels what is linked to it.
        return read(asked, took), wrote(asked, gave) if took == asked else 0

    def alone(file: int, offset: int, asked: int) -> int:
        return read(asked, queue.run(take(file, offset, asked, 0))[0])

    def more(start: int, length: int) -> int:
        return wrote(length, queue.run(give(start, length))[0])

    return _in_pieces(lane, both if linked else alone, more)


def _in_pieces(lane: Lane, take: Take | Both, give: Give) -> SendFile:
    """Send files a buffer's worth at a time."""

    async def send(file: IO[bytes], size: int) -> int:
        descriptor, offset = file.fileno(), 0
        while offset < size:
            found = take(descriptor, offset, min(lane.buffer, size - offset))
            held, given = found if isinstance(found, tuple) else (found, 0)
            _some(held)
            _done(given)
            while given < held:
                given += _done(give(given, held - given))
            offset += held
        return size

    return send


def _some(count: int) -> int:
    if count == 0:
        raise EOFError("the file has become shorter")
    return _done(count)


def _done(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


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
        """Submit SQEs by one call; give their results in their order."""
        # The user data of each is its place.
        chain = [(*sqe[:8], place, *sqe[9:]) for place, sqe in enumerate(sqes)]
        results: dict[int, int] = {}
        self._ring.submit(chain)
        COUNTS["calls"] += 1
        while True:
            results.update((done.user_data, done.result) for done in self._ring.drain())
            if len(results) == len(chain):
                return [results[place] for place in range(len(chain))]
            COUNTS["calls"] += 1
            number, more = ctypes.c_long(abi.Call.IO_URING_ENTER), len(chain) - len(results)
            if self._call(number, self._ring.fd, 0, more, _GETEVENTS, None, 0) < 0:
                raise OSError(ctypes.get_errno(), "io_uring_enter")
