"""A run of trio by the few methods of asyncio's loop that the engines use.

Facts about trio that this relies on (0.30 to 0.35, read in its source and tested):

- A system task is cancelled when the main task has ended, and with it all that were started in
  the run's own nursery: the last of a reader is that its callback is dropped. That is what ends
  an engine, as closing the loop does on asyncio.
- Cancelling the scope of a task that waits for a descriptor has trio's epoll instance look for
  nothing there before `cancel()` returns: then the number may be closed. It stays registered (as
  it does when a wait is over) for as long as its open file lives, and may tell of a hang-up once:
  who waits for the number then, whatever it has become, looks again.
- A wait is asked once to abort. One that answers `Abort.FAILED` goes on, and may have ended
  before the answer is given.
- A function that aborts a wait starts no task: one of a scope that is being cancelled changes the
  set that trio goes through, and what stands behind it there is never cancelled (seen: a system
  task aborted at the end of a run, which then hung).
- An exception in a system task, or in what `run_sync_soon` calls, is the end of the run: none
  leaves a callback.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Generator
from typing import Any, TypeVar

import trio
from trio.lowlevel import Abort, RunVar

from aiozc._runtime.threads import LOOK, MOST, STUCK

T = TypeVar("T")

THREADS = 40
"""Threads that one run's transfers use at a time: as many as trio allows all others together.

They are not counted among those: all of a program's may wait for what a transfer is to bring, and
a transfer that is cancelled waits for a thread all the same, to know where it is.
"""

_logger = logging.getLogger("aiozc")
_current: "RunVar[TrioLoop | None]" = RunVar("aiozc's loop", None)
_Callback = Callable[..., object]


def current_loop(uninterrupted: Collection[Callable[..., Any]]) -> "TrioLoop":
    """Return the run's; made on first use, when no Ctrl-C is let into those functions any more."""
    loop = _current.get()
    if loop is None:
        for function in uninterrupted:
            trio.lowlevel.enable_ki_protection(function)
        loop = TrioLoop()
        _current.set(loop)
    return loop


