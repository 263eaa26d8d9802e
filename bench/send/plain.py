"""Senders that block: each is a function that prepares a lane, and gives what sends one file.

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
from bench.send.lanes import Counts, Lane

SendFile = Callable[[IO[bytes], int], None]
"""``send(file, size)`` sends so many bytes from the file's start."""

_OP_READ: Final = 22
_OP_SEND: Final = 26
_ALL: Final = int(socket.MSG_WAITALL | socket.MSG_NOSIGNAL)
_GETEVENTS: Final = 1  # IORING_ENTER_GETEVENTS
_PIPE: Final = 64 * 1024


def read_write(lane: Lane) -> SendFile:
    """Copy each piece into memory and out of it: pread(2), send(2)."""
    memory = memoryview(bytearray(lane.buffer))
    counts = lane.counts

    def move(descriptor: int, offset: int, asked: int) -> int:
        got = os.preadv(descriptor, (memory[:asked],), offset)
        counts.calls += 1
        counts.read(asked, _some(got))
        _send_all(lane, memory[:got])
        return got

    return _by_pieces(lane, move)


def mmap_write(lane: Lane) -> SendFile:
    """Map the file, and let send(2) copy out of its cached pages."""

    def send(file: IO[bytes], size: int) -> None:
        with (
            mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as memory,
        ):
            for offset in range(0, size, lane.buffer):
                with memory[offset : min(offset + lane.buffer, size)] as piece:
                    _send_all(lane, piece)

    return send


def send_file(lane: Lane) -> SendFile:
    """Have the kernel move it by sendfile(2), a buffer's worth with each call."""
    out, counts = lane.sock.fileno(), lane.counts

    def move(descriptor: int, offset: int, asked: int) -> int:
        got = os.sendfile(out, descriptor, offset, asked)
        counts.calls += 1
        counts.wrote(asked, _some(got))
        return got

    return _by_pieces(lane, move)


def splice_twice(lane: Lane) -> SendFile:
    """Have the kernel move it by splice(2), from the file to a pipe and from that to the socket."""
    read_end, write_end = _pipe(lane)
    out, counts = lane.sock.fileno(), lane.counts

    def move(descriptor: int, offset: int, asked: int) -> int:
        held = os.splice(descriptor, write_end, asked, offset_src=offset)
        counts.calls += 1
        counts.read(asked, _some(held))
        left = held
        while left:
            moved = os.splice(read_end, out, left)
            counts.calls += 1
            counts.wrote(left, moved)
            left -= moved
        return held

    return _by_pieces(lane, move)


def uring(lane: Lane) -> SendFile:
    """Copy each piece by a READ and then a SEND, each submitted and waited for by itself."""
    queue, memory = _Queue(lane), _Memory(lane.buffer)
    out, counts = lane.sock.fileno(), lane.counts

    def move(descriptor: int, offset: int, asked: int) -> int:
        got = queue.run(_prep_read(descriptor, offset, memory.address, asked))[0]
        counts.read(asked, _some(got))
        _send_by(queue, out, memory.address, got, counts)
        return got

    return _by_pieces(lane, move)


def uring_linked(lane: Lane) -> SendFile:
    """Copy each piece by a READ and a SEND that is linked to it, submitted together."""
    queue, memory = _Queue(lane), _Memory(lane.buffer)
    out, counts = lane.sock.fileno(), lane.counts

    def move(descriptor: int, offset: int, asked: int) -> int:
        read = _prep_read(descriptor, offset, memory.address, asked, abi.SqeFlag.IO_LINK)
        got, sent = queue.run(read, _prep_send(out, memory.address, asked))
        counts.read(asked, _some(got))
        if got == asked:
            counts.wrote(asked, _done(sent))
        else:  # a short READ cancels what is linked to it
            sent = 0
        _send_by(queue, out, memory.address + sent, got - sent, counts)
        return got

    return _by_pieces(lane, move)


def uring_splice(lane: Lane) -> SendFile:
    """Move each piece by a SPLICE into a pipe and then one out of it, each waited for."""
    queue, (read_end, write_end) = _Queue(lane), _pipe(lane)
    out, counts = lane.sock.fileno(), lane.counts

    def move(descriptor: int, offset: int, asked: int) -> int:
        held = queue.run(_prep_splice(descriptor, offset, write_end, asked))[0]
        counts.read(asked, _some(held))
        _splice_by(queue, read_end, out, held, counts)
        return held

    return _by_pieces(lane, move)


