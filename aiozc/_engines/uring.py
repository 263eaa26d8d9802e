"""Chains run by io_uring: linked SQEs submitted, CQEs drained.

Cancelling goes by the record's own duplicates of what can be waited for
(`IORING_ASYNC_CANCEL_FD`), and by the steps' own numbers where a chain is to end that may be queued
for a worker. Such a request can miss (K13), and a step that may be short is hard-linked, so that
the chain goes on when it alone is cancelled: the engine asks again until the chain has ended.
Duplicates are one file to the kernel: a chain that uses the socket the other way is interrupted
too, and goes on from what is known to have moved.

The tick is a timeout on the ring and no timer of the loop: with one, every wait of the loop
starts and cancels a timer of the kernel, and io-wq ends that wait for each splice (K18):
7 us more each, 0.025 s of loop CPU per GB in place of 0.010. The loop watches the ring's
descriptor itself (K10): an eventfd in its place changed nothing, few and large steps did.
"""

import contextlib
import errno
import select
import time
from collections.abc import Iterator, Sequence

from aiozc._engines.backend import RETRY_S, TICK_S, Port, Run, may_be_short
from aiozc._engines.workers import BESIDE, INDEX_BITS, QUESTIONS, WORKERS, Workers
from aiozc._kernel import abi
from aiozc._kernel.abi import CqeFlag, Op, SpliceFlag, SqeFlag
from aiozc._kernel.ring import (
    BrokenRingError,
    Ring,
    Sqe,
    prep_cancel_all,
    prep_cancel_fd,
    prep_poll,
    prep_populate,
    prep_read_fixed,
    prep_send,
    prep_send_fixed,
    prep_send_zc,
    prep_splice,
    prep_timeout,
)
from aiozc._resources.records import Record
from aiozc._transfers.steps import (
    LONGEST_PAUSE,
    Chain,
    End,
    Pause,
    PollIn,
    PollOut,
    ReadFixed,
    SendFixed,
    SendMemory,
    Splice,
)

LONGEST_CHAIN = 48
"""Steps: sixteen rounds of read, poll and send; more showed no gain."""
OFTEN = 20
"""Requests for a chain to end, of which one looks for it among what is queued for a worker."""
INTERRUPTED = -512
"""The kernel's numbers for a call to be begun anew (linux/errno.h, ERESTARTSYS): down from here
(K19)."""

_INDEX_MASK = (1 << INDEX_BITS) - 1
_NOBODY = 0
_TICKER = (1 << 64) - 1
_TICK = abi.Timespec(0, int(TICK_S * 1e9))
_PAUSES = [abi.Timespec(0, (1 << level) * 1_000_000) for level in range(LONGEST_PAUSE + 1)]

_SOFT = int(SqeFlag.IO_LINK | SqeFlag.CQE_SKIP_SUCCESS)
_HARD = int(SqeFlag.IO_HARDLINK | SqeFlag.CQE_SKIP_SUCCESS)
_LINK = int(SqeFlag.IO_LINK)
_ASYNC = int(SqeFlag.ASYNC)
_NONBLOCK = int(SpliceFlag.NONBLOCK)
_MORE = int(CqeFlag.MORE)
_NOTIF = int(CqeFlag.NOTIF)


class Submission(Run):
    """A chain of linked SQEs. The results of steps that are complete are known before (K3)."""

    __slots__ = ("_uring", "asked", "evicted")

    in_kernel = True

    def __init__(
        self, uring: "Uring", engine: Port, number: int, record: Record, chain: Chain
    ) -> None:
        super().__init__(engine, number, record, chain)
        self._uring = uring
        self.results = [step.length if isinstance(step, Splice) else 0 for step in chain]
        self.asked = 0
        """How often it was asked to end."""
        self.evicted = False
        """Whether it was taken out of a queue."""

    def begin(self) -> None:
        """Submit it."""
        self._uring.start(self)

    def interrupt(self) -> None:
        """Ask the kernel to cancel it."""
        self._uring.interrupt(self)

    def complete(self, index: int, result: int) -> bool:
        """Note the result of the last step, or of one that was short or has failed.

        Return whether none is to come any more: then the chain is to be retired.
        """
        step = self.chain[index]
        if isinstance(step, PollIn | PollOut):
            result = min(result, 0)
        self.results[index] = 0 if isinstance(step, Pause) else result
        if index == len(self.chain) - 1 or not may_be_short(step):
            del self.results[index + 1 :]
            return True
        return False


class LendingSubmission(Submission):
    """A chain of sends that lend memory: each tells its own result, those too that never began."""

    __slots__ = ("_due",)

    def begin(self) -> None:
        """Submit it."""
        self._due = len(self.chain)
        super().begin()

    def complete(self, index: int, result: int) -> bool:
        """Note the result of a step; return whether it was the last that was due."""
        self.results[index] = result
        self._due -= 1
        return not self._due


