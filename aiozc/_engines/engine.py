"""What runs the transfers of one loop: operations in flight, cancellation, end of life.

Ownership. A record (`records.py`) owns all that the kernel may still touch. Its life is a table
(`lifecycle.py`). At most one chain of a record is in flight, and the record is closed only when
none is: a coroutine that is cancelled has its chain stopped, and returns when that has ended. A
coroutine that is thrown away (its loop was closed, or it was collected) leaves its record behind;
the engine closes it when the chain ends.

Cancelling. A backend may miss a chain that it is to interrupt (K13), so the request is
repeated until the chain has ended.

End of life. The loop's reader handle is the only owner of a `_Watch`. When the loop is
closed it drops its handles, the watch is collected, and the engine ends: no hook in the
loop is needed, whoever runs it. (A run of trio has a system task in place of the handle, see
`on_trio.py`.) In a forked child every engine gives up the child's copies
of its descriptors and mappings, and the child makes one of its own. (From CPython 3.12 on os.fork()
warns where a process has threads, and counts those of the kernel that work for a ring: the child
has none of them, and nothing of a ring that they could hold.)
"""

import contextlib
import errno
import functools
import logging
import resource
import time
import weakref
from typing import NamedTuple

from aiozc._engines.backend import RETRY_S, Backend, Counters, Run
from aiozc._engines.inline import Inline
from aiozc._engines.offering import Offering
from aiozc._engines.passing import Passing
from aiozc._engines.readiness import Readiness
from aiozc._engines.uring import Uring
from aiozc._engines.waits import Wait, only_waits
from aiozc._engines.watchdog import Watchdog
from aiozc._errors import RingUnavailableError, error_from
from aiozc._kernel.features import wanted_backend
from aiozc._kernel.permitted import look
from aiozc._kernel.sockets import Messenger, room_teller
from aiozc._resources.buffers import Buffers
from aiozc._resources.lifecycle import Phase
from aiozc._resources.loans import Loan, Loans
from aiozc._resources.owners import owners_of
from aiozc._resources.pipes import PipePool
from aiozc._resources.polls import Polls
from aiozc._resources.records import Original, Record
from aiozc._runtime.runtime import current, sleep
from aiozc._runtime.waiting import Loop
from aiozc._transfers.route import CHAINS
from aiozc._transfers.steps import Chain, End, Offer, Pass, PollIn, PollOut, Splice

_logger = logging.getLogger("aiozc")

LONGEST_END_S = 10.0
"""Seconds that an engine waits at its end for a disk to answer."""
BROKEN_END_S = 0.5
"""The same where the kernel took a part of a chain, whose end may never be told."""
SCARCE_SHARE = 0.75
"""What of a process's descriptors is left to others: beyond, who waits for a peer has none."""
SCARCE_S = 1.0
"""Seconds for which that lasts."""


class Outcome(NamedTuple):
    """A chain's results, one for each step that ran, and the cancellation that came meanwhile."""

    results: list[int]
    cancellation: BaseException | None


class _Watch:
    """The loop's reader callback; collected when the loop drops its handles."""

    __slots__ = ("_engine",)

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def __call__(self) -> None:
        self._engine.drain()

    def __del__(self) -> None:
        self._engine.shut_down()