def uring_splice_linked(lane: Lane) -> SendFile:
    """Move each piece by a SPLICE into a pipe and one out of it, linked and submitted together."""
    queue, (read_end, write_end) = _Queue(lane), _pipe(lane)
    out, counts = lane.sock.fileno(), lane.counts

    def move(descriptor: int, offset: int, asked: int) -> int:
        fill = _prep_splice(descriptor, offset, write_end, asked, abi.SqeFlag.IO_LINK)
        held, moved = queue.run(fill, _prep_splice(read_end, abi.NO_OFFSET, out, asked))
        counts.read(asked, _some(held))
        if held == asked:
            counts.wrote(asked, _done(moved))
        else:  # a short SPLICE cancels what is linked to it
            moved = 0
        _splice_by(queue, read_end, out, held - moved, counts)
        return held

    return _by_pieces(lane, move)


# What they share.


def _by_pieces(lane: Lane, move: Callable[[int, int, int], int]) -> SendFile:
    """Send files a buffer's worth at a time, by what moves a piece and gives its length.

    ``move(descriptor, offset, asked)`` may move less than it is asked for, but not nothing.
    """

    def send(file: IO[bytes], size: int) -> None:
        descriptor, offset = file.fileno(), 0
        while offset < size:
            offset += move(descriptor, offset, min(lane.buffer, size - offset))

    return send


def _some(count: int) -> int:
    if count == 0:
        raise EOFError("the file has become shorter")
    return _done(count)


def _done(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _send_all(lane: Lane, memory: memoryview) -> None:
    while memory:
        sent = lane.sock.send(memory)
        lane.counts.calls += 1
        lane.counts.wrote(len(memory), sent)
        memory = memory[sent:]


def _pipe(lane: Lane) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        lane.stack.callback(os.close, end)
    if lane.buffer > _PIPE:
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, lane.buffer)
    return ends


class _Memory:
    """Memory that the kernel reads into and sends from."""

    def __init__(self, size: int) -> None:
        self._memory = (ctypes.c_char * size)()
        self.address = ctypes.addressof(self._memory)


class _Queue:
    """A ring that waits for all that it has submitted."""

    def __init__(self, lane: Lane) -> None:
        self._ring = Ring(entries=8)
        lane.stack.callback(self._ring.close)
        self._counts = lane.counts
        self._call = ctypes.CDLL(None, use_errno=True).syscall

    def run(self, *sqes: Sqe) -> list[int]:
        """Submit SQEs by one call; give their results in their order."""
        # The user data of each is its place.
        chain = [(*sqe[:8], place, *sqe[9:]) for place, sqe in enumerate(sqes)]
        results: dict[int, int] = {}
        self._ring.submit(chain)
        self._counts.calls += 1
        while True:
            results.update((done.user_data, done.result) for done in self._ring.drain())
            if len(results) == len(chain):
                return [results[place] for place in range(len(chain))]
            self._wait(len(chain) - len(results))

    def _wait(self, completions: int) -> None:
        self._counts.calls += 1
        number = ctypes.c_long(abi.Call.IO_URING_ENTER)
        if self._call(number, self._ring.fd, 0, completions, _GETEVENTS, None, 0) < 0:
            raise OSError(ctypes.get_errno(), "io_uring_enter")


def _send_by(queue: _Queue, out: int, address: int, length: int, counts: Counts) -> None:
    while length:
        sent = _done(queue.run(_prep_send(out, address, length))[0])
        counts.wrote(length, sent)
        address += sent
        length -= sent


def _splice_by(queue: _Queue, source: int, out: int, length: int, counts: Counts) -> None:
    while length:
        moved = _done(queue.run(_prep_splice(source, abi.NO_OFFSET, out, length))[0])
        counts.wrote(length, moved)
        length -= moved


def _prep_read(descriptor: int, offset: int, address: int, length: int, flags: int = 0) -> Sqe:
    return (_OP_READ, flags, 0, descriptor, offset, address, length, 0, 0, 0, 0, 0, 0, 0)


def _prep_send(descriptor: int, address: int, length: int) -> Sqe:
    return (_OP_SEND, 0, 0, descriptor, 0, address, length, _ALL, 0, 0, 0, 0, 0, 0)


def _prep_splice(source: int, offset: int, target: int, length: int, flags: int = 0) -> Sqe:
    return prep_splice(source, offset, target, abi.NO_OFFSET, length, 0, 0, flags)
