"""Both ways at once: half-closes, resets, and every byte accounted for."""

import asyncio
import itertools
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import aiozc
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, assert_same, case, pattern
from tests.kit.far_ends import FarEnd, Peer
from tests.kit.leaks import IDLE_PIPES, holdings
from tests.kit.tasks import outcome_of
from tests.kit.waiting import turns, until

pytestmark = pytest.mark.anyio

THERE = pattern(3 * MIB + 1)
BACK = pattern(2 * MIB + 3, 1)
MOST_WORKERS = 16  # of a ring: 8 for files and 8 for all else


@dataclass
class Side:
    """One side of a relay: our end of a connection, and its peer."""

    sock: socket.socket
    peer: Peer
    family: int

    @property
    def was_reset(self) -> bool:
        """Whether the peer was told so."""
        return isinstance(self.peer.error, ConnectionResetError | BrokenPipeError)


class Connections:
    """Makes both sides of a relay."""

    def __init__(self, far_end: FarEnd) -> None:
        self._far_end = far_end
        self._socks: list[socket.socket] = []

    def sides(
        self, family: int, *, buffer: int | None = None, limit: int | None = None
    ) -> tuple[Side, Side]:
        """Make two connections, whose peers read `limit` bytes each or all."""
        made = []
        for _ in range(2):
            near, far = socket_pair(family, sndbuf=buffer, rcvbuf=buffer)
            self._socks.append(near)
            made.append(Side(near, self._far_end.peer(far, limit=limit), family))
        return made[0], made[1]

    def close(self) -> None:
        """Close our ends."""
        for sock in self._socks:
            sock.close()


@pytest.fixture
def connections(far_end: FarEnd) -> Iterator[Connections]:
    """Make both sides of relays; close our ends after the test."""
    connections = Connections(far_end)
    yield connections
    connections.close()


# Half-closes


@pytest.mark.parametrize("first", ["a", "b", "both at once"])
async def test_a_half_close_is_passed_on_and_the_other_way_goes_on(
    first: str, family: int, connections: Connections
) -> None:
    a, b = connections.sides(family)
    task = asyncio.create_task(aiozc.relay(a.sock, b.sock))
    if first == "both at once":
        a.peer.send(THERE, end=True)
        b.peer.send(BACK, end=True)
    elif first == "a":
        a.peer.send(THERE, end=True)
        assert_same(await b.peer.wait_end(), THERE)
        assert not task.done()
        b.peer.send(BACK, end=True)
    else:
        b.peer.send(BACK, end=True)
        assert_same(await a.peer.wait_end(), BACK)
        assert not task.done()
        a.peer.send(THERE, end=True)
    assert await task == (len(THERE), len(BACK))
    assert_same(await b.peer.wait_end(), THERE)
    assert_same(await a.peer.wait_end(), BACK)
    assert a.peer.error is None
    assert b.peer.error is None


async def test_both_peers_may_have_ended_before_it_starts(
    family: int, connections: Connections
) -> None:
    for size in (0, 1, 100_000):
        a, b = connections.sides(family)
        peers = (a.peer, b.peer)
        a.peer.send(THERE[:size], end=True)
        b.peer.send(BACK[:size], end=True)
        await until(lambda peers=peers, size=size: all(one.sent == size for one in peers))  # type: ignore[misc]
        assert await aiozc.relay(a.sock, b.sock) == (size, size)
        assert_same(await b.peer.wait_end(), THERE[:size])
        assert_same(await a.peer.wait_end(), BACK[:size])


async def test_the_sockets_stay_the_callers(family: int, connections: Connections) -> None:
    a, b = connections.sides(family)
    a.peer.send(b"there", end=True)
    b.peer.send(b"back", end=True)
    assert await aiozc.relay(a.sock, b.sock) == (5, 4)
    for sock in (a.sock, b.sock):
        assert sock.fileno() >= 0
        assert sock.gettimeout() == 0
        assert sock.recv(10) == b""
        with pytest.raises(BrokenPipeError):
            sock.send(b"more")


