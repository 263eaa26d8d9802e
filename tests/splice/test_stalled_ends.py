"""Ends that make whoever touches them wait: a pipe that is locked, a terminal that is not read."""

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import BinaryIO

import pytest

import aiozc
from aiozc._resources.pipes import LARGE
from aiozc._resources.polls import is_ready
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.ends import Ends, Told
from tests.kit.far_ends import Connect
from tests.kit.faults.pipe_lock import Hold, held, may_hold
from tests.kit.tasks import outcome_of
from tests.kit.waiting import until

pytestmark = pytest.mark.anyio

CONTENT = pattern(50 * KIB)
FIRST = b"!"  # what the thread that holds the lock has read
KINDS = ["tcp", "unix", "pipe", "file"]
HELD = may_hold()

of_kinds = pytest.mark.parametrize("kind", KINDS)
of_held = pytest.mark.parametrize("is_held", [HELD], ids=["held" if HELD else "free"])
once_cancelled = pytest.mark.parametrize("cancel", [True, False], ids=["cancelled", "waited for"])


async def go_on() -> None:
    """Let the loop go on for longer than a transfer takes to look at what it waits for."""
    await asyncio.sleep(0.12)


@contextmanager
def maybe_held(is_held: bool, reading: BinaryIO) -> Iterator[Hold | None]:
    """Hold the lock of a pipe whose first byte is FIRST, or take that byte out alone."""
    if is_held:
        with held(reading.fileno()) as hold:
            yield hold
    else:
        assert reading.read(1) == FIRST
        yield None


async def let_wait(moving: "asyncio.Task[int]", hold: Hold | None, *, cancel: bool) -> None:
    """Check that the loop goes on while the transfer waits for the lock, and ask it to end."""
    for ask in (False, True) if cancel else (False,):
        if ask:
            moving.cancel()
        await go_on()
        if hold is not None:
            assert not hold.ended
            assert not moving.done()


def told(outcome: object) -> Told:
    """Return what the outcome of a `splice_pipe` says."""
    if isinstance(outcome, int):
        return Told(outcome, 0)
    assert isinstance(outcome, asyncio.CancelledError), repr(outcome)
    return Told(outcome.transferred, outcome.lost)  # type: ignore[attr-defined]


@once_cancelled
@of_held
@of_kinds
async def test_a_source_whose_lock_is_held_does_not_stop_the_loop(
    kind: str, is_held: bool, cancel: bool, ends: Ends
) -> None:
    (reading, writing), target = ends.pipe(), ends.target(kind)
    writing.write(FIRST + CONTENT)
    with maybe_held(is_held, reading) as hold:
        moving = asyncio.create_task(aiozc.splice_pipe(reading, target.end))
        await let_wait(moving, hold, cancel=cancel)
    writing.close()
    said = told(await outcome_of(moving))
    assert cancel or said == Told(len(CONTENT), 0)
    await target.check(CONTENT[: said.transferred])
    left = reading.read() or b""
    assert_same(left, CONTENT[said.transferred + said.lost :])


@once_cancelled
@of_held
@of_kinds
async def test_a_target_whose_lock_is_held_does_not_stop_the_loop(
    kind: str, is_held: bool, cancel: bool, ends: Ends
) -> None:
    source, (reading, writing) = ends.source(kind, CONTENT), ends.pipe()
    writing.write(FIRST)
    with maybe_held(is_held, reading) as hold:
        moving = asyncio.create_task(aiozc.splice_pipe(source.end, writing))
        await let_wait(moving, hold, cancel=cancel)
    said = told(await outcome_of(moving))
    assert said.lost == 0
    assert cancel or said == Told(len(CONTENT), 0)
    writing.close()
    assert_same(reading.read() or b"", CONTENT[: said.transferred])
    await source.check_left(said)


@contextmanager
def terminal(*, blocking: bool) -> Iterator[tuple[int, int]]:
    """Make a terminal that passes bytes on as they are: its program's end, and its reader's.

    Its reader goes away after 20 s, so that a test that waits for it comes to its end.
    """
    reader, program = os.openpty()
    tty.setraw(program)
    os.set_blocking(program, blocking)
    os.set_blocking(reader, False)
    nobody = os.open("/dev/null", os.O_RDONLY)
    guard = Timer(20, os.dup2, (nobody, reader))
    guard.start()
    try:
        yield program, reader
    finally:
        guard.cancel()
        guard.join()
        for fd in (nobody, program, reader):
            os.close(fd)


