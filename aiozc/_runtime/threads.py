"""Threads of our own, for what may wait: for a disk, or for whoever writes into a stream.

Those of the loop (asyncio's default executor, trio's limiter) are the program's: they may all wait
for what a transfer is to bring, and what has no thread of theirs yet cannot be cancelled. A `Pool`:

- Who has a `Seat` has a thread until it is given back, so what has none yet has begun nothing, and
  is cancelled at once. Seats are given first come first served.
- There are `limit` threads at a time, and one more for each that has been at the same thing for
  STUCK_S seconds, or as many as these if that is more: a disk that does not answer stops nobody but
  who asked it, and a hundred such reads stop nobody for long. `most` is the end of that, and is
  logged.
- They are daemons: one that waits for what never comes must not keep the process. One that has
  nothing to do for IDLE_S seconds ends. A forked child begins anew.
- Where the process may have no more threads (RLIMIT_NPROC, a pids cgroup), who needs one waits
  for those that there are. Where there is none at all a pool says so, and FILES has the work done
  in the loop's own thread.

What reads a stream may come to no end, and is left behind when it is cancelled: it has threads of
another pool, so that those for files are never used up by it.
"""

import contextlib
import functools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from aiozc._runtime.runtime import current
from aiozc._runtime.waiting import Loop, Waited, wait_at_most

T = TypeVar("T")

LIMIT = 40
"""Threads of FILES: as many as trio allows, and more than asyncio."""
MOST = 400
"""The same with those that are stuck, and the threads of STREAMS."""
STUCK_S = 0.2
"""Seconds at one thing, after which a thread is not counted any more."""
LOOK_S = 0.1
"""Seconds between two looks at whether one is stuck, while somebody waits for a thread."""
IDLE_S = 5.0
"""Seconds without anything to do, after which a thread ends."""

_logger = logging.getLogger("aiozc")


