"""Relays of small messages, and of what stands in their way."""

import asyncio
import errno
import hashlib
import os
import random
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import aiozc
from aiozc._engines import engine, inline
from aiozc._kernel.sockets import Messenger
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, assert_same, pattern
from tests.kit.tasks import outcome_of
from tests.kit.waiting import turns, until

pytestmark = pytest.mark.anyio

CONTENT = pattern(3000 * KIB)
SIZES = (1, 3, 200, 900, 4096, 9000, 64 * KIB, 64 * KIB + 1, 200_000, 600_000)
REQUEST, ANSWER = b"q" * 200, b"a" * 4096


class Line:
    """A client, a server, and between them the two sockets of a relay."""

    def __init__(self, stack: ExitStack, family: int, buffer: int | None) -> None:
        pairs = [socket_pair(family, sndbuf=buffer, rcvbuf=buffer) for _ in range(2)]
        (self.a, self.client), (self.b, self.server) = pairs
        for sock in (self.a, self.client, self.b, self.server):
            stack.enter_context(sock)
            if buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)

    def relay(self) -> "asyncio.Task[tuple[int, int]]":
        """Start the relay."""
        return asyncio.create_task(aiozc.relay(self.a, self.b))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what a test has opened."""
    with ExitStack() as stack:
        yield stack


async def receive(sock: socket.socket, count: int) -> bytes:
    """Receive so many bytes."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        piece = await loop.sock_recv(sock, count - len(data))
        assert piece, "the stream has ended"
        data += piece
    return data


async def receive_all(sock: socket.socket) -> bytes:
    """Receive until the stream's end."""
    loop = asyncio.get_running_loop()
    pieces = []
    while piece := await loop.sock_recv(sock, 256 * KIB):
        pieces.append(piece)
    return b"".join(pieces)


async def send(sock: socket.socket, data: bytes) -> None:
    """Send all of it."""
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def test_a_message_begins_no_chain_and_takes_no_pipe(family: int, stack: ExitStack) -> None:
    line = Line(stack, family, None)
    async with aiozc.Reactor() as reactor:
        relaying = line.relay()
        await turns(3)
        before = reactor.statistics()
        for _ in range(50):
            await send(line.client, REQUEST)
            assert await receive(line.server, len(REQUEST)) == REQUEST
            await send(line.server, ANSWER)
            assert await receive(line.client, len(ANSWER)) == ANSWER
        after = reactor.statistics()
        assert (after.chains, after.pipes) == (before.chains, 0)
        for sock in (line.client, line.server):
            sock.shutdown(socket.SHUT_WR)
        assert await relaying == (50 * len(REQUEST), 50 * len(ANSWER))


@pytest.mark.parametrize("buffer", [None, 32 * KIB], ids=["ample", "tight"])
async def test_small_and_large_messages_at_random_arrive_both_ways_in_order(
    buffer: int | None, family: int, stack: ExitStack
) -> None:
    chance = random.Random(f"{family} {buffer}")
    line = Line(stack, family, buffer)
    sent = {line.client: hashlib.sha256(), line.server: hashlib.sha256()}

    async def send_some(sock: socket.socket) -> int:
        total = 0
        for _ in range(40):
            size = chance.choice(SIZES if chance.random() < 0.2 else SIZES[:6])
            start = chance.randrange(len(CONTENT) - size)
            message = CONTENT[start : start + size]
            sent[sock].update(message)
            await send(sock, message)
            total += size
            await turns(chance.choice((0, 0, 1, 7)))
        sock.shutdown(socket.SHUT_WR)
        return total

    async def receive_some(sock: socket.socket) -> str:
        loop = asyncio.get_running_loop()
        got = hashlib.sha256()
        while piece := await loop.sock_recv(sock, chance.choice((500, 100_000))):
            got.update(piece)
            await turns(chance.choice((0, 0, 0, 5)))
        return got.hexdigest()

    relaying = line.relay()
    *totals, there, back = await asyncio.gather(
        send_some(line.client),
        send_some(line.server),
        receive_some(line.server),
        receive_some(line.client),
    )
    assert await relaying == tuple(totals)
    assert there == sent[line.client].hexdigest()
    assert back == sent[line.server].hexdigest()


async def test_messages_one_way_alone_arrive_in_order(family: int, stack: ExitStack) -> None:
    line = Line(stack, family, None)
    relaying = line.relay()
    receiving = asyncio.create_task(receive_all(line.server))
    for start in range(0, 200_000, 200):
        await send(line.client, CONTENT[start : start + 200])
    line.client.shutdown(socket.SHUT_WR)
    assert_same(await receiving, CONTENT[:200_000])
    line.server.shutdown(socket.SHUT_WR)
    assert await relaying == (200_000, 0)


