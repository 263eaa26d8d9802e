"""The runtime of asyncio's loops, uvloop's among them."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine
from contextlib import AbstractContextManager
from typing import Any

from aiozc._runtime.waiting import Waited, wait_at_most, wake


class AsyncioRuntime:
    """See `Runtime`. It keeps nothing: one is made whenever it is asked for."""

    __slots__ = ("loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    async def checkpoint(self) -> None:
        """Do nothing: a cancellation is raised once, by the next wait."""

    def shield(self, error: BaseException | None) -> AbstractContextManager[object]:
        """Suppress a second cancellation: anyio's scopes cancel in every turn until one leaves."""
        if isinstance(error, asyncio.CancelledError):
            return contextlib.suppress(asyncio.CancelledError)
        return contextlib.nullcontext()

    async def outlast(self, waited: Waited, stop: Callable[[], object]) -> BaseException | None:
        """Wait with a new future after each cancellation."""
        cancellation: BaseException | None = None
        while not waited.ended:
            waited.waiter = self.loop.create_future()
            try:
                await waited.waiter
            except asyncio.CancelledError as error:
                cancellation = error
                stop()
        return cancellation

    async def wait_ready(self, fd: int, seconds: float, *, writing: bool) -> None:
        """Wait by a reader or a writer of the loop."""
        add, remove = self.loop.add_reader, self.loop.remove_reader
        if writing:
            add, remove = self.loop.add_writer, self.loop.remove_writer
        ready = self.loop.create_future()
        add(fd, wake, ready)
        try:
            await wait_at_most(self.loop, ready, seconds)
        finally:
            remove(fd)

    async def run_all(self, ways: Collection[Coroutine[Any, Any, None]]) -> None:
        """Run each in a task."""
        tasks = [self.loop.create_task(way) for way in ways]
        error: BaseException | None = None
        # Not what asyncio.wait says is pending: who is cancelled in every turn never hears that.
        while pending := [task for task in tasks if not task.done()]:
            try:
                await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
            except asyncio.CancelledError as cancelled:
                error = cancelled
            except GeneratorExit:
                with contextlib.suppress(RuntimeError):  # the loop was closed, and they with it
                    for task in pending:
                        task.cancel()
                raise
            error = error or next(filter(None, map(_failure, tasks)), None)
            if error is not None:
                for task in pending:
                    task.cancel()
        if error is not None:
            raise error


def _failure(task: "asyncio.Task[None]") -> BaseException | None:
    if not task.done():
        return None
    return asyncio.CancelledError() if task.cancelled() else task.exception()
