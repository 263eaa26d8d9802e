"""One ring on one loop: operations in flight, cancellation, end of life.

Ownership. A record (`records.py`) owns all that the kernel may still touch. Its life:

    opened --> [ a chain in flight --> its outcome ]* --> closed

At most one chain of a record is in flight, and the record is closed only when none is: a
coroutine that is cancelled asks the kernel to stop, and returns when the last completion of
its chain has come. A coroutine that is thrown away (its loop was closed, or it was
collected) leaves its record behind; the reactor closes it when that completion comes.

Cancelling. The kernel is asked to cancel what is under way on the record's own duplicates
of what can be waited for (`IORING_ASYNC_CANCEL_FD`). Such a request can arrive between two
steps and find nothing (fact 13), and a step that may be short is hard-linked, so that the
chain goes on when it alone is cancelled. The request is therefore repeated until the chain
has ended. Duplicates are one file to the kernel: a chain that uses the socket the other way
is interrupted too, and goes on from what is known to have moved.

The tick. Closing a number wakes nobody who waits on a duplicate of it: every `TICK` seconds,
while chains are in flight, the callers' objects are looked at. The same tick interrupts
chains that have kept a pipe through two ticks: no slow peer keeps one. (What waits in a
chain of one step keeps no more than what is in its pipe.) It is a timeout on
the ring and no timer of the loop: with one, every wait of the loop starts and cancels a
timer of the kernel, and io-wq ends that wait for each splice (see below): 7 us more each,
0.025 s of loop CPU per GB in place of 0.010.

Waking. The ring's descriptor is watched by the loop as readable (fact 10). io-wq frees each
operation by task work in the thread that submitted it, so the loop's thread is woken in the
kernel once for each splice, 2 us, without returning to Python. An eventfd in place of the
ring's descriptor changed nothing; few and large steps did (loop CPU per GB with 64 KiB steps
0.10 s, 256 KiB 0.041, 512 KiB 0.021, 1 MiB 0.013).

End of life. The loop's reader handle is the only owner of a `_Watch`. When the loop is
closed it drops its handles, the watch is collected, and the reactor ends: no hook in the
loop is needed, whoever runs it. In a forked child every reactor gives up the child's copies
of its descriptors and mappings, and the child makes one of its own.
"""

import asyncio
import contextlib
import errno
import os
import select
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import NamedTuple, Self

from aiozc._engines.at_once import AtOnce
from aiozc._engines.pipes import PipePool
from aiozc._engines.records import Original, Record
from aiozc._errors import RingUnavailableError, error_from
from aiozc._kernel import abi
from aiozc._kernel.abi import SpliceFlag, SqeFlag
from aiozc._kernel.ring import (
    BrokenRingError,
    Ring,
    Sqe,
    prep_cancel_all,
    prep_cancel_fd,
    prep_poll,
    prep_splice,
    prep_timeout,
)
from aiozc._transfers.steps import (
    LONGEST_PAUSE,
    Chain,
    End,
    Pause,
    PollIn,
    PollOut,
    Splice,
    Step,
)

TICK = 0.1
"""Seconds between two looks at the callers' objects."""
RETRY = 0.005
"""Seconds until a cancellation that has not ended its chain is asked for again."""
WORKERS = 8
"""Kernel threads of one ring at the most, for regular files and for all else, each."""
LONGEST_END = 10.0
"""Seconds that a reactor waits at its end for a disk to answer."""
BROKEN_END = 0.5
"""The same where the kernel took a part of a chain, whose end may never be told."""

LONGEST_CHAIN = 48
"""Steps: sixteen rounds of read, poll and send; more showed no gain."""
LOOKED_AT = 128
"""Chains looked at in one tick at the most."""
LOOKS = 8
"""Looks at a chain of which one is a thorough one."""
PATIENCE = 1
"""Ticks after the first one that a chain keeps a pipe for, when it has it in hand."""

