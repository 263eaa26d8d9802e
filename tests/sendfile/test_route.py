"""Where bytes go with the figures that were measured: by chains, or in the loop's own thread."""

import asyncio
import contextlib
import itertools
import os
import socket

import pytest

import aiozc
from aiozc._engines import inline
from aiozc._transfers.route import CHAINS, CHAINS_PAY
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern, write_out
from tests.kit.far_ends import Connect
from tests.kit.tasks import outcome_of
from tests.kit.waiting import turns, until

pytestmark = pytest.mark.anyio

CONTENT = pattern(9 * MIB)


@pytest.fixture
def chains_pay_early() -> None:
    """Have the figures as they are."""


@pytest.mark.parametrize("size", [128 * KIB, 512 * KIB, MIB + 1, CHAINS_PAY])
async def test_a_cached_file_of_the_middle_takes_no_pipe(
    size: int, connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect()
    async with aiozc.Reactor() as reactor:
        assert await aiozc.loop_sendfile(sock, make_file(CONTENT[:size])) == size
        assert reactor.statistics().short_reads == reactor.statistics().polls == 0
        assert reactor.statistics().pipes == 0
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT[:size])


@pytest.mark.parametrize("offset", [0, 4097])
async def test_a_slow_peer_is_served_without_a_pipe_however_much_is_left(
    offset: int, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """It takes a little at a time, and a good deal now and then."""
    sock, receiver = connect(family, limit=1, sndbuf=256 * KIB, rcvbuf=64 * KIB)
    async with aiozc.Reactor() as reactor:
        file = make_file(CONTENT)
        sending = asyncio.create_task(aiozc.loop_sendfile(sock, file, offset))
        allowed = 1
        for more in itertools.cycle((3000, 200 * KIB, MIB)):
            if allowed > 4 * MIB:
                break
            allowed += more
            receiver.allow(allowed)
            await receiver.wait_arrived(allowed)
        await until(lambda: reactor.statistics().pipes == 0)
        receiver.allow(None)
        assert await sending == len(CONTENT) - offset
        assert file.tell() == len(CONTENT)
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT[offset:])


