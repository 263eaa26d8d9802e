"""The runtime of trio: a run by the few methods of asyncio's loop that the engines use.

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
from typing import Any

import trio
from trio.lowlevel import Abort, RunVar

from aiozc._runtime.waiting import Waited

_logger = logging.getLogger("aiozc")
_current: "RunVar[TrioRuntime | None]" = RunVar("aiozc's runtime", None)
_Callback = Callable[..., object]


def current_run(uninterrupted: Collection[Callable[..., Any]]) -> "TrioRuntime":
    """Return the run's; made on first use, when no Ctrl-C is let into those functions any more."""
    runtime = _current.get()
    if runtime is None:
        for function in uninterrupted:
            trio.lowlevel.enable_ki_protection(function)
        runtime = TrioRuntime()
        _current.set(runtime)
    return runtime


class TrioFuture:
    """What one task may wait for."""

    __slots__ = ("_done", "_loop", "_task")

    def __init__(self, loop: "TrioRuntime") -> None:
        self._loop = loop
        self._done = False
        self._task: trio.lowlevel.Task | None = None

    def done(self) -> bool:
        """Return whether it has a result, or nobody waits for one any more."""
        return self._done

    def set_result(self, result: None) -> None:  # noqa: ARG002 - asyncio's signature
        """Let who waits for it go on."""
        self._done = True
        task, self._task = self._task, None
        # In a forked child, and where the run is over, there is nobody.
        if task is not None and not self._loop.is_closed():
            trio.lowlevel.reschedule(task)

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait for the result; a cancellation ends the wait."""
        return self._wait().__await__()

    async def _wait(self) -> None:
        def abort(_: object) -> Abort:
            self._task = None
            self._done = True
            return Abort.SUCCEEDED

        if not self._done:
            await self.wait_unless(abort)
            # It may have been cancelled after the result was set.
            await trio.lowlevel.checkpoint_if_cancelled()

    async def wait_unless(self, abort: Callable[[Callable[[], object]], Abort]) -> None:
        """Wait for the result, or for what `abort` makes of a cancellation."""
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)


class TrioRuntime:
    """See `Runtime`. It is a run's loop as well."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._watched: dict[int, tuple[trio.CancelScope, _Callback]] = {}

    @property
    def loop(self) -> "TrioRuntime":
        """Return itself."""
        return self

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
        """Have it called when the tasks that can run now have. Any thread may call this.

        Raises RuntimeError where the run is over.
        """
        self._token.run_sync_soon(_call, callback, *arguments)

    call_soon_threadsafe = call_soon

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

    async def checkpoint(self) -> None:
        """Raise Cancelled in a scope that is cancelled."""
        await trio.lowlevel.checkpoint_if_cancelled()

    def shield(self, _: BaseException | None) -> trio.CancelScope:
        """Return a scope in which those around it are not felt."""
        return trio.CancelScope(shield=True)

    async def outlast(self, waited: Waited, stop: Callable[[], object]) -> BaseException | None:
        """Wait once: a wait that was not aborted goes on."""
        asked: list[Callable[[], object]] = []

        def abort(raise_cancel: Callable[[], object]) -> Abort:
            asked.append(raise_cancel)
            stop()
            return Abort.FAILED

        if waited.ended:
            return None
        waited.waiter = future = TrioFuture(self)
        await future.wait_unless(abort)
        try:
            for raise_cancel in asked:
                raise_cancel()
            # It may have been cancelled after the result was set.
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException as cancelled:
            return cancelled
        return None

    async def run_all(self, ways: Collection[Coroutine[Any, Any, None]]) -> None:
        """Run all to their ends, as `Runtime` says: what is raised is in no group."""
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