async def test_an_end_right_behind_a_message_is_passed_on(family: int, stack: ExitStack) -> None:
    for waits in (True, False):
        line = Line(stack, family, None)
        relaying = line.relay()
        if waits:
            await turns(5)
        for sock, far in ((line.client, line.server), (line.server, line.client)):
            sock.send(REQUEST)
            sock.shutdown(socket.SHUT_WR)
            assert await receive_all(far) == REQUEST
        assert await relaying == (len(REQUEST), len(REQUEST))


@pytest.mark.parametrize("size", [200, 4096, 100_000])
async def test_who_does_not_read_stops_the_sender_and_misses_nothing(
    size: int, family: int, stack: ExitStack
) -> None:
    """What is on its way is bounded by the sockets' buffers and one message."""
    line = Line(stack, family, 32 * KIB)
    relaying = line.relay()
    sent = 0

    async def send_on() -> None:
        nonlocal sent
        loop = asyncio.get_running_loop()
        for start in range(0, len(CONTENT), size):
            await loop.sock_sendall(line.client, CONTENT[start : start + size])
            sent += size
        line.client.shutdown(socket.SHUT_WR)

    sending = asyncio.create_task(send_on())
    before, stands = -1, 0

    def is_stuck() -> bool:
        nonlocal before, stands
        stands = stands + 1 if sent == before else 0
        before = sent
        return stands > 40

    await until(is_stuck)
    assert sent < 1000 * KIB
    assert_same(await receive_all(line.server), CONTENT)
    await sending
    line.server.shutdown(socket.SHUT_WR)
    assert await relaying == (len(CONTENT), 0)


@pytest.mark.parametrize("size", [200, 4096, 100_000])
async def test_cancelled_with_a_message_in_hand_every_byte_is_accounted_for(
    size: int, family: int, stack: ExitStack
) -> None:
    """It is given to the target if that has room again, and told of as lost if not."""
    lost = []
    for room in (False, True):
        line = Line(stack, family, 32 * KIB)
        relaying = line.relay()
        sent, stands = 0, 0
        while stands < 20:
            try:
                sent += line.client.send(CONTENT[sent : sent + size])
                stands = 0
            except BlockingIOError:
                stands += 1
            await turns(2)
        got = b""
        if room:
            # In one turn: the relay has not heard of the room when it is cancelled.
            while len(got) < sent // 3:
                try:
                    got += line.server.recv(64 * KIB)
                except BlockingIOError:
                    break
        relaying.cancel()
        outcome = await outcome_of(relaying)
        assert isinstance(outcome, asyncio.CancelledError)
        told = outcome.transferred[0], outcome.lost[0]  # type: ignore[attr-defined]
        lost.append(told[1])
        line.client.shutdown(socket.SHUT_WR)
        receiving = asyncio.create_task(receive_all(line.server))
        left = await receive_all(line.a)
        line.b.shutdown(socket.SHUT_WR)
        got += await receiving
        assert_same(got, CONTENT[: told[0]])
        assert_same(left, CONTENT[sum(told) : sent])
    # TCP may make room by itself.
    assert lost[0] > 0 or family == socket.AF_INET


async def test_a_reset_with_a_message_in_hand_ends_the_other_side(stack: ExitStack) -> None:
    line = Line(stack, socket.AF_INET, 32 * KIB)
    relaying = line.relay()
    stands = 0
    while stands < 20:
        try:
            line.client.send(CONTENT[:900])
            stands = 0
        except BlockingIOError:
            stands += 1
        await turns(2)
    line.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    line.server.close()
    outcome = await outcome_of(relaying)
    assert isinstance(outcome, ConnectionResetError | BrokenPipeError)
    assert outcome.lost[0] > 0  # type: ignore[union-attr]
    with pytest.raises(ConnectionResetError):
        await receive_all(line.client)


async def test_urgent_data_between_messages_stops_neither_them_nor_the_end(
    stack: ExitStack,
) -> None:
    line = Line(stack, socket.AF_INET, None)
    relaying = line.relay()
    for message in (b"one", b"two", b"three"):
        line.client.send(message)
        line.client.send(b"!", socket.MSG_OOB)
        assert await receive(line.server, len(message)) == message
    line.client.shutdown(socket.SHUT_WR)
    assert await receive_all(line.server) == b""
    line.server.shutdown(socket.SHUT_WR)
    assert await relaying == (11, 0)


