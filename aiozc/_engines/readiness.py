"""Chains run as system calls: splice(2) when poll(2) says so, for where io_uring is refused.

The same chains, with the same results, as on a ring:

- A step between sockets and pipes of ours never waits, so it runs in the loop's own thread,
  within what one turn of the loop may spend; so does the read of a file whose pages are known
  to be cached.
- What may wait, for a disk, or for who holds the lock of a caller's pipe, runs in a worker
  thread, and so do the steps behind it until one has to wait for a peer. So the loop's thread
  meets a disk only where pages are evicted between the question and the read. The threads are
  the backend's own: those of the loop may be busy with anything, and are shut down before it.
  A step in a thread cannot be interrupted: who cancels waits for the disk, or the lock. One that
  has no thread yet is taken back.
- Waiting is done by the engine's epoll instance (`polls.py`), which the loop watches as one
  descriptor.

A chain's course has one owner at a time: the loop's thread, or a worker's. A record that a
worker uses is busy until that has ended, as it is while a ring names it.
"""

import errno
import functools
import logging
import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from aiozc._engines.at_once import STREAMED, splice
from aiozc._engines.backend import TICK_S, Port, Run, may_be_short
from aiozc._engines.waits import awaited, find_unready
from aiozc._resources.polls import Polls, Watch, is_ready
from aiozc._resources.records import Record
from aiozc._runtime.hosts import Loop, Timer
from aiozc._transfers.steps import End, Pause, PollIn, PollOut, Splice, Step

WORKERS = 8
"""Threads of one backend that are at work."""
MOST = WORKERS + 64
"""The same, with those that wait for disks that do not answer."""
STUCK = 0.2
"""Seconds at one step, after which a thread is not counted any more."""
LONGEST_CHAIN = 8
"""Steps: the least that transfers ask for. 64 busy relays moved 1.3x as much as with 48."""


_logger = logging.getLogger("aiozc")


class Course:
    """Where a chain stands: the step that is next, and what it waits for.

    The chain itself learns what became of it in the loop's thread, when it is over.
    """

    __slots__ = (
        *("_told", "_unclaimed", "fault", "finished", "granted", "index", "leave", "over", "run"),
    )

    def __init__(self, run: Run) -> None:
        self.run = run
        self.index = 0
        self.over = False
        self.granted = False
        """Whether the next step has its share of a turn of the loop."""
        self._told: list[tuple[int, int]] = []
        self.leave: Callable[[], object] | None = None
        """Ends the wait for a peer or for the loop's turn, where there is one."""
        self.finished: threading.Event | None = None
        """Where a worker has it, or will have: set when that is done with it."""
        self._unclaimed: list[None] = []
        self.fault: Exception | None = None
        """Why it stopped, where that is no step's result."""

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
            self.over = last or not may_be_short(step)
        self.index += 1

    def offer(self) -> threading.Event:
        """Let whoever comes first have it: a worker, or the loop's thread, which takes it back."""
        self._unclaimed = [None]
        self.finished = threading.Event()
        return self.finished

    def claim(self) -> bool:
        """Return whether it is the caller's now."""
        try:
            self._unclaimed.pop()
        except IndexError:
            return False
        return True

    def stop(self, fault: Exception) -> None:
        """Do no more steps, for a reason of our own."""
        self.fault = fault
        self.finished = None
        self.run.stopping = True

    def end(self) -> None:
        """Tell the chain what became of it."""
        for index, result in self._told:
            self.run.complete(index, result)
        if self.fault is not None:
            self.run.record.fault = self.fault