async def test_a_tcp_and_a_unix_socket_are_relayed(far_end: FarEnd) -> None:
    near, far = socket_pair(socket.AF_INET)
    other_near, other_far = socket_pair(socket.AF_UNIX)
    with near, other_near:
        peer, other = far_end.peer(far), far_end.peer(other_far)
        peer.send(THERE, end=True)
        other.send(BACK, end=True)
        assert await aiozc.relay(near, other_near) == (len(THERE), len(BACK))
        assert_same(await other.wait_end(), THERE)
        assert_same(await peer.wait_end(), BACK)


# Resets


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("moving", [True, False], ids=["moving", "idle"])
async def test_a_reset_on_one_side_resets_the_other(
    moving: bool, who: str, family: int, connections: Connections
) -> None:
    """A UNIX socket resets where it is closed over something unread; both its ends are shut."""
    sides = connections.sides(family, buffer=64 * KIB)
    a, b = sides
    resetting, other = sides if who == "a" else sides[::-1]
    task = asyncio.create_task(aiozc.relay(a.sock, b.sock))
    a.peer.send(THERE, limit=None if moving else 1000)
    b.peer.send(BACK, limit=None if moving else 500)
    await a.peer.wait_arrived(500)
    await b.peer.wait_arrived(1000)
    resetting.peer.allow(0)
    if not moving:
        other.peer.allow_sending(1500)
        await until(lambda: other.peer.sent == 1500)
        await until(lambda: unread_of(resetting.peer) > 0)
    resetting.peer.reset()
    outcome = await outcome_of(task)
    assert isinstance(outcome, ConnectionResetError | BrokenPipeError), repr(outcome)
    arrived = await other.peer.wait_end()
    if family == socket.AF_INET:
        assert other.was_reset
    check_told(outcome, a, b)
    assert_same(arrived, (THERE if who == "a" else BACK)[: len(arrived)])


def unread_of(peer: Peer) -> int:
    """Return whether something waits to be read by it."""
    try:
        return len(peer._sock.recv(1, socket.MSG_PEEK))  # type: ignore[union-attr]
    except BlockingIOError:
        return 0