async def test_bytes_behind_urgent_data_and_the_end_behind_them_are_not_waited_for(
    stack: ExitStack,
) -> None:
    """All that a recv stops at, at once: nothing comes later that would make another edge."""
    line = Line(stack, socket.AF_INET, None)
    relaying = line.relay()
    for _ in range(3):
        line.client.send(b"one")
        line.client.send(b"!", socket.MSG_OOB)
        line.client.send(b"two")
        line.client.send(b"three")
        assert await receive(line.server, 11) == b"onetwothree"
    line.client.send(b"last")
    line.client.shutdown(socket.SHUT_WR)
    assert await receive_all(line.server) == b"last"
    line.server.shutdown(socket.SHUT_WR)
    assert await relaying == (37, 0)


async def test_a_message_of_tcp_costs_one_receive_until_its_end_is_told(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[int] = []

    class Counting(Messenger):
        def __init__(self) -> None:
            super().__init__()
            receive = self.receive

            def counted(fd: int, length: int) -> int:
                received.append(got := receive(fd, length))
                return got

            self.receive = counted

    monkeypatch.setattr(engine, "Messenger", Counting)
    line = Line(stack, socket.AF_INET, None)
    relaying = line.relay()
    await send(line.client, REQUEST)
    assert await receive(line.server, len(REQUEST)) == REQUEST
    await turns(5)
    received.clear()
    for _ in range(20):
        await send(line.client, REQUEST)
        assert await receive(line.server, len(REQUEST)) == REQUEST
    assert received == [len(REQUEST)] * 20
    for sock in (line.client, line.server):
        sock.shutdown(socket.SHUT_WR)
    assert await relaying == (21 * len(REQUEST), 0)


async def test_of_a_socket_that_was_closed_no_message_is_passed_on(
    family: int, stack: ExitStack
) -> None:
    line = Line(stack, family, None)
    relaying = line.relay()
    line.client.send(b"before")
    assert await receive(line.server, 6) == b"before"
    line.a.close()
    line.client.send(b"behind")
    outcome = await outcome_of(relaying)
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.EBADF
    with pytest.raises(BlockingIOError):
        line.server.recv(9)


async def test_a_number_that_another_socket_has_taken_is_noticed_within_a_few_messages(
    family: int, stack: ExitStack
) -> None:
    line = Line(stack, family, None)
    relaying = line.relay()
    await send(line.client, b"before")
    assert await receive(line.server, 6) == b"before"
    stranger = stack.enter_context(socket.socket())
    os.dup2(stranger.fileno(), line.a.fileno())
    for _ in range(8):
        if not relaying.done():
            line.client.send(b"behind")
            await turns(5)
    assert relaying.done()
    outcome = await outcome_of(relaying)
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.EBADF


async def test_messages_pass_where_no_descriptor_is_left(family: int, stack: ExitStack) -> None:
    line = Line(stack, family, None)
    relaying = line.relay()
    await turns(5)
    spare = stack.enter_context(socket.socket())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare.fileno(), limits[1]))
    try:
        await send(line.client, REQUEST)
        assert await receive(line.server, len(REQUEST)) == REQUEST
        await send(line.server, ANSWER)
        assert await receive(line.client, len(ANSWER)) == ANSWER
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    relaying.cancel()
    await outcome_of(relaying)


async def test_a_source_that_is_not_dry_for_long_leaves_the_loop_its_turns(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message has a descriptor with it, at which a recv ends."""
    monkeypatch.setattr(inline, "TURN", 1 << 20)
    line = Line(stack, socket.AF_UNIX, None)
    messages = [b"%4d" % number for number in range(100)]
    for message in messages:
        socket.send_fds(line.client, [message], [line.client.fileno()])
    relaying = line.relay()
    beats = 0
    arrived = b""
    while len(arrived) < 400:
        await turns(1)
        beats += 1
        try:
            arrived += line.server.recv(1000)
        except BlockingIOError:
            continue
    assert arrived == b"".join(messages)
    assert beats > 5
    relaying.cancel()
    await outcome_of(relaying)


async def test_of_many_relays_none_waits_for_others_that_always_have_messages(
    stack: ExitStack,
) -> None:
    """Seventy that are never dry, more than one turn of the loop serves, and one that is."""
    lines = [Line(stack, socket.AF_UNIX, None) for _ in range(71)]
    tasks = [line.relay() for line in lines]
    quiet, busy = lines[0], lines[1:]
    loop = asyncio.get_running_loop()
    ended = False

    async def flood(line: Line) -> None:
        while not ended:
            await loop.sock_sendall(line.client, REQUEST)

    async def drink(line: Line) -> None:
        while not ended:
            await loop.sock_recv(line.server, 64 * KIB)

    others = [asyncio.create_task(of(line)) for line in busy for of in (flood, drink)]
    for _ in range(2):
        quiet.client.send(REQUEST)
        assert await receive(quiet.server, len(REQUEST)) == REQUEST
    ended = True
    for task in (*tasks, *others):
        task.cancel()
    await asyncio.wait((*tasks, *others))
