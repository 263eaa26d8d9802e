"""What runs the transfers of one loop: operations in flight, cancellation, end of life.

Ownership. A record (`records.py`) owns all that the kernel may still touch. Its life:

    opened --> [ a chain in flight --> its outcome ]* --> closed

At most one chain of a record is in flight, and the record is closed only when none is: a
coroutine that is cancelled has its chain stopped, and returns when that has ended. A coroutine
that is thrown away (its loop was closed, or it was collected) leaves its record behind; the
reactor closes it when the chain ends.

Cancelling. A backend may miss a chain that it is to interrupt (K13), so the request is
repeated until the chain has ended.

The tick. Closing a number wakes nobody who waits on a duplicate of it: every `TICK` seconds,
while chains are in flight, the callers' objects are asked whether they were closed (`looks.py`):
all of them, or as many as 0.4 ms are enough for (4,000 transfers), and the others in the
next tick. What costs more to find out (a number that was closed behind its object's back, a UNIX
socket that was shut for writing while it was full, a reset of a relay's side that stands still) is
looked for in THOROUGHLY chains in a tick, and more within 0.2 ms: of 10,000 in each once in 20 to
60 s.
The same tick interrupts chains that have kept a pipe through two ticks: no slow peer keeps one.
(What waits in a chain of one step keeps no more than what is in its pipe.)

End of life. The loop's reader handle is the only owner of a `_Watch`. When the loop is
closed it drops its handles, the watch is collected, and the reactor ends: no hook in the
loop is needed, whoever runs it. (A run of trio has a system task in place of the handle, see
`trio_loop.py`.) In a forked child every reactor gives up the child's copies
of its descriptors and mappings, and the child makes one of its own. (From CPython 3.12 on os.fork()
warns where a process has threads, and counts those of the kernel that work for a ring: the child
has none of them, and nothing of a ring that they could hold.)
"""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import threading
import time
import weakref
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import NamedTuple, Self

from aiozc._engines.at_once import AtOnce
from aiozc._engines.base import TICK, Backend, Counters, LendingRun, Run
from aiozc._engines.choose import choose
from aiozc._engines.offering import Offering
from aiozc._engines.passing import Passing
from aiozc._engines.readiness import Readiness
from aiozc._engines.waits import Waits, only_waits
from aiozc._errors import error_from, lacks_descriptors
from aiozc._kernel.permitted import look
from aiozc._resources.buffers import Buffers
from aiozc._resources.loans import Loan, Loans
from aiozc._resources.looks import Looks
from aiozc._resources.owners import owners_of
from aiozc._resources.pipes import PipePool
from aiozc._resources.polls import Polls
from aiozc._resources.records import Original, Record
from aiozc._runtime.hosts import Loop, running_loop, sleep
from aiozc._transfers.route import CHAINS
from aiozc._transfers.steps import Chain, End, Offer, Pass, PollIn, PollOut, Splice

_logger = logging.getLogger("aiozc")