class Job(Waited):
    """One call of a function in a thread.

    `ended` is set by that thread; then the loop calls `heard`, which wakes who waits unless another
    function is given. `seat` is where it runs, or waits to.
    """

    __slots__ = ("_done", "_function", "_heard", "_loop", "error", "result", "seat")

    def __init__(
        self, loop: Loop, function: Callable[[], Any], heard: Callable[[], object] | None = None
    ) -> None:
        super().__init__()
        self._done = False
        self._loop = loop
        self._function = function
        self._heard = heard or self.wake
        self.seat: Seat | None = None
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def ended(self) -> bool:
        """Whether the function has returned, or raised."""
        return self._done

    def run(self) -> None:
        """Call the function."""
        try:
            self.result = self._function()
        except BaseException as error:
            self.error = error
        self._done = True

    def touch(self) -> None:
        """In the thread: begin the next part of it, so that STUCK_S is counted anew."""
        if self.seat is not None:
            self.seat.since = time.monotonic()

    def give_up(self) -> bool:
        """Leave the queue for a thread; return whether none has begun with it."""
        return self.seat is not None and self.seat.give_back()

    def report(self) -> None:
        """Tell the loop, if there still is one, that it has ended."""
        _call_in(self._loop, self._heard)

    def outcome(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        error, self.error = self.error, None
        if error is None:
            return self.result
        try:
            raise error
        finally:
            del error  # it holds this frame


def _call_in(loop: Loop, callback: Callable[[], object]) -> bool:
    """Have the loop call it; return whether it will: it may be closed."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    return True


class Seat:
    """The right to one thread of a pool or, until it is `granted`, a place in the queue for it.

    Without a pool it is the right to the loop's own thread. All but `run` and `run_or_leave` is for
    the pool, under its lock.
    """

    __slots__ = ("_pool", "call", "dropped", "granted", "since", "under_way")

    def __init__(self, pool: "Pool | None", call: "Callable[[Seat], bool]") -> None:
        self._pool = pool
        self.call = call
        """Called when it is granted; returns whether anybody still wants it."""
        self.granted = False
        self.dropped = False
        """Whether nobody has it any more: it ends with what is under way."""
        self.under_way = False
        self.since: float | None = None
        """When its thread began what it does (time.monotonic), and None where it does nothing."""

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in its thread; when cancelled, raise that once the function has ended."""
        job = self._begin(function, arguments)
        cancelled = await current().outlast(job, _do_nothing)
        if cancelled is not None:
            with contextlib.suppress(Exception):
                job.outcome()
            raise cancelled
        result: T = job.outcome()
        return result

    async def run_or_leave(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in its thread; when cancelled, raise that at once."""
        job = self._begin(function, arguments)
        loop = current().loop
        while not job.ended:
            job.waiter = loop.create_future()
            await job.waiter
        result: T = job.outcome()
        return result

    def _begin(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Job:
        job = Job(current().loop, functools.partial(function, *arguments))
        if self._pool is None:
            job.run()
        else:
            self._pool.start(self, job)
        return job

    def give_back(self) -> bool:
        """Let others have it, or leave the queue; return whether nothing of it was begun."""
        return self._pool is None or self._pool.take_back(self)


def _do_nothing() -> None:
    """Hasten nothing: what runs in a thread cannot be interrupted."""


class Pool:
    """Threads, and who waits for one.

    `may_be_inline`: where there can be none at all, the loop's own thread does the work.
    """

    def __init__(self, limit: int, most: int, *, may_be_inline: bool = False) -> None:
        self._limit = limit
        self._most = most
        self._may_be_inline = may_be_inline
        self.begin_anew()
        POOLS.add(self)

    def begin_anew(self) -> None:
        """In a forked child: have no threads."""
        # Reentrant: a coroutine that the interpreter's collector finds gives its seat back.
        self._lock = threading.RLock()
        self._given: SimpleQueue[tuple[Seat, Job]] = SimpleQueue()
        self.at_work = 0
        """Jobs that threads have, or are about to have."""
        self._count = 0
        self._taken: set[Seat] = set()
        self._waiting: deque[Seat] = deque()

    async def take(self) -> Seat:
        """Have a seat, the caller's to give back. A cancellation ends the wait for it.

        For what must not be left undone once it has begun: with a thread in hand, it is not.
        """
        runtime, turn = current(), Waited()
        await runtime.checkpoint()
        loop = runtime.loop

        def call(_: Seat) -> bool:
            return turn.waiter is None or _call_in(loop, turn.wake)

        seat = Seat(self, call)
        try:
            self._queue(seat)
        except RuntimeError:
            if not self._may_be_inline:
                raise
            return Seat(None, call)
        try:
            while not seat.granted:
                turn.waiter = loop.create_future()
                # Granted before there was a waiter: then nobody is woken.
                if not seat.granted:
                    await wait_at_most(loop, turn.waiter, LOOK_S)
                    self.grow()
        except BaseException:
            seat.give_back()
            raise
        return seat

    def submit(self, job: Job) -> None:
        """Have a job run as soon as there is a thread for it, and its seat given back then.

        Raises RuntimeError where there is none, and none can be started.
        """

        def call(seat: Seat) -> bool:
            seat.dropped = True
            self.start(seat, job)
            return True

        job.seat = Seat(self, call)
        self._queue(job.seat)

    def _queue(self, seat: Seat) -> None:
        with self._lock:
            self._waiting.append(seat)
            try:
                self._grant()
            except RuntimeError:
                self._waiting.remove(seat)
                raise

    def grow(self) -> None:
        """Have another thread where all are stuck and somebody waits."""
        with self._lock, contextlib.suppress(RuntimeError):
            self._grant()

    def _grant(self) -> None:
        while self._waiting and self._has_room() and self._waiting:
            seat = self._waiting.popleft()
            seat.granted = True
            self._taken.add(seat)
            if not seat.call(seat):
                self._taken.discard(seat)

    def _has_room(self) -> bool:
        """Return whether there is a thread that nobody has, or may be one more."""
        if len(self._taken) < self._count:
            return True
        if not self._may_grow():
            return False
        try:
            threading.Thread(target=self._serve, name="aiozc", daemon=True).start()
        except RuntimeError as error:
            _warn_of_refusal(str(error))
            if not self._count:
                raise
            return False
        self._count += 1
        return True

    def _may_grow(self) -> bool:
        if self._count < self._limit:
            return True
        if self._count >= self._most:
            _warn_of_limit(self._most)
            return False
        before = time.monotonic() - STUCK_S
        began = [seat.since for seat in self._taken]
        stuck = sum(since is not None and since < before for since in began)
        return self._count - stuck < max(self._limit, stuck)

    def start(self, seat: Seat, job: Job) -> None:
        """Have a thread do a job: there is one for each seat that is granted."""
        with self._lock:
            self.at_work += 1
        seat.under_way = True
        self._given.put((seat, job))

    def take_back(self, seat: Seat) -> bool:
        """See `Seat.give_back`."""
        with self._lock:
            if not seat.granted:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(seat)
                return True
            seat.dropped = True
            if not seat.under_way:
                self._free(seat)
            return False

    def _free(self, seat: Seat) -> None:
        # In a forked child it is the parent's.
        if seat in self._taken:
            self._taken.discard(seat)
            self._grant()

    def _serve(self) -> None:
        while True:
            try:
                seat, job = self._given.get(timeout=IDLE_S)
            except Empty:
                with self._lock:
                    if len(self._taken) < self._count:
                        self._count -= 1
                        return
                continue
            seat.since = time.monotonic()
            job.run()
            seat.since = None
            with self._lock:
                seat.under_way = False
                if seat.dropped:
                    self._free(seat)
            job.report()
            del seat, job  # and with them the coroutine of a loop that was closed
            with self._lock:
                self.at_work -= 1


@functools.cache
def _warn_of_refusal(cause: str) -> None:
    _logger.warning("%s: files are read by the threads there are, or in the loop's thread", cause)


@functools.cache
def _warn_of_limit(most: int) -> None:
    _logger.warning("%d threads wait for disks or streams: no more are made for these", most)


POOLS: "weakref.WeakSet[Pool]" = weakref.WeakSet()
FILES = Pool(LIMIT, MOST, may_be_inline=True)
"""For what comes to an end, sooner or later."""
STREAMS = Pool(MOST, MOST)
"""For reads of streams, which may be left behind."""


def _begin_anew() -> None:
    for pool in tuple(POOLS):
        pool.begin_anew()


os.register_at_fork(after_in_child=_begin_anew)


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a thread; when cancelled, raise that once it has ended.

    As long as there is no thread for it, a cancellation is raised at once.
    """
    seat = await FILES.take()
    try:
        return await seat.run(function, *arguments)
    finally:
        seat.give_back()


async def in_thread_that_may_be_left(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a thread; when cancelled, raise that at once.

    For reads of a stream, which may come to no end: it has no position to be known.
    """
    seat = await STREAMS.take()
    try:
        return await seat.run_or_leave(function, *arguments)
    finally:
        seat.give_back()