def told(outcome: object) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return what an outcome says was transferred and lost, each both ways."""
    if isinstance(outcome, tuple):
        return outcome, (0, 0)
    assert isinstance(outcome, OSError | asyncio.CancelledError), repr(outcome)
    transferred: tuple[int, int] = outcome.transferred  # type: ignore[union-attr]
    lost: tuple[int, int] = outcome.lost  # type: ignore[union-attr]
    assert all(type(number) is int and number >= 0 for number in (*transferred, *lost))
    return transferred, lost


def check_told(outcome: object, a: Side, b: Side) -> None:
    """Check that what is told agrees with what the peers have sent and got."""
    transferred, lost = told(outcome)
    assert transferred[0] + lost[0] <= a.peer.sent
    assert transferred[1] + lost[1] <= b.peer.sent
    assert b.peer.count <= transferred[0]
    assert a.peer.count <= transferred[1]


async def test_a_peer_that_was_gone_before_resets_the_other(
    family: int, connections: Connections
) -> None:
    a, b = connections.sides(family)
    a.peer.allow(0)
    a.sock.send(b"unread")
    a.peer.reset()
    task = asyncio.create_task(aiozc.relay(a.sock, b.sock))
    outcome = await outcome_of(task)
    assert isinstance(outcome, ConnectionResetError | BrokenPipeError), repr(outcome)
    assert outcome.transferred == outcome.lost == (0, 0)  # type: ignore[union-attr]
    assert await b.peer.wait_end() == b""
    assert b.was_reset == (family == socket.AF_INET)


# Flow


@pytest.mark.parametrize("behind", [1, 1000, 4096, 70_000, 700_000])
async def test_the_last_bytes_before_an_idle_time_arrive_when_there_is_room_again(
    behind: int, family: int, connections: Connections
) -> None:
    """They meet a full target; nothing else happens than that it is read again."""
    a, b = connections.sides(family, buffer=32 * KIB, limit=0)
    task = asyncio.create_task(aiozc.relay(a.sock, b.sock))
    size = 0
    for _ in range(3):
        size += 300_000 + behind
        a.peer.send(THERE[a.peer.sent : size])
        await turns(50)
        b.peer.allow(size - behind)
        await b.peer.wait_arrived(size - behind)
        b.peer.allow(size)
        await b.peer.wait_arrived(size)
    assert not task.done()
    a.peer.finish()
    b.peer.finish()
    assert await task == (size, 0)
    assert_same(await b.peer.wait_end(), THERE[:size])


async def test_requests_and_responses_go_to_and_fro(family: int) -> None:
    """Six hundred of each, in sizes that fill no buffer, and now and then one that does."""
    loop = asyncio.get_running_loop()
    client, a = socket_pair(family)
    b, server = socket_pair(family)
    with client, a, b, server:

        async def receive(sock: socket.socket, size: int) -> bytes:
            parts = []
            while size:
                parts.append(await loop.sock_recv(sock, size))
                assert parts[-1], "the stream has ended"
                size -= len(parts[-1])
            return b"".join(parts)

        async def serve() -> None:
            for number in range(600):
                request = await receive(server, size_of(number))
                await loop.sock_sendall(server, request[::-1])

        task = asyncio.create_task(aiozc.relay(a, b))
        serving = asyncio.create_task(serve())
        total = 0
        for number in range(600):
            size = size_of(number)
            request = THERE[number : number + size]
            await loop.sock_sendall(client, request)
            assert await receive(client, size) == request[::-1]
            total += size
        await serving
        client.shutdown(socket.SHUT_WR)
        server.shutdown(socket.SHUT_WR)
        assert await task == (total, total)


def size_of(number: int) -> int:
    """Return the size of a request."""
    return 150_000 if number % 200 == 199 else 1 + number * 7 % 300


async def test_one_direction_stalls_and_the_other_goes_on(
    family: int, connections: Connections
) -> None:
    a, b = connections.sides(family, buffer=64 * KIB)
    b.peer.allow(0)
    task = asyncio.create_task(aiozc.relay(a.sock, b.sock))
    a.peer.send(THERE, end=True)
    b.peer.send(BACK, end=True)
    assert_same(await a.peer.wait_end(), BACK)
    assert not task.done()
    assert b.peer.count == 0
    assert_same(await b.peer.wait_end(), THERE)
    assert await task == (len(THERE), len(BACK))


# Cancellation


async def test_cancelled_at_any_time_both_ways_are_accounted_for(
    family: int, connections: Connections
) -> None:
    """What each peer has sent has arrived, is told lost, or still stands in our socket."""
    for number in range(15):
        a, b = connections.sides(family, buffer=64 * KIB if number % 2 else None)
        task = asyncio.create_task(aiozc.relay(a.sock, b.sock))
        a.peer.send(THERE, end=True)
        b.peer.send(BACK, end=number % 3 == 0)
        await turns(1 + number * number // 2)
        asked = task.cancel()
        outcome = await outcome_of(task)
        assert isinstance(outcome, asyncio.CancelledError) == asked
        await check_all_accounted_for(outcome, a, b)


async def check_all_accounted_for(outcome: object, a: Side, b: Side) -> None:
    """Check what was sent against what has arrived, is lost or left, to the last byte."""
    transferred, lost = told(outcome)
    a.peer.finish()
    b.peer.finish()
    left = [await read_to_the_end(side.sock) for side in (a, b)]
    a.sock.close()
    b.sock.close()
    sides = ((a, b, THERE, 0), (b, a, BACK, 1))
    for source, target, content, way in sides:
        end = transferred[way] + lost[way]
        assert end + len(left[way]) == source.peer.sent
        assert_same(left[way], content[end : source.peer.sent])
        assert_same(await target.peer.wait_end(), content[: transferred[way]])


async def read_to_the_end(sock: socket.socket) -> bytes:
    """Return what can still be read."""
    loop = asyncio.get_running_loop()
    parts = [b""]
    while chunk := await loop.sock_recv(sock, MIB):
        parts.append(chunk)
    return b"".join(parts)


async def test_a_relay_cancelled_and_begun_again_goes_on(
    family: int, connections: Connections
) -> None:
    a, b = connections.sides(family)
    a.peer.send(THERE, end=True)
    b.peer.send(BACK, end=True)
    pieces: tuple[list[bytes], list[bytes]] = ([], [])
    places = [0, 0]
    for number in range(1, 1000):
        task = asyncio.create_task(aiozc.relay(a.sock, b.sock))
        await turns(number)
        task.cancel()
        outcome = await outcome_of(task)
        transferred, lost = told(outcome)
        for way, content in enumerate((THERE, BACK)):
            start = places[way]
            pieces[way].append(content[start : start + transferred[way]])
            places[way] += transferred[way] + lost[way]
        if isinstance(outcome, tuple):
            break
        assert isinstance(outcome, asyncio.CancelledError), repr(outcome)
    assert places == [len(THERE), len(BACK)]
    assert_same(await b.peer.wait_end(), *pieces[0])
    assert_same(await a.peer.wait_end(), *pieces[1])


async def test_the_end_of_its_time_says_what_moved_each_way(
    family: int, connections: Connections
) -> None:
    a, b = connections.sides(family)
    a.peer.send(THERE[:1000])
    b.peer.send(BACK[:2000])

    async def relay_in_time() -> None:
        async with asyncio.timeout(0.02):
            await aiozc.relay(a.sock, b.sock)

    with pytest.raises(TimeoutError) as caught:
        await relay_in_time()
    await check_all_accounted_for(caught.value.__cause__, a, b)


# Many


async def test_of_relays_with_random_half_closes_and_resets_every_byte_is_accounted_for(
    family: int, connections: Connections
) -> None:
    """Fifty at a time, 250 of each family: ends in either order, resets, cancellations."""
    chance = random.Random(family)
    for _ in range(5):
        await asyncio.gather(*(one_of_many(chance, family, connections) for _ in range(50)))


async def one_of_many(chance: random.Random, family: int, connections: Connections) -> None:
    """Run a relay to whatever end chance gives it."""
    size = (chance.choice((0, 1, 5000, 120_000)), chance.choice((0, 1, 3000, 250_000)))
    ending = chance.choice(("both", "a first", "b first", "reset a", "reset b", "cancel"))
    a, b = connections.sides(family, buffer=chance.choice((None, 32 * KIB)))
    content = THERE[: size[0]], BACK[: size[1]]
    a.peer.send(content[0], end=ending in ("both", "a first"), piece=chance.choice((900, MIB)))
    b.peer.send(content[1], end=ending in ("both", "b first"), piece=chance.choice((900, MIB)))
    task = asyncio.create_task(aiozc.relay(a.sock, b.sock))
    match ending:
        case "a first":
            assert_same(await b.peer.wait_end(), content[0])
            b.peer.send(b"", end=True)
        case "b first":
            assert_same(await a.peer.wait_end(), content[1])
            a.peer.send(b"", end=True)
        case "reset a" | "reset b":
            target, way = (a, 1) if ending == "reset a" else (b, 0)
            await target.peer.wait_arrived(chance.randint(0, size[way]))
            target.peer.allow(0)
            target.peer.reset()
        case "cancel":
            await turns(chance.randint(1, 30))
            task.cancel()
    if not ending.startswith("reset"):
        outcome = await outcome_of(task)
        assert isinstance(outcome, asyncio.CancelledError) == (ending == "cancel"), repr(outcome)
        assert ending == "cancel" or outcome == size
        await check_all_accounted_for(outcome, a, b)
        return
    other, way = (b, 0) if ending == "reset a" else (a, 1)
    # A UNIX socket that was closed with nothing unread has ended its stream, as any other.
    other.peer.send(b"", end=True)
    outcome = await outcome_of(task)
    assert_same(await other.peer.wait_end(), content[way][: other.peer.count])
    if family == socket.AF_UNIX and isinstance(outcome, tuple):
        assert outcome[way] == other.peer.count
        return
    assert isinstance(outcome, ConnectionResetError | BrokenPipeError), repr(outcome)
    check_told(outcome, a, b)
    assert family == socket.AF_UNIX or other.was_reset


async def test_idle_relays_hold_no_pipe_and_no_thread(
    family: int, connections: Connections
) -> None:
    """A hundred that move some bytes each way, and then nothing more."""
    before = holdings()
    sides = [connections.sides(family) for _ in range(100)]
    async with aiozc.Reactor(entries=64) as reactor:
        made = holdings()
        tasks = [asyncio.create_task(aiozc.relay(a.sock, b.sock)) for a, b in sides]
        for a, b in sides:
            a.peer.send(THERE[:1000])
            b.peer.send(BACK[:2000])
        for a, b in sides:
            await b.peer.wait_arrived(1000)
            await a.peer.wait_arrived(2000)
        await until(lambda: reactor.statistics().pipes <= IDLE_PIPES)
        held, _, threads = holdings().since(made)
        assert sum(target.startswith("pipe:") for _, target in held) <= 2 * IDLE_PIPES
        assert not threads
        assert holdings().ring_workers <= before.ring_workers + MOST_WORKERS
        assert not any(task.done() for task in tasks)
        for a, b in sides:
            a.peer.finish()
            b.peer.finish()
        assert await asyncio.gather(*tasks) == [(1000, 2000)] * 100


async def test_relays_that_never_move_anything_cost_no_pipe_and_no_worker(
    family: int, connections: Connections
) -> None:
    before = holdings()
    sides = [connections.sides(family) for _ in range(100)]
    async with aiozc.Reactor(entries=64) as reactor:
        tasks = [asyncio.create_task(aiozc.relay(a.sock, b.sock)) for a, b in sides]
        await turns(20)
        assert reactor.statistics().pipes <= IDLE_PIPES
        assert holdings().ring_workers <= before.ring_workers
        for task in tasks:
            task.cancel()
        for task in tasks:
            outcome = await outcome_of(task)
            assert isinstance(outcome, asyncio.CancelledError)
            assert outcome.transferred == outcome.lost == (0, 0)  # type: ignore[attr-defined]


# Arguments


async def test_a_socket_cannot_be_relayed_to_itself(family: int, connections: Connections) -> None:
    a, _ = connections.sides(family)
    with pytest.raises(ValueError):  # noqa: PT011 - the words are the library's
        await aiozc.relay(a.sock, a.sock)


async def test_a_wrong_socket_is_refused(family: int, connections: Connections) -> None:
    for wrong, place in itertools.product(("blocking", "datagram"), (0, 1)):
        with case(wrong=wrong, place=place):
            a, b = connections.sides(family)
            with socket.socket(type=socket.SOCK_DGRAM) as datagram:
                datagram.setblocking(False)
                if wrong == "blocking":
                    a.sock.setblocking(True)
                pair = [a.sock if wrong == "blocking" else datagram, b.sock]
                if place:
                    pair.reverse()
                with pytest.raises(ValueError):  # noqa: PT011 - the words are the library's
                    await aiozc.relay(*pair)
            b.peer.send(b"still there")
            assert await asyncio.get_running_loop().sock_recv(b.sock, 100) == b"still there"


async def test_a_second_relay_of_one_of_the_sockets_is_refused(
    family: int, connections: Connections
) -> None:
    a, b = connections.sides(family)
    c, _ = connections.sides(family)
    task = asyncio.create_task(aiozc.relay(a.sock, b.sock))
    await turns(3)
    for pair in ((a.sock, c.sock), (c.sock, a.sock), (b.sock, c.sock), (b.sock, a.sock)):
        with pytest.raises(RuntimeError):
            await aiozc.relay(*pair)
    a.peer.send(THERE, end=True)
    b.peer.send(BACK, end=True)
    assert await task == (len(THERE), len(BACK))
    assert_same(await b.peer.wait_end(), THERE)
