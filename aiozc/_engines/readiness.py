"""Chains run as system calls: splice(2) when poll(2) says so, for where io_uring is refused.

The same chains, with the same results, as on a ring:

- A step between sockets and pipes of ours never waits, so it runs in the loop's own thread,
  within what one turn of the loop may spend; so does the read of a file whose pages are known
  to be cached.
- What may wait, for a disk, or for who holds the lock of a caller's pipe, runs in a thread of our
  own (`_runtime/threads.py`), and so do the steps behind it until one has to wait for a peer. So
  the loop's thread meets a disk only where pages are evicted between the question and the read.
  A step in a thread cannot be interrupted: who cancels waits for the disk, or the lock. One that
  has no thread yet is taken back.
- Waiting is done by the engine's epoll instance (`polls.py`), which the loop watches as one
  descriptor.

A chain's course has one owner at a time: the loop's thread, or the one that has its `job`. A record
that a thread uses is busy until that has ended, as it is while a ring names it.
"""

import errno
import os
import select
import time

from aiozc._engines.backend import TICK_S, Port, Run, may_be_short
from aiozc._engines.inline import STREAMED, splice
from aiozc._engines.waits import awaited, find_unready
from aiozc._resources.polls import is_ready
from aiozc._resources.records import Record
from aiozc._runtime import threads
from aiozc._runtime.threads import Job
from aiozc._runtime.waiting import Timer
from aiozc._transfers.steps import Chain, End, Pause, PollIn, PollOut, Splice

LONGEST_CHAIN = 8
"""Steps: the least that transfers ask for. 64 busy relays moved 1.3x as much as with 48."""


class Course(Run):
    """A chain that is run as system calls: by the loop's thread, or by the one that has its job."""

    __slots__ = ("_granted", "_index", "_job")

    def begin(self) -> None:
        """Begin it, and go on to where it has to wait."""
        self._index = 0
        self._granted = False
        """Whether the next step has its share of a turn of the loop."""
        self._job: Job | None = None
        """What a thread does of it, or will do, until its end is known."""
        self._go_on()

    def interrupt(self) -> None:
        """End what it waits for; a thread looks at `stopping` between two steps."""
        if self.stopping and self._job is not None and self._job.give_up():
            # No thread has begun with it.
            self._job = None
            self._go_on()
        if self.ended or self._job is not None:
            return
        if self.stopping or isinstance(self.chain[self._index], PollIn | PollOut):
            self._resume(-errno.ECANCELED)

    def end_by(self, deadline: float) -> None:
        """End it without a loop, by the time `deadline` (time.monotonic) if a thread has it.

        By poll(2), as for all else: the waits of `threading` are blocking calls to who looks for
        such, and another loop may run here, in which a closed one is collected.
        """
        clock = select.poll()
        self._end_work()
        while self._job is not None and time.monotonic() < deadline:
            clock.poll(1)
            self._end_work()

    def _go_on(self) -> None:
        """Do steps until one has to wait, or the chain has ended."""
        while self._index < len(self.chain) and self.record.fault is None:
            if self.stopping:
                self._did(-errno.ECANCELED)
                continue
            try:
                if not self._do_step():
                    return
            except Exception as error:
                # No descriptor, no thread, no memory: what the steps before have moved counts.
                self.record.fault = error
        self._engine.retire(self)

    def _did(self, result: int) -> None:
        """Note the next step's result."""
        step = self.chain[self._index]
        complete = result == step.length if isinstance(step, Splice) else result >= 0
        self.results.append(0 if isinstance(step, Pause) else result)
        goes_on = complete or may_be_short(step)
        self._index = self._index + 1 if goes_on else len(self.chain)

    def _do_step(self) -> bool:
        """Do the next step and return True; return False where it waits and is resumed later."""
        step = self.chain[self._index]
        if isinstance(step, Splice):
            return self._hand_over(step) if self._may_block(step) else self._splice(step)
        if isinstance(step, Pause):
            self._resume_in((1 << step.level) / 1000)
            return False
        if not isinstance(step, PollIn | PollOut):
            raise TypeError(f"{step!r} is no step for readiness")
        self._watch = find_unready(self._engine.polls, self.record, step)
        if self._watch is not None:
            self._watch.call = self._resume
            return False
        self._did(0)
        return True

    def _may_block(self, step: Splice) -> bool:
        source, target = self.record.source, self.record.target
        if step.target is End.TARGET and not target.is_socket:
            return True
        if step.source is not End.SOURCE or source.is_socket:
            return False
        offset = step.source_offset
        return offset is None or not self._engine.inline.is_cached(source.fd, offset, step.length)

    def _splice(self, step: Splice) -> bool:
        inline = self._engine.inline
        if not self._granted and not inline.may_spend(self._loop, 0):
            self._place = inline.queue(self._loop, 0, self._have_turn)
            return False
        self._granted = False
        result = splice(self.record, step)
        self._did(result)
        self._engine.counters.submissions += 1
        self._engine.counters.completions += 1
        if step.source is End.SOURCE:
            factor = STREAMED if self.record.source.is_socket else 1
            inline.charge(self._loop, factor * max(0, result))
        return True

    def _have_turn(self) -> None:
        self._granted = True
        self._place = None
        self._resume()

    def _resume_in(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self, result: int = 0) -> None:
        """Go on after a wait, which ended with `result`: for a step that waits alone, its own."""
        self._stop_waiting()
        if isinstance(self.chain[self._index], PollIn | PollOut | Pause) or result < 0:
            self._did(result)
        self._go_on_safely()

    def _go_on_safely(self) -> None:
        """Go on from a callback, where an error can only be kept in the record."""
        try:
            self.record.check_nonblocking()
        except OSError as error:
            self.record.fault = error
        self._go_on()

    def _hand_over(self, step: Splice) -> bool:
        """Give the chain to a thread, which goes on until a step has to wait for a peer.

        Where there can be none, the step is done here; what might never end waits for one.
        """
        self._job = Job(self._loop, self._work, self._end_work)
        try:
            threads.FILES.submit(self._job)
        except RuntimeError:
            self._job = None
            if _may_never_end(self.record):
                self._resume_in(TICK_S)
                return False
            # As the loop's own sock_sendfile would.
            return self._splice(step)
        self._engine.counters.submissions += 1
        return False

    def _work(self) -> None:
        """In a thread: do the next step, and those behind it that need not wait."""
        job = self._job
        assert job is not None
        while self._index < len(self.chain) and not self.stopping:
            step = self.chain[self._index]
            if isinstance(step, Splice):
                self.record.check_nonblocking()
                job.touch()
                self._did(splice(self.record, step))
            elif isinstance(step, Pause) or not is_ready(*awaited(self.record, step)):
                return
            else:
                self._did(0)

    def _end_work(self) -> None:
        """Go on with what a thread has left. It may be called twice, or after the engine's end."""
        job = self._job
        if job is None or not job.ended or self.ended:
            return
        self._job = None
        self._engine.counters.completions += 1
        if job.error is not None:
            self.record.fault = job.error
        self._go_on_safely()