class Uring:
    """The backend `io_uring`. Raises RingUnavailableError where no ring can be had."""

    name = "io_uring"

    def __init__(self, engine: Port, entries: int) -> None:
        self._engine = engine
        self._ring = Ring(entries, WORKERS)
        self._workers = Workers(self._ring, engine, self._submit)
        self.longest_chain = min(self._ring.entries, LONGEST_CHAIN)
        self.lends = self._ring.opcodes >= {Op.SEND_ZC, Op.MADVISE}

    @property
    def fd(self) -> int:
        """The ring's descriptor, or -1."""
        return self._ring.fd

    def make(self, number: int, record: Record, chain: Chain) -> Run:
        """Return a chain that is to be submitted."""
        kind = Submission if record.loan is None else LendingSubmission
        return kind(self, self._engine, number, record, chain)

    def start(self, run: Submission) -> None:
        """Submit a chain, and process what was ready at once (K6): no trip round the loop."""
        self._workers.begin(run)
        try:
            self._submit(tuple(_sqes(run.number, run.record, run.chain)))
        except OSError:
            self._workers.end(run)
            raise
        self.drain()

    def _submit(self, sqes: Sequence[Sqe]) -> None:
        for is_last in (False, True):
            try:
                self._ring.submit(sqes)
                break
            except BrokenRingError:
                self._engine.break_down()
                raise
            except OSError:
                if is_last:
                    raise
                # EBUSY, EAGAIN: completions wait to be drained.
                self.drain()
        self._engine.counters.submissions += 1

    def drain(self) -> None:
        """Process the CQEs that are there."""
        ticked = False
        for user_data, result, flags in self._ring.drain():
            self._engine.counters.completions += 1
            if user_data == _TICKER:
                ticked = True
                continue
            if user_data in QUESTIONS:
                self._workers.answered(result)
                continue
            if flags & _NOTIF:
                self._engine.loans.take_back(user_data, result)
                continue
            run = self._engine.runs.get(user_data >> INDEX_BITS)
            if not isinstance(run, Submission):
                continue
            if result <= INTERRUPTED:
                result = -errno.EINTR
            if flags & _MORE and result > 0 and run.record.loan is not None:
                step = run.chain[user_data & _INDEX_MASK]
                self._engine.loans.lend(user_data, run.record.loan, step)
            if run.complete(user_data & _INDEX_MASK, result):
                self._workers.end(run)
                self._engine.retire(run)
        if ticked:
            # Last: it drains too, and what it found must not overtake what is older.
            self._engine.tick()

    def interrupt(self, run: Submission) -> None:
        """Ask the kernel to cancel what is under way on the record's numbers."""
        with contextlib.suppress(OSError):
            fds = run.record.numbers() if run.stopping else run.record.waits()
            self._submit([prep_cancel_fd(fd, _NOBODY) for fd in fds])
            self.drain()
        if run.stopping and not run.ended:
            run.asked += 1
            # Not each time: it may have begun, and end when its disk answers.
            if run.asked in (1, 2) or run.asked % OFTEN == 0:
                self._workers.take_out(run)
                self.drain()

    def tick_later(self) -> None:
        """Submit the timeout that is the tick."""
        self._submit((prep_timeout(_TICK, _TICKER),))

    def at_tick(self) -> None:
        """Look whether there are workers."""
        self._workers.at_tick()

    def end_all(self, deadline: float) -> None:
        """Have the kernel cancel everything, and wait for it in the kernel."""
        self._workers.stop_asking()
        readable = select.poll()
        readable.register(self._ring.fd, select.POLLIN)
        while self._engine.runs and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self._ring.submit((prep_cancel_all(_NOBODY),))
            readable.poll(RETRY_S * 1000)
            self.drain()
        self.drain()

    def close(self) -> None:
        """Close the ring, or a forked child's copy of it."""
        self._ring.close()

    forget = close


def _sqes(number: int, record: Record, chain: Chain) -> Iterator[Sqe]:
    """Translate a chain: linked SQEs, of which only the last posts a CQE if all is well."""
    last = len(chain) - 1
    source, target, pipe = record.source.fd, record.target.fd, record.pipe
    out_of = {End.SOURCE: source, End.PIPE: pipe.read_end if pipe else -1}
    into = {End.TARGET: target, End.PIPE: pipe.write_end if pipe else -1}
    for index, step in enumerate(chain):
        user_data = number << INDEX_BITS | index
        flags = 0 if index == last else _HARD if may_be_short(step) else _SOFT
        if isinstance(step, PollIn):
            yield prep_poll(source, select.POLLIN, user_data, flags)
        elif isinstance(step, PollOut):
            yield prep_poll(target, select.POLLOUT, user_data, flags)
        elif isinstance(step, Pause):
            yield prep_timeout(_PAUSES[step.level], user_data)
        elif isinstance(step, SendMemory):
            link = 0 if index == last else _LINK
            if step.cold:
                # So that nobody waits for the disk but a worker: the send itself looks its
                # pages up in the loop's thread, and would read there what is not cached.
                # (It tells its result: with CQE_SKIP_SUCCESS, and failed, it silences the rest.)
                yield prep_populate(step.address, step.length, BESIDE | user_data, _LINK)
            prepare = prep_send_zc if step.lent else prep_send
            yield prepare(target, step.address, step.length, user_data, link)
        elif isinstance(step, ReadFixed):
            assert record.loan is not None
            address = record.loan.address_of(step.slot)
            where = (step.offset, address, step.length, step.slot)
            # A worker begins it: FUSE asks its server, and waits for the answer, where that is done
            # (6.18, a server without FUSE_ASYNC_DIO, and each read beyond a file's end).
            flags = _ASYNC | (_LINK if index < last else 0)
            yield prep_read_fixed(step.fd, *where, user_data, flags)
        elif isinstance(step, SendFixed):
            assert record.loan is not None
            address = record.loan.address_of(step.slot) + step.start
            link = 0 if index == last else _LINK
            yield prep_send_fixed(target, address, step.length, step.slot, user_data, link)
        elif isinstance(step, Splice):
            yield prep_splice(
                out_of[step.source],
                _offset(step.source_offset),
                into[step.target],
                _offset(step.target_offset),
                step.length,
                _NONBLOCK,
                user_data,
                flags,
            )
        else:
            raise TypeError(f"{step!r} is no step for a ring")


def _offset(offset: int | None) -> int:
    return abi.NO_OFFSET if offset is None else offset
