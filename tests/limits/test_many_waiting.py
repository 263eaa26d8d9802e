"""Thousands of transfers that wait: what the callers have closed is told in a few ticks."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import BinaryIO

import pytest

import aiozc
from aiozc._engines.watchdog import CHAINS_PER_TICK, CHECKS_PER_TICK
from aiozc._resources import liveness
from aiozc._resources.liveness import AT_LEAST, Ask, Liveness
from tests.kit.connections import fill, socket_pair
from tests.kit.content import KIB, MakeFile, pattern
from tests.kit.leaks import open_files
from tests.kit.waiting import turns

pytestmark = pytest.mark.anyio


@dataclass
class Waiting:
    """A transfer whose peer does not read."""

    sock: socket.socket
    file: BinaryIO
    task: "asyncio.Task[int]"


class Ticks:
    """Counts the reactor's ticks."""

    def __init__(self, reactor: aiozc.Reactor, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._tick = reactor._engine.tick
        patch.setattr(reactor._engine, "tick", self)

    def __call__(self) -> None:
        self.count += 1
        self._tick()


@contextlib.asynccontextmanager
async def waiting(
    backend: str, number: int, make_file: MakeFile, patch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[list[Waiting], Ticks]]:
    """Have so many transfers wait."""
    content = pattern(50 * KIB)
    async with aiozc.Reactor(backend=backend) as reactor:
        with open_files(6 * number + 200), contextlib.ExitStack() as stack:
            all_of_them = []
            for _ in range(number):
                near, far = socket_pair(socket.AF_UNIX, sndbuf=1)
                stack.enter_context(near)
                stack.enter_context(far)
                fill(near)
                file = make_file(content, again=True)
                sending = asyncio.create_task(aiozc.loop_sendfile(near, file))
                all_of_them.append(Waiting(near, file, sending))
            while reactor.statistics().in_flight < number:
                await turns(1)
            yield all_of_them, Ticks(reactor, patch)
            for transfer in all_of_them:
                transfer.task.cancel()
            await asyncio.wait([transfer.task for transfer in all_of_them])


async def check_told(closed: list[Waiting]) -> None:
    """Check that they end as what was closed under way does."""
    for transfer in closed:
        with pytest.raises(OSError, match="was closed during the transfer"):
            await transfer.task


async def test_of_thousands_one_whose_socket_or_file_is_closed_hears_of_it_in_a_few_ticks(
    each_backend: str, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are gone through twice at the most: one may have been asked just before it is closed."""
    async with waiting(each_backend, 1200, make_file, monkeypatch) as (transfers, ticks):
        closed = [transfers[0], transfers[600], transfers[-1]]
        closed[0].sock.close()
        closed[1].file.close()
        number = closed[2].sock.detach()
        await check_told(closed)
        os.close(number)
        assert ticks.count <= 2 * (1200 // AT_LEAST + 1)
        assert sum(transfer.task.done() for transfer in transfers) == len(closed)


async def test_all_that_are_closed_at_once_hear_of_it_in_a_few_ticks_and_the_loop_turns_meanwhile(
    each_backend: str, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with waiting(each_backend, 600, make_file, monkeypatch) as (transfers, ticks):
        for transfer in transfers:
            transfer.sock.close()
        ended = most = 0
        while ended < len(transfers):
            await asyncio.sleep(0)
            before, ended = ended, sum(transfer.task.done() for transfer in transfers)
            most = max(most, ended - before)
        assert most <= 2 * CHAINS_PER_TICK
        await check_told(transfers)
        assert ticks.count <= 600 // AT_LEAST + 2


async def test_a_number_closed_behind_its_objects_back_is_found_when_it_is_its_turn(
    each_backend: str, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lists of those who wait are gone through at the most, CHECKS_PER_TICK in a tick."""
    async with waiting(each_backend, 50, make_file, monkeypatch) as (transfers, ticks):
        transfer, other = transfers[0], transfers[1]
        os.dup2(other.sock.fileno(), transfer.sock.fileno())
        await check_told([transfer])
        assert ticks.count <= 2 * (50 // CHECKS_PER_TICK + 1)
        assert not other.task.done()


class Object:
    """What a caller has: open until it says that it is closed, or raises."""

    def __init__(self, told: list["Object"]) -> None:
        self.answer: Ask = lambda: 5
        self._told = told

    def asks(self) -> tuple[tuple[Ask, object], tuple[Ask, object]]:
        """Return what is to be asked."""
        return (int, 0), (self.ask, 5)

    def ask(self) -> object:
        """Say whether it is open."""
        self._told.append(self)
        return self.answer()


def fail() -> object:
    """Be a closed file."""
    raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("closed", [lambda: -1, fail], ids=["another number", "an error"])
def test_each_is_asked_in_turn_and_found_once(
    closed: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "SLICE_S", -1.0)
    asked: list[Object] = []
    objects, there = [Object(asked) for _ in range(3 * AT_LEAST)], Liveness()
    for each in objects:
        there.add(each)
    for each in objects[::3]:
        there.discard(each)
        there.discard(each)
    left = [each for number, each in enumerate(objects) if number % 3]
    for each in left[::100]:
        each.answer = closed
    found: list[object] = []
    for _ in range(2):
        asked.clear()
        found += there.find_closed(1000)
        assert len(set(asked)) == AT_LEAST
    assert set(found) == set(left[::100])
    assert len(found) == len(left[::100])
    asked.clear()
    for _ in range(2):
        assert not there.find_closed(1000)
    assert len(set(asked)) > len(left) - len(found) - 1
    there.clear()
    assert not there.find_closed(1000)


def test_no_more_are_found_at_once_than_were_asked_for() -> None:
    objects, there = [Object([]) for _ in range(100)], Liveness()
    for each in objects:
        each.answer = fail
        there.add(each)
    found: set[object] = set()
    for _ in range(4):
        some = there.find_closed(25)
        assert len(some) == 25
        found |= some
    assert found == set(objects)
    assert not there.find_closed(25)