class TrioFuture:
    """What one task may wait for."""

    __slots__ = ("_callbacks", "_done", "_loop", "_task")

    def __init__(self, loop: "TrioLoop") -> None:
        self._loop = loop
        self._done = False
        self._task: trio.lowlevel.Task | None = None
        self._callbacks: list[Callable[[TrioFuture], object]] = []

    def done(self) -> bool:
        """Return whether it has a result, or nobody waits for one any more."""
        return self._done

    def set_result(self, result: None) -> None:  # noqa: ARG002 - asyncio's signature
        """Let who waits for it go on."""
        self._done = True
        task, self._task = self._task, None
        # In a forked child, and where the run is over, there is nobody.
        if not self._loop.is_closed():
            if task is not None:
                trio.lowlevel.reschedule(task)
            for callback in self._callbacks:
                self._loop.call_soon(callback, self)

    def add_done_callback(self, callback: "Callable[[TrioFuture], object]", /) -> None:
        """Have it called, soon after the result is set."""
        self._callbacks.append(callback)

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait for the result; a cancellation ends the wait."""
        return self._wait().__await__()

    async def _wait(self) -> None:
        def abort(_: object) -> Abort:
            self._task = None
            self._done = True
            return Abort.SUCCEEDED

        if not self._done:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)
            # It may have been cancelled after the result was set.
            await trio.lowlevel.checkpoint_if_cancelled()

    async def outlast(self, stop: Callable[[], object]) -> BaseException | None:
        """Wait for the result whatever comes; return the cancellation that came meanwhile.

        Then `stop` is called, which is to hasten the result.
        """
        asked: list[Callable[[], object]] = []

        def abort(raise_cancel: Callable[[], object]) -> Abort:
            asked.append(raise_cancel)
            stop()
            return Abort.FAILED

        if not self._done:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)
        try:
            for raise_cancel in asked:
                raise_cancel()
            # It may have been cancelled after the result was set.
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException as cancelled:
            return cancelled
        return None


class TrioLoop:
    """What runs the transfers of one run of trio."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._watched: dict[int, tuple[trio.CancelScope, _Callback]] = {}
        self._threads = trio.CapacityLimiter(THREADS)
        self._working: dict[TrioThread, float] = {}

    def is_closed(self) -> bool:
        """Return whether the run is over, or not what runs here (in a forked child, a thread)."""
        try:
            return _current.get() is not self
        except RuntimeError:
            return True

    def get_debug(self) -> bool:
        """Return False: trio has no such mode."""
        return False

    def create_future(self) -> TrioFuture:
        """Return a future."""
        return TrioFuture(self)

    def call_soon(self, callback: _Callback, *arguments: Any) -> None:
        """Have it called when the tasks that can run now have."""
        self._token.run_sync_soon(_call, callback, *arguments)

    def call_later(self, delay: float, callback: _Callback, *arguments: Any) -> trio.CancelScope:
        """Have it called in so many seconds, unless what is returned is cancelled before."""
        scope = trio.CancelScope()
        self.call_soon(_start_timer, scope, delay, callback, arguments)
        return scope

    def add_reader(self, fd: int, callback: _Callback) -> None:
        """Have it called again and again while the descriptor is readable."""
        scope = trio.CancelScope()
        self._watched[fd] = scope, callback
        trio.lowlevel.spawn_system_task(self._serve, fd, scope)

    def remove_reader(self, fd: int) -> bool:
        """End that. The descriptor may be closed then."""
        scope, callback = self._watched.get(fd, (None, None))
        if scope is None:
            return False
        scope.cancel()
        # The last who has the callback may be what closes the descriptor.
        del self._watched[fd], callback
        return True

    async def _serve(self, fd: int, scope: trio.CancelScope) -> None:
        try:
            with scope:
                # Looked at first: the descriptor may be closed by now.
                while not scope.cancel_called:
                    await trio.lowlevel.wait_readable(fd)
                    # What was ready already is not cancelled any more.
                    if not scope.cancel_called:
                        _call(self._watched[fd][1])
        except (OSError, trio.ClosedResourceError):
            _logger.exception("waiting for descriptor %d, which was closed", fd)
        finally:
            if self._watched.get(fd, (None,))[0] is scope:
                del self._watched[fd]

    async def wait_ready(self, fd: int, seconds: float, *, writing: bool) -> None:
        """Wait until a descriptor is ready, or for so many seconds."""
        wait = trio.lowlevel.wait_writable if writing else trio.lowlevel.wait_readable
        with trio.move_on_after(seconds):
            await wait(fd)

    async def checkpoint_if_cancelled(self) -> None:
        """Raise Cancelled in a scope that is cancelled."""
        await trio.lowlevel.checkpoint_if_cancelled()

    def shield(self) -> trio.CancelScope:
        """Return a scope in which those around it are not felt."""
        return trio.CancelScope(shield=True)

    async def take_thread(self) -> "TrioThread":
        """Have a thread, the caller's to give back; the wait for one can be cancelled."""
        await trio.lowlevel.checkpoint_if_cancelled()
        thread = TrioThread(self._threads, self._working)
        while True:
            with trio.move_on_after(LOOK):
                await self._threads.acquire_on_behalf_of(thread)
                return thread
            # One more for each that is stuck: a dead disk stops nobody but who asked it.
            began = trio.current_time() - STUCK
            stuck = sum(since < began for since in self._working.values())
            self._threads.total_tokens = min(THREADS + stuck, MOST)

    async def in_thread_that_may_be_left(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in a thread, which a cancellation leaves behind: one of its own."""
        alone = trio.CapacityLimiter(1)
        return await trio.to_thread.run_sync(
            function, *arguments, abandon_on_cancel=True, limiter=alone
        )

    async def run_all(self, ways: Collection[Coroutine[Any, Any, None]]) -> None:
        """Run all to their ends, as `hosts.run_all` says: what is raised is in no group."""
        errors: list[BaseException] = []

        # A task that is begun here is not protected as the function is that begins it.
        @trio.lowlevel.enable_ki_protection
        async def run(way: Coroutine[Any, Any, None]) -> None:
            try:
                await way
            except BaseException as error:
                # Cancelled, it is raised again where the others are waited for.
                errors.append(error)
                nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                for way in ways:
                    nursery.start_soon(run, way)
        except BaseExceptionGroup as group:
            # A KeyboardInterrupt: it is raised in the waiting task, before the others end by it.
            errors.insert(0, group.exceptions[0])
        if errors:
            raise errors[0]
        # A nursery at its end hears of no cancellation.
        await trio.lowlevel.checkpoint_if_cancelled()


class TrioThread:
    """A thread in the hands of one who takes, and gives back: the right to use one, with trio."""

    def __init__(self, threads: trio.CapacityLimiter, working: "dict[TrioThread, float]") -> None:
        self._threads = threads
        self._working = working

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in a thread to its end, and then raise a cancellation if there is one."""
        self._working[self] = trio.current_time()
        try:
            with trio.CancelScope(shield=True):
                result = await trio.to_thread.run_sync(
                    function, *arguments, limiter=trio.CapacityLimiter(1)
                )
        finally:
            del self._working[self]
        await trio.lowlevel.checkpoint_if_cancelled()
        return result

    def give_back(self) -> None:
        """Let others have it."""
        self._threads.release_on_behalf_of(self)


def _start_timer(
    scope: trio.CancelScope, delay: float, callback: _Callback, arguments: tuple[Any, ...]
) -> None:
    # Where the run ends, there is no room for a task any more, and nobody to wait for it.
    with contextlib.suppress(RuntimeError):
        trio.lowlevel.spawn_system_task(_call_later, scope, delay, callback, arguments)


async def _call_later(
    scope: trio.CancelScope, delay: float, callback: _Callback, arguments: tuple[Any, ...]
) -> None:
    with scope:
        await trio.sleep(delay)
        if not scope.cancel_called:
            _call(callback, *arguments)


def _call(callback: _Callback, *arguments: Any) -> None:
    try:
        callback(*arguments)
    except Exception:
        _logger.exception("in %r", callback)
