"""One io_uring ring: mapped, filled, submitted chain by chain, drained, closed.

It knows no event loop and owns no buffer: what an SQE names is the caller's, until the
CQE that ends it has been drained.

Facts that the code below relies on (K5 and so on: docs/kernel.md):

- A chain must be submitted by one `io_uring_enter` (K5). `IORING_SETUP_SUBMIT_ALL`
  makes the kernel take the SQEs behind one that it refuses; the room is looked at before
  the first SQE of a chain is written. `io_uring_submit` itself moves the tail, so that an
  SQE is never seen half written.
- Entries beyond the CQ wait in the kernel until somebody enters with GETEVENTS (K9);
  `io_uring_peek_batch_cqe` does so when the CQ is empty and the flag is up.
- The layouts of `struct io_uring` that liburing 2.2 and later share are read here directly
  (K11); what the library filled in is compared with what the kernel told, so that a
  library of another layout is refused rather than used.
"""

import ctypes
import errno
import os
import posix
import socket
import weakref
from collections.abc import Sequence
from typing import NamedTuple

from aiozc._errors import RingUnavailableError, error_from
from aiozc._kernel import abi, calls, liburing
from aiozc._kernel.permitted import New, may_call
from aiozc._kernel.refusals import forbidden, lacking, refusal

SETUP_FLAGS = abi.SetupFlag.CLAMP | abi.SetupFlag.SUBMIT_ALL | abi.SetupFlag.COOP_TASKRUN

_ALL = int(socket.MSG_WAITALL | socket.MSG_NOSIGNAL)
_MADV_POPULATE_READ = 22  # asm-generic/mman-common.h; Python's mmap has no name for it

Sqe = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int, int]
"""The fields of one SQE, in the order of `abi.SQE`."""


class Completion(NamedTuple):
    """One CQE: whose it is, its result (negative: an error number), and `abi.CqeFlag`."""

    user_data: int
    result: int
    flags: int = 0


def prep_nop(user_data: int, flags: int = 0) -> Sqe:
    """Return an SQE that does nothing."""
    return (abi.Op.NOP, flags, 0, -1, 0, 0, 0, 0, user_data, 0, 0, 0, 0, 0)


def prep_poll(fd: int, events: int, user_data: int, flags: int = 0) -> Sqe:
    """Return an SQE that waits for `events` (select.POLLIN, ...) on `fd`."""
    mask = abi.poll_mask(events)
    return (abi.Op.POLL_ADD, flags, 0, fd, 0, 0, 0, mask, user_data, 0, 0, 0, 0, 0)


def prep_timeout(after: abi.Timespec, user_data: int) -> Sqe:
    """Return an SQE that completes with -ETIME after so long.

    The kernel reads `after` while it takes the SQE, not later.
    """
    address = ctypes.addressof(after)
    return (abi.Op.TIMEOUT, 0, 0, -1, 0, address, 1, 0, user_data, 0, 0, 0, 0, 0)


def prep_splice(
    source: int,
    source_offset: int,
    target: int,
    target_offset: int,
    length: int,
    splice_flags: int,
    user_data: int,
    flags: int = 0,
) -> Sqe:
    """Return an SQE for splice(2); `abi.NO_OFFSET` where an end is a pipe or a socket."""
    return (
        abi.Op.SPLICE,
        flags,
        0,
        target,
        target_offset,
        source_offset,
        length,
        splice_flags,
        user_data,
        0,
        0,
        source,
        0,
        0,
    )


def prep_send(fd: int, address: int, length: int, user_data: int, flags: int = 0) -> Sqe:
    """Return an SQE that sends a copy of memory, all of it (MSG_WAITALL), as send(2) does."""
    return (abi.Op.SEND, flags, 0, fd, 0, address, length, _ALL, user_data, 0, 0, 0, 0, 0)


def prep_send_zc(fd: int, address: int, length: int, user_data: int, flags: int = 0) -> Sqe:
    """Return an SQE that sends memory without a copy where that can be (Linux 6.0).

    It waits until all is sent (MSG_WAITALL), and posts two CQEs: the result, and when nobody
    reads the memory any more one with `CqeFlag.NOTIF`, which also says whether it was copied.
    """
    report = int(abi.SendZcFlag.REPORT_USAGE)
    return (abi.Op.SEND_ZC, flags, report, fd, 0, address, length, _ALL, user_data, 0, 0, 0, 0, 0)


def prep_send_fixed(
    fd: int, address: int, length: int, buffer: int, user_data: int, flags: int = 0
) -> Sqe:
    """Return an SQE as `prep_send_zc` does, for memory within the registered buffer."""
    how = int(abi.SendZcFlag.REPORT_USAGE | abi.SendZcFlag.FIXED_BUF)
    return (abi.Op.SEND_ZC, flags, how, fd, 0, address, length, _ALL, user_data, buffer, 0, 0, 0, 0)


