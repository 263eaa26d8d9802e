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
import functools
import os
import select
import time
from collections.abc import Callable

from aiozc._engines.backend import TICK_S, Port, Run, may_be_short
from aiozc._engines.inline import STREAMED, splice
from aiozc._engines.waits import awaited, find_unready
from aiozc._resources.polls import Watch, is_ready
from aiozc._resources.records import Record
from aiozc._runtime import threads
from aiozc._runtime.threads import Job
from aiozc._runtime.waiting import Loop, Timer
from aiozc._transfers.steps import End, Pause, PollIn, PollOut, Splice, Step

LONGEST_CHAIN = 8
"""Steps: the least that transfers ask for. 64 busy relays moved 1.3x as much as with 48."""


class Course:
    """Where a chain stands: the step that is next, and what it waits for.

    The chain itself learns what became of it in the loop's thread, when it is over.
    """

    __slots__ = ("_told", "granted", "index", "job", "leave", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.index = 0
        self.granted = False
        """Whether the next step has its share of a turn of the loop."""
        self._told: list[tuple[int, int]] = []
        self.leave: Callable[[], object] | None = None
        """Ends the wait for a peer or for the loop's turn, where there is one."""
        self.job: Job | None = None
        """What a thread does of it, or will do, until its end was taken in."""

    @property
    def over(self) -> bool:
        """Whether nothing of it is to be done any more."""
        return self.index >= len(self.run.chain)

    @property
    def step(self) -> Step:
        """The next step."""
        return self.run.chain[self.index]

    def go_on(self, result: int) -> None:
        """Take in the next step's result."""
        step, last = self.step, self.index == len(self.run.chain) - 1
        complete = result == step.length if isinstance(step, Splice) else result >= 0
        if last or not complete:
            self._told.append((self.index, result))
        self.index += 1
        if not complete and not may_be_short(step):
            self.index = len(self.run.chain)

    def end(self) -> None:
        """Tell the chain what became of it: of the steps that were done, where a fault cut it."""
        del self.run.results[self.index :]
        for index, result in self._told:
            self.run.complete(index, result)


class Readiness:
    """The backend `readiness`."""

    name = "readiness"

    def __init__(self, engine: Port) -> None:
        self._engine = engine
        self._polls = engine.polls
        self._courses: dict[int, Course] = {}
        self._timer: Timer | None = None
        self.longest_chain = LONGEST_CHAIN
        self.lends = False

    @property
    def fd(self) -> int:
        """The epoll instance's descriptor, or -1."""
        return self._polls.fd

    def start(self, run: Run) -> None:
        """Begin a chain, and go on to where it has to wait."""
        course = Course(run)
        self._courses[run.number] = course
        self._go_on(course)

    def drain(self) -> None:
        """Go on with the chains whose peers are ready."""
        self._polls.call_ready()

    def interrupt(self, run: Run) -> None:
        """End what the chain waits for; a thread looks at `stopping` between two steps."""
        course = self._courses.get(run.number)
        if course is not None and run.stopping:
            self._take_back(course)
        if course is None or course.leave is None:
            return
        if run.stopping or isinstance(course.step, PollIn | PollOut):
            self._resume(course, -errno.ECANCELED)

    def tick_later(self) -> None:
        """Have a timer of the loop for the tick."""
        loop = self._engine.running_loop()
        if loop is not None:
            self._timer = loop.call_later(TICK_S, self._tick)

    def at_tick(self) -> None:
        """Start another thread where all are stuck and somebody waits."""
        threads.FILES.grow()

    def _take_back(self, course: Course) -> None:
        """End a course that no thread has begun with."""
        job = course.job
        if job is not None and job.seat is not None and job.seat.give_back():
            course.job = None
            self._go_on(course)

    def _tick(self) -> None:
        self._engine.counters.completions += 1
        self._engine.tick()

    def end_all(self, deadline: float) -> None:
        """End every wait; wait for the threads."""
        for course in tuple(self._courses.values()):
            self._take_back(course)
            if course.run.ended:
                continue
            if course.job is None:
                self._resume(course, -errno.ECANCELED)
            else:
                _wait_until_ended(course.job, deadline)
                self._end_work(course)

    def close(self) -> None:
        """Close the epoll instance; what a thread has not ended yet is heard of no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._courses.clear()

    def forget(self) -> None:
        """Close the child's copies: its registrations are the parent's."""
        self._courses.clear()

    # In the loop's thread.

    def _go_on(self, course: Course) -> None:
        """Do steps until one has to wait, or the chain has ended."""
        record = course.run.record
        while not course.over and record.fault is None:
            if course.run.stopping:
                course.go_on(-errno.ECANCELED)
                continue
            try:
                if not self._step(course):
                    return
            except Exception as error:
                # No descriptor, no thread, no memory: what the steps before have moved counts.
                record.fault = error
        del self._courses[course.run.number]
        course.end()
        self._engine.retire(course.run)

    def _step(self, course: Course) -> bool:
        """Do the next step and return True; return False where it waits and is resumed later."""
        step = course.step
        if isinstance(step, Splice):
            if self._may_block(course, step):
                return self._hand_over(course, step)
            return self._splice(course, step)
        if isinstance(step, Pause):
            return self._pause(course, step)
        if not isinstance(step, PollIn | PollOut):
            raise TypeError(f"{step!r} is no step for readiness")
        watch = find_unready(self._polls, course.run.record, step)
        if watch is not None:
            return self._wait_for(course, watch)
        course.go_on(0)
        return True

    def _may_block(self, course: Course, step: Splice) -> bool:
        record = course.run.record
        if step.target is End.TARGET and not record.target.is_socket:
            return True
        if step.source is not End.SOURCE or record.source.is_socket:
            return False
        offset = step.source_offset
        inline = self._engine.inline
        return offset is None or not inline.is_cached(record.source.fd, offset, step.length)

    def _splice(self, course: Course, step: Splice) -> bool:
        loop, inline = self._loop(), self._engine.inline
        if not course.granted and not inline.may_spend(loop, 0):
            self._wait_for_turn(course, loop)
            return False
        course.granted = False
        result = splice(course.run.record, step)
        course.go_on(result)
        self._engine.counters.submissions += 1
        self._engine.counters.completions += 1
        factor = STREAMED if course.run.record.source.is_socket else 1
        if step.source is End.SOURCE:
            inline.charge(loop, factor * max(0, result))
        return True

    def _wait_for_turn(self, course: Course, loop: Loop) -> None:
        inline = self._engine.inline

        def go_on() -> None:
            course.granted = True
            course.leave = None
            self._resume(course, 0)

        place = inline.queue(loop, 0, go_on)
        course.leave = lambda: inline.leave(place)

    def _pause(self, course: Course, step: Pause) -> bool:
        timer = self._loop().call_later((1 << step.level) / 1000, self._resume, course, 0)
        course.leave = timer.cancel
        return False

    def _wait_for(self, course: Course, watch: Watch) -> bool:
        def leave() -> None:
            watch.call = None

        course.leave = leave
        watch.call = lambda: self._resume(course, 0)
        return False

    def _resume(self, course: Course, result: int) -> None:
        """Go on after a wait, which ended with `result`: for a step that waits alone, its own."""
        leave, course.leave = course.leave, None
        if leave is not None:
            leave()
        if isinstance(course.step, PollIn | PollOut | Pause) or result < 0:
            course.go_on(result)
        self._go_on_safely(course)

    def _go_on_safely(self, course: Course) -> None:
        """Go on from a callback, where an error can only be kept in the record."""
        try:
            course.run.record.check_nonblocking()
        except OSError as error:
            course.run.record.fault = error
        self._go_on(course)

    def _loop(self) -> Loop:
        loop = self._engine.running_loop()
        if loop is None:
            raise RuntimeError("the loop is closed")
        return loop

    # Threads.

    def _hand_over(self, course: Course, step: Splice) -> bool:
        """Give the chain to a thread, which goes on until a step has to wait for a peer.

        Where there can be none, the step is done here; what might never end waits for one.
        """
        work, end = functools.partial(_work, course), functools.partial(self._end_work, course)
        course.job = Job(self._loop(), work, end)
        try:
            threads.FILES.submit(course.job)
        except RuntimeError:
            course.job = None
            if _may_never_end(course.run.record):
                return self._try_later(course)
            # As the loop's own sock_sendfile would.
            return self._splice(course, step)
        self._engine.counters.submissions += 1
        return False

    def _try_later(self, course: Course) -> bool:
        course.leave = self._loop().call_later(TICK_S, self._resume, course, 0).cancel
        return False

    def _end_work(self, course: Course) -> None:
        """Go on with what a thread has left. It may be called twice, or after the engine's end."""
        job = course.job
        if job is None or not job.ended or course.run.number not in self._courses:
            return
        course.job = None
        self._engine.counters.completions += 1
        if job.error is not None:
            course.run.record.fault = job.error
        self._go_on_safely(course)


def _work(course: Course) -> None:
    """In a thread: do the next step, and those behind it that need not wait."""
    job = course.job
    assert job is not None
    while not course.over and not course.run.stopping:
        step = course.step
        if isinstance(step, Splice):
            course.run.record.check_nonblocking()
            job.touch()
            course.go_on(splice(course.run.record, step))
        elif isinstance(step, Pause) or not is_ready(*awaited(course.run.record, step)):
            return
        else:
            course.go_on(0)


def _wait_until_ended(job: Job, deadline: float) -> None:
    """Wait without a loop for a thread, until `deadline` (time.monotonic) at the most.

    By poll(2), as for all else: the waits of `threading` are blocking calls to who looks for such,
    and another loop may run here, in which a closed one is collected.
    """
    clock = select.poll()
    while not job.ended and time.monotonic() < deadline:
        clock.poll(1)


def _may_never_end(record: Record) -> bool:
    """Return whether a step may wait for a peer for as long as that likes: a terminal's reader."""
    ends = [end.fd for end in (record.source, record.target) if end.interruptible]
    return any(os.isatty(fd) and os.get_blocking(fd) for fd in ends)
