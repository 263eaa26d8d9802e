"""Peers that do not read, while polls for room come true for nothing: nobody asks them again.

What makes them true: a peer that has ended its own stream, as `nc -N` does, and a socket's error
queue, where notifications wait for who asks for them.
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import aiozc
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MakeFile, assert_same, pattern
from tests.kit.ends import Ends
from tests.kit.far_ends import FarEnd, Receiver
from tests.kit.tasks import outcome_of
from tests.kit.waiting import until

pytestmark = pytest.mark.anyio

CONTENT = pattern(1300 * KIB)
FIRST = b"first"
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000  # the kernel's asm-generic/socket.h, linux/socket.h
CAUSES = ["half-closed", "error queue"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what a test has opened."""
    with ExitStack() as stack:
        yield stack


class Connections:
    """Makes connections whose polls come true for nothing."""

    def __init__(self, cause: str, far_end: FarEnd, stack: ExitStack) -> None:
        self._cause = cause
        self._far_end = far_end
        self._stack = stack

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return a socket to transfer by, and its peer's."""
        near, far = map(self._stack.enter_context, socket_pair(sndbuf=64 * KIB, rcvbuf=64 * KIB))
        if self._cause == "error queue":
            near.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
            near.send(FIRST, MSG_ZEROCOPY)
        return near, far

    def stalled(self) -> tuple[socket.socket, Receiver]:
        """Return a socket to send by, and a peer that does not read yet."""
        near, far = self.connect()
        if self._cause == "half-closed":
            far.shutdown(socket.SHUT_WR)
        return near, self._far_end.receive(far, limit=0)

    def check(self, arrived: bytes, expected: bytes) -> None:
        """Check what a peer got."""
        first = FIRST if self._cause == "error queue" else b""
        assert_same(arrived, first, expected)


@pytest.fixture(params=CAUSES)
def connections(request: pytest.FixtureRequest, far_end: FarEnd, stack: ExitStack) -> Connections:
    """Make connections whose polls come true for nothing, for each cause."""
    return Connections(request.param, far_end, stack)


async def be_quiet() -> None:
    """Wait until nothing is begun anew through some ticks of the reactor."""
    reactor = aiozc.get_reactor()
    chains, ticks = -1, 0

    def is_quiet() -> bool:
        nonlocal chains, ticks
        now = reactor.statistics()
        if now.chains != chains:
            chains, ticks = now.chains, now.completions
        return now.completions - ticks >= 3

    await until(is_quiet)


async def test_senders_to_stalled_peers_leave_them_alone_until_they_read(
    connections: Connections, make_file: MakeFile, ends: Ends
) -> None:
    file: Any = make_file(CONTENT)
    sent = [connections.stalled() for _ in range(3)]
    piped = ends.source("pipe", CONTENT)
    tasks = [
        asyncio.create_task(aiozc.loop_sendfile(sent[0][0], file)),
        asyncio.create_task(aiozc.splice_pipe(file, sent[1][0], src_offset=0)),
        asyncio.create_task(aiozc.splice_pipe(piped.end, sent[2][0])),
    ]
    await be_quiet()
    for _, peer in sent:
        peer.allow(None)
    assert await asyncio.gather(*tasks) == [len(CONTENT)] * 3
    for sock, peer in sent:
        sock.shutdown(socket.SHUT_WR)
        connections.check(await peer.wait_end(), CONTENT)


async def test_a_relay_to_a_stalled_peer_leaves_it_alone_until_it_reads(
    connections: Connections, far_end: FarEnd
) -> None:
    near, peer = connections.stalled()
    server, far = connections.connect()
    serving = far_end.peer(far)
    relaying = asyncio.create_task(aiozc.relay(near, server))
    serving.send(CONTENT, end=True)
    await be_quiet()
    assert not relaying.done()
    peer.allow(None)
    connections.check(await peer.wait_end(), CONTENT)
    relaying.cancel()
    await outcome_of(relaying)


async def test_an_upload_and_a_relay_of_nothing_wait_for_their_peers_alone(
    far_end: FarEnd, stack: ExitStack, make_file: MakeFile
) -> None:
    """A poll for something to read is true for an error queue as well."""
    made = Connections("error queue", far_end, stack)
    (a, there), (b, back), (up, client) = (made.connect() for _ in range(3))
    file: Any = make_file(b"")
    with open(file.name, "r+b", buffering=0) as target:  # noqa: ASYNC230
        tasks = [
            asyncio.create_task(aiozc.relay(a, b)),
            asyncio.create_task(aiozc.loop_recvfile(up, target)),
        ]
        await be_quiet()
        for sock in (there, client):
            sock.send(b"at last")
            sock.shutdown(socket.SHUT_WR)
        assert await tasks[1] == 7
    back.shutdown(socket.SHUT_WR)
    assert await tasks[0] == (7, 0)
    assert back.recv(100) == FIRST + b"at last"
