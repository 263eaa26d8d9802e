"""Threads of our own: they do not wait for the program's, and those that are stuck stop nobody."""

import asyncio
import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

import aiozc
from aiozc._engines.opening import open_regular
from aiozc._runtime import threads
from aiozc._runtime.threads import Pool, in_thread
from tests.kit.children import Child
from tests.kit.connections import socket_pair
from tests.kit.content import MakeFile, assert_same, pattern
from tests.kit.far_ends import Connect
from tests.kit.loops import LoopFactory, run_on
from tests.kit.tasks import outcome_of
from tests.kit.waiting import threads_at_rest, turns, until

CONTENT = pattern(300_000)
pytestmark = pytest.mark.anyio


class Stuck(io.RawIOBase):
    """A source on a disk that does not answer until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answer = threading.Event(), threading.Event()

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:  # noqa: ARG002
        """Move nowhere."""
        return 0

    def readinto(self, buffer: Any) -> int:  # noqa: ARG002
        """Wait; there is nothing."""
        self.asked.set()
        self.answer.wait()
        return 0


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Pool:
    """Let there be two threads for files, and three with those that are stuck."""
    pool = Pool(2, 3, may_be_inline=True)
    monkeypatch.setattr(threads, "FILES", pool)
    return pool


async def fill(connect: Connect, count: int) -> tuple[list[Stuck], list["asyncio.Task[int]"]]:
    """Have as many threads wait for a disk."""
    files = [Stuck() for _ in range(count)]
    tasks = [asyncio.create_task(aiozc.loop_sendfile(connect()[0], file)) for file in files]
    await until(lambda: all(file.asked.is_set() for file in files))
    return files, tasks


async def test_the_loops_own_threads_are_not_waited_for(
    connect: Connect, make_file: MakeFile, tmp_path: Path
) -> None:
    loop = asyncio.get_running_loop()
    release = threading.Event()
    busy = [loop.run_in_executor(None, release.wait) for _ in range((os.cpu_count() or 1) + 4)]
    try:
        sock, receiver = connect()
        assert await aiozc.loop_sendfile(sock, io.BytesIO(CONTENT)) == len(CONTENT)
        missing = outcome_of(asyncio.create_task(open_regular(str(tmp_path / "none"))))
        assert isinstance(await missing, FileNotFoundError)
        sock.close()
        assert_same(await receiver.wait_end(), CONTENT)
        unix, at_unix = connect(1)
        async with await aiozc.sendfile_zc(unix, make_file(CONTENT)) as sent:
            assert sent.sent == len(CONTENT)
        unix.close()
        assert_same(await at_unix.wait_end(), CONTENT)
    finally:
        release.set()
        await asyncio.gather(*busy)


@pytest.mark.usefixtures("few")
async def test_what_has_no_thread_yet_is_cancelled_at_once_and_leaves_its_turn(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "STUCK_S", 3600)
    files, tasks = await fill(connect, 2)
    sock, receiver = connect()
    waiting = [
        asyncio.create_task(aiozc.loop_sendfile(sock, io.BytesIO(CONTENT))),
        asyncio.create_task(open_regular("/nowhere/at/all")),
    ]
    await turns(3)
    for task in waiting:
        task.cancel()
        assert isinstance(await outcome_of(task), asyncio.CancelledError)
    later = asyncio.create_task(aiozc.loop_sendfile(sock, io.BytesIO(CONTENT)))
    await turns(3)
    files[0].answer.set()
    assert await later == len(CONTENT)
    files[1].answer.set()
    assert await asyncio.gather(*tasks) == [0, 0]
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


@pytest.mark.usefixtures("few")
async def test_an_upload_waits_for_a_thread_before_it_takes_a_byte(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had left the socket would be nowhere when it is cancelled."""
    monkeypatch.setattr(threads, "STUCK_S", 3600)
    files, tasks = await fill(connect, 2)
    near, far = socket_pair()
    with near, far:
        far.send(CONTENT[:1000])
        task = asyncio.create_task(aiozc.loop_recvfile(near, io.BytesIO()))
        await turns(5)
        task.cancel()
        assert isinstance(await outcome_of(task), asyncio.CancelledError)
        assert near.recv(2000) == CONTENT[:1000]
    for file in files:
        file.answer.set()
    assert await asyncio.gather(*tasks) == [0, 0]


