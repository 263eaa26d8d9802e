"""Waiting for what happens, in turns of the loop and in threads; running what does not wait."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aiozc._runtime.threads import POOLS
from tests.kit import tasks

T = TypeVar("T")


async def turns(count: int) -> None:
    """Let the loop go round `count` times."""
    for _ in range(count):
        await tasks.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go round until it is so; the test's time limit is the only one."""
    while not condition():
        await tasks.sleep(0.001)


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again; the test's time limit is the only one."""
    while not condition():
        time.sleep(0.001)


async def threads_at_rest() -> None:
    """Wait until none of aiozc's threads is at work any more."""
    await until(are_threads_at_rest)


def are_threads_at_rest() -> bool:
    """Say whether none of aiozc's threads is at work."""
    return jobs_of_threads() == 0


def jobs_of_threads() -> int:
    """Return how many things aiozc's threads do, or are about to do."""
    return sum(pool.at_work for pool in POOLS)


def in_threads(functions: Sequence[Callable[[], T]]) -> list[T]:
    """Run each in a thread of its own, all at once; the threads have ended when this returns."""
    with ThreadPoolExecutor(len(functions)) as pool:
        outcomes = [pool.submit(function) for function in functions]
    return [outcome.result() for outcome in outcomes]


def in_a_thread(function: Callable[[], T]) -> T:
    """Run it in a thread of its own that has ended when this returns."""
    return in_threads([function])[0]