class Readiness:
    """The backend `readiness`."""

    name = "readiness"

    def __init__(self, engine: Port) -> None:
        self._engine = engine
        self._timer: Timer | None = None
        self.longest_chain = LONGEST_CHAIN
        self.lends = False

    @property
    def fd(self) -> int:
        """The epoll instance's descriptor, or -1."""
        return self._engine.polls.fd

    def make(self, number: int, record: Record, chain: Chain) -> Run:
        """Return a chain that is to be begun."""
        return Course(self._engine, number, record, chain)

    def drain(self) -> None:
        """Go on with the chains whose peers are ready."""
        self._engine.polls.call_ready()

    def tick_later(self) -> None:
        """Have a timer of the loop for the tick."""
        loop = self._engine.running_loop()
        if loop is not None:
            self._timer = loop.call_later(TICK_S, self._tick)

    def at_tick(self) -> None:
        """Start another thread where all are stuck and somebody waits."""
        threads.FILES.grow()

    def _tick(self) -> None:
        self._engine.counters.completions += 1
        self._engine.tick()

    def end_all(self, deadline: float) -> None:
        """Wait for the threads: every other chain was interrupted."""
        for run in tuple(self._engine.runs.values()):
            if isinstance(run, Course):
                run.end_by(deadline)

    def close(self) -> None:
        """Have no timer any more; what a thread has not ended yet is heard of no more."""
        if self._timer is not None:
            self._timer.cancel()

    def forget(self) -> None:
        """In a forked child: have no timer, it is the parent's."""
        self._timer = None


def _may_never_end(record: Record) -> bool:
    """Return whether a step may wait for a peer for as long as that likes: a terminal's reader."""
    ends = [end.fd for end in (record.source, record.target) if end.interruptible]
    return any(os.isatty(fd) and os.get_blocking(fd) for fd in ends)
