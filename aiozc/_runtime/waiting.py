"""Loops, futures, and waiting for them: what asyncio's loops and a run of trio have in common."""

import asyncio
from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
    import trio

    from aiozc._runtime.on_trio import TrioFuture, TrioRuntime

Loop: TypeAlias = Union[asyncio.AbstractEventLoop, "TrioRuntime"]
Future: TypeAlias = Union["asyncio.Future[None]", "TrioFuture"]
Timer: TypeAlias = Union[asyncio.TimerHandle, "trio.CancelScope"]


class Waited:
    """What one coroutine waits for until it has `ended`: see `Runtime.outlast`."""

    __slots__ = ("waiter",)

    def __init__(self) -> None:
        self.waiter: Future | None = None

    @property
    def ended(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return False

    def wake(self) -> None:
        """Let the coroutine look again whether it has ended. Call it in the loop's thread."""
        if self.waiter is not None:
            wake(self.waiter)


def wake(future: Future) -> None:
    """Let who waits for a future go on."""
    if not future.done():
        future.set_result(None)


async def wait_at_most(loop: Loop, future: Future, seconds: float) -> None:
    """Wait for a future, or for so many seconds: then its result is set."""
    timer = loop.call_later(seconds, wake, future)
    try:
        await future
    finally:
        timer.cancel()
