"""Threads of our own, for what may wait: for a disk, or for whoever writes into a stream.

Those of the loop (its default executor) are the program's: they may all wait for what a transfer
is to bring, and what has no thread of theirs yet cannot be cancelled. Here:

- Who takes a thread has it to itself until it is given back, so what has none yet has begun
  nothing, and is cancelled at once.
- There are `LIMIT` at a time, and one more for each that has been at the same thing for `STUCK`
  seconds: a disk that does not answer stops nobody but who asked it. `MOST` is the end of that,
  and is logged.
- What reads a stream may come to no end, and is left behind when it is cancelled: it has threads
  of another pool, so that those for files are never used up by it.
- They are daemons: one that waits for what never comes must not keep the process. One that has
  nothing to do for `IDLE` seconds ends. A forked child begins anew.
- Where the process may have no more threads (RLIMIT_NPROC, a pids cgroup), who needs one waits
  for those that there are; where there is none at all, the work is done in the loop's thread.
"""

import asyncio
import contextlib
import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

LIMIT = 40
"""Threads of one process at a time: as many as trio has, and more than asyncio."""
MOST = 400
"""The same with those that are stuck, and the threads that read streams."""
STUCK = 1.0
"""Seconds at one thing, after which a thread is not counted any more."""
LOOK = 0.1
"""Seconds between two looks at whether one is stuck, while somebody waits for a thread."""
IDLE = 5.0
"""Seconds without anything to do, after which a thread ends."""
AT_WORK, AT_REST = "aiozc thread at work", "aiozc thread at rest"
"""Names of threads."""

_logger = logging.getLogger("aiozc")


