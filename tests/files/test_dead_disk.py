"""A disk that does not answer stops nobody but who reads from it."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from threading import Event, Timer
from typing import Any

import pytest

import aiozc
from aiozc._engines import readiness, workers
from aiozc._runtime import threads
from aiozc._runtime.threads import Pool
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.ends import Ends, content_of
from tests.kit.far_ends import Connect, FarEnd
from tests.kit.faults.fuse import Fuse, Op
from tests.kit.loops import LoopFactory, run_on
from tests.kit.tasks import outcome_of
from tests.kit.waiting import in_a_thread, until

CONTENT = pattern(2 * MIB)
NUMBER = 8
"""Reads that take all the workers there are."""


@pytest.fixture
def dead() -> Iterator[Fuse]:
    """Make a file system whose server does not answer reads."""
    with Fuse(
        {f"file-{number}": bytes(256 * KIB + 1) for number in range(3 * NUMBER)}, valid=3600
    ) as fuse:
        fuse.stall(Op.READ)
        yield fuse


@contextlib.asynccontextmanager
async def stuck(fuse: Fuse, count: int) -> AsyncIterator[list["asyncio.Task[int]"]]:
    """Have as many transfers wait for the disk, until the end of the block."""
    with contextlib.ExitStack() as stack:
        tasks = []
        for number in range(count):
            near, far = socket_pair(socket.AF_UNIX)
            stack.enter_context(near)
            stack.enter_context(far)
            file = stack.enter_context(os.fdopen(fuse.open(f"file-{number}"), "rb"))
            tasks.append(asyncio.create_task(aiozc.loop_sendfile(near, file)))
        yield tasks
        assert not tasks[0].done()
        for task in tasks:
            task.cancel()
        fuse.go_on()
        await asyncio.wait(tasks)


@pytest.mark.anyio
async def test_all_else_goes_on_beside_reads_of_a_dead_disk(
    dead: Fuse, connect: Connect, make_file: MakeFile, ends: Ends, far_end: FarEnd
) -> None:
    """A cached file, an upload, a splice of a file, and a relay in bulk."""
    async with aiozc.Reactor(), stuck(dead, NUMBER):
        await until(lambda: dead.asked(Op.READ) >= NUMBER)
        sock, receiver = connect()
        assert await aiozc.loop_sendfile(sock, make_file(CONTENT)) == len(CONTENT)
        sock.close()
        assert_same(await receiver.wait_end(), CONTENT)

        source, upload = ends.source("tcp", CONTENT), ends.file(b"", "w+b")
        assert await aiozc.loop_recvfile(source.end, upload) == len(CONTENT)
        assert_same(content_of(upload), CONTENT)

        target = ends.target("pipe")
        assert await aiozc.splice_pipe(make_file(CONTENT), target.end) == len(CONTENT)
        await target.check(CONTENT)

        (a, b), (c, d) = socket_pair(), socket_pair()
        relaying = asyncio.create_task(aiozc.relay(b, c))
        sending, receiving = far_end.peer(a), far_end.peer(d)
        sending.send(CONTENT * 4, end=True)
        await receiving.wait_arrived(4 * len(CONTENT))
        receiving.finish()
        assert await relaying == (4 * len(CONTENT), 0)
        assert_same(await receiving.wait_end(), CONTENT * 4)
        b.close()
        c.close()


@pytest.mark.anyio
async def test_what_has_no_worker_yet_is_cancelled_at_once(
    dead: Fuse, make_file: MakeFile, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As there may be no more of them."""
    monkeypatch.setattr(workers, "MOST", NUMBER)
    monkeypatch.setattr(threads, "FILES", Pool(NUMBER, NUMBER, may_be_inline=True))
    async with aiozc.Reactor(), stuck(dead, 3 * NUMBER) as tasks:
        await until(lambda: dead.asked(Op.READ) >= NUMBER)
        source, upload = ends.source("tcp", CONTENT), ends.file(b"", "w+b")
        uploading = asyncio.create_task(aiozc.loop_recvfile(source.end, upload))
        target = ends.target("pipe")
        splicing = asyncio.create_task(aiozc.splice_pipe(make_file(CONTENT), target.end))
        await asyncio.sleep(0.02)
        for task in (uploading, splicing, *tasks[2 * NUMBER + 2 :]):
            assert not task.done()
            task.cancel()
            outcome: Any = await outcome_of(task)
            assert isinstance(outcome, asyncio.CancelledError)
        assert upload.tell() == 0


