"""A file overwritten when it is said to be free: the peer gets the old bytes all the same.

And overwritten before that, or after a sendfile that says nothing: it gets the new ones, where
this kernel sends from the file's own pages.
"""

import functools
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
import uvloop

import aiozc
from tests.kit.backends import lends
from tests.kit.children import Child
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, assert_same, digest, pattern
from tests.kit.far_ends import FarEnd, Receiver
from tests.kit.faults.privileges import drop_privileges
from tests.kit.loops import LoopFactory, run_on

ROUNDS = 200  # in all: over both families, on both loops, as both users
FITTING = (1, 100, 4095, 4096, 4097, 20_000, 50_000)  # unread, in the receiver's queue
QUEUED = 300_000  # more than that takes, so that the sender's queue has some
LARGEST = (64 * MIB, 16 * MIB)  # half of the children each

Send = Callable[[socket.socket, BinaryIO], Awaitable[object]]


async def send_and_wait(sock: socket.socket, file: BinaryIO) -> None:
    """Send, and wait until the file may be overwritten."""
    send = await aiozc.sendfile_zc(sock, file)
    await send.released()


@functools.lru_cache(maxsize=8)
def hashed(size: int, seed: int) -> tuple[bytes, str]:
    """Return content, and its hash."""
    content = pattern(size, seed)
    return content, digest(content)


def overwrite(file: BinaryIO, content: bytes) -> None:
    """Put `content` in place of what the file holds, in the same pages."""
    assert os.pwrite(file.fileno(), content, 0) == len(content)


@asynccontextmanager
async def connected(
    family: int, rcvbuf: int | None = None, sndbuf: int | None = None
) -> AsyncIterator[tuple[socket.socket, Receiver]]:
    """Make a connection whose far end reads nothing yet."""
    near, far = socket_pair(family, rcvbuf=rcvbuf, sndbuf=sndbuf)
    with near, FarEnd() as far_end:
        yield near, far_end.receive(far, limit=0)


async def is_damaged(
    send: Send, file: BinaryIO, size: int, sock: socket.socket, receiver: Receiver, seed: int
) -> bool:
    """Send a file, overwrite it, and only then have the far end read to the end."""
    content, name = hashed(size, seed)
    file.truncate(size)
    overwrite(file, content)
    await send(sock, file)
    overwrite(file, bytes(size))
    sock.close()
    arrived = await receiver.wait_end()
    assert len(arrived) == size
    return digest(arrived) != name


async def overwrite_again_and_again(file: BinaryIO, family: int) -> None:
    """Overwrite what lies unread in the far end's queue, in each round."""
    sizes = random.Random(family)
    for number in range(ROUNDS // 8):
        async with connected(family) as ends:
            size = sizes.choice(FITTING)
            assert not await is_damaged(send_and_wait, file, size, *ends, number % 8)
    statistics = aiozc.get_reactor().statistics()
    uncopied = statistics.zero_copies
    lent = ROUNDS // 8 if lends() and family == socket.AF_INET else 0
    assert uncopied == statistics.notifications == lent


async def overwrite_when_a_slow_peer_has_nearly_all(
    file: BinaryIO, family: int, largest: int
) -> None:
    """Overwrite large files whose last bytes lie unread in queues when they are released."""
    for size in (MIB, 5 * MIB + 11, largest):
        async with connected(family, rcvbuf=64 * KIB) as (sock, receiver):
            receiver.allow(size - 20_000)
            assert not await is_damaged(send_and_wait, file, size, sock, receiver, 1)
    statistics = aiozc.get_reactor().statistics()
    assert statistics.zero_copies == statistics.notifications
    assert bool(statistics.copies) == (lends() and family == socket.AF_INET)


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_a_file_overwritten_once_it_is_released_arrives_as_it_was(
    user: str,
    family: int,
    loop_factory: LoopFactory,
    tmp_path: Path,
) -> None:
    with (tmp_path / "file").open("w+b", 0) as file:
        run_on(loop_factory, damage_by(aiozc.sendfile_zc, file))  # imports all there is
        largest = LARGEST[(user == "root") == (loop_factory is uvloop.new_event_loop)]
        hashed(largest, 1)  # once for all children

        def child() -> None:
            if user == "nobody":
                drop_privileges()
            run_on(loop_factory, overwrite_again_and_again(file, family))
            run_on(loop_factory, overwrite_when_a_slow_peer_has_nearly_all(file, family, largest))

        Child(child).wait()


async def bare_sendfile(sock: socket.socket, file: BinaryIO) -> None:
    """Send by the system call."""
    sent = 0
    while sent < QUEUED:
        sent += os.sendfile(sock.fileno(), file.fileno(), sent, QUEUED - sent)


async def damage_by(send: Send, file: BinaryIO) -> bool:
    """Return whether overwriting after that changes what a peer gets that has not read yet."""
    async with connected(socket.AF_INET, rcvbuf=16 * KIB, sndbuf=4 * MIB) as ends:
        return await is_damaged(send, file, QUEUED, *ends, 2)


def test_overwritten_without_waiting_the_new_bytes_arrive_where_none_were_copied(
    loop_factory: LoopFactory, tmp_path: Path
) -> None:
    with (tmp_path / "file").open("w+b", 0) as file:
        assert run_on(loop_factory, damage_by(aiozc.sendfile_zc, file)) == lends()


def test_loop_sendfile_promises_no_more_than_the_system_call(
    loop_factory: LoopFactory, tmp_path: Path
) -> None:
    """It returns while the pages are referred to, where the kernel does."""
    with (tmp_path / "file").open("w+b", 0) as file:
        hazard = run_on(loop_factory, damage_by(bare_sendfile, file))
        assert run_on(loop_factory, damage_by(aiozc.loop_sendfile, file)) == hazard


def test_bytes_changed_once_they_are_released_arrive_as_they_were(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        for number in range(ROUNDS // 8):
            async with connected(socket.AF_INET) as (sock, receiver):
                data = bytearray(pattern(50_000, number % 8))
                async with await aiozc.sendfile_zc(sock, [data[:100], data, b"end"]):
                    pass
                data[:] = bytes(50_000)
                sock.close()
                content = pattern(50_000, number % 8)
                arrived = await receiver.wait_end()
                assert_same(arrived, content[:100], content, b"end")

    run_on(loop_factory, main())