async def test_pages_that_go_meanwhile_are_read_by_a_worker(
    connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect(limit=100 * KIB, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    file = make_file(CONTENT[: 2 * MIB])
    async with aiozc.Reactor() as reactor:
        sending = asyncio.create_task(aiozc.loop_sendfile(sock, file))
        await receiver.wait_arrived(100 * KIB)
        write_out(file)
        before = reactor.statistics().submissions
        receiver.allow(None)
        assert await sending == 2 * MIB
        assert reactor.statistics().submissions > before
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT[: 2 * MIB])


async def test_many_large_files_at_a_time_take_no_more_pipes_than_pay(make_file: MakeFile) -> None:
    """Those beyond go in the loop's thread, all of them to their ends."""
    file = make_file(CONTENT, again=True)
    with contextlib.ExitStack() as stack:
        pairs = [socket_pair(socket.AF_UNIX) for _ in range(4 * CHAINS)]
        for sock in itertools.chain.from_iterable(pairs):
            stack.enter_context(sock)
        most, arrived = 0, [0] * len(pairs)
        async with aiozc.Reactor() as reactor:
            tasks = [asyncio.create_task(aiozc.loop_sendfile(near, file)) for near, _ in pairs]
            while not all(task.done() for task in tasks):
                await turns(1)
                most = max(most, reactor.statistics().pipes)
                for number, (_, far) in enumerate(pairs):
                    with contextlib.suppress(BlockingIOError):
                        chunk = far.recv(MIB)
                        assert CONTENT.startswith(chunk, arrived[number])
                        arrived[number] += len(chunk)
            assert [task.result() for task in tasks] == [len(CONTENT)] * len(pairs)
        assert most <= CHAINS


@pytest.mark.parametrize("closes", ["socket", "file"])
async def test_what_is_closed_while_its_peer_is_waited_for_ends_the_transfer(
    closes: str, connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect(limit=1, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    file = make_file(CONTENT)
    sending = asyncio.create_task(aiozc.loop_sendfile(sock, file))
    await receiver.wait_arrived(1)
    (sock if closes == "socket" else file).close()
    receiver.allow(None)
    assert isinstance(await outcome_of(sending), OSError)
    sock.close()
    arrived = await receiver.wait_end()
    assert CONTENT.startswith(arrived)
    assert len(arrived) < len(CONTENT)


async def test_a_file_cut_while_its_peer_is_waited_for_ends_the_transfer_with_what_was_sent(
    connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect(limit=1, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    file = make_file(CONTENT)
    sending = asyncio.create_task(aiozc.loop_sendfile(sock, file))
    await receiver.wait_arrived(1)
    os.truncate(file.name, 1000)
    receiver.allow(None)
    sent = await sending
    sock.close()
    assert len(await receiver.wait_end()) == sent < len(CONTENT)


async def test_an_error_of_our_own_at_a_wake_up_is_the_transfers(
    connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory, for one: nobody but the coroutine could be told."""
    sock, receiver = connect(limit=1, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    sending = asyncio.create_task(aiozc.loop_sendfile(sock, make_file(CONTENT[: 2 * MIB])))
    await receiver.wait_arrived(1)
    await turns(5)

    def fail(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(inline.Inline, "send", fail)
    receiver.allow(None)
    assert isinstance(await outcome_of(sending), MemoryError)


class Fickle:
    """A socket's number, until it is told to raise."""

    def __init__(self, sock: socket.socket) -> None:
        self.raises = False
        self._sock = sock

    def fileno(self) -> int:
        if self.raises:
            raise RuntimeError("fickle")
        return self._sock.fileno()


async def test_a_socket_object_that_raises_ends_its_own_transfer_and_no_other(
    connect: Connect, make_file: MakeFile
) -> None:
    content = CONTENT[: 2 * MIB]
    ends = [connect(limit=1, sndbuf=64 * KIB, rcvbuf=64 * KIB) for _ in range(8)]
    holders = [Fickle(sock) for sock, _ in ends]
    sending = [
        asyncio.create_task(aiozc.loop_sendfile(holder, make_file(content, again=True)))
        for holder in holders
    ]
    for _, receiver in ends:
        await receiver.wait_arrived(1)
    await turns(5)
    holders[0].raises = True
    for _, receiver in ends:
        receiver.allow(None)
    outcomes = [await outcome_of(task) for task in sending]
    assert isinstance(outcomes[0], OSError)
    assert outcomes[1:] == [len(content)] * 7


async def test_a_transfer_that_is_thrown_away_leaves_the_position_at_what_was_sent(
    connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect(socket.AF_UNIX, limit=1, sndbuf=64 * KIB)
    file = make_file(CONTENT[: 2 * MIB])
    sending = aiozc.loop_sendfile(sock, file)
    sending.send(None)
    await receiver.wait_arrived(1)
    receiver.allow(MIB)
    await receiver.wait_arrived(MIB)
    sending.close()
    position = file.tell()
    sock.close()
    receiver.allow(None)
    assert len(await receiver.wait_end()) == position > MIB


async def test_cancelled_while_its_peer_is_waited_for_nothing_more_is_sent(
    family: int, connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect(family, limit=1, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    file = make_file(CONTENT)
    sending = asyncio.create_task(aiozc.loop_sendfile(sock, file))
    await receiver.wait_arrived(1)
    await turns(5)
    sending.cancel()
    outcome = await outcome_of(sending)
    assert isinstance(outcome, asyncio.CancelledError)
    sent = outcome.transferred  # type: ignore[attr-defined]
    assert file.tell() == sent
    receiver.allow(None)
    await asyncio.get_running_loop().sock_sendall(sock, b"behind")
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT[:sent] + b"behind")