class Job:
    """One call of a function in a thread, and who waits for it."""

    __slots__ = ("_arguments", "_function", "_loop", "_waiter", "done", "error", "result")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
    ) -> None:
        self._loop = loop
        self._function = function
        self._arguments = arguments
        self._waiter: asyncio.Future[None] | None = None
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call the function."""
        try:
            self.result = self._function(*self._arguments)
        except BaseException as error:
            self.error = error
        self.done = True

    def tell(self) -> None:
        """From the thread: let who waits go on, if there still is a loop."""
        _call_in(self._loop, self._wake)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for its end."""
        while not self.done:
            self._waiter = self._loop.create_future()
            await self._waiter

    async def outlast(self) -> asyncio.CancelledError | None:
        """Wait for its end whatever comes; return the cancellation that came meanwhile."""
        cancelled: asyncio.CancelledError | None = None
        while not self.done:
            try:
                await self.wait()
            except asyncio.CancelledError as error:
                cancelled = error
        return cancelled

    def outcome(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        error, self.error = self.error, None
        if error is None:
            return self.result
        try:
            raise error
        finally:
            del error  # it holds this frame


def _call_in(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> bool:
    """Have the loop call it; return whether it will: it may be closed."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    return True


class Thread:
    """A thread in the hands of one who takes, and gives back. (`inline`: it is the loop's own.)"""

    def __init__(self, pool: "Pool", *, inline: bool = False) -> None:
        self._pool = pool
        self._inline = inline
        self._given: SimpleQueue[Job] = SimpleQueue()
        self._under_way = 0
        self._own: threading.Thread
        self._dropped = False
        self.since: float | None = None
        """When it began what it does (time.monotonic), and None where it does nothing."""

    def start(self) -> None:
        """Begin. Raises RuntimeError where the process may have no more threads."""
        self._own = threading.Thread(target=self._serve, name=AT_REST, daemon=True)
        self._own.start()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in it; when cancelled, raise that once it has ended."""
        job = self._begin(function, arguments)
        cancelled = await job.outlast()
        if cancelled is not None:
            with contextlib.suppress(Exception):
                job.outcome()
            raise cancelled
        result: T = job.outcome()
        return result

    async def run_or_leave(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in it; when cancelled, raise that at once."""
        job = self._begin(function, arguments)
        await job.wait()
        result: T = job.outcome()
        return result

    def _begin(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Job:
        job = Job(asyncio.get_running_loop(), function, arguments)
        if self._inline:
            job.run()
            return job
        with self._pool.lock:
            self._under_way += 1
            self._own.name = AT_WORK
        self._given.put(job)
        return job

    def give_back(self) -> None:
        """Let others have it, as soon as it is done with what it does."""
        if self._inline:
            return
        with self._pool.lock:
            self._dropped = self._under_way > 0
            if not self._dropped:
                self._pool.take_back(self)

    def _serve(self) -> None:
        while True:
            try:
                job = self._given.get(timeout=IDLE)
            except Empty:
                if self._pool.retire(self):
                    return
                continue
            self.since = time.monotonic()
            job.run()
            self.since = None
            self._end()
            job.tell()
            del job  # and with it the coroutine of a loop that was closed
            self._rest()

    def _rest(self) -> None:
        with self._pool.lock:
            if not self._under_way:
                self._own.name = AT_REST

    def _end(self) -> None:
        with self._pool.lock:
            self._under_way -= 1
            if self._dropped and not self._under_way:
                self._dropped = False
                self._pool.take_back(self)


class _Turn:
    """Who waits for a thread."""

    __slots__ = ("loop", "waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Pool:
    """Threads, and who waits for one, first come first served.

    `may_be_inline`: where there can be none at all, the loop's own thread does the work.
    """

    def __init__(self, limit: int, *, may_be_inline: bool) -> None:
        self._limit = limit
        self._may_be_inline = may_be_inline
        self.begin_anew()

    def begin_anew(self) -> None:
        """In a forked child: have no threads."""
        self.lock = threading.Lock()
        self._threads: set[Thread] = set()
        self._idle: list[Thread] = []
        self._waiting: deque[_Turn] = deque()

    async def take(self) -> Thread:
        """Have a thread, the caller's to give back. A cancellation ends the wait for it."""
        thread = self._take_now()
        return await self._wait_turn() if thread is None else thread

    def _take_now(self, turn: _Turn | None = None) -> Thread | None:
        """Take a thread if it is one's turn and there is one, or may be one more."""
        with self.lock:
            if self._waiting and self._waiting[0] is not turn:
                return None
            if self._idle:
                return self._idle.pop()
            if not self._may_grow():
                return None
            thread = Thread(self)
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            with self.lock:
                self._threads.discard(thread)
                others = bool(self._threads)
            if not self._may_be_inline:
                raise
            _tell_of_refusal(str(error))
            return None if others else Thread(self, inline=True)
        return thread

    def _may_grow(self) -> bool:
        count = len(self._threads)
        if count < self._limit:
            return True
        if count >= MOST:
            _tell_of_most()
            return False
        now = time.monotonic()
        since = [thread.since for thread in self._threads]
        stuck = sum(began is not None and now - began > STUCK for began in since)
        return count - stuck < self._limit

    async def _wait_turn(self) -> Thread:
        loop = asyncio.get_running_loop()
        turn = _Turn(loop)
        with self.lock:
            self._waiting.append(turn)
        try:
            while (thread := self._take_now(turn)) is None:
                await self._wait(turn)
        finally:
            self._leave(turn)
        return thread

    async def _wait(self, turn: _Turn) -> None:
        """Wait until there may be a thread: the first who waits looks again and again."""
        turn.waiter = turn.loop.create_future()
        timer: asyncio.TimerHandle | None = None
        if self._waiting[0] is turn:
            timer = turn.loop.call_later(LOOK, turn.wake)
        try:
            await turn.waiter
        finally:
            if timer is not None:
                timer.cancel()

    def _leave(self, turn: _Turn) -> None:
        """Wait no longer; the next is the first now."""
        with self.lock:
            with contextlib.suppress(ValueError):
                self._waiting.remove(turn)
            self._wake_first()

    def _wake_first(self) -> None:
        while self._waiting and not _call_in(self._waiting[0].loop, self._waiting[0].wake):
            self._waiting.popleft()

    def take_back(self, thread: Thread) -> None:
        """Take in that a thread is free. The caller has the lock."""
        if thread not in self._threads:
            return  # it is a forked child's parent's
        self._idle.append(thread)
        self._wake_first()

    def retire(self, thread: Thread) -> bool:
        """Return whether a thread that has nothing to do is to end."""
        with self.lock:
            if thread not in self._idle:
                return False
            self._idle.remove(thread)
            self._threads.discard(thread)
            return True


@functools.cache
def _tell_of_refusal(cause: str) -> None:
    _logger.warning("%s: files are read by the threads there are, or in the loop's thread", cause)


@functools.cache
def _tell_of_most() -> None:
    _logger.warning("%d threads wait for disks or streams: no more are made for these", MOST)


FILES = Pool(LIMIT, may_be_inline=True)
"""For what comes to an end, sooner or later."""
STREAMS = Pool(MOST, may_be_inline=False)
"""For reads of streams, which may be left behind."""


def _begin_anew() -> None:
    FILES.begin_anew()
    STREAMS.begin_anew()


os.register_at_fork(after_in_child=_begin_anew)
