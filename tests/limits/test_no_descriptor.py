"""A process that may open no more: files are sent as the stdlib sends them, all else waits.

Each test runs in a fork, which is at its limit for as long as it likes.
"""

import asyncio
import contextlib
import errno
import io
import os
import resource
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import aiozc
from aiozc._drivers import bare
from aiozc._runtime.runtime import running_loop
from tests.kit.children import Child
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, assert_same, case, pattern, write_out
from tests.kit.leaks import holdings
from tests.kit.loops import LoopFactory, run_on
from tests.kit.tasks import outcome_of
from tests.kit.waiting import turns, until

CONTENT = pattern(MIB + 11)
Main = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def run(loop_factory: LoopFactory, each_backend: str) -> Callable[[Main], None]:  # noqa: ARG001
    """Run it in a fork, on a loop of its own, by each backend."""

    def run(main: Main) -> None:
        Child(lambda: run_on(loop_factory, main())).wait()

    return run


class Taken:
    """All descriptors that this process may have."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        self.take()

    def take(self) -> None:
        """Have those that are free."""
        with contextlib.suppress(OSError):
            while True:
                self._fds.append(os.dup(0))

    def free(self, count: int) -> None:
        """Let so many be free."""
        for _ in range(count):
            os.close(self._fds.pop())

    def free_all(self) -> None:
        """Let all be free."""
        self.free(len(self._fds))


def take_all(more: int = 0) -> Taken:
    """Let this process open no more than it has, and `more` that are taken."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(holdings().descriptors) + 2 + more, hard))
    return Taken()


async def receive(sock: socket.socket, count: int) -> bytes:
    """Receive so many bytes, or to the end of the stream."""
    received = bytearray()
    while len(received) < count:
        some = await asyncio.get_running_loop().sock_recv(sock, min(MIB, count - len(received)))
        if not some:
            break
        received += some
    return bytes(received)