class Engine:
    """Runs the chains of one loop's transfers, and owns their records.

    Raises as `Reactor` does. It ends with `aclose`, or with its loop.
    """

    def __init__(self, loop: Loop, entries: int, backend: str | None) -> None:
        look()
        self.loop = weakref.ref(loop)
        self.closing = False
        self.inline = Inline()
        self.counters = Counters()
        self.owners = owners_of(loop)
        self.loans = Loans()
        self.polls = Polls()
        self.runs: dict[int, Run] = {}
        self._room_in = room_teller()
        self._buffers: Buffers | None = None
        self._pipes = PipePool()
        self._pressed_until = 0.0
        self._records: set[Record] = set()
        self._watchdog = Watchdog(self.runs, self._stop)
        self._last_number = 0
        self._ticking = False
        self._patience_s = LONGEST_END_S
        self._backend = self._choose(backend, entries)
        self._spare: Backend | None = None
        """Runs the chains while the backend has no threads for them."""
        self._goes_by_spare = False
        try:
            loop.add_reader(self._backend.fd, _Watch(self))
            if self.polls.fd != self._backend.fd:
                loop.add_reader(self.polls.fd, self.polls.call_ready)
        except BaseException:
            self.end()
            raise

    def _choose(self, wanted: str | None, entries: int) -> Backend:
        """Return the backend that the caller or the environment asks for.

        Where none is, io_uring, or readiness for the causes of a RingUnavailableError alone.
        """
        wanted = wanted_backend(wanted)
        if wanted == Readiness.name:
            return Readiness(self)
        try:
            return Uring(self, entries)
        except RingUnavailableError as error:
            if wanted == Uring.name:
                raise
            _log_once(f"{error}; {error.remedy}" if error.remedy else str(error))
        return Readiness(self)

    @property
    def backend(self) -> str:
        """What moves the bytes now: "io_uring" or "readiness"."""
        return self._runner.name

    @property
    def closed(self) -> bool:
        """Whether the engine has ended."""
        return self._backend.fd < 0

    @property
    def in_flight(self) -> int:
        """Transfers that are not at their end."""
        return len(self._records)

    @property
    def pipes(self) -> int:
        """Pipes that are open, idle ones included."""
        return len(self._pipes)

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

    @property
    def longest_chain(self) -> int:
        """The most steps that one chain may have."""
        return self._runner.longest_chain

    def buffers(self) -> Buffers:
        """Return the ring's registered buffers, made on first use.

        Raises OSError where there can be none: ENOMEM where they may not be locked.
        """
        if self._buffers is None:
            self._buffers = Buffers(self._backend.fd)
        return self._buffers

    def serves(self, loop: Loop) -> bool:
        """Return whether this is the loop's engine, and takes transfers."""
        return self.loop() is loop and not self.closing

    def count(self, *, transfers: int = 0, sent: int = 0) -> None:
        """Count transfers that have started, and bytes that a socket took."""
        self.counters.transfers += transfers
        self.counters.bytes += sent

    def open(self, source: Original, target: Original, loan: Loan | None = None) -> Record:
        """Return a new record of the two ends. Where that raises, the ends are closed.

        With a `loan` its chains are of sends that lend memory, and no others.
        """
        if self.closing:
            source.close()
            target.close()
            raise error_from(errno.ECANCELED, "the reactor was closed")
        record = Record(self._pipes, source, target, loan)
        self._records.add(record)
        self._watchdog.add(record)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit >= 0 and max(source.fd, target.fd) >= limit * SCARCE_SHARE:
            self.press()
        return record

    def press(self) -> None:
        """Note that descriptors are scarce: transfers that wait for a peer give theirs up."""
        loop = self.running_loop()
        if loop is not None and not self.is_pressed:
            loop.call_soon(self._ease)
        self._pressed_until = time.monotonic() + SCARCE_S

    def _ease(self) -> None:
        for run in tuple(self.runs.values()):
            if run.record.may_let_go and not run.ended:
                run.interrupt()

    @property
    def is_pressed(self) -> bool:
        """Whether descriptors were scarce a moment ago."""
        return time.monotonic() < self._pressed_until

    def is_crowded(self) -> bool:
        """Return whether another chain of a cached file would not pay; by readiness none does."""
        return self.backend == Readiness.name or self._pipes.lent >= CHAINS

    def release(self, record: Record) -> None:
        """Close a record now, or when the chain has ended that its coroutine has left."""
        record.release()
        self._drop_closed(record)

    def _drop_closed(self, record: Record) -> None:
        if record.phase is Phase.CLOSED:
            self._records.discard(record)
            self._watchdog.discard(record)

    async def run(self, record: Record, chain: Chain) -> Outcome:
        """Run a chain to its end. A cancellation is part of the outcome, not raised."""
        if self.closing:
            raise error_from(errno.ECANCELED, "the reactor was closed")
        if not chain:
            raise ValueError("a chain has one step at the least")
        run = self._start(record, chain)
        try:
            cancellation = await current().outlast(run, lambda: self._stop(run))
        except BaseException:
            # The coroutine will not come back: the chain ends without it.
            self._stop(run)
            record.unclaimed = run.results if run.ended else None
            raise
        return Outcome(run.results, cancellation)

    def _start(self, record: Record, chain: Chain) -> Run:
        run = self._make(record, chain)
        # Before the chain: once that is under way, nothing may fail any more.
        self._tick_later()
        self.runs[run.number] = run
        record.begin(run)
        try:
            run.begin()
        except OSError:
            # Of a chain that was taken in part the record stays as it is until the end, and
            # behind any other exception a chain may be under way.
            if not self.closing:
                del self.runs[run.number]
                record.end()
            raise
        self.counters.chains += 1
        self.counters.polls += sum(isinstance(step, PollIn | PollOut) for step in chain)
        return run

    def _make(self, record: Record, chain: Chain) -> Run:
        self._last_number += 1
        number, first = self._last_number, chain[0]
        if isinstance(first, Pass):
            return Passing(self, number, record, chain, self._messenger)
        if isinstance(first, Offer):
            return Offering(self, number, record, chain, self._room_in)
        if only_waits(chain):
            return Wait(self, number, record, chain)
        backend = self._runner if record.loan is None else self._backend
        return backend.make(number, record, chain)

    @functools.cached_property
    def _messenger(self) -> Messenger:
        return Messenger()

    def drain(self) -> None:
        """Process the backend's completions."""
        self.counters.wakeups += 1
        self._backend.drain()

    def running_loop(self) -> Loop | None:
        """Return the loop, or None where it is closed or gone."""
        loop = self.loop()
        return None if loop is None or loop.is_closed() else loop

    def retire(self, run: Run) -> None:
        """Note that a chain has ended."""
        self.runs.pop(run.number, None)
        self._count_shortness(run)
        run.record.end()
        self._drop_closed(run.record)
        if self.running_loop() is not None:
            run.wake()

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
        """Ask a chain to end, again and again until it has (K13)."""
        if not run.ended and not run.stopping:
            run.record.stop()
            self._insist(run)

    def _insist(self, run: Run) -> None:
        loop = self.running_loop()
        if run.ended or self.closed or loop is None:
            return
        run.interrupt()
        if not run.ended:
            loop.call_later(RETRY_S, self._insist, run)

    def _tick_later(self) -> None:
        if not self._ticking:
            self._backend.tick_later()
            self._ticking = True

    def tick(self) -> None:
        """Look at the workers, and at the callers' objects."""
        self._ticking = False
        loop = self.running_loop()
        if loop is None or self.closing:
            return
        self._backend.at_tick()
        if self._spare is not None:
            self._spare.at_tick()
        if self.runs:
            self._watchdog.look(loop)
            with contextlib.suppress(OSError):
                self._tick_later()

    def lose_workers(self) -> None:
        """Have chains go by readiness: the ring has no threads for them."""
        loop = self.running_loop()
        if loop is None or self.closing:
            return
        if self._spare is None:
            try:
                self._spare = Readiness(self)
            except OSError:
                return  # no descriptor: the next chain that comes to nothing asks again
        self._goes_by_spare = True

    def regain_workers(self) -> None:
        """Have new chains go by the ring again; the others end where they are."""
        self._goes_by_spare = False

    def break_down(self) -> None:
        """End at the loop's next turn; until then nothing more is begun."""
        self.closing = True
        self._patience_s = BROKEN_END_S
        loop = self.running_loop()
        if loop is not None:
            loop.call_soon(self.end)

    async def aclose(self) -> None:
        """End the engine: its transfers end with an OSError (ECANCELED), then the ring."""
        self.closing = True
        try:
            while self._records:
                for run in tuple(self.runs.values()):
                    self._stop(run)
                await sleep(RETRY_S)
        except BaseException:
            self.closing = self.closed
            raise
        self.end()

    def end(self) -> None:
        """End the engine on a loop that stays open."""
        loop = self.running_loop()
        if loop is not None and not self.closed:
            if self.polls.fd != self._backend.fd:
                loop.remove_reader(self.polls.fd)
            # The engine may end by this.
            loop.remove_reader(self._backend.fd)
        self.shut_down()

    def shut_down(self) -> None:
        """End everything now, and wait for what the kernel and threads still do for us.

        What has not ended within the engine's patience is left as it is: a number that a later
        step may still look up is worse reused than leaked.
        """
        self.closing = True
        if self.closed:
            return
        for run in tuple(self.runs.values()):
            run.record.stop()
            if not run.in_kernel:
                run.interrupt()
        deadline = time.monotonic() + self._patience_s
        if self._spare is not None:
            self._spare.end_all(deadline)
        self._backend.end_all(deadline)
        for run in self.runs.values():
            run.fail()
            if self.running_loop() is not None:
                run.wake()
        for record in self._records:
            if record.is_idle:
                record.close()
            elif record.loan is not None:
                record.loan.lose(wake=False)
        self.loans.lose(wake=self.running_loop() is not None)
        self._records.clear()
        self._watchdog.clear()
        self._pipes.close()
        if self._spare is not None:
            self._spare.close()
        self._backend.close()
        self.polls.close()
        if self._buffers is not None:
            self._buffers.close()

    def forget(self) -> None:
        """In a forked child: close the child's copies of the parent's descriptors."""
        self.closing = True
        self.polls.close()
        self.inline.forget()
        for run in self.runs.values():
            run.fail()
            run.wake()
        self.runs.clear()
        for record in self._records:
            record.forget()
        self.loans.lose(wake=True)
        self._records.clear()
        self._watchdog.clear()
        self._pipes.close()
        if self._spare is not None:
            self._spare.forget()
        self._backend.forget()
        if self._buffers is not None:
            self._buffers.close()


@functools.cache
def _log_once(cause: str) -> None:
    _logger.info("transfers go by readiness (os.sendfile, os.splice), not io_uring: %s", cause)