def read_all(fd: int) -> bytes:
    """Return what there is."""
    read = b""
    while True:
        try:
            read += os.read(fd, 64 * KIB)
        except BlockingIOError:
            return read


def unread(sock: socket.socket) -> bytes:
    """Return what can be received now, and leave it there."""
    try:
        return sock.recv(2 * len(CONTENT), socket.MSG_PEEK)
    except BlockingIOError:
        return b""


async def test_a_pipe_whose_target_stalls_is_made_as_small_as_what_it_holds_and_loses_nothing(
    connect: Connect,
) -> None:
    """What has left the source is nowhere else: the kernel refuses to shrink below it."""
    content = pattern(1500 * KIB)
    near, far = socket_pair()
    # The first message to meet a full target is held in memory.
    target, receiver = connect(limit=700 * KIB, sndbuf=30_000, rcvbuf=30_000)
    with near, far:
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(far, content))
        moving = asyncio.create_task(aiozc.splice_pipe(near, target, len(content)))
        lent = aiozc.get_reactor()._engine._pipes._lent
        await until(lambda: any(pipe.size < LARGE for pipe in lent))
        assert not moving.done()
        receiver.allow(None)
        assert await moving == len(content)
        await sending
    target.close()
    assert_same(await receiver.wait_end(), content)


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("late", [True, False], ids=["late", "as soon as it is full"])
async def test_what_a_stalled_terminal_does_not_take_is_told_lost_and_does_not_stop_the_loop(
    late: bool, blocking: bool, family: int
) -> None:
    """A write into it may wait for its reader, who does not come."""
    near, far = socket_pair(family)
    with near, far, terminal(blocking=blocking) as (program, reader):
        far.sendall(CONTENT)
        moving = asyncio.create_task(aiozc.splice_pipe(near, program))
        await until(lambda: not unread(near))
        if late:
            await go_on()
        assert not moving.done()
        moving.cancel()
        said = told(await outcome_of(moving))
        arrived = read_all(reader)
        assert_same(arrived, CONTENT[: len(arrived)])
        assert said == Told(len(arrived), len(CONTENT) - len(arrived))


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("kind", ["file", "pipe"])
async def test_a_terminals_master_that_blocks_is_waited_for_and_not_within_a_write(
    kind: str, make_file: MakeFile
) -> None:
    """Whoever waits within a write holds a worker, and can be cancelled by nobody."""
    master, program = os.openpty()
    tty.setraw(program)
    os.set_blocking(program, False)
    content = pattern(200 * KIB)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, MIB)
    with contextlib.ExitStack() as stack:
        for fd in (master, program, reading):
            stack.callback(os.close, fd)
        with os.fdopen(writing, "wb", 0) as pipe:
            pipe.write(content)
        source = make_file(content) if kind == "file" else reading
        async with aiozc.Reactor():
            moving = asyncio.create_task(aiozc.splice_pipe(source, master))
            held = b""
            while len(held) < 100 * KIB:
                held += read_all(program)
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.25)  # it is full, and ticks have passed
            moving.cancel()
            outcome = await asyncio.wait_for(outcome_of(moving), 5)
            assert isinstance(outcome, asyncio.CancelledError)
            held += read_all(program)
            assert_same(held, content[: outcome.transferred])  # type: ignore[attr-defined]
            assert len(held) < len(content)
            if kind == "pipe":
                moving = asyncio.create_task(aiozc.splice_pipe(source, master))
                while len(held) < len(content):
                    held += read_all(program)
                    await asyncio.sleep(0.001)
                await moving
                assert_same(held, content)


async def test_a_pipe_whose_readers_go_while_it_is_full_is_ready_and_ends_a_transfer(
    make_file: MakeFile,
) -> None:
    """It tells of an error alone, and by one edge: who waits once more must see it at once."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    with os.fdopen(writing, "wb", 0) as pipe:
        moving = asyncio.create_task(aiozc.splice_pipe(make_file(pattern(MIB)), pipe))
        read_all(reading)
        await until(lambda: not is_ready(writing, select.POLLOUT))
        os.close(reading)
        assert is_ready(writing, select.POLLOUT)
        assert isinstance(await outcome_of(moving), BrokenPipeError)