RETRY = 0.005
"""Seconds until a cancellation that has not ended its chain is asked for again."""
LONGEST_END = 10.0
"""Seconds that a reactor waits at its end for a disk to answer."""
BROKEN_END = 0.5
"""The same where the kernel took a part of a chain, whose end may never be told."""
LOOKED_AT = 128
"""Chains whose pipes are looked at in one tick, and closed ones found in one turn, at the most."""
THOROUGHLY = 16
"""Chains looked at thoroughly in one tick, if there are so many; each takes 3 to 7 us."""
SECONDS = 0.0002
"""How long a tick goes on with that."""
MANY = 0.75
"""What of a process's descriptors is left to others: beyond, who waits for a peer has none."""
PRESSED = 1.0
"""Seconds for which that lasts."""
PATIENCE = 1
"""Ticks after the first one that a chain keeps a pipe for, when it has it in hand."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a reactor has done since it was made, and what it holds now.

    `transfers` started, those that ended at once included and those that went the fallback
    way not, and `bytes` that their targets took; `short_reads` and `short_writes`: steps
    that moved less than they asked for, and what they moved, in bytes; `chains` begun;
    `submissions`, system calls that these took (sends in the loop's thread; by readiness splices
    there, and what was handed to another);
    `completions`: CQEs (by readiness: the ends of those, and ticks); `wakeups`, how often
    the loop found the reactor's descriptor readable; `polls` among the chains' steps;
    `in_flight`, transfers that are not at their end now; `pipes` open now, idle ones included;
    `zero_copies`, sends without a copy (SEND_ZC) that sent something, `notifications` that their
    pages were released, and `copies`, how many of these said that the kernel has copied them;
    `fallbacks`, transfers whose bytes went through this process's memory, all or what was left
    of them, since the kernel could not move them: objects without a descriptor, blocking sockets,
    TLS, a `sendfile_zc` that copied. (Those that the kernel began are in `transfers` too.)
    """

    transfers: int
    bytes: int
    short_reads: int
    short_read_bytes: int
    short_writes: int
    short_write_bytes: int
    chains: int
    submissions: int
    completions: int
    wakeups: int
    polls: int
    in_flight: int
    pipes: int
    zero_copies: int
    notifications: int
    copies: int
    fallbacks: int


class Outcome(NamedTuple):
    """A chain's results, one for each step that ran, and whether it was cancelled."""

    results: list[int]
    cancelled: BaseException | None


class _Watch:
    """The loop's reader callback; collected when the loop drops its handles."""

    __slots__ = ("_reactor",)

    def __init__(self, reactor: "Reactor") -> None:
        self._reactor = reactor

    def __call__(self) -> None:
        self._reactor._readable()

    def __del__(self) -> None:
        self._reactor._shut_down()


class _Round:
    """Gives the chains in flight by and by: all of one moment, then all of another."""

    def __init__(self) -> None:
        self._left: list[Run] = []

    def next(self, runs: dict[int, Run], most: int) -> list[Run]:
        """Return the next, `most` at the most."""
        self._left = self._left or list(runs.values())
        some = self._left[-most:]
        del self._left[-most:]
        return some


