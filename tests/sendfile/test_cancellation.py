"""Cancelled at any step, a transfer has sent what the file position says, and sends no more.

Each body sends something else on the same connection straight after the cancellation:
a byte of the cancelled transfer that came later would stand behind or within it.
"""

import asyncio
import io
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pytest

import aiozc
from tests.kit.connections import fill
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern, write_out
from tests.kit.far_ends import Connect, FarEnd, Receiver
from tests.kit.folding import each
from tests.kit.leaks import IDLE_PIPES, holdings
from tests.kit.tasks import outcome_of
from tests.kit.waiting import turns, until
from tests.kit.ways import SENDS, Send

pytestmark = pytest.mark.anyio

OFFSET = 12_345
CONTENT = pattern(MIB + 400_000)
TAIL = pattern(50_001, 1)
SMALL = CONTENT[: 100 * KIB]

Scene = tuple[socket.socket, Receiver, BinaryIO, int]  # the last: bytes sent before


def rising() -> Iterator[int]:
    """Count 0, 1, 2, ..., 15, and on by a fifth each time."""
    number = 0
    while True:
        yield number
        number += 1 + number // 15 * 3


def position(file: BinaryIO) -> int:
    """Return the position of the file itself, not that of a buffer in front of it."""
    return file.tell() if isinstance(file, io.BytesIO) else os.lseek(file.fileno(), 0, os.SEEK_CUR)


async def check_after(scene: Scene, outcome: object, make_file: MakeFile) -> None:
    """Check that the peer gets what the file position says, and then what is sent after it."""
    sock, receiver, file, before = scene
    end = position(file)
    assert aiozc.get_reactor().statistics().in_flight == 0
    assert isinstance(outcome, asyncio.CancelledError) or outcome == end - OFFSET, repr(outcome)
    receiver.allow(None)
    assert await aiozc.loop_sendfile(sock, make_file(TAIL, again=True)) == len(TAIL)
    sock.close()
    # Cancelled before its first step a coroutine has not moved the file: then end is 0.
    assert_same(await receiver.wait_end(), bytes(before), CONTENT[OFFSET:end], TAIL)
    file.close()


# What is taken out of the cache is a file of its own: no other scene is to find it so.
CONTENTS = {"small file": SMALL, "small sndbuf": CONTENT[:MIB], "cold": CONTENT[:-1]}
LIMITS = {"full": 0, "stopped reader": 300_000}


KINDS = ["cached", "cold", "small sndbuf", "stopped reader", "small file", "full"]
WAYS = [
    *((kind, "loop_sendfile") for kind in [*KINDS, "fallback"]),
    # Behind its first step it is the same engine's, whoever asks.
    *((kind, "splice_pipe") for kind in ("cached", "full")),
]


class Scenes:
    """Makes a connection and a file for each transfer that is to be cancelled."""

    def __init__(self, send: Send, set_scene: Callable[[], Scene]) -> None:
        self.send = send
        self._set_scene = set_scene

    def __call__(self) -> Scene:
        """Make one of each."""
        return self._set_scene()


@pytest.fixture(params=WAYS, ids="-".join)
def set_scene(
    request: pytest.FixtureRequest, family: int, connect: Connect, make_file: MakeFile
) -> Scenes:
    """Set the scenes of one kind, for one function."""
    kind, name = request.param

    def set_scene() -> Scene:
        sock, receiver = connect(
            family,
            limit=LIMITS.get(kind),
            sndbuf=10_000 if kind == "small sndbuf" else None,
        )
        if kind == "fallback":
            return sock, receiver, io.BytesIO(CONTENT), 0
        file = make_file(CONTENTS.get(kind, CONTENT), again=True)
        if kind == "cold":
            write_out(file)
        if kind == "full":
            before = fill(sock)
            receiver.allow(None)
            return sock, receiver, file, before
        return sock, receiver, file, 0

    return Scenes(SENDS[name], set_scene)