# user_data: the chain's number, and the step's index in its lowest bits.
_INDEX_BITS = 12
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_NOBODY = 0
_TICKER = (1 << 64) - 1
_TICK = abi.Timespec(0, int(TICK * 1e9))
_PAUSES = [abi.Timespec(0, (1 << level) * 1_000_000) for level in range(LONGEST_PAUSE + 1)]

_SOFT = int(SqeFlag.IO_LINK | SqeFlag.CQE_SKIP_SUCCESS)
_HARD = int(SqeFlag.IO_HARDLINK | SqeFlag.CQE_SKIP_SUCCESS)
_NONBLOCK = int(SpliceFlag.NONBLOCK)


@dataclass(slots=True)
class _Counters:
    transfers: int = 0
    bytes: int = 0
    short_reads: int = 0
    short_writes: int = 0
    chains: int = 0
    submissions: int = 0
    completions: int = 0
    wakeups: int = 0
    polls: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a reactor has done since it was made, and what it holds now.

    `transfers` started, those that ended at once included and those that went the fallback
    way not, and `bytes` that their targets took; `short_reads` and `short_writes`: steps
    that moved less than they asked for; `chains` submitted and the `submissions` (system
    calls) that it took; `completions` (CQEs) drained; `wakeups`, how often the loop found
    the ring readable; `polls` submitted; `in_flight`, transfers on the ring now; `pipes`
    open now, idle ones included.
    """

    transfers: int
    bytes: int
    short_reads: int
    short_writes: int
    chains: int
    submissions: int
    completions: int
    wakeups: int
    polls: int
    in_flight: int
    pipes: int


class Outcome(NamedTuple):
    """A chain's results, one for each step that ran, and whether it was cancelled."""

    results: list[int]
    cancelled: asyncio.CancelledError | None


class _Run:
    """One chain in flight: its results so far, and who waits for its end."""

    __slots__ = ("age", "chain", "ended", "number", "record", "results", "stopping", "waiter")

    def __init__(self, number: int, record: Record, chain: Chain) -> None:
        self.number = number
        self.record = record
        self.chain = chain
        # A step that completes in full posts no CQE (fact 3).
        self.results = [step.length if isinstance(step, Splice) else 0 for step in chain]
        self.ended = False
        self.stopping = False
        self.age = 0
        self.waiter: asyncio.Future[None] | None = None

    def complete(self, index: int, result: int) -> None:
        """Take in one CQE; the chain ends with its last step's, or a soft link's failure."""
        step = self.chain[index]
        if isinstance(step, PollIn | PollOut):
            result = min(result, 0)
        self.results[index] = 0 if isinstance(step, Pause) else result
        if index == len(self.chain) - 1 or not may_be_short(step):
            del self.results[index + 1 :]
            self.ended = True

    def fail(self) -> None:
        """Be over without an outcome: nothing is known to have moved."""
        self.results.clear()
        self.ended = True

    def wake(self) -> None:
        """Let the coroutine go on that waits for the chain's end."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


def may_be_short(step: Step) -> bool:
    """Return whether the chain goes on behind this step when it is short."""
    return isinstance(step, Splice) and step.may_be_short


class _Watch:
    """The loop's reader callback; collected when the loop drops its handles."""

    __slots__ = ("_reactor",)

    def __init__(self, reactor: "Reactor") -> None:
        self._reactor = reactor

    def __call__(self) -> None:
        self._reactor._readable()

    def __del__(self) -> None:
        self._reactor._shut_down()


