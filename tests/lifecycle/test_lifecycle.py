"""A reactor belongs to one loop, and ends with it; nothing of it stays behind."""

import asyncio
import dataclasses
import gc
import io
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

import aiozc
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.far_ends import Connect, FarEnd
from tests.kit.leaks import Holdings, check_nothing_left, count_ring_workers, holdings
from tests.kit.loops import LoopFactory, run_on
from tests.kit.tasks import outcome_of
from tests.kit.waiting import in_a_thread, in_threads, turns, wait_until

CONTENT = pattern(2 * MIB)


# One reactor for each loop


@pytest.mark.anyio
async def test_a_loop_has_one_reactor_made_on_first_use() -> None:
    reactor = aiozc.get_reactor()
    assert isinstance(reactor, aiozc.Reactor)
    assert aiozc.get_reactor() is reactor
    assert not reactor.closed


@pytest.mark.anyio
async def test_a_reactor_made_in_a_loop_is_that_loops_reactor() -> None:
    async with aiozc.Reactor(entries=8) as reactor:
        assert aiozc.get_reactor() is reactor
        assert not reactor.closed
    assert reactor.closed


@pytest.mark.anyio
@pytest.mark.parametrize("refused", [1, 2])
async def test_a_reactor_that_the_loop_refuses_to_watch_leaves_nothing(
    refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    real, calls = loop.add_reader, 0

    def add_reader(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == refused:
            raise MemoryError
        return real(*arguments)

    before = holdings()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "add_reader", add_reader)
        if refused == 1 or aiozc.probe().backend == "io_uring":
            with pytest.raises(MemoryError):
                aiozc.Reactor()
    check_nothing_left(before)


@pytest.mark.anyio
async def test_a_loop_cannot_have_a_second_reactor() -> None:
    async with aiozc.Reactor(entries=8):
        with pytest.raises(RuntimeError):
            aiozc.Reactor(entries=8)


@pytest.mark.anyio
async def test_a_loop_whose_reactor_was_closed_can_have_another(
    connect: Connect, make_file: MakeFile
) -> None:
    for _ in range(3):
        reactor = aiozc.Reactor(entries=8)
        sock, receiver = connect()
        assert await aiozc.loop_sendfile(sock, make_file(CONTENT, again=True)) == len(CONTENT)
        await reactor.aclose()
        assert reactor.closed
        await reactor.aclose()
        sock.close()
        assert_same(await receiver.wait_end(), CONTENT)


@pytest.mark.anyio
async def test_closing_a_reactor_ends_the_transfers_in_flight(
    connect: Connect, make_file: MakeFile
) -> None:
    before = holdings()
    reactor = aiozc.Reactor(entries=8)
    connections = [connect(limit=0, sndbuf=50_000, rcvbuf=50_000) for _ in range(5)]
    files = [make_file(CONTENT, again=True) for _ in connections]
    tasks = [
        asyncio.create_task(aiozc.loop_sendfile(sock, file))
        for (sock, _), file in zip(connections, files, strict=True)
    ]
    await turns(5)
    await reactor.aclose()
    assert reactor.statistics().in_flight == 0
    assert holdings().rings == before.rings
    for task in tasks:
        assert isinstance(await outcome_of(task), OSError)
    for (sock, receiver), file in zip(connections, files, strict=True):
        sock.close()
        assert_same(await receiver.wait_end(), CONTENT[: file.tell()])


def test_without_a_running_loop_there_is_no_reactor() -> None:
    with pytest.raises(RuntimeError):
        aiozc.get_reactor()
    with pytest.raises(RuntimeError):
        aiozc.Reactor(entries=8)


@pytest.mark.anyio
async def test_statistics_are_a_record_that_cannot_be_changed() -> None:
    statistics = aiozc.get_reactor().statistics()
    record = dataclasses.asdict(statistics)
    assert record
    assert all(type(value) is int and value >= 0 for value in record.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        statistics.in_flight = 1  # type: ignore[misc]


# The end of a loop

Main = Coroutine[Any, Any, None]


def by_hand(loop_factory: LoopFactory, main: Main) -> None:
    """Run and close a loop without a runner: what is pending stays so."""
    loop = loop_factory()
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


WAYS: dict[str, Callable[[Main], None]] = {
    "asyncio.run": asyncio.run,
    "asyncio.Runner": lambda main: run_on(asyncio.new_event_loop, main),
    "asyncio.Runner with uvloop": lambda main: run_on(uvloop.new_event_loop, main),
    "uvloop.run": uvloop.run,
    "asyncio by hand": lambda main: by_hand(asyncio.new_event_loop, main),
    "uvloop by hand": lambda main: by_hand(uvloop.new_event_loop, main),
}
BY_HAND = [way for name, way in WAYS.items() if name.endswith("by hand")]


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    """Run a loop from its making to its end, in each way."""
    way: str = request.param
    return WAYS[way]


def check_no_worker_left(before: Holdings) -> None:
    """Wait for the kernel's workers to go: their thread has ended, they take a moment."""
    wait_until(lambda: count_ring_workers() <= before.ring_workers)


def wait_for_threads_to_end(before: Holdings) -> None:
    """Wait for an executor's threads, which the end of a loop alone does not join."""
    wait_until(lambda: holdings().threads <= before.threads)


def test_a_loop_that_ends_at_rest_leaves_nothing(
    run: Callable[[Main], None], connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect()
    file = make_file(CONTENT, again=True)
    before = holdings()

    async def main() -> None:
        assert await aiozc.loop_sendfile(sock, file) == len(CONTENT)
        assert aiozc.get_reactor().statistics().transfers == 1

    in_a_thread(lambda: run(main()))
    check_nothing_left(before)
    check_no_worker_left(before)
    sock.close()
    assert_same(receiver.ended().result(), CONTENT)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("source", ["file", "memory"])
def test_a_loop_that_ends_with_transfers_in_flight_leaves_nothing(
    source: str,
    number: int,
    run: Callable[[Main], None],
    connect: Connect,
    make_file: MakeFile,
) -> None:
    """Nor does anything arrive later; a runner cancels them, so that the positions are right."""
    connections = [connect(limit=0, sndbuf=50_000, rcvbuf=50_000) for _ in range(5)]
    files = [
        make_file(CONTENT, again=True) if source == "file" else io.BytesIO(CONTENT)
        for _ in range(5)
    ]
    before = holdings()

    async def main() -> None:
        tasks = {
            asyncio.create_task(aiozc.loop_sendfile(sock, file))
            for (sock, _), file in zip(connections, files, strict=True)
        }
        await turns(number)
        assert not any(task.done() for task in tasks)

    in_a_thread(lambda: run(main()))
    wait_for_threads_to_end(before)
    check_nothing_left(before)
    check_no_worker_left(before)
    for (sock, receiver), file in zip(connections, files, strict=True):
        sock.close()
        receiver.allow(None)
        arrived = receiver.ended().result()
        assert_same(arrived, CONTENT[: len(arrived)])
        assert run in BY_HAND or file.tell() == len(arrived)


def test_a_loop_that_ends_by_an_error_leaves_nothing(
    run: Callable[[Main], None], connect: Connect, make_file: MakeFile
) -> None:
    sock, _ = connect(limit=0, sndbuf=50_000, rcvbuf=50_000)
    file = make_file(CONTENT, again=True)
    before = holdings()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(aiozc.loop_sendfile(sock, file))
            await turns(5)
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        in_a_thread(lambda: run(main()))
    check_nothing_left(before)
    check_no_worker_left(before)


def test_a_loop_of_the_main_thread_leaves_nothing(
    run: Callable[[Main], None], connect: Connect, make_file: MakeFile
) -> None:
    """Its kernel worker may stay for as long as the thread: how many is another test's matter."""
    sock, _ = connect(limit=0, sndbuf=50_000, rcvbuf=50_000)
    file = make_file(CONTENT, again=True)
    before = holdings()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await aiozc.loop_sendfile(sock, file)

    run(main())
    check_nothing_left(before)


def test_a_thousand_loops_leave_no_more_than_one(
    loop_factory: LoopFactory, far_end: FarEnd, make_file: MakeFile
) -> None:
    """Each sends by its ring, which the kernel's workers then serve."""
    content = pattern(300 * KIB)
    file = make_file(content, again=True)

    async def main() -> None:
        near, far = socket_pair(socket.AF_UNIX)
        receiver = far_end.receive(far)
        with near:
            assert await aiozc.loop_sendfile(near, file) == len(content)
        assert aiozc.get_reactor().statistics().transfers == 1
        assert_same(await receiver.wait_end(), content)

    def loops(count: int) -> Holdings:
        for _ in range(count):
            run_on(loop_factory, main())
        gc.collect()
        return holdings()

    def thousand() -> None:
        some = loops(100)
        all_ = loops(900)
        assert all_.since(some) == some.since(some)
        assert all_.ring_workers <= some.ring_workers + 2
        assert all_.mappings < some.mappings + 90

    before = holdings()
    in_a_thread(thousand)
    check_nothing_left(before)
    check_no_worker_left(before)


def test_a_loop_that_stops_and_runs_again_goes_on_with_its_transfers(
    loop_factory: LoopFactory, connect: Connect, make_file: MakeFile
) -> None:
    """Between its two runs another loop of the same thread sends; after it, too."""
    sock, receiver = connect(limit=100_000, sndbuf=50_000, rcvbuf=50_000)
    other_sock, other_receiver = connect()
    file, other = make_file(CONTENT, again=True), make_file(CONTENT, again=True)

    async def start() -> "asyncio.Task[int]":
        task = asyncio.create_task(aiozc.loop_sendfile(sock, file))
        await receiver.wait_arrived(100_000)
        return task

    loop, other_loop = loop_factory(), loop_factory()
    task = loop.run_until_complete(start())
    other_loop.run_until_complete(aiozc.loop_sendfile(other_sock, other))
    receiver.allow(None)
    assert loop.run_until_complete(task) == len(CONTENT)
    loop.close()
    other_loop.run_until_complete(aiozc.loop_sendfile(other_sock, other))
    other_loop.close()
    sock.close()
    other_sock.close()
    assert_same(receiver.ended().result(), CONTENT)
    assert_same(other_receiver.ended().result(), CONTENT, CONTENT)


def test_loops_in_several_threads_do_not_meet(connect: Connect, make_file: MakeFile) -> None:
    """Two of each make, at the same time, with a reactor and six transfers each."""
    contents = [pattern(MIB + seed, seed) for seed in range(4)]
    connections = [[connect() for _ in range(6)] for _ in contents]
    files = [make_file(content, again=True) for content in contents]
    makes = [asyncio.new_event_loop, uvloop.new_event_loop] * 2

    def loop_of(number: int) -> Callable[[], aiozc.Reactor]:
        async def main() -> aiozc.Reactor:
            sent = await asyncio.gather(
                *(aiozc.loop_sendfile(sock, files[number]) for sock, _ in connections[number])
            )
            assert sent == [len(contents[number])] * 6
            return aiozc.get_reactor()

        return lambda: run_on(makes[number], main())

    reactors = in_threads([loop_of(number) for number in range(4)])
    assert len({id(reactor) for reactor in reactors}) == 4
    assert all(reactor.closed for reactor in reactors)
    for number, content in enumerate(contents):
        for sock, receiver in connections[number]:
            sock.close()
            assert_same(receiver.ended().result(), content)