async def test_cancelled_after_any_number_of_turns_the_position_says_what_arrives(
    set_scene: Scenes, make_file: MakeFile
) -> None:
    """Go on until one has ended before its cancellation, or for 25 steps where none can."""
    for number in itertools.islice(rising(), 25):
        scene = set_scene()
        sock, _, file, _ = scene
        task = asyncio.create_task(set_scene.send(sock, file, OFFSET))
        await turns(number)
        asked = task.cancel()
        outcome = await outcome_of(task)
        assert isinstance(outcome, asyncio.CancelledError) == asked
        await check_after(scene, outcome, make_file)
        if not asked and number > 15:
            break


@pytest.mark.parametrize("sndbuf", [None, 30_000])
async def test_cancelled_after_any_number_of_bytes_the_position_says_what_arrives(
    send: Send, sndbuf: int | None, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """The reader takes that many, and stops until the transfer is cancelled."""
    rest = len(CONTENT) - OFFSET
    for count in (
        *(1, 4095, 4096, 4097, 50_000, 65_536, 65_537, 100_001, 262_144, 500_000),
        *(MIB - OFFSET, MIB, MIB + 1, rest - 70_000, rest - 1),
    ):
        sock, receiver = connect(family, limit=count, sndbuf=sndbuf, rcvbuf=sndbuf)
        file = make_file(CONTENT, again=True)
        task = asyncio.create_task(send(sock, file, OFFSET))
        await receiver.wait_arrived(count)
        task.cancel()
        await check_after((sock, receiver, file, 0), await outcome_of(task), make_file)


async def test_cancelled_when_all_has_arrived_the_position_is_the_end(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """The last byte is there, and the transfer has not been told, or has just been."""
    for late in range(4):
        for size in (len(SMALL), len(CONTENT)):
            sock, receiver = connect(family, limit=0)
            before = fill(sock)
            file = make_file(SMALL if size == len(SMALL) else CONTENT, again=True)
            task = asyncio.create_task(send(sock, file, OFFSET))
            await turns(3)
            receiver.allow(None)
            while receiver.count < before + size - OFFSET:
                await turns(1)
            await turns(late)
            asked = task.cancel()
            outcome = await outcome_of(task)
            assert isinstance(outcome, asyncio.CancelledError) == asked
            assert position(file) == size
            await check_after((sock, receiver, file, before), outcome, make_file)


async def test_a_cancellation_before_the_first_step_sends_nothing(
    send: Send, connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect()
    file = make_file(CONTENT, again=True)
    task = asyncio.create_task(send(sock, file))
    task.cancel()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)
    assert file.tell() == 0
    sock.close()
    assert await receiver.wait_end() == b""


async def test_cancelled_after_its_pipe_was_given_up_the_position_says_what_arrives(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """Readers stop for long, and go on for some turns before the cancellation."""
    started = []
    async with aiozc.Reactor(entries=8) as reactor:
        for number in (0, 1, 2, 3, 5, 10, 50):
            sock, receiver = connect(family, limit=100_000, sndbuf=50_000, rcvbuf=50_000)
            file = make_file(CONTENT, again=True)
            task = asyncio.create_task(send(sock, file, OFFSET))
            started.append((number, task, (sock, receiver, file, 0)))
        for _, _, (_, receiver, _, _) in started:
            await receiver.wait_arrived(100_000)
        await until(lambda: not reactor.statistics().pipes)
        for number, task, (_, receiver, _, _) in started:
            receiver.allow(None)
            await turns(number)
            asked = task.cancel()
            assert isinstance(await outcome_of(task), asyncio.CancelledError) == asked
    for _, task, scene in started:
        await check_after(scene, await outcome_of(task), make_file)


async def test_cancelling_twice_is_as_good_as_once(set_scene: Scenes, make_file: MakeFile) -> None:
    for number, gap in itertools.product((0, 1, 4), (0, 1, 3)):
        scene = set_scene()
        sock, _, file, _ = scene
        task = asyncio.create_task(set_scene.send(sock, file, OFFSET))
        await turns(number)
        asked = task.cancel()
        await turns(gap)
        task.cancel()
        outcome = await outcome_of(task)
        assert isinstance(outcome, asyncio.CancelledError) == asked
        await check_after(scene, outcome, make_file)


async def test_cancelling_in_every_turn_is_as_good_as_once(
    set_scene: Scenes, make_file: MakeFile
) -> None:
    for number in (1, 2, 4, 8):
        scene = set_scene()
        sock, _, file, _ = scene
        task = asyncio.create_task(set_scene.send(sock, file, OFFSET))
        await turns(number)
        asked = task.cancel()
        while not task.done():
            await turns(1)
            task.cancel()
        outcome = await outcome_of(task)
        assert isinstance(outcome, asyncio.CancelledError) == asked
        await check_after(scene, outcome, make_file)


@each("seconds", [0, 0.001, 0.02])
async def test_a_timeout_ends_a_transfer_to_a_stopped_reader(
    seconds: float, send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect(family, limit=0, sndbuf=50_000, rcvbuf=50_000)
    file = make_file(CONTENT, again=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await send(sock, file, OFFSET)
    await check_after((sock, receiver, file, 0), asyncio.CancelledError(), make_file)


async def test_wait_for_ends_a_transfer_to_a_stopped_reader(
    send: Send, connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect(limit=0, sndbuf=50_000, rcvbuf=50_000)
    file = make_file(CONTENT, again=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send(sock, file, OFFSET), 0.01)
    await check_after((sock, receiver, file, 0), asyncio.CancelledError(), make_file)


async def test_a_failed_task_group_ends_its_transfers(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """Forty of them, on a ring of eight entries."""

    async def fail() -> None:
        await turns(5)
        raise ZeroDivisionError

    file = make_file(CONTENT, again=True)
    connections = [connect(family, limit=0, sndbuf=50_000, rcvbuf=50_000) for _ in range(40)]

    async def send_all_and_fail() -> None:
        async with asyncio.TaskGroup() as group:
            for sock, _ in connections:
                group.create_task(send(sock, file))
            group.create_task(fail())

    async with aiozc.Reactor(entries=8) as reactor:
        with pytest.raises(ExceptionGroup) as caught:
            await send_all_and_fail()
        assert caught.group_contains(ZeroDivisionError)
        assert reactor.statistics().in_flight == 0
        assert reactor.statistics().pipes <= IDLE_PIPES
        # None holds its connection: each can send again, and ends when it is closed.
        for sock, receiver in connections:
            receiver.allow(None)
            assert await send(sock, make_file(TAIL, again=True)) == len(TAIL)
            sock.close()
            arrived = await receiver.wait_end()
            assert_same(arrived, CONTENT[: len(arrived) - len(TAIL)], TAIL)


async def test_a_transfer_cancelled_and_resumed_again_and_again_arrives_once(
    set_scene: Scenes,
) -> None:
    sock, receiver, file, before = set_scene()
    receiver.allow(None)
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(0)
    for number in rising():
        task = asyncio.create_task(set_scene.send(sock, file, position(file)))
        await turns(number)
        task.cancel()
        await outcome_of(task)
        if position(file) == size:
            break
    sock.close()
    assert_same(await receiver.wait_end(), bytes(before), CONTENT[:size])


async def test_a_cancelled_transfer_keeps_neither_the_socket_nor_the_file_open(
    send: Send, far_end: FarEnd, make_file: MakeFile
) -> None:
    """The peer sees the end as soon as the caller closes."""
    near, far = socket.socketpair()
    near.setblocking(False)
    receiver = far_end.receive(far, limit=0)
    file = make_file(CONTENT, again=True)
    task = asyncio.create_task(send(near, file))
    await turns(10)
    assert not task.done()
    task.cancel()
    await outcome_of(task)
    name = file.name
    end = position(file)
    near.close()
    file.close()
    assert_same(await receiver.wait_end(), CONTENT[:end])
    assert name not in holdings().descriptors.values()