@pytest.mark.usefixtures("few")
async def test_threads_that_are_stuck_are_made_up_for_up_to_a_bound_that_is_told(
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(threads, "STUCK_S", 0.01)
    monkeypatch.setattr(threads, "LOOK_S", 0.005)
    threads._warn_of_limit.cache_clear()
    files, tasks = await fill(connect, 2)
    assert await in_thread(lambda: 5) == 5
    more, more_tasks = await fill(connect, 1)
    over = asyncio.create_task(in_thread(lambda: 6))
    await until(lambda: "3 threads wait" in caplog.text)
    assert not over.done()
    for file in files + more:
        file.answer.set()
    assert await over == 6
    assert await asyncio.gather(*tasks, *more_tasks) == [0, 0, 0]


@pytest.mark.usefixtures("few")
async def test_silent_pipes_take_no_thread_from_files(connect: Connect) -> None:
    ends = [os.pipe() for _ in range(4)]
    sock, receiver = connect()
    for reader, _ in ends:
        with os.fdopen(reader, "rb", 0) as source:
            task = asyncio.create_task(aiozc.loop_sendfile(connect()[0], source))
            await turns(5)
            task.cancel()
            assert isinstance(await outcome_of(task), asyncio.CancelledError)
    assert await aiozc.loop_sendfile(sock, io.BytesIO(CONTENT)) == len(CONTENT)
    for _, writer in ends:
        os.close(writer)
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)
    await threads_at_rest()


async def test_where_no_thread_can_be_started_the_loops_own_does_it(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threads, "FILES", Pool(2, 3, may_be_inline=True))
    threads._warn_of_refusal.cache_clear()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sock, receiver = connect()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert await aiozc.loop_sendfile(sock, io.BytesIO(CONTENT)) == len(CONTENT)
    assert "can't start new thread" in caplog.text
    assert await in_thread(threading.get_ident) != threading.get_ident()
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


async def test_where_no_more_can_be_started_one_waits_for_those_there_are(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "FILES", Pool(2, 3, may_be_inline=True))
    (file,), (task,) = await fill(connect, 1)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        waiting = asyncio.create_task(in_thread(threading.get_ident))
        given_up = asyncio.create_task(in_thread(threading.get_ident))
        await turns(3)
        given_up.cancel()
        assert isinstance(await outcome_of(given_up), asyncio.CancelledError)
        file.answer.set()
        assert await waiting != threading.get_ident()
    assert await task == 0


async def test_a_seat_may_be_given_back_in_the_midst_of_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the interpreter's collector does it, in whatever line of the pool's it comes."""
    pool = Pool(2, 2)
    given_up = await pool.take()
    start = threading.Thread.start

    def collect(thread: threading.Thread) -> None:
        given_up.give_back()
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", collect)
        seats = [await pool.take()]
    seats.append(await pool.take())
    for seat in seats:
        assert await seat.run(threading.get_ident) != threading.get_ident()
        seat.give_back()


async def test_what_a_thread_raises_reaches_who_waits() -> None:
    def fail(error: BaseException) -> None:
        raise error

    for error in (ZeroDivisionError(), KeyboardInterrupt(), OSError(5, "told")):
        with pytest.raises(type(error)):
            await in_thread(fail, error)


@pytest.mark.usefixtures("few")
def test_a_loop_that_is_closed_beneath_a_thread_leaves_it_to_the_next(
    loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "STUCK_S", 3600)
    release = [threading.Event(), threading.Event()]
    begun = [threading.Event(), threading.Event()]

    def work(number: int) -> None:
        begun[number].set()
        release[number].wait()

    async def leave() -> list[Any]:
        tasks = [asyncio.create_task(in_thread(work, number)) for number in (0, 1, 1)]
        await until(lambda: all(event.is_set() for event in begun))
        return tasks

    loop = loop_factory()
    tasks = loop.run_until_complete(leave())
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False
        task.get_coro().close()
    for event in release:
        event.set()
    run_on(loop_factory, in_thread(work, 0))
    run_on(loop_factory, threads_at_rest())
    assert run_on(loop_factory, in_thread(lambda: 7)) == 7


def test_a_forked_child_has_threads_of_its_own(loop_factory: LoopFactory) -> None:
    release = threading.Event()

    def child() -> None:
        assert run_on(loop_factory, in_thread(lambda: 8)) == 8

    async def main() -> None:
        working = asyncio.create_task(in_thread(release.wait))
        await turns(2)
        other = Child(child)
        release.set()
        await working
        other.wait()

    run_on(loop_factory, main())


@pytest.mark.usefixtures("few")
def test_trios_threads_that_are_stuck_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LOOK_S", 0.005)
    monkeypatch.setattr(threads, "STUCK_S", 3600)
    release, begun = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        begun.release()
        release.wait()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(in_thread, work)
                await trio.to_thread.run_sync(begun.acquire)
            with trio.move_on_after(0.02) as scope:
                await in_thread(lambda: 1)
            assert scope.cancelled_caught
            monkeypatch.setattr(threads, "STUCK_S", 0.01)
            assert await in_thread(lambda: 9) == 9
            release.set()

    trio.run(main)