def prep_read_fixed(
    fd: int, offset: int, address: int, length: int, buffer: int, user_data: int, flags: int = 0
) -> Sqe:
    """Return an SQE that reads a file into a registered buffer; a short read severs the link."""
    return (
        abi.Op.READ_FIXED, flags, 0, fd, offset, address, length, 0, user_data, buffer, 0, 0, 0, 0,
    )  # fmt: skip


def prep_populate(address: int, length: int, user_data: int, flags: int = 0) -> Sqe:
    """Return an SQE that reads a mapped file's pages and maps them (Linux 5.14).

    It always runs in a worker. One that fails severs no link (seen on 6.18).
    """
    advice = _MADV_POPULATE_READ
    return (abi.Op.MADVISE, flags, 0, -1, 0, address, length, advice, user_data, 0, 0, 0, 0, 0)


def prep_cancel(number: int) -> Sqe:
    """Return an SQE that cancels what has that `user_data`; its own is 0.

    What is queued for a worker is found by nothing else: it has no file yet (seen on 6.18).
    """
    return (abi.Op.ASYNC_CANCEL, 0, 0, -1, 0, number, 0, 0, 0, 0, 0, 0, 0, 0)


def prep_cancel_fd(fd: int, user_data: int) -> Sqe:
    """Return an SQE that cancels whatever is under way on `fd` (Linux 5.19)."""
    match = abi.CancelFlag.FD | abi.CancelFlag.ALL
    return (abi.Op.ASYNC_CANCEL, 0, 0, fd, 0, 0, 0, match, user_data, 0, 0, 0, 0, 0)


def prep_cancel_all(user_data: int) -> Sqe:
    """Return an SQE that cancels whatever is under way on the ring (Linux 5.19)."""
    match = abi.CancelFlag.ANY | abi.CancelFlag.ALL
    return (abi.Op.ASYNC_CANCEL, 0, 0, -1, 0, 0, 0, match, user_data, 0, 0, 0, 0, 0)