class Readiness:
    """The backend `readiness`."""

    name = "readiness"

    def __init__(self, engine: Port) -> None:
        self._engine = engine
        self._polls = engine.polls
        self._workers = _Workers(self._polls, self._take_done)
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
        """Go on with the chains whose peers are ready, or that a worker is done with."""
        self._polls.call_ready()

    def _take_done(self) -> None:
        while (course := self._workers.next_done()) is not None:
            self._end_work(course)

    def interrupt(self, run: Run) -> None:
        """End what the chain waits for; a worker looks at `stopping` between two steps."""
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
        """Have another thread where all are stuck."""
        self._workers.grow()

    def _take_back(self, course: Course) -> None:
        """End a course that no worker has begun with."""
        if course.finished is not None and course.claim():
            course.finished = None
            self._workers.withdraw()
            self._go_on(course)

    def _tick(self) -> None:
        self._engine.counters.completions += 1
        self._engine.tick()

    def end_all(self, deadline: float) -> None:
        """End every wait; wait for the workers."""
        for course in tuple(self._courses.values()):
            self._take_back(course)
            if course.run.ended:
                continue
            if course.finished is None:
                self._resume(course, -errno.ECANCELED)
            elif _wait_until(course.finished.is_set, deadline):
                self._end_work(course)

    def close(self) -> None:
        """Close the epoll instance, and have the workers end."""
        if self._timer is not None:
            self._timer.cancel()
        self._workers.close(wait=not self._courses)

    def forget(self) -> None:
        """Close the child's copies: its registrations are the parent's."""
        self._courses.clear()
        self._workers.forget()

    # In the loop's thread.

    def _go_on(self, course: Course) -> None:
        """Do steps until one has to wait, or the chain has ended."""
        while not course.over:
            if course.run.stopping:
                course.go_on(-errno.ECANCELED)
                continue
            try:
                if not self._step(course):
                    return
            except Exception as error:
                # No descriptor, no thread, no memory: what the steps before have moved counts.
                course.stop(error)
        del self._courses[course.run.number]
        course.end()
        self._engine.retire(course.run)

    def _step(self, course: Course) -> bool:
        """Do the next step and return True, or see to it that the course is resumed."""
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
        at_once = self._engine.at_once
        return offset is None or not at_once.is_cached(record.source.copy, offset, step.length)

    def _splice(self, course: Course, step: Splice) -> bool:
        loop, at_once = self._loop(), self._engine.at_once
        if not course.granted and not at_once.may_spend(loop, 0):
            self._wait_for_turn(course, loop)
            return False
        course.granted = False
        result = splice(course.run.record, step)
        course.go_on(result)
        self._engine.counters.submissions += 1
        self._engine.counters.completions += 1
        factor = STREAMED if course.run.record.source.is_socket else 1
        if step.source is End.SOURCE:
            at_once.charge(loop, factor * max(0, result))
        return True

    def _wait_for_turn(self, course: Course, loop: Loop) -> None:
        at_once = self._engine.at_once

        def go_on() -> None:
            course.granted = True
            course.leave = None
            self._resume(course, 0)

        place = at_once.queue(loop, 0, go_on)
        course.leave = lambda: at_once.leave(place)

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
        """Go on behind a wait: with the step that it was for, or with what the wait came to."""
        leave, course.leave = course.leave, None
        if leave is not None:
            leave()
        if isinstance(course.step, PollIn | PollOut | Pause) or result < 0:
            course.go_on(result)
        self._go_on_safely(course)

    def _go_on_safely(self, course: Course) -> None:
        """Go on where nobody is there to be told of an error but the record."""
        try:
            course.run.record.check_nonblocking()
        except OSError as error:
            course.stop(error)
        self._go_on(course)

    def _loop(self) -> Loop:
        loop = self._engine.running_loop()
        if loop is None:
            raise RuntimeError("the loop is closed")
        return loop

    # Worker threads.

    def _hand_over(self, course: Course, step: Splice) -> bool:
        """Have a worker go on with the chain, as far as it can without waiting for a peer.

        Where there can be none, the step is done here; what might never end waits for one.
        """
        finished = course.offer()
        try:
            self._workers.submit(course, finished)
        except RuntimeError as error:
            course.finished = None
            _tell_of_refusal(str(error))
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
        if course.finished is not None:
            course.finished = None
            self._engine.counters.completions += 1
            self._go_on_safely(course)


def _work(course: Course, worker: "_Worker") -> None:
    """In a worker thread: do the next step, and those behind it that need not wait."""
    try:
        while not course.over and not course.run.stopping:
            step = course.step
            if isinstance(step, Splice):
                course.run.record.check_nonblocking()
                worker.since = time.monotonic()
                course.go_on(splice(course.run.record, step))
            elif isinstance(step, Pause) or not is_ready(*awaited(course.run.record, step)):
                return
            else:
                course.go_on(0)
    except Exception as error:
        # Its own `finished` is looked at by the loop's thread meanwhile.
        course.fault = error
        course.run.stopping = True


def _wait_until(condition: Callable[[], bool], deadline: float = math.inf) -> bool:
    """Wait without a loop until it is so, or for a time; return whether it is.

    By poll(2), as for all else: the waits of `threading` are blocking calls to who looks for such,
    and another loop may run here, in which a closed one is collected.
    """
    clock = select.poll()
    while not (so := condition()) and time.monotonic() < deadline:
        clock.poll(1)
    return so


class _Worker:
    """A thread, and since when it has been at one step."""

    __slots__ = ("since", "thread")

    def __init__(self, run: "Callable[[_Worker], None]") -> None:
        self.since: float | None = None
        self.thread = threading.Thread(target=run, args=(self,), name="aiozc", daemon=True)


