"""The loops to test on, and running on them."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

import aiozc

T = TypeVar("T")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
LOOPS: dict[str, LoopFactory] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
WITH_AIOZC: dict[str, LoopFactory] = {
    "asyncio": aiozc.new_event_loop,
    "uvloop": functools.partial(aiozc.new_event_loop, uvloop.new_event_loop),
}
"""Those that are made with aiozc installed."""


def run_on(loop_factory: LoopFactory, main: Coroutine[Any, Any, T]) -> T:
    """Run it on a new loop of that make."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main)
