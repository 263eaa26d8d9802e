"""The few names of asyncio that the tests' bodies use, on trio: so that these run there too.

A test puts this module in the place of `asyncio` in theirs.
"""

import contextlib
from asyncio import SendfileNotAvailableError as SendfileNotAvailableError
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

import trio

T = TypeVar("T")

CancelledError = trio.Cancelled


class Task:
    """A task that may be cancelled, and is waited for by its outcome."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._result: Any = None
        self._error: BaseException | None = None
        trio.lowlevel.spawn_system_task(self._run, coroutine)

    async def _run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        with self._scope:
            try:
                self._result = await coroutine
            except BaseException as error:
                # The cancellation too, which its scope would swallow.
                self._error = error
        self._ended.set()

    def done(self) -> bool:
        """Return whether it has ended."""
        return self._ended.is_set()

    def cancel(self) -> bool:
        """Cancel it, for good; return whether it had not ended."""
        self._scope.cancel()
        return not self.done()

    def result(self) -> Any:
        """Return what it returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._result

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait for its end; return or raise its outcome."""
        yield from self._ended.wait().__await__()
        return self.result()


def create_task(coroutine: Coroutine[Any, Any, Any]) -> Task:
    """Start a task."""
    return Task(coroutine)


async def wait(tasks: Iterable[Task]) -> None:
    """Wait for the end of each."""
    for task in tasks:
        await task._ended.wait()


async def gather(*awaited: Any, return_exceptions: bool = False) -> list[Any]:
    """Run all at once; return what they return, or raise what the first of them raised."""
    tasks = [one if isinstance(one, Task) else create_task(one) for one in awaited]
    await wait(tasks)
    if return_exceptions:
        return [task._error or task._result for task in tasks]
    return [task.result() for task in tasks]


async def sleep(seconds: float) -> None:
    """Let so many seconds pass, or one turn."""
    await trio.sleep(seconds)


async def wrap_future(future: "Future[T]") -> T:
    """Wait for what another thread will say."""
    token, told = trio.lowlevel.current_trio_token(), trio.Event()

    def tell(_: object) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(told.set)

    future.add_done_callback(tell)
    await told.wait()
    return future.result()


async def to_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a worker thread."""
    return await trio.to_thread.run_sync(function, *arguments)


@contextlib.asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    """Cancel what takes longer, and raise TimeoutError."""
    cancelled: trio.Cancelled | None = None
    with trio.move_on_after(seconds) as scope:
        try:
            yield
        except trio.Cancelled as error:
            cancelled = error
            raise
    if scope.cancelled_caught:
        raise TimeoutError from cancelled