class Reactor:
    """What runs the transfers of the running loop. `aiozc.get_reactor()` makes it on first use.

    Making one by hand sets `entries`, the size of the ring's submission queue (8 to 4096,
    rounded up to a power of two), and the `backend`, "io_uring" or "readiness"; None is what
    the environment variable AIOZC_BACKEND says or, where that is not set, io_uring where it
    can be had. It becomes the running loop's, and ends with `aclose()`, at the end of
    `async with`, or with its loop. A forked child never uses it. (That os.fork() warns of threads
    during a transfer, from CPython 3.12 on, is because of the kernel's workers for the ring.)

    Raises ValueError for other sizes and backends, RuntimeError where no loop is running or
    the loop has a reactor already, and RingUnavailableError (a RuntimeError) where io_uring
    was asked for and it or liburing cannot be had.
    """

    def __init__(self, *, entries: int = 256, backend: str | None = None) -> None:
        if not 8 <= entries <= 4096:
            raise ValueError(f"entries must be 8 to 4096, not {entries!r}")
        loop = running_loop()
        if loop in _reactors:
            raise RuntimeError(f"{loop!r} has a reactor already: close that one first")
        look()
        self.at_once = AtOnce()
        self.counters = Counters()
        self.owners = owners_of(loop)
        self.loans = Loans()
        self.polls = Polls()
        self._waits = Waits(self)
        self._passing = Passing(self)
        self._offering = Offering(self)
        self._buffers: Buffers | None = None
        self.runs: dict[int, Run] = {}
        self._loop = weakref.ref(loop)
        self._pipes = PipePool()
        self._pressed_until = 0.0
        self._records: set[Record] = set()
        self._looks = Looks()
        self._to_look_at = _Round()
        self._pipes_to_look_at = _Round()
        self._last_number = 0
        self._ticking = False
        self._closing = False
        self._patience = LONGEST_END
        self._backend: Backend = choose(self, backend, entries)
        self._spare: Backend | None = None
        """Runs the chains while the backend has no threads for them."""
        self._goes_by_spare = False
        try:
            loop.add_reader(self._backend.fd, _Watch(self))
            if self.polls.fd != self._backend.fd:
                loop.add_reader(self.polls.fd, self.polls.call_ready)
        except BaseException:
            self._end()
            raise
        self.counters.fallbacks = _fallbacks.pop(loop, 0)
        _reactors[loop] = self
        _live.add(self)
        _slot.latest = self

    @property
    def backend(self) -> str:
        """What moves the bytes: "io_uring" or "readiness".

        (Also the latter for as long as the ring can have no threads.)
        """
        return self._runner.name

    @property
    def closed(self) -> bool:
        """Whether the reactor has ended."""
        return self._backend.fd < 0

    @property
    def _runner(self) -> Backend:
        return self._spare if self._goes_by_spare and self._spare is not None else self._backend

    @property
    def has_workers(self) -> bool:
        """Whether the backend has threads for what may wait for a disk."""
        return not self._goes_by_spare

    @property
    def lends(self) -> bool:
        """Whether it can send memory without a copy."""
        return self._backend.lends

    def buffers(self) -> Buffers:
        """Return the ring's registered buffers, made on first use.

        Raises OSError where there can be none: ENOMEM where they may not be locked.
        """
        if self._buffers is None:
            self._buffers = Buffers(self._backend.fd)
        return self._buffers

    @property
    def longest_chain(self) -> int:
        """The most steps that one chain may have."""
        return self._runner.longest_chain

    def statistics(self) -> Statistics:
        """Return the counters as they are now."""
        return Statistics(
            **asdict(self.counters),
            in_flight=len(self._records),
            pipes=len(self._pipes),
            zero_copies=self.loans.sent,
            notifications=self.loans.returned,
            copies=self.loans.copied,
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
                for run in tuple(self.runs.values()):
                    self._stop(run)
                await sleep(RETRY)
        except BaseException:
            self._closing = self.closed
            raise
        self._end()

    def _end(self) -> None:
        """End everything on a loop that goes on."""
        loop = self.running_loop()
        if loop is not None and not self.closed:
            if self.polls.fd != self._backend.fd:
                loop.remove_reader(self.polls.fd)
            # The reactor may end by this.
            loop.remove_reader(self._backend.fd)
        self._shut_down()

    # What follows is the engine's.

    def serves(self, loop: Loop) -> bool:
        """Return whether this is the loop's reactor, and takes transfers."""
        return self._loop() is loop and not self._closing

    def count(self, *, transfers: int = 0, sent: int = 0) -> None:
        """Count transfers that have started, and bytes that a socket took."""
        self.counters.transfers += transfers
        self.counters.bytes += sent

    def open(self, source: Original, target: Original, loan: Loan | None = None) -> Record:
        """Return a new record, which owns the two; where it raises they are closed.

        With a `loan` its chains are of sends that lend memory, and no others.
        """
        if self._closing:
            source.close()
            target.close()
            raise error_from(errno.ECANCELED, "the reactor was closed")
        record = Record(self._pipes, source, target, loan)
        self._records.add(record)
        self._looks.add(record)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit >= 0 and max(source.copy, target.copy) >= limit * MANY:
            self.press()
        return record

    def press(self) -> None:
        """Take in that descriptors are scarce: who waits with some gives them up."""
        loop = self.running_loop()
        if loop is not None and not self.is_pressed:
            loop.call_soon(self._ease)
        self._pressed_until = time.monotonic() + PRESSED

    def _ease(self) -> None:
        for run in tuple(self.runs.values()):
            if run.record.may_let_go and not run.ended:
                self._interrupt(run)

    @property
    def is_pressed(self) -> bool:
        """Whether descriptors were scarce a moment ago."""
        return time.monotonic() < self._pressed_until

    def is_crowded(self) -> bool:
        """Return whether a chain more of cached files would not pay: by readiness none does."""
        return self._runner.name == "readiness" or self._pipes.lent >= CHAINS

    def release(self, record: Record) -> None:
        """Close a record now, or when the chain has ended that its coroutine has left."""
        record.abandoned = True
        if not record.busy:
            self._records.discard(record)
            self._looks.discard(record)
            record.close()

    async def run(self, record: Record, chain: Chain) -> Outcome:
        """Run a chain to its end. A cancellation is part of the outcome, not raised."""
        if self._closing:
            raise error_from(errno.ECANCELED, "the reactor was closed")
        if not chain:
            raise ValueError("a chain has one step at the least")
        loop = running_loop()
        run = self._start(record, chain)
        try:
            if isinstance(loop, asyncio.AbstractEventLoop):
                cancelled = await self._wait(loop, run)
            elif run.ended:
                cancelled = None
            else:
                run.waiter = waiter = loop.create_future()
                cancelled = await waiter.outlast(lambda: self._stop(run))
        except BaseException:
            # The coroutine will not come back: the chain ends without it.
            self._stop(run)
            raise
        return Outcome(run.results, cancelled)

    async def _wait(self, loop: asyncio.AbstractEventLoop, run: Run) -> BaseException | None:
        """Wait for a chain's end; return the cancellation that came meanwhile."""
        cancelled: BaseException | None = None
        while not run.ended:
            run.waiter = loop.create_future()
            try:
                await run.waiter
            except asyncio.CancelledError as error:
                cancelled = error
                self._stop(run)
        return cancelled

    def _start(self, record: Record, chain: Chain) -> Run:
        self._last_number += 1
        kind = Run if record.loan is None else LendingRun
        backend = self._runner if record.loan is None else self._backend
        run = kind(self._last_number, record, chain, backend)
        # Before the chain: once that is under way, nothing may fail any more.
        self._tick_later()
        self.runs[run.number] = run
        record.busy = True
        try:
            self._begin(run)
        except OSError:
            # Of a chain that was taken in part the record stays as it is until the end, and
            # behind any other exception a chain may be under way.
            if not self._closing:
                del self.runs[run.number]
                record.busy = False
            raise
        self.counters.chains += 1
        self.counters.polls += sum(isinstance(step, PollIn | PollOut) for step in chain)
        return run

    def _begin(self, run: Run) -> None:
        if isinstance(run.chain[0], Pass):
            self._passing.start(run)
        elif isinstance(run.chain[0], Offer):
            self._offering.start(run)
        elif only_waits(run.chain):
            self._waits.start(run)
        else:
            (run.backend or self._backend).start(run)

    def _interrupt(self, run: Run) -> None:
        if isinstance(run.chain[0], Pass):
            self._passing.interrupt(run)
        elif isinstance(run.chain[0], Offer):
            self._offering.interrupt(run)
        elif only_waits(run.chain):
            self._waits.interrupt(run)
        else:
            (run.backend or self._backend).interrupt(run)

    def _readable(self) -> None:
        self.counters.wakeups += 1
        self._backend.drain()

    def running_loop(self) -> Loop | None:
        """Return the loop, or None where it is closed or gone."""
        loop = self._loop()
        return None if loop is None or loop.is_closed() else loop

    def retire(self, run: Run) -> None:
        """Take in that a chain has ended."""
        self.runs.pop(run.number, None)
        self._count_shortness(run)
        run.record.busy = False
        if run.record.abandoned:
            self.release(run.record)
        if self.running_loop() is not None:
            run.wake()

    def lose_workers(self) -> None:
        """Have chains go by readiness: the ring has no threads for them."""
        loop = self.running_loop()
        if loop is None or self._closing:
            return
        if self._spare is None:
            try:
                spare = Readiness(self)
            except OSError:
                return  # no descriptor: the next chain that comes to nothing asks again
            self._spare = spare
        self._goes_by_spare = True

    def regain_workers(self) -> None:
        """Have chains go by the ring again; those that do not end where they are."""
        self._goes_by_spare = False

    def break_down(self) -> None:
        """End at the loop's next turn; until then nothing more is begun."""
        self._closing = True
        self._patience = BROKEN_END
        loop = self.running_loop()
        if loop is not None:
            loop.call_soon(self._end)

    def _count_shortness(self, run: Run) -> None:
        for step, result in zip(run.chain, run.results, strict=False):
            if isinstance(step, Splice) and 0 <= result < step.length:
                if step.source is End.SOURCE:
                    self.counters.short_reads += 1
                    self.counters.short_read_bytes += result
                else:
                    self.counters.short_writes += 1
                    self.counters.short_write_bytes += result

    def _stop(self, run: Run) -> None:
        """Have a chain end, and ask again until it has."""
        if not run.stopping:
            run.stopping = True
            self._insist(run)

    def _insist(self, run: Run) -> None:
        loop = self.running_loop()
        if run.ended or self.closed or loop is None:
            return
        self._interrupt(run)
        if not run.ended:
            loop.call_later(RETRY, self._insist, run)

    def _tick_later(self) -> None:
        if not self._ticking:
            self._backend.tick_later()
            self._ticking = True

    def tick(self) -> None:
        """Look at the workers, and at the callers' objects."""
        self._ticking = False
        if not self._closing:
            self._backend.at_tick()
            if self._spare is not None:
                self._spare.at_tick()
        if not self.runs or self._closing:
            return
        self._look_for_closed()
        for run in self._pipes_to_look_at.next(self.runs, LOOKED_AT):
            self._look_at_pipe(run)
        self._look_for_faults()
        with contextlib.suppress(OSError):
            self._tick_later()

    def _look_for_closed(self) -> None:
        """Ask the callers' objects; where many were closed, some in each turn of the loop."""
        loop = self.running_loop()
        found = self._looks.find_closed(LOOKED_AT)
        if not found or loop is None or self._closing:
            return
        for run in [run for run in self.runs.values() if run.record in found]:
            self._look_at(run)
        if len(found) == LOOKED_AT:
            loop.call_soon(self._look_for_closed)

    def _look_for_faults(self) -> None:
        end, left = time.monotonic() + SECONDS, len(self.runs)
        while left > 0 and (some := self._to_look_at.next(self.runs, THOROUGHLY)):
            for run in some:
                self._look_at(run)
            left = left - len(some) if time.monotonic() < end else 0

    def _look_at(self, run: Run) -> None:
        if not run.ended and not run.stopping:
            writes = any(isinstance(step, PollOut | Offer) for step in run.chain)
            if run.record.find_fault(writes=writes):
                self._stop(run)

    def _look_at_pipe(self, run: Run) -> None:
        if run.ended or run.stopping:
            return
        record = run.record
        if record.pipe is not None and run.age >= PATIENCE:
            if len(run.chain) > 1:
                self._interrupt(run)
            elif isinstance(run.chain[0], PollIn | PollOut):
                # Not while a step uses it: it holds the pipe's lock for as long as a disk takes.
                record.shrink_pipe()
        run.age += 1

    def _shut_down(self) -> None:
        """End everything now; wait for what is still done for us.

        What has not ended within the reactor's patience is left as it is: a number that a later
        step may still look up is worse reused than leaked.
        """
        self._closing = True
        if self.closed:
            return
        for run in tuple(self.runs.values()):
            run.stopping = True
            self._passing.interrupt(run)
            self._offering.interrupt(run)
            self._waits.interrupt(run)
        deadline = time.monotonic() + self._patience
        if self._spare is not None:
            self._spare.end_all(deadline)
        self._backend.end_all(deadline)
        for run in self.runs.values():
            run.fail()
            if self.running_loop() is not None:
                run.wake()
        for record in self._records:
            if not record.busy:
                record.close()
            elif record.loan is not None:
                record.loan.lose(wake=False)
        self.loans.lose(wake=self.running_loop() is not None)
        self._records.clear()
        self._looks.clear()
        self._pipes.close()
        if self._spare is not None:
            self._spare.close()
        self._backend.close()
        self.polls.close()
        if self._buffers is not None:
            self._buffers.close()
        _live.discard(self)
        if _slot.latest is self:
            _slot.latest = None
        loop = self._loop()
        if loop is not None and _reactors.get(loop) is self:
            del _reactors[loop]

    def _forget(self) -> None:
        """In a forked child: give up the copies of what is the parent's."""
        self._closing = True
        self.polls.close()
        self._passing.forget()
        self._offering.forget()
        self._waits.forget()
        for run in self.runs.values():
            run.fail()
            run.wake()
        self.runs.clear()
        for record in self._records:
            record.close()
            record.source.abandon()
            record.target.abandon()
        self.loans.lose(wake=True)
        self._records.clear()
        self._looks.clear()
        self._pipes.close()
        if self._spare is not None:
            self._spare.forget()
        self._backend.forget()
        if self._buffers is not None:
            self._buffers.close()


class _Slot(threading.local):
    """The reactor that was asked for last in a thread: looking a loop up takes 0.4 us."""

    latest: Reactor | None = None


_slot = _Slot()
_reactors: "weakref.WeakKeyDictionary[Loop, Reactor]" = weakref.WeakKeyDictionary()
_fallbacks: "weakref.WeakKeyDictionary[Loop, int]" = weakref.WeakKeyDictionary()
"""Those of loops that have no reactor yet: they need none."""
_warned: "weakref.WeakSet[Loop]" = weakref.WeakSet()
_live: "weakref.WeakSet[Reactor]" = weakref.WeakSet()


def _forget_inherited() -> None:
    _slot.latest = None
    for reactor in tuple(_live):
        reactor._forget()
    _live.clear()
    _reactors.clear()


os.register_at_fork(after_in_child=_forget_inherited)


def latest_reactor(loop: Loop) -> Reactor | None:
    """Return the loop's reactor if it was the last that was asked for in this thread."""
    latest = _slot.latest
    # As `serves` says: its call is half of what the slot of a thread costs, 37 ns.
    if latest is not None and latest._loop() is loop and not latest._closing:
        return latest
    return None


def get_reactor() -> Reactor:
    """Return the running loop's reactor; make it where there is none yet.

    Raises RuntimeError where no loop is running, ValueError where AIOZC_BACKEND names no
    backend, and RingUnavailableError (a RuntimeError) where it says io_uring and that or
    liburing cannot be had.
    """
    loop = running_loop()
    if (latest := latest_reactor(loop)) is not None:
        return latest
    known = _reactors.get(loop)
    if known is None:
        return Reactor()
    if not known.serves(loop):
        raise error_from(errno.ECANCELED, "the reactor is being closed")
    _slot.latest = known
    return known


async def have_reactor() -> Reactor:
    """Return what `get_reactor` does, once there are descriptors to make it of."""
    while True:
        try:
            return get_reactor()
        except OSError as error:
            if not lacks_descriptors(error):
                raise
        await sleep(TICK)


def count_fallback(loop: Loop, blocking: object = None) -> None:
    """Count a transfer that the kernel does not do, of a `blocking` socket if that is why.

    The first of these is told of: they would be the kernel's otherwise, and nothing else says so.
    """
    reactor = _reactors.get(loop)
    if reactor is not None:
        reactor.counters.fallbacks += 1
    else:
        _fallbacks[loop] = _fallbacks.get(loop, 0) + 1
    if blocking is not None and loop not in _warned:
        _warned.add(loop)
        _logger.warning(
            "%r is blocking: its transfers go through memory, by worker threads;"
            " sock.setblocking(False) lets the kernel do them",
            blocking,
        )


def backend() -> str:
    """Return what moves the bytes on the running loop: "io_uring" or "readiness".

    Raises as `get_reactor` does.
    """
    return get_reactor().backend