@contextlib.contextmanager
def pair(family: int = socket.AF_UNIX) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Make a connection."""
    near, far = socket_pair(family)
    with near, far:
        yield near, far


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a file."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("reactor", ["without a reactor", "with one"])
def test_a_file_is_sent_cached_or_not(
    reactor: str, run: Callable[[Main], None], path: Path
) -> None:
    async def main() -> None:
        if reactor == "with one":
            aiozc.get_reactor()
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("rb", size)) for size in (-1, 0)]
            ends = stack.enter_context(pair()), stack.enter_context(pair(socket.AF_INET))
            take_all()
            for cached in (True, False):
                for file in files:
                    for near, far in ends:
                        for offset, count in ((0, None), (5, 100_000), (MIB // 2, None)):
                            with case(cached=cached, offset=offset, count=count, file=file):
                                if not cached:
                                    write_out(file)
                                sent = CONTENT[offset : offset + (count or len(CONTENT))]
                                sending = asyncio.create_task(
                                    aiozc.loop_sendfile(near, file, offset, count)
                                )
                                assert_same(await receive(far, len(sent)), sent)
                                assert await sending == len(sent)
                                assert file.tell() == offset + len(sent)

    run(main)


def test_what_memory_holds_is_sent_and_what_is_to_go_uncopied_waits(
    run: Callable[[Main], None], path: Path
) -> None:
    async def main() -> None:
        with pair() as (near, far), pair(socket.AF_INET) as (tcp, at_tcp), path.open("rb") as file:
            taken = take_all(12)
            sending = asyncio.create_task(aiozc.loop_sendfile(near, io.BytesIO(CONTENT)))
            assert_same(await receive(far, len(CONTENT)), CONTENT)
            assert await sending == len(CONTENT)
            uncopied = asyncio.create_task(aiozc.sendfile_zc(tcp, [b"head", file]))
            await asyncio.sleep(0.02)
            assert not uncopied.done()
            taken.free_all()
            assert_same(await receive(at_tcp, len(CONTENT) + 4), b"head" + CONTENT)
            assert (await uncopied).sent == len(CONTENT) + 4

    run(main)


def test_a_transfer_that_is_under_way_goes_on(run: Callable[[Main], None], path: Path) -> None:
    """Its peer stands still, so that it has no pipe, when descriptors get scarce."""

    async def main() -> None:
        aiozc.get_reactor()
        with pair() as (near, far), path.open("rb") as file:
            sending = asyncio.create_task(aiozc.loop_sendfile(near, file))
            await asyncio.sleep(0.3)
            take_all()
            write_out(file)
            assert_same(await receive(far, len(CONTENT)), CONTENT)
            assert await sending == len(CONTENT)

    run(main)


def test_it_can_be_cancelled_and_ends_where_something_is_closed(
    run: Callable[[Main], None], path: Path
) -> None:
    """Also where there are descriptors again by then: nothing is done to who has the number."""

    def cancel(task: "asyncio.Task[int]", near: socket.socket, file: Any) -> None:  # noqa: ARG001
        task.cancel()

    def close_socket(task: object, near: socket.socket, file: Any) -> None:  # noqa: ARG001
        near.close()

    def close_file(task: object, near: socket.socket, file: Any) -> None:  # noqa: ARG001
        file.close()

    def give_file_away(task: object, near: socket.socket, file: Any) -> None:  # noqa: ARG001
        os.dup2(another.fileno(), file.fileno())

    def give_number_away(task: object, near: socket.socket, file: Any) -> None:  # noqa: ARG001
        os.dup2(stranger.fileno(), near.fileno())

    def shut(task: object, near: socket.socket, file: Any) -> None:  # noqa: ARG001
        near.shutdown(socket.SHUT_WR)

    ends: list[tuple[Callable[[Any, Any, Any], None], int]] = [
        (cancel, 0),
        (close_socket, errno.EBADF),
        (close_file, errno.EBADF),
        (give_number_away, errno.EBADF),
        (give_file_away, errno.EBADF),
        (shut, errno.EPIPE),
    ]
    stranger, other = socket_pair(socket.AF_UNIX)
    another = path.with_name("another").open("w+b", buffering=0)
    another.write(b"1234567")

    async def main() -> None:
        aiozc.get_reactor()
        taken = take_all(40)
        for end, number in ends:
            taken.free(4)
            with pair() as (near, far), path.open("rb") as file, case(end=end.__name__):
                taken.take()
                task = asyncio.create_task(aiozc.loop_sendfile(near, file))
                await asyncio.sleep(0.01)
                taken.free(3)
                end(task, near, file)
                outcome = await outcome_of(task)
                if number:
                    assert isinstance(outcome, OSError)
                    assert outcome.errno == number
                    assert number == errno.EPIPE or "during the transfer" in str(outcome)
                else:
                    assert isinstance(outcome, asyncio.CancelledError)
                sent: int = outcome.transferred  # type: ignore[union-attr]
                if end is give_file_away:
                    assert another.tell() == 7
                elif not file.closed:
                    assert file.tell() == sent
                near.close()
                assert_same(await receive(far, len(CONTENT)), CONTENT[:sent])
        with pytest.raises(BlockingIOError):
            other.recv(1)

    with stranger, other, another:
        run(main)


def test_peers_that_do_not_read_keep_nothing_from_one_that_does(
    run: Callable[[Main], None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bare, "TICK_S", 0.01)

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            ends = [stack.enter_context(pair()) for _ in range(30)]
            files = [stack.enter_context(path.open("rb")) for _ in ends]
            take_all()
            tasks = [
                asyncio.create_task(aiozc.loop_sendfile(near, file))
                for (near, _), file in zip(ends, files, strict=True)
            ]
            assert_same(await receive(ends[7][1], len(CONTENT)), CONTENT)
            assert await tasks[7] == len(CONTENT)
            ends[9][0].close()
            assert isinstance(await outcome_of(tasks[9]), OSError)
            assert sum(task.done() for task in tasks) == 2
            for number in (11, 29):
                assert_same(await receive(ends[number][1], len(CONTENT)), CONTENT)
                assert await tasks[number] == len(CONTENT)
            for task in tasks:
                task.cancel()

    run(main)


def test_uploads_wait_for_descriptors_and_hold_none_meanwhile(
    run: Callable[[Main], None], tmp_path: Path
) -> None:
    """There are enough for one or two at a time: none keeps what another one lacks."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            ends = [stack.enter_context(pair()) for _ in range(12)]
            files = [
                stack.enter_context((tmp_path / str(number)).open("w+b"))
                for number in range(len(ends))
            ]
            taken = take_all(10)
            taken.free(4)
            aiozc.get_reactor()
            taken.take()
            tasks = [
                asyncio.create_task(aiozc.loop_recvfile(near, file))
                for (near, _), file in zip(ends, files, strict=True)
            ]
            tasks.append(asyncio.create_task(aiozc.splice_pipe(ends[0][1], ends[1][1])))
            for _, far in ends:
                far.send(CONTENT[: 64 * KIB])
            await asyncio.sleep(0.02)
            for task in (tasks.pop(), tasks[0]):
                assert not task.done()
                task.cancel()
                assert isinstance(await outcome_of(task), asyncio.CancelledError)
            ends[1][0].close()
            outcome = await outcome_of(tasks[1])
            assert isinstance(outcome, OSError)
            assert outcome.errno == errno.EBADF
            for _, far in ends:
                far.shutdown(socket.SHUT_WR)
            taken.free(6)
            for task, file in list(zip(tasks, files, strict=True))[2:]:
                assert await task == 64 * KIB
                assert_same(os.pread(file.fileno(), MIB, 0), CONTENT[: 64 * KIB])

    run(main)


