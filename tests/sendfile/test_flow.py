"""Readers that are slow, stop or never read, small buffers, and many transfers at once."""

import asyncio
import contextlib
import functools
import itertools
import resource
import signal
import socket
import threading

import pytest

import aiozc
from aiozc._engines.inline import CALL, TURN, Inline
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern, write_out
from tests.kit.far_ends import Connect
from tests.kit.leaks import IDLE_PIPES, holdings, open_files
from tests.kit.tasks import outcome_of
from tests.kit.waiting import turns, until
from tests.kit.ways import Send

pytestmark = pytest.mark.anyio

LARGE = 256 * KIB


@pytest.fixture
def send() -> Send:
    """One function is enough here: what flows to slow peers is one engine's, whoever asks."""
    return aiozc.loop_sendfile


@pytest.mark.parametrize("step", [10_000, 300_000])
async def test_a_slow_reader_gets_everything(
    send: Send, step: int, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """It takes the next step once the last has arrived."""
    content = pattern(2 * MIB + 3)
    sock, receiver = connect(family, limit=0)
    sending = asyncio.create_task(send(sock, make_file(content, again=True)))
    for due in range(step, len(content), step):
        receiver.allow(due)
        await receiver.wait_arrived(due)
    receiver.allow(None)
    assert await sending == len(content)
    sock.close()
    assert_same(await receiver.wait_end(), content)


async def test_a_reader_that_stops_for_a_while_gets_everything(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """While it stops, others are served from beginning to end."""
    content = pattern(6 * MIB)
    sock, receiver = connect(family, limit=MIB, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    sending = asyncio.create_task(send(sock, make_file(content, again=True)))
    await receiver.wait_arrived(MIB)
    for seed in range(1, 6):
        other = pattern(MIB, seed)
        other_sock, other_receiver = connect(family)
        assert await send(other_sock, make_file(other, again=True)) == MIB
        other_sock.close()
        assert_same(await other_receiver.wait_end(), other)
    assert not sending.done()
    receiver.allow(None)
    assert await sending == len(content)
    sock.close()
    assert_same(await receiver.wait_end(), content)


@pytest.mark.parametrize("sndbuf", [1, 5000, 100_000])
@pytest.mark.parametrize("size", [100_000, MIB + 1])
async def test_a_small_send_buffer_slows_but_does_not_harm(
    send: Send, size: int, sndbuf: int, family: int, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(size)
    sock, receiver = connect(family, sndbuf=sndbuf)
    assert await send(sock, make_file(content, again=True)) == size
    sock.close()
    assert_same(await receiver.wait_end(), content)


@pytest.mark.parametrize("entries", [8, 256])
async def test_two_hundred_transfers_at_once_all_arrive(
    send: Send, entries: int, family: int, connect: Connect, make_file: MakeFile
) -> None:
    async with aiozc.Reactor(entries=entries) as reactor:
        await send_two_hundred(send, family, connect, make_file)
        statistics = reactor.statistics()
        assert statistics.transfers > 0
        assert statistics.in_flight == 0


async def send_two_hundred(send: Send, family: int, connect: Connect, make_file: MakeFile) -> None:
    contents = [pattern(300_000 + seed, seed) for seed in range(8)]
    files = [make_file(content, again=True) for content in contents]
    connections = [connect(family) for _ in range(200)]
    sent = await asyncio.gather(
        *(
            send(sock, files[number % 8], number * 1000)
            for number, (sock, _) in enumerate(connections)
        )
    )
    for number, (sock, receiver) in enumerate(connections):
        chosen = contents[number % 8][number * 1000 :]
        assert sent[number] == len(chosen)
        sock.close()
        assert_same(await receiver.wait_end(), chosen)


async def test_signals_do_not_disturb_a_transfer(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """They interrupt the system calls of the loop's thread."""
    content = pattern(6 * MIB)
    sock, receiver = connect(family, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    sending = asyncio.create_task(send(sock, make_file(content, again=True)))
    caught = itertools.count()
    before = signal.signal(signal.SIGUSR1, lambda *_: next(caught))
    try:
        while not sending.done():
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            await turns(1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert next(caught) > 0
    assert sending.result() == len(content)
    sock.close()
    assert_same(await receiver.wait_end(), content)


async def test_where_descriptors_run_out_a_transfer_ends_with_an_oserror_and_a_right_position(
    send: Send, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(2 * MIB)
    connections = [connect(limit=0, sndbuf=50_000, rcvbuf=50_000) for _ in range(20)]
    files = [make_file(content, again=True) for _ in connections]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with aiozc.Reactor(entries=8):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(holdings().descriptors) + 10, hard))
        try:
            sending = [
                asyncio.create_task(send(sock, file))
                for (sock, _), file in zip(connections, files, strict=True)
            ]
            await turns(20)
            for _, receiver in connections:
                receiver.allow(None)
            outcomes = [await outcome_of(task) for task in sending]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for (sock, receiver), file, outcome in zip(connections, files, outcomes, strict=True):
        assert isinstance(outcome, OSError) or outcome == len(content) == file.tell()
        sock.close()
        assert_same(await receiver.wait_end(), content[: file.tell()])


async def test_slow_peers_do_not_slow_another(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """Fifty read nothing until the one has all of its 8 MiB."""
    content, other = pattern(8 * MIB), pattern(MIB, 1)
    file = make_file(other, again=True)
    slow = [connect(family, limit=0, sndbuf=64 * KIB, rcvbuf=64 * KIB) for _ in range(50)]
    sending = [asyncio.create_task(send(sock, file)) for sock, _ in slow]
    await turns(10)
    sock, receiver = connect(family)
    assert await send(sock, make_file(content, again=True)) == len(content)
    sock.close()
    assert_same(await receiver.wait_end(), content)
    assert not any(task.done() for task in sending)
    for _, slow_receiver in slow:
        slow_receiver.allow(None)
    assert await asyncio.gather(*sending) == [len(other)] * 50
    for slow_sock, slow_receiver in slow:
        slow_sock.close()
        assert_same(await slow_receiver.wait_end(), other)


@pytest.mark.parametrize(
    ("cold", "family"),
    [(False, socket.AF_INET), (True, socket.AF_UNIX)],
    ids=["cached-tcp", "cold-unix"],
)
async def test_slow_peers_hold_no_pipe_for_as_long_as_they_are_slow(
    send: Send, cold: bool, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """They stop for so long that the pipes are gone, again and again."""
    content = pattern(4 * MIB)
    async with aiozc.Reactor(entries=8) as reactor:
        slow = [connect(family, limit=0, sndbuf=64 * KIB, rcvbuf=64 * KIB) for _ in range(10)]
        files = [make_file(content, again=not cold) for _ in slow]
        sending = [
            asyncio.create_task(send(sock, file))
            for (sock, _), file in zip(slow, files, strict=True)
        ]
        await until(lambda: reactor.statistics().in_flight == 10)
        for due in (50_000, 2 * MIB, None):
            await until(lambda: not reactor.statistics().pipes)
            for file in files if cold else ():
                write_out(file)
            for _, receiver in slow:
                receiver.allow(due)
            for _, receiver in slow:
                await receiver.wait_arrived(due or len(content))
            assert due is None or reactor.statistics().in_flight == 10
        assert await asyncio.gather(*sending) == [len(content)] * 10
        assert reactor.statistics().in_flight == 0
        assert reactor.statistics().pipes <= IDLE_PIPES
    for sock, receiver in slow:
        sock.close()
        assert_same(await receiver.wait_end(), content)


async def test_the_statistics_count_a_transfer_when_it_starts(
    send: Send, connect: Connect, make_file: MakeFile
) -> None:
    before = aiozc.get_reactor().statistics()
    sock, receiver = connect(limit=1000, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    sending = asyncio.create_task(send(sock, make_file(pattern(4 * MIB))))
    await receiver.wait_arrived(1000)
    during = aiozc.get_reactor().statistics()
    receiver.allow(None)
    await sending
    assert during.transfers == before.transfers + 1
    assert during.in_flight == 1
    assert aiozc.get_reactor().statistics().transfers == during.transfers


async def test_the_statistics_count_what_went_by_chains(
    send: Send, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(4 * MIB)
    sock, receiver = connect()
    before = aiozc.get_reactor().statistics()
    await send(sock, make_file(content, again=True))
    after = aiozc.get_reactor().statistics()
    sock.close()
    assert_same(await receiver.wait_end(), content)
    assert after.transfers == before.transfers + 1
    assert after.bytes == before.bytes + len(content)
    assert after.chains > before.chains
    assert after.submissions > before.submissions
    assert after.completions > before.completions
    assert after.in_flight == before.in_flight == 0


async def test_the_statistics_count_what_a_full_socket_did_not_take_and_what_it_took(
    connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(4 * MIB)
    sock, receiver = connect(limit=1000, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    before = aiozc.get_reactor().statistics()
    sending = asyncio.create_task(aiozc.loop_sendfile(sock, make_file(content)))
    await receiver.wait_arrived(1000)
    receiver.allow(None)
    await sending
    after = aiozc.get_reactor().statistics()
    short = after.short_writes - before.short_writes
    assert short > 0
    assert 0 < after.short_write_bytes - before.short_write_bytes <= min(short * MIB, len(content))
    sock.close()
    assert_same(await receiver.wait_end(), content)


@pytest.mark.parametrize("size", [1, 4096, 100_000])
async def test_a_small_cached_file_needs_no_turn_of_the_loop(
    size: int, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(size)
    sock, receiver = connect()
    gone_round = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(gone_round.set_result, None)
    assert await aiozc.loop_sendfile(sock, make_file(content, again=True)) == size
    assert not gone_round.done()
    sock.close()
    assert_same(await receiver.wait_end(), content)
    await gone_round


async def test_who_finds_too_little_left_of_a_turn_gets_the_next() -> None:
    """Where those before took just less than what has the next one marked."""
    loop, inline = asyncio.get_running_loop(), Inline()
    lengths = [TURN, TURN // 2, TURN // 2 + 1]
    await asyncio.gather(*(inline.wait_turn(loop, length - CALL) for length in lengths))


async def test_what_was_granted_to_who_is_cancelled_then_is_there_for_others() -> None:
    loop, inline = asyncio.get_running_loop(), Inline()
    there: list[bool] = []

    async def wait() -> None:
        try:
            await inline.wait_turn(loop, TURN // 2 - CALL)
        except asyncio.CancelledError:
            there.append(inline.may_spend(loop, TURN - 2 * CALL))
            raise

    waiting = asyncio.create_task(wait())
    await turns(1)
    inline.queue(loop, 0, waiting.cancel)
    assert isinstance(await outcome_of(waiting), asyncio.CancelledError)
    assert there == [True]


async def test_who_is_cancelled_in_the_queue_is_granted_nothing() -> None:
    loop, inline = asyncio.get_running_loop(), Inline()
    queued = [asyncio.create_task(inline.wait_turn(loop, TURN - CALL)) for _ in range(3)]
    await turns(1)
    queued[0].cancel()
    inline.queue(loop, 0, lambda: queued[2].cancel() and None)
    await asyncio.wait(queued)
    assert [task.cancelled() for task in queued] == [True, False, True]
    assert inline.may_spend(loop, TURN - 2 * CALL)


async def test_small_transfers_wait_for_no_large_one_and_no_large_one_waits_for_all_of_them() -> (
    None
):
    loop, inline = asyncio.get_running_loop(), Inline()
    granted: list[int] = []
    for length in [LARGE] * 300 + [4 * KIB] * 300:
        inline.queue(loop, length, functools.partial(granted.append, length))
    while len(granted) < 600:
        await turns(1)
    last_small = 599 - granted[::-1].index(4 * KIB)
    assert 20 < granted[:last_small].count(LARGE) < 60  # of three turns, those of two halves


async def test_the_first_in_the_queue_gets_its_turn_whatever_it_wants_of_it() -> None:
    """And whoever comes later, again and again, takes nothing of that before it."""
    loop, inline = asyncio.get_running_loop(), Inline()
    inline.charge(loop, TURN)
    queued = asyncio.create_task(inline.wait_turn(loop, 2 * TURN))
    newcomers = 0
    for _ in range(10):
        await turns(1)
        newcomers += inline.may_spend(loop, LARGE)
        for _ in range(300):
            inline.queue(loop, 4 * KIB, int)
        if queued.done():
            break
    assert queued.done()
    assert newcomers == 0


async def test_of_many_transfers_with_equal_peers_none_has_less_than_half_of_the_mean(
    each_backend: str, make_file: MakeFile
) -> None:
    """More than a turn of the loop can serve: all read as much as they find in each round.

    A socket takes 200 KiB when it has room: the mean is of several such.
    """
    content = pattern(2 * MIB)
    file = make_file(content, again=True)
    arrived = [0] * 300
    async with aiozc.Reactor(backend=each_backend):
        with open_files(4000), contextlib.ExitStack() as stack:
            pairs = [socket_pair(socket.AF_UNIX) for _ in arrived]
            for sock in itertools.chain.from_iterable(pairs):
                stack.enter_context(sock)
            sending = [asyncio.create_task(aiozc.loop_sendfile(near, file)) for near, _ in pairs]
            for _ in range(5000):
                await turns(1)
                for number, (_, far) in enumerate(pairs):
                    with contextlib.suppress(BlockingIOError):
                        chunk = far.recv(64 * KIB)
                        assert content.startswith(chunk, arrived[number])
                        arrived[number] += len(chunk)
                if sum(arrived) > len(arrived) * 900 * KIB:
                    break
            for task in sending:
                task.cancel()
            await asyncio.wait(sending)
    mean = sum(arrived) / len(arrived)
    assert mean > 900 * KIB
    assert min(arrived) > mean / 2
