"""Tasks on whatever runs the test: asyncio's loop, uvloop's, or trio.

A task here is cancelled by itself and as often as one likes, and its outcome is asked for
afterwards: what anyio's task groups, which end with their first error, do not offer.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Generator, Iterable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Protocol, TypeVar

import trio
from trio.lowlevel import in_trio_run

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

CANCELLED = (asyncio.CancelledError, trio.Cancelled)


class Task(Protocol[T_co]):
    """A coroutine that has been started: an `asyncio.Task`, or one on trio."""

    def done(self) -> bool:
        """Return whether it has ended."""

    def cancel(self) -> bool:
        """Cancel it; return whether it had not ended."""

    def result(self) -> T_co:
        """Return what it returned, or raise what it raised."""

    def __await__(self) -> Generator[Any, Any, T_co]:
        """Wait for its end; return or raise its outcome."""


class TrioTask(Generic[T]):
    """A task of trio that is cancelled for good, and whose cancellation is an outcome."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._outcome: Future[T] = Future()
        trio.lowlevel.spawn_system_task(self._run, coroutine)

    async def _run(self, coroutine: Coroutine[Any, Any, T]) -> None:
        with self._scope:
            try:
                self._outcome.set_result(await coroutine)
            except BaseException as error:
                # The cancellation too, which its scope would swallow.
                self._outcome.set_exception(error)
        self._ended.set()

    def done(self) -> bool:
        """Return whether it has ended."""
        return self._ended.is_set()

    def cancel(self) -> bool:
        """Cancel it; return whether it had not ended."""
        self._scope.cancel()
        return not self.done()

    def result(self) -> T:
        """Return what it returned, or raise what it raised."""
        return self._outcome.result()

    async def wait(self) -> None:
        """Wait for its end."""
        await self._ended.wait()

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for its end; return or raise its outcome."""
        yield from self._ended.wait().__await__()
        return self.result()


def start(coroutine: Coroutine[Any, Any, T]) -> Task[T]:
    """Start a task."""
    return TrioTask(coroutine) if in_trio_run() else asyncio.create_task(coroutine)


async def wait(tasks: Iterable[Task[Any]]) -> None:
    """Wait until each has ended, however it does."""
    for task in tasks:
        if isinstance(task, TrioTask):
            await task.wait()
        else:
            assert isinstance(task, asyncio.Future)
            await asyncio.wait([task])


async def outcome_of(task: Task[T]) -> T | BaseException:
    """Return what the task returned or raised, its cancellation too."""
    await wait([task])
    try:
        return task.result()
    except BaseException as error:
        return error


async def at_once(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T | BaseException]:
    """Run them all at once; return the outcome of each."""
    tasks = [start(coroutine) for coroutine in coroutines]
    return [await outcome_of(task) for task in tasks]


async def sleep(seconds: float) -> None:
    """Let so many seconds pass, or one turn."""
    if in_trio_run():
        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def result_of(future: "Future[T]") -> T:
    """Wait for what another thread will say."""
    return await (_by_trio(future) if in_trio_run() else asyncio.wrap_future(future))


async def _by_trio(future: "Future[T]") -> T:
    token, told = trio.lowlevel.current_trio_token(), trio.Event()

    def tell(_: object) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(told.set)

    future.add_done_callback(tell)
    await told.wait()
    return future.result()


def timeout(seconds: float) -> AbstractAsyncContextManager[object]:
    """Cancel what takes longer, and raise TimeoutError from its cancellation."""
    return _trio_timeout(seconds) if in_trio_run() else asyncio.timeout(seconds)


@contextlib.asynccontextmanager
async def _trio_timeout(seconds: float) -> AsyncIterator[None]:
    cancelled: trio.Cancelled | None = None
    with trio.move_on_after(seconds) as scope:
        try:
            yield
        except trio.Cancelled as error:
            cancelled = error
            raise
    if scope.cancelled_caught:
        raise TimeoutError from cancelled