class _Workers:
    """Threads for what may wait for a disk, and how the loop hears of their ends.

    There are `WORKERS` beside those that have been at the same step for `STUCK` seconds, or as many
    as these if that is more, so that a hundred reads of a disk that does not answer stop nobody
    else for long. `MOST` is the end of that, and is logged. They are daemons: one that waits for
    what never comes must not keep the process.
    """

    def __init__(self, polls: Polls, take_done: Callable[[], object]) -> None:
        self._polls = polls
        self._take_done = take_done
        self._workers: list[_Worker] = []
        self._given: SimpleQueue[tuple[Course, threading.Event] | None] = SimpleQueue()
        self._under_way = 0
        self._leaving = 0
        self._done: deque[Course] = deque()
        self._event = -1
        # At once: later, when a thread is needed, there may be no descriptor for it.
        self._open()

    def submit(self, course: Course, finished: threading.Event) -> None:
        """Have a thread do what it can of a course. Where it raises, none will."""
        self._under_way += 1
        try:
            self.grow()
        except BaseException:
            self._under_way -= 1
            raise
        self._given.put((course, finished))

    def _open(self) -> None:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._polls.watch(event, select.POLLIN).call = self._hear
        except BaseException:
            os.close(event)
            raise
        self._event = event

    def grow(self) -> None:
        """Have as many threads more as are needed, and may be had.

        Raises RuntimeError where there is none, and none can be started.
        """
        count = len(self._workers) - self._leaving
        if self._under_way <= count:
            return
        wanted = min(self._under_way, self._most_now(count))
        while count < wanted and self._start_worker():
            count += 1

    def _most_now(self, count: int) -> int:
        """Return how many there may be: `WORKERS` that are not stuck, or as many as are."""
        if count < WORKERS:
            return WORKERS
        stuck = self._count_stuck()
        if count >= MOST and count - stuck < WORKERS:
            _tell_of_most()
        return min(stuck + max(stuck, WORKERS), MOST)

    def _start_worker(self) -> bool:
        worker = _Worker(self._run)
        try:
            worker.thread.start()
        except RuntimeError:
            # The process may have no more of them.
            if not self._workers:
                raise
            return False
        self._workers.append(worker)
        return True

    def _count_stuck(self) -> int:
        now = time.monotonic()
        began = [worker.since for worker in self._workers]
        return sum(since is not None and now - since > STUCK for since in began)

    def _run(self, worker: _Worker) -> None:
        while (given := self._given.get()) is not None:
            course, finished = given
            if not course.claim():
                continue
            _work(course, worker)
            worker.since = None
            self._done.append(course)
            os.eventfd_write(self._event, 1)
            finished.set()

    def _hear(self) -> None:
        os.eventfd_read(self._event)
        self._take_done()

    def withdraw(self) -> None:
        """Take in that a course was taken back."""
        self._under_way -= 1

    def next_done(self) -> Course | None:
        """Return a course that a thread is done with, if there is one."""
        if not self._done:
            return None
        self._under_way -= 1
        self._shrink()
        return self._done.popleft()

    def _shrink(self) -> None:
        """Let one go that was there for a disk that did not answer."""
        count = len(self._workers)
        if self._leaving:
            self._workers = [worker for worker in self._workers if worker.thread.is_alive()]
            self._leaving -= count - len(self._workers)
        elif count > WORKERS and count - self._count_stuck() > WORKERS:
            self._leaving = 1
            self._given.put(None)

    def close(self, *, wait: bool) -> None:
        """Have the threads end; where one still waits for a disk, keep what it will write to."""
        for _ in self._workers:
            self._given.put(None)
        if wait:
            for worker in self._workers:
                _wait_until(lambda: not worker.thread.is_alive())  # noqa: B023 - called at once
            self.forget()

    def forget(self) -> None:
        """Close what a forked child has of it: no threads."""
        self._workers.clear()
        if self._event >= 0:
            os.close(self._event)
            self._event = -1


def _may_never_end(record: Record) -> bool:
    """Return whether a step may wait for a peer for as long as that likes: a terminal's reader."""
    ends = [end.copy for end in (record.source, record.target) if end.interruptible]
    return any(os.isatty(fd) and os.get_blocking(fd) for fd in ends)


@functools.cache
def _tell_of_refusal(cause: str) -> None:
    _logger.warning("%s: files that are not cached are read in the loop's thread", cause)


@functools.cache
def _tell_of_most() -> None:
    _logger.warning("%d threads wait for disks that do not answer: no more are started", MOST)
