"""Who runs the coroutines: asyncio's loop as it is, or trio's run by the same few methods.

On asyncio (uvloop) that is the running loop itself, and costs nothing. On trio it is a `TrioLoop`,
one for each run; trio is imported by the program or not at all.

The two cancel in different ways. asyncio's cancellation is an edge: it is raised once, and who
goes on waiting is left alone. trio's is a level: in a cancelled scope every wait raises. So what
must be waited for in any case (a chain's end, a thread) is waited for by `TrioFuture.outlast`, and
what must be done after a cancellation stands in a `shielded` block.

Which of the two it is: trio's guest mode runs its tasks in callbacks of asyncio's loop, and
trio-asyncio, which replaces functions of asyncio, runs its tasks within one of trio's. In both the
innermost task tells.
"""

import asyncio
import contextlib
import sys
from asyncio import events
from collections.abc import Callable, Collection, Coroutine
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

from aiozc._errors import nothing_moved
from aiozc._runtime.threads import FILES, STREAMS, Thread

if TYPE_CHECKING:
    import trio

    from aiozc._runtime.trio_loop import TrioFuture, TrioLoop, TrioThread

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

Loop: TypeAlias = Union[asyncio.AbstractEventLoop, "TrioLoop"]
Future: TypeAlias = Union["asyncio.Future[None]", "TrioFuture"]
Timer: TypeAlias = Union[asyncio.TimerHandle, "trio.CancelScope"]

_modules = sys.modules


def plain_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running loop if that can be told at once: asyncio's, where trio is not there."""
    return None if "trio" in _modules else events._get_running_loop()


def running_loop() -> Loop:
    """Return what runs this coroutine. Raises RuntimeError where nothing does."""
    loop = events._get_running_loop()
    if loop is not None and ("trio" not in _modules or asyncio.current_task(loop) is not None):
        return loop
    # Another thread may be importing it just now.
    lowlevel = getattr(_modules.get("trio"), "lowlevel", None)
    in_trio_task: Callable[[], bool] | None = getattr(lowlevel, "in_trio_task", None)
    if in_trio_task is not None and in_trio_task():
        from aiozc._runtime.trio_loop import current_loop

        return current_loop(_uninterrupted)
    if loop is None:
        raise RuntimeError("no running event loop")
    return loop


async def arrive(nothing: Any = 0) -> Loop:
    """Return what runs this coroutine, at the beginning of a transfer.

    On trio in a cancelled scope it raises Cancelled, which says that `nothing` was moved.
    """
    loop = running_loop()
    if not isinstance(loop, asyncio.AbstractEventLoop):
        with nothing_moved(nothing):
            await loop.checkpoint_if_cancelled()
    return loop


_uninterrupted: list[Callable[..., Any]] = []


def uninterrupted(function: F) -> F:
    """Have trio raise KeyboardInterrupt where a function waits, and not between two lines of it."""
    _uninterrupted.append(function)
    return function


def shielded(error: BaseException | None) -> AbstractContextManager[object]:
    """Return a block in which a cancellation is not felt again, if it is what is being raised.

    On asyncio too: anyio's scopes cancel in every turn, until their task has left them.
    """
    loop = running_loop()
    if not isinstance(loop, asyncio.AbstractEventLoop):
        return loop.shield()
    if isinstance(error, asyncio.CancelledError):
        return contextlib.suppress(asyncio.CancelledError)
    return contextlib.nullcontext()


async def wait_at_most(loop: Loop, future: Future, seconds: float) -> None:
    """Wait for a future, or for so many seconds: then its result is set."""
    timer = loop.call_later(seconds, wake, future)
    try:
        await future
    finally:
        timer.cancel()


def wake(future: Future) -> None:
    """Let who waits for a future go on."""
    if not future.done():
        future.set_result(None)


async def wait_ready(fd: int, seconds: float, *, writing: bool) -> None:
    """Wait until a descriptor is ready, or for so many seconds. It is nobody else's."""
    loop = running_loop()
    if not isinstance(loop, asyncio.AbstractEventLoop):
        await loop.wait_ready(fd, seconds, writing=writing)
        return
    add, remove = loop.add_reader, loop.remove_reader
    if writing:
        add, remove = loop.add_writer, loop.remove_writer
    ready = loop.create_future()
    add(fd, wake, ready)
    try:
        await wait_at_most(loop, ready, seconds)
    finally:
        remove(fd)


async def sleep(seconds: float) -> None:
    """Let so many seconds pass."""
    loop = running_loop()
    await wait_at_most(loop, loop.create_future(), seconds)


async def take_thread() -> "Thread | TrioThread":
    """Have a worker thread, the caller's to give back; the wait for one can be cancelled.

    For what must not be left undone once it has begun: with a thread in hand, it is not.
    """
    loop = running_loop()
    if not isinstance(loop, asyncio.AbstractEventLoop):
        return await loop.take_thread()
    return await FILES.take()


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a worker thread; when cancelled, raise that once it has ended.

    As long as there is no thread for it, a cancellation is raised at once.
    """
    thread = await take_thread()
    try:
        return await thread.run(function, *arguments)
    finally:
        thread.give_back()


async def in_thread_that_may_be_left(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a worker thread; when cancelled, raise that at once.

    For reads of a stream, which may come to no end: it has no position to be known.
    """
    loop = running_loop()
    if not isinstance(loop, asyncio.AbstractEventLoop):
        return await loop.in_thread_that_may_be_left(function, *arguments)
    thread = await STREAMS.take()
    try:
        return await thread.run_or_leave(function, *arguments)
    finally:
        thread.give_back()


async def run_all(ways: Collection[Coroutine[Any, Any, None]]) -> None:
    """Run all at once to their ends; where one fails, or the caller is cancelled, the others are
    cancelled, and what was the first is raised.
    """
    loop = running_loop()
    if isinstance(loop, asyncio.AbstractEventLoop):
        await _run_all([loop.create_task(way) for way in ways])
    else:
        await loop.run_all(ways)


async def _run_all(ways: "Collection[asyncio.Task[None]]") -> None:
    error: BaseException | None = None
    # Not what asyncio.wait says is pending: who is cancelled in every turn never hears that.
    while pending := [way for way in ways if not way.done()]:
        try:
            await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError as cancelled:
            error = cancelled
        except GeneratorExit:
            with contextlib.suppress(RuntimeError):  # the loop was closed, and they with it
                for way in pending:
                    way.cancel()
            raise
        error = error or next(filter(None, map(_failure, ways)), None)
        if error is not None:
            for way in pending:
                way.cancel()
    if error is not None:
        raise error


def _failure(way: "asyncio.Task[None]") -> BaseException | None:
    if not way.done():
        return None
    return asyncio.CancelledError() if way.cancelled() else way.exception()
