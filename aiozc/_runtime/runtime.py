"""The protocol by which coroutines wait, and which runtime they have: asyncio's or trio's.

The two cancel in different ways. asyncio's cancellation is an edge: it is raised once, and who
goes on waiting is left alone. trio's is a level: in a cancelled scope every wait raises. So what
must be waited for in any case (a chain's end, a thread) is waited for by `outlast`, and what must
be done after a cancellation stands in a `shield` block.

Which of the two it is: trio's guest mode runs its tasks in callbacks of asyncio's loop, and
trio-asyncio, which replaces functions of asyncio, runs its tasks within one of trio's. In both the
innermost task tells. trio is imported by the program or not at all.
"""

import asyncio
import sys
from asyncio import events
from collections.abc import Callable, Collection, Coroutine
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from aiozc._errors import nothing_moved
from aiozc._runtime.on_asyncio import AsyncioRuntime
from aiozc._runtime.waiting import Loop, Waited, wait_at_most

F = TypeVar("F", bound=Callable[..., Any])

_modules = sys.modules


class Runtime(Protocol):
    """How the running coroutine waits. `AsyncioRuntime` and `TrioRuntime` are the two."""

    @property
    def loop(self) -> Loop:
        """The loop: asyncio's, or a run of trio with the same few methods."""

    async def checkpoint(self) -> None:
        """Raise a cancellation that is there already."""

    def shield(self, error: BaseException | None) -> AbstractContextManager[object]:
        """Return a block in which a cancellation is not felt again, if `error` is one."""

    async def outlast(self, waited: Waited, stop: Callable[[], object]) -> BaseException | None:
        """Wait until it has ended, whatever comes; return the cancellation that came meanwhile.

        Then `stop` is called, which is to hasten the end.
        """

    async def wait_ready(self, fd: int, seconds: float, *, writing: bool) -> None:
        """Wait until a descriptor is ready, or for so many seconds. It is nobody else's."""

    async def run_all(self, ways: Collection[Coroutine[Any, Any, None]]) -> None:
        """Run all at once to their ends; where one fails, or the caller is cancelled, the others
        are cancelled, and what was the first is raised.
        """


def current() -> Runtime:
    """Return the running coroutine's runtime. Raises RuntimeError where nothing runs."""
    loop = events._get_running_loop()
    if loop is not None and ("trio" not in _modules or asyncio.current_task(loop) is not None):
        return AsyncioRuntime(loop)
    # Another thread may be importing it just now.
    lowlevel = getattr(_modules.get("trio"), "lowlevel", None)
    in_trio_task: Callable[[], bool] | None = getattr(lowlevel, "in_trio_task", None)
    if in_trio_task is not None and in_trio_task():
        from aiozc._runtime.on_trio import current_run

        return current_run(_uninterrupted)
    if loop is None:
        raise RuntimeError("no running event loop")
    return AsyncioRuntime(loop)


def running_loop() -> Loop:
    """Return what `current().loop` is."""
    return plain_loop() or current().loop


def plain_loop() -> asyncio.AbstractEventLoop | None:
    """Return asyncio's running loop, or None where trio is imported: then `current` tells."""
    return None if "trio" in _modules else events._get_running_loop()


async def checked_loop(nothing: Any = 0) -> Loop:
    """Return the running loop; first raise a cancellation that is there already.

    What is raised says that `nothing` was moved: a transfer begins by this.
    """
    runtime = current()
    with nothing_moved(nothing):
        await runtime.checkpoint()
    return runtime.loop


async def sleep(seconds: float) -> None:
    """Let so many seconds pass."""
    loop = running_loop()
    await wait_at_most(loop, loop.create_future(), seconds)


_uninterrupted: list[Callable[..., Any]] = []


def uninterrupted(function: F) -> F:
    """Have trio raise KeyboardInterrupt where a function waits, and not between two lines of it."""
    _uninterrupted.append(function)
    return function