class Ring:
    """An io_uring instance. `entries` is rounded up to a power of two by the kernel.

    `max_workers` bounds the kernel threads that the ring may use (K15), for regular
    files and for all else, each. Raises RingUnavailableError where no ring can be had.
    """

    def __init__(self, entries: int = 256, max_workers: int = 4) -> None:
        if not may_call(New.IO_URING):
            raise forbidden()
        self._lib = liburing.load()
        self._uring = abi.Uring()
        self._by_reference = ctypes.byref(self._uring)
        self.fd = -1
        parameters = self._set_up(entries)
        # From here on, only the library itself knows how to undo what it did.
        try:
            self._check_layout(parameters)
            self.fd = self._uring.ring_fd
            _live.add(self)
            self._check_abilities(int(parameters.features))
            self._map()
            self._bound_workers(max_workers)
            self._check_entering()
        except BaseException:
            self._undo()
            raise

    def _set_up(self, entries: int) -> abi.Params:
        parameters = abi.Params(flags=SETUP_FLAGS)
        result = self._lib.queue_init_params(entries, self._by_reference, ctypes.byref(parameters))
        if result < 0:
            raise refusal(-result)
        return parameters

    def _check_layout(self, parameters: abi.Params) -> None:
        if not _layout_fits(self._uring, parameters):
            raise RingUnavailableError(
                f"{self._lib.path} (liburing {self._lib.version}) has another layout of"
                " struct io_uring than 2.2 and later"
            )
        self.entries: int = parameters.sq_entries

    def _check_abilities(self, features: int) -> None:
        self.features = features
        try:
            self.opcodes = calls.opcodes(self.fd)
        except OSError as error:
            raise refusal(error.errno or 0, "asking a ring for its opcodes") from None
        if lack := lacking(features, self.opcodes):
            raise lack

    def _map(self) -> None:
        sq, cq = self._uring.sq, self._uring.cq
        word = ctypes.c_uint32
        self._sq_mask = self.entries - 1
        self._sq_head = word.from_address(sq.khead)
        self._sqes = (ctypes.c_char * (self.entries * abi.SQE_SIZE)).from_address(sq.sqes)
        cq_entries = word.from_address(cq.kring_entries).value
        self._cq_mask = cq_entries - 1
        self._cq_head = word.from_address(cq.khead)
        self._cqes = (ctypes.c_char * (cq_entries * abi.CQE.size)).from_address(cq.cqes)
        self._peeked = (ctypes.c_void_p * cq_entries)()

    def _bound_workers(self, max_workers: int) -> None:
        result = self.bound_workers(max_workers)
        if result < 0:
            raise refusal(-result, f"bounding the ring's workers to {max_workers}")

    def bound_workers(self, max_workers: int) -> int:
        """Have another bound; return 0 or a negative errno (K15)."""
        bounds = (ctypes.c_uint * 2)(max_workers, max_workers)
        result: int = self._lib.register_iowq_max_workers(self._by_reference, bounds)
        return result

    def _check_entering(self) -> None:
        """Have the kernel do nothing once: a filter may refuse io_uring_enter alone."""
        try:
            self.submit([prep_nop(0)])
        except OSError as error:
            raise refusal(error.errno or 0, "submitting to the ring") from None
        self.drain()

    @property
    def closed(self) -> bool:
        """Whether the ring is closed."""
        return self.fd < 0

    def submit(self, chain: Sequence[Sqe]) -> None:
        """Submit all SQEs of a chain by one system call, or none of them.

        Raises ValueError for a chain longer than the ring, and OSError where the kernel
        takes none of it (EAGAIN, EBUSY: no memory, or completions wait to be drained).
        """
        if len(chain) > self.entries:
            raise ValueError(f"a chain of {len(chain)} SQEs exceeds the ring's {self.entries}")
        if self.fd < 0:
            raise ValueError("the ring is closed")
        sq = self._uring.sq
        tail: int = sq.sqe_tail
        position = tail
        pack_into, sqes, mask = abi.SQE.pack_into, self._sqes, self._sq_mask
        for sqe in chain:
            pack_into(sqes, (position & mask) * 64, *sqe)
            position += 1
        sq.sqe_tail = position & 0xFFFFFFFF
        result = self._enter()
        if result != len(chain):
            self._refuse_rest(tail, len(chain), result)

    def _enter(self) -> int:
        while True:
            result: int = self._lib.submit(self._by_reference)
            if result != -errno.EINTR:
                return result

    def _refuse_rest(self, tail: int, length: int, result: int) -> None:
        """Take back what the kernel has not taken, so that no later call submits it.

        A chain cut in two would run its second half on its own: the ring is not to be
        used after that, and says so.
        """
        taken = (self._sq_head.value - tail) & 0xFFFFFFFF
        sq = self._uring.sq
        sq.sqe_head = sq.sqe_tail = self._sq_head.value
        ctypes.c_uint32.from_address(sq.ktail).value = self._sq_head.value
        if taken:
            raise BrokenRingError(f"the kernel took {taken} of a chain's {length} SQEs")
        raise error_from(-result if result < 0 else errno.EAGAIN, "submitting to the ring")

    def drain(self) -> list[Completion]:
        """Return every CQE that is there, oldest first, those beyond the CQ included (K9)."""
        found: list[Completion] = []
        if self.fd < 0:
            return found
        unpack_from, mask, cqes = abi.CQE.unpack_from, self._cq_mask, self._cqes
        new = Completion._make
        # The library's load of the tail is an acquire, which Python has not; entries that
        # overflowed are fetched by it when there is none in the queue.
        while ready := self._lib.peek_batch_cqe(self._by_reference, self._peeked, mask + 1):
            head: int = self._cq_head.value
            places = range(head, head + ready)
            found += [new(unpack_from(cqes, (place & mask) * 16)) for place in places]
            self._cq_head.value = (head + ready) & 0xFFFFFFFF
        return found

    def close(self) -> None:
        """Unmap the ring and close its descriptor; twice does nothing more.

        In a forked child this gives up the child's copies alone: `io_uring_queue_exit`
        makes no call on a ring whose descriptor is not registered but munmap and close.
        """
        if self.fd >= 0:
            self._undo()

    def _undo(self) -> None:
        self.fd = -1
        _live.discard(self)
        self._lib.queue_exit(self._by_reference)


class BrokenRingError(OSError):
    """The kernel took a part of a chain: the ring must be closed."""


_live: "weakref.WeakSet[Ring]" = weakref.WeakSet()


def _close_inherited() -> None:
    # K11: the child shares the parent's rings and must not use them.
    for ring in list(_live):
        ring.close()


os.register_at_fork(after_in_child=_close_inherited)


def _layout_fits(uring: abi.Uring, parameters: abi.Params) -> bool:
    """Compare what the library filled in with what the kernel answered."""
    if uring.features != parameters.features or uring.flags != parameters.flags:
        return False
    word = ctypes.c_uint32
    pairs = ((uring.sq, parameters.sq_entries), (uring.cq, parameters.cq_entries))
    for queue, entries in pairs:
        if not (queue.kring_entries and queue.kring_mask):
            return False
        if word.from_address(queue.kring_entries).value != entries:
            return False
        if word.from_address(queue.kring_mask).value != entries - 1:
            return False
    try:
        return "io_uring" in posix.readlink(f"/proc/self/fd/{uring.ring_fd}")
    except OSError:
        return False