class Reactor:
    """The ring of the running loop. `aiozc.get_reactor()` makes one on first use.

    Making one by hand sets `entries`, the size of the submission queue (8 to 4096, rounded
    up to a power of two), and makes it the running loop's. It ends with `aclose()`, at the
    end of `async with`, or with its loop.

    Raises ValueError for other sizes, RuntimeError where no loop is running or the loop has
    a reactor already, and RingUnavailableError (a RuntimeError) where io_uring or liburing
    cannot be had.
    """

    def __init__(self, *, entries: int = 256) -> None:
        if not 8 <= entries <= 4096:
            raise ValueError(f"entries must be 8 to 4096, not {entries!r}")
        loop = asyncio.get_running_loop()
        if isinstance(_reactors.get(loop), Reactor):
            raise RuntimeError(f"{loop!r} has a reactor already: close that one first")
        self.at_once = AtOnce()
        self._count = _Counters()
        self._loop = weakref.ref(loop)
        self._pipes = PipePool()
        self._records: set[Record] = set()
        self._runs: dict[int, _Run] = {}
        self._to_look_at: list[_Run] = []
        self._last_number = _NOBODY
        self._ticking = False
        self._closing = False
        self._ring = Ring(entries, WORKERS)
        loop.add_reader(self._ring.fd, _Watch(self))
        _reactors[loop] = self
        _live.add(self)

    @property
    def closed(self) -> bool:
        """Whether the reactor has ended."""
        return self._ring.closed

    @property
    def longest_chain(self) -> int:
        """The most steps that one chain may have."""
        return min(self._ring.entries, LONGEST_CHAIN)

    def statistics(self) -> Statistics:
        """Return the counters as they are now."""
        return Statistics(
            **asdict(self._count), in_flight=len(self._records), pipes=len(self._pipes)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the reactor: its transfers end with an OSError (ECANCELED), then the ring.

        Returns when nothing of it is left. The loop's next transfer makes a new reactor.
        """
        self._closing = True
        try:
            while self._records:
                for run in tuple(self._runs.values()):
                    self._stop(run)
                await asyncio.sleep(RETRY)
        except BaseException:
            self._closing = self._ring.closed
            raise
        self._end()

    def _end(self, patience: float = LONGEST_END) -> None:
        """End everything on a loop that goes on."""
        loop = self._loop()
        if loop is not None and not self._ring.closed:
            loop.remove_reader(self._ring.fd)
        self._shut_down(patience)

    # What follows is the engine's.

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether this is the loop's reactor, and takes transfers."""
        return self._loop() is loop and not self._closing

    def count(self, *, transfers: int = 0, sent: int = 0) -> None:
        """Count transfers that have started, and bytes that a socket took."""
        self._count.transfers += transfers
        self._count.bytes += sent

    def open(self, source: Original, target: Original) -> Record:
        """Return a new record, which owns the two; where it raises they are closed."""
        if self._closing:
            source.close()
            target.close()
            raise error_from(errno.ECANCELED, "the reactor was closed")
        record = Record(self._pipes, source, target)
        self._records.add(record)
        return record

    def release(self, record: Record) -> None:
        """Close a record now, or when the chain has ended that its coroutine has left."""
        record.abandoned = True
        if not record.busy:
            self._records.discard(record)
            record.close()

    async def run(self, record: Record, chain: Chain) -> Outcome:
        """Run a chain to its end. A cancellation is part of the outcome, not raised."""
        if self._closing:
            raise error_from(errno.ECANCELED, "the reactor was closed")
        if not chain:
            raise ValueError("a chain has one step at the least")
        loop = asyncio.get_running_loop()
        run = self._start(record, chain)
        cancelled: asyncio.CancelledError | None = None
        while not run.ended:
            run.waiter = loop.create_future()
            try:
                await run.waiter
            except asyncio.CancelledError as error:
                cancelled = error
                self._stop(run)
            except BaseException:
                # The coroutine will not come back: the chain ends without it.
                self._stop(run)
                raise
        return Outcome(run.results, cancelled)

    def _start(self, record: Record, chain: Chain) -> _Run:
        self._last_number += 1
        run = _Run(self._last_number, record, chain)
        sqes = tuple(_sqes(run.number, record, chain))
        # Before the chain: once that is submitted, nothing may fail any more.
        self._tick_later()
        self._runs[run.number] = run
        record.busy = True
        try:
            self._submit(sqes)
        except BrokenRingError:
            # A part of the chain runs: the record stays as it is until the ring has ended.
            raise
        except BaseException:
            del self._runs[run.number]
            record.busy = False
            raise
        self._count.chains += 1
        self._count.polls += sum(isinstance(step, PollIn | PollOut) for step in chain)
        # What was ready at once is here already: no trip round the loop for it.
        self._drain()
        return run

    def _submit(self, sqes: Sequence[Sqe]) -> None:
        try:
            self._ring.submit(sqes)
        except BrokenRingError:
            self._closing = True
            loop = self._loop()
            if loop is not None and not loop.is_closed():
                loop.call_soon(self._end, BROKEN_END)
            raise
        except OSError:
            # EBUSY, EAGAIN: completions wait to be drained.
            self._drain()
            self._ring.submit(sqes)
        self._count.submissions += 1

    def _readable(self) -> None:
        self._count.wakeups += 1
        self._drain()

    def _drain(self) -> None:
        for run in self._completed():
            run.wake()

    def _completed(self) -> list[_Run]:
        """Take in the CQEs that are there, and return the chains that they ended."""
        ended = []
        ticked = False
        for user_data, result in self._ring.drain():
            self._count.completions += 1
            if user_data == _TICKER:
                ticked = True
                continue
            run = self._runs.get(user_data >> _INDEX_BITS)
            if run is None:
                continue
            run.complete(user_data & _INDEX_MASK, result)
            if run.ended:
                self._retire(run)
                ended.append(run)
        if ticked:
            # Last: it drains too, and what it found must not overtake what is older.
            self._tick()
        return ended

    def _retire(self, run: _Run) -> None:
        del self._runs[run.number]
        self._count_shortness(run)
        run.record.busy = False
        if run.record.abandoned:
            self.release(run.record)

    def _count_shortness(self, run: _Run) -> None:
        for step, result in zip(run.chain, run.results, strict=False):
            if isinstance(step, Splice) and 0 <= result < step.length:
                if step.source is End.SOURCE:
                    self._count.short_reads += 1
                else:
                    self._count.short_writes += 1

    def _stop(self, run: _Run) -> None:
        """Ask the kernel to end a chain, and again until it has ended."""
        if not run.stopping:
            run.stopping = True
            self._insist(run)

    def _insist(self, run: _Run) -> None:
        loop = self._loop()
        if run.ended or self._ring.closed or loop is None or loop.is_closed():
            return
        self._interrupt(run)
        loop.call_later(RETRY, self._insist, run)

    def _interrupt(self, run: _Run) -> None:
        with contextlib.suppress(OSError):
            fds = run.record.numbers() if run.stopping else run.record.waits()
            self._submit([prep_cancel_fd(fd, _NOBODY) for fd in fds])
            self._drain()

    def _tick_later(self) -> None:
        if not self._ticking:
            self._submit((prep_timeout(_TICK, _TICKER),))
            self._ticking = True

    def _tick(self) -> None:
        self._ticking = False
        if not self._runs or self._closing:
            self._to_look_at.clear()
            return
        self._to_look_at = self._to_look_at or list(self._runs.values())
        for run in self._to_look_at[-LOOKED_AT:]:
            self._look_at(run)
        del self._to_look_at[-LOOKED_AT:]
        with contextlib.suppress(OSError):
            self._tick_later()

    def _look_at(self, run: _Run) -> None:
        if run.ended or run.stopping:
            return
        record = run.record
        # Closing an object is seen at each look, closing its number at some: 4 us in place of 1.
        writes = any(isinstance(step, PollOut) for step in run.chain)
        if (record.has_moved() or run.age % LOOKS == 0) and record.find_fault(writes=writes):
            self._stop(run)
        elif record.pipe is not None and run.age >= PATIENCE:
            if len(run.chain) > 1:
                self._interrupt(run)
            else:
                record.shrink_pipe()
        run.age += 1

    def _shut_down(self, patience: float = LONGEST_END) -> None:
        """End everything now; wait in the kernel for what it still does for us.

        What it has not ended within `patience` seconds is left to it: a number that a later
        step may still look up is worse reused than leaked.
        """
        global _latest
        self._closing = True
        if self._ring.closed:
            return
        self._end_all(time.monotonic() + patience)
        for record in self._records:
            if not record.busy:
                record.close()
        self._records.clear()
        self._pipes.close()
        self._ring.close()
        _live.discard(self)
        if _latest is self:
            _latest = None
        loop = self._loop()
        if loop is not None and _reactors.get(loop) is self:
            del _reactors[loop]

    def _end_all(self, deadline: float) -> None:
        readable = select.poll()
        readable.register(self._ring.fd, select.POLLIN)
        while self._runs and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self._ring.submit((prep_cancel_all(_NOBODY),))
            readable.poll(1000 * RETRY)
            # Nobody is woken: the loop is gone.
            self._completed()
        for run in self._runs.values():
            run.fail()

    def _forget(self) -> None:
        """In a forked child: give up the copies of what is the parent's."""
        self._closing = True
        for run in self._runs.values():
            run.fail()
            run.wake()
        self._runs.clear()
        for record in self._records:
            record.close()
            record.source.abandon()
            record.target.abandon()
        self._records.clear()
        self._pipes.close()


_reactors: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Reactor | str]" = (
    weakref.WeakKeyDictionary()
)
# The one asked for last: looking a loop up in `_reactors` takes 0.4 us.
_latest: Reactor | None = None
_live: "weakref.WeakSet[Reactor]" = weakref.WeakSet()