def test_a_relay_and_a_first_transfer_wait_for_descriptors(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        with pair() as (near, one), pair() as (other, two):
            taken = take_all(20)
            relaying = asyncio.create_task(aiozc.relay(one, other))
            near.send(b"x" * 1000)
            near.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0.02)
            assert not relaying.done()
            taken.free_all()
            assert await receive(two, 2000) == b"x" * 1000
            two.shutdown(socket.SHUT_WR)
            assert await relaying == (1000, 0)

    run(main)


def test_idle_pipes_are_given_up_for_who_lacks_descriptors(
    run: Callable[[Main], None], path: Path
) -> None:
    async def main() -> None:
        with pair() as (near, far), path.open("rb") as file, contextlib.ExitStack() as stack:
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
            write_out(file)
            sending = asyncio.create_task(aiozc.loop_sendfile(near, file))
            await receive(far, len(CONTENT))
            await sending
            assert aiozc.get_reactor().statistics().pipes == 1
            take_all()
            moving = asyncio.create_task(aiozc.splice_pipe(reader, near))
            os.write(writer, b"y")
            os.close(writer)
            assert await receive(far, 1) == b"y"
            assert await moving == 1

    run(main)


def test_on_trio_it_is_the_same(path: Path) -> None:
    async def main() -> None:
        running_loop()  # imports what it needs
        with pair() as (near, far), path.open("rb") as file:
            take_all()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(aiozc.loop_sendfile, near, file)
                received = b""
                end = trio.socket.from_stdlib_socket(far)
                while len(received) < len(CONTENT):
                    received += await end.recv(MIB)
            assert_same(received, CONTENT)
            with trio.move_on_after(0.02) as scope:
                await aiozc.loop_sendfile(near, file)
            assert scope.cancelled_caught

    Child(lambda: trio.run(main)).wait()


def test_where_descriptors_are_scarce_who_waits_for_a_peer_holds_none(
    run: Callable[[Main], None], path: Path
) -> None:
    """So that a process serves as many who do not read as without this library."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            ends = [stack.enter_context(pair()) for _ in range(12)]
            files = [stack.enter_context(path.open("rb")) for _ in ends]
            aiozc.get_reactor()
            before = len(holdings().descriptors)
            lowest = os.dup(0)
            os.close(lowest)
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 40, hard))
            tasks = [
                asyncio.create_task(aiozc.loop_sendfile(near, file))
                for (near, _), file in zip(ends, files, strict=True)
            ]
            await turns(20)
            assert not any(task.done() for task in tasks)
            await until(lambda: len(holdings().descriptors) <= before)
            for (_, far), task in zip(ends, tasks, strict=True):
                assert_same(await receive(far, len(CONTENT)), CONTENT)
                assert await task == len(CONTENT)

    run(main)
