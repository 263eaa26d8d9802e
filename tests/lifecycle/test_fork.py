"""A fork shares its parent's ring: it never touches it, and makes one of its own."""

import asyncio
import contextlib
import gc
import socket
from typing import BinaryIO

import pytest

import aiozc
from tests.kit.children import Child
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.far_ends import Connect
from tests.kit.leaks import holdings
from tests.kit.loops import LoopFactory, run_on
from tests.kit.tasks import outcome_of

CONTENT = pattern(8 * MIB)
OTHER = pattern(2 * MIB, 1)
SEEN = 200_000


async def send_to_oneself(file: BinaryIO) -> None:
    """Send OTHER by a ring, without any thread that a fork does not have."""
    loop = asyncio.get_running_loop()
    near, far = socket_pair(socket.AF_UNIX)
    with near, far:
        sending = loop.create_task(aiozc.loop_sendfile(near, file))
        arrived = bytearray()
        while len(arrived) < len(OTHER):
            arrived += await loop.sock_recv(far, 256 * KIB)
        assert await sending == len(OTHER)
    assert_same(bytes(arrived), OTHER)
    statistics = aiozc.get_reactor().statistics()
    assert statistics.transfers == 1
    assert statistics.chains > 0
    assert statistics.bytes == len(OTHER)


@pytest.mark.anyio
@pytest.mark.parametrize("children", [1, 3])
async def test_a_fork_in_mid_transfer_harms_neither_side(
    children: int, connect: Connect, make_file: MakeFile
) -> None:
    """The children send while the parent's transfers wait, and while they go on."""
    file, other = make_file(CONTENT), make_file(OTHER)
    connections = [connect(limit=SEEN, sndbuf=64 * KIB, rcvbuf=64 * KIB) for _ in range(4)]
    before = holdings()
    tasks = [asyncio.create_task(aiozc.loop_sendfile(sock, file)) for sock, _ in connections]
    for _, receiver in connections:
        await receiver.wait_arrived(SEEN)
    parents = aiozc.get_reactor()
    make_loop = type(asyncio.get_running_loop())

    async def main() -> None:
        await send_to_oneself(other)
        assert aiozc.get_reactor() is not parents

    def child() -> None:
        # No copies of the ring, of the sockets and files: they would stay open for as long
        # as the child lives. What is new are the pipes of `Child`.
        descriptors, rings, _ = holdings().since(before)
        assert not rings
        assert all(target.startswith("pipe:") for _, target in descriptors)
        assert len(holdings().descriptors) <= len(before.descriptors) + 1 + children
        run_on(make_loop, main())
        gc.collect()

    forks = [Child(child) for _ in range(children)]
    await asyncio.to_thread(forks[0].wait)
    for _, receiver in connections:
        receiver.allow(None)
    assert await asyncio.gather(*tasks) == [len(CONTENT)] * 4
    for fork in forks[1:]:
        await asyncio.to_thread(fork.wait)
    assert file.tell() == len(CONTENT)
    for sock, receiver in connections:
        sock.close()
        assert_same(await receiver.wait_end(), CONTENT)


@pytest.mark.anyio
@pytest.mark.parametrize("moving", [True, False], ids=["moving", "idle"])
async def test_a_forked_child_keeps_none_of_a_relays_sockets_open(
    moving: bool, family: int
) -> None:
    """It closes what it inherited of the caller's; then the peers see the parent's end of it."""
    loop = asyncio.get_running_loop()
    (p, a), (b, q) = socket_pair(family), socket_pair(family)
    before = holdings()
    task = asyncio.create_task(aiozc.relay(a, b))
    p.send(b"there")
    assert await loop.sock_recv(q, 9) == b"there"
    with contextlib.suppress(BlockingIOError):
        while moving:  # until nothing can go on
            p.send(CONTENT[: 100 * KIB])
    ready, gate = socket.socketpair(), socket.socketpair()

    def child() -> None:
        gc.collect()
        descriptors, rings, _ = holdings().since(before)
        new = [ready[0], ready[1], gate[0], gate[1]]
        assert {fd for fd, what in descriptors if what.startswith("socket:")} == {
            sock.fileno() for sock in new
        }
        assert not rings
        for sock in (p, a, b, q, gate[1]):
            sock.close()
        ready[0].send(b"!")
        assert gate[0].recv(1) == b"", "the parent has seen what it waits for"

    fork = Child(child)
    ready[0].close()
    gate[0].close()
    with ready[1], gate[1]:
        if not await asyncio.to_thread(ready[1].recv, 1):
            fork.wait()
        if not moving:
            q.send(b"back")
            assert await loop.sock_recv(p, 9) == b"back"
        task.cancel()
        assert isinstance(await outcome_of(task), asyncio.CancelledError)
        a.close()
        b.close()
        await until_ended(p)
        await until_ended(q)
    fork.wait()
    p.close()
    q.close()


async def until_ended(sock: socket.socket) -> None:
    """Receive until the stream has ended, in whatever way."""
    with contextlib.suppress(ConnectionResetError):
        while await asyncio.get_running_loop().sock_recv(sock, MIB):
            pass


@pytest.mark.anyio
async def test_what_a_fork_inherited_cannot_reach_the_parents_transfers(
    connect: Connect, make_file: MakeFile
) -> None:
    """The child drops all it knows of them, loop and tasks and reactor, while they wait."""
    file = make_file(CONTENT)
    sock, receiver = connect(limit=SEEN, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    task = asyncio.create_task(aiozc.loop_sendfile(sock, file))
    await receiver.wait_arrived(SEEN)
    reactor = aiozc.get_reactor()

    def child() -> None:
        nonlocal task, reactor
        coroutine = task.get_coro()
        assert coroutine is not None
        coroutine.close()
        del task, reactor, coroutine
        gc.collect()

    fork = Child(child)
    await asyncio.to_thread(fork.wait)
    assert reactor.statistics().in_flight == 1
    receiver.allow(None)
    assert await task == len(CONTENT)
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


@pytest.mark.anyio
async def test_transfers_can_be_cancelled_after_a_fork(
    connect: Connect, make_file: MakeFile
) -> None:
    file = make_file(CONTENT)
    sock, receiver = connect(limit=SEEN, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    task = asyncio.create_task(aiozc.loop_sendfile(sock, file))
    await receiver.wait_arrived(SEEN)
    await asyncio.to_thread(Child(gc.collect).wait)
    task.cancel()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT[: file.tell()])


def test_a_fork_of_a_process_whose_loops_have_ended_can_send(
    loop_factory: LoopFactory, make_file: MakeFile
) -> None:
    other = make_file(OTHER)
    run_on(loop_factory, send_to_oneself(other))
    Child(lambda: run_on(loop_factory, send_to_oneself(other))).wait()
    run_on(loop_factory, send_to_oneself(other))