def _forget_inherited() -> None:
    global _latest
    _latest = None
    for reactor in tuple(_live):
        reactor._forget()
    _live.clear()
    _reactors.clear()


os.register_at_fork(after_in_child=_forget_inherited)


def latest_reactor(loop: asyncio.AbstractEventLoop) -> Reactor | None:
    """Return the loop's reactor if it was the last that was asked for."""
    # Read once: another thread, with a loop of its own, may set it meanwhile.
    latest = _latest
    return latest if latest is not None and latest.serves(loop) else None


def get_reactor() -> Reactor:
    """Return the running loop's reactor; make it where there is none yet.

    Raises RuntimeError where no loop is running, and RingUnavailableError (a RuntimeError)
    where io_uring or liburing cannot be had: the same, without another try, for the rest of
    the loop's life.
    """
    global _latest
    loop = asyncio.get_running_loop()
    if (latest := latest_reactor(loop)) is not None:
        return latest
    known = _reactors.get(loop)
    if isinstance(known, Reactor):
        if known.serves(loop):
            _latest = known
            return known
        raise error_from(errno.ECANCELED, "the reactor is being closed")
    if known is not None:
        raise RingUnavailableError(known)
    try:
        return Reactor()
    except RingUnavailableError as error:
        _reactors[loop] = str(error)
        raise


def _sqes(number: int, record: Record, chain: Chain) -> Iterator[Sqe]:
    """Translate a chain: linked SQEs, of which only the last posts a CQE if all is well."""
    last = len(chain) - 1
    source, target, pipe = record.source.copy, record.target.copy, record.pipe
    out_of = {End.SOURCE: source, End.PIPE: pipe.read_end if pipe else -1}
    into = {End.TARGET: target, End.PIPE: pipe.write_end if pipe else -1}
    for index, step in enumerate(chain):
        user_data = number << _INDEX_BITS | index
        flags = 0 if index == last else _HARD if may_be_short(step) else _SOFT
        if isinstance(step, PollIn):
            yield prep_poll(source, select.POLLIN, user_data, flags)
        elif isinstance(step, PollOut):
            yield prep_poll(target, select.POLLOUT, user_data, flags)
        elif isinstance(step, Pause):
            yield prep_timeout(_PAUSES[step.level], user_data)
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