@pytest.mark.ring
def test_the_ring_may_have_more_workers_until_the_disk_has_answered(
    dead: Fuse, loop_factory: LoopFactory
) -> None:
    async def main() -> None:
        async with aiozc.Reactor() as reactor:
            backend: Any = reactor._engine._backend
            async with stuck(dead, NUMBER):
                await until(lambda: backend._workers._bound > workers.WORKERS)
                assert reactor.backend == "io_uring"
            assert backend._workers._bound == workers.WORKERS

    # A thread has the same workers for all of its rings, and they stay for 5 s.
    in_a_thread(lambda: run_on(loop_factory, main()))


@pytest.mark.parametrize("direct", [False, True])
def test_a_read_that_is_to_go_uncopied_does_not_hold_the_loop(
    direct: bool, dead: Fuse, loop_factory: LoopFactory
) -> None:
    held = Event()

    def go_on() -> None:
        held.set()
        dead.go_on()

    async def main() -> None:
        near, far = socket_pair()
        with near, far, os.fdopen(dead.open("file-0"), "rb") as file:
            timer = Timer(3, go_on)
            timer.start()
            sending = asyncio.create_task(aiozc.sendfile_zc(near, file, direct=direct))
            await until(lambda: dead.asked(Op.READ) > 0)
            assert not held.is_set()
            timer.cancel()
            sending.cancel()
            dead.go_on()
            assert isinstance(await outcome_of(sending), asyncio.CancelledError)

    in_a_thread(lambda: run_on(loop_factory, main()))


def test_by_readiness_threads_double_where_all_are_stuck(
    dead: Fuse, loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands behind a hundred of these is not to wait for a tick for each."""
    monkeypatch.setenv("AIOZC_BACKEND", "readiness")
    monkeypatch.setattr(readiness, "TICK_S", 3600)
    monkeypatch.setattr(threads, "FILES", Pool(NUMBER, 9 * NUMBER))

    async def main() -> None:
        async with aiozc.Reactor() as reactor, stuck(dead, 3 * NUMBER):
            await until(lambda: dead.asked(Op.READ) >= NUMBER)
            monkeypatch.setattr(threads, "STUCK_S", 0)
            reactor._engine._backend.at_tick()
            await until(lambda: dead.asked(Op.READ) >= 2 * NUMBER)

    run_on(loop_factory, main())


@pytest.mark.ring
def test_where_no_more_workers_may_be_had_what_needs_no_disk_goes_by_readiness(
    dead: Fuse,
    loop_factory: LoopFactory,
    connect: Connect,
    make_file: MakeFile,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(workers, "MOST", NUMBER)
    workers._warn_of_limit.cache_clear()

    async def main() -> None:
        async with aiozc.Reactor() as reactor:
            async with stuck(dead, 2 * NUMBER):
                await until(lambda: reactor.backend == "readiness")
                sock, receiver = connect()
                assert await aiozc.loop_sendfile(sock, make_file(CONTENT)) == len(CONTENT)
                sock.close()
                assert_same(await receiver.wait_end(), CONTENT)
            assert await aiozc.loop_sendfile(connect()[0], make_file(CONTENT)) == len(CONTENT)
            await until(lambda: reactor.backend == "io_uring")

    in_a_thread(lambda: run_on(loop_factory, main()))
    assert len([record for record in caplog.records if record.name == "aiozc"]) == 1


@pytest.mark.ring
def test_a_ring_that_ends_beside_a_dead_disk_says_nothing_of_a_limit(
    dead: Fuse, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """What asks for a worker is cancelled with all else."""

    async def main() -> None:
        reactor = aiozc.Reactor()
        backend: Any = reactor._engine._backend
        async with stuck(dead, NUMBER):
            await until(lambda: backend._workers._asked > 0 and dead.asked(Op.READ) >= NUMBER)
            timer = Timer(0.05, dead.go_on)
            timer.start()
            reactor._engine.end()
            timer.join()
            raise EndedError

    with pytest.raises(EndedError):
        in_a_thread(lambda: run_on(loop_factory, main()))
    assert not [record for record in caplog.records if record.name == "aiozc"]


class EndedError(Exception):
    """The reactor has."""
