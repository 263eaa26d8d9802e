"""A user without privileges, whose pipes may take no more memory, gets every byte all the same."""

import asyncio
import contextlib
import fcntl
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

import aiozc
from tests.kit.children import Child
from tests.kit.connections import fill, socket_pair
from tests.kit.content import MIB, MakeFile, assert_same, pattern
from tests.kit.faults.privileges import drop_privileges
from tests.kit.loops import LoopFactory, run_on
from tests.kit.ways import SENDS, Send

CONTENT = pattern(2 * MIB + 5)


def use_up_pipe_budget() -> None:
    """Open pipes, and grow them as far as they may, until three of them may not grow at all."""
    refused = 0
    while refused < 3:
        reading, _ = os.pipe()
        least = 2 * fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ)
        size = int(Path("/proc/sys/fs/pipe-max-size").read_text())
        while size >= least:
            with contextlib.suppress(PermissionError):
                fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, size)
                break
            size //= 2
        refused = refused + 1 if size < least else 0


async def send(send: Send, file: BinaryIO, offset: int, count: int | None, family: int) -> None:
    """Send to a reader in the same loop, which begins when the send buffer is full."""
    chosen = CONTENT[offset:] if count is None else CONTENT[offset : offset + count]
    loop = asyncio.get_running_loop()
    near, far = socket_pair(family)
    with near, far:
        filler = fill(near)
        sending = loop.create_task(send(near, file, offset, count))
        arrived = await receive(far, filler + len(chosen))
        assert await sending == len(chosen)
        assert file.tell() == offset + len(chosen)
    assert_same(arrived, bytes(filler), chosen)


async def receive(sock: socket.socket, count: int) -> bytes:
    """Receive so many bytes."""
    arrived = bytearray()
    while len(arrived) < count:
        arrived += await asyncio.get_running_loop().sock_recv(sock, 100_000)
    return bytes(arrived)


async def relay_and_store(file: BinaryIO, family: int) -> None:
    """Relay what one sends and what it gets back, which the other stores in a file."""
    loop = asyncio.get_running_loop()
    client, a = socket_pair(family)
    b, server = socket_pair(family)
    with client, a, b, server:
        relaying = loop.create_task(aiozc.relay(a, b))
        storing = loop.create_task(aiozc.loop_recvfile(server, file))
        sending = loop.create_task(loop.sock_sendall(client, CONTENT))
        answering = loop.create_task(loop.sock_sendall(server, CONTENT[::-1]))
        assert_same(await receive(client, len(CONTENT)), CONTENT[::-1])
        await sending
        await answering
        client.shutdown(socket.SHUT_WR)
        assert await storing == len(CONTENT)
        server.shutdown(socket.SHUT_WR)
        assert await relaying == (len(CONTENT), len(CONTENT))
    file.seek(0)
    assert_same(file.read(), CONTENT)


async def move_all(files: Sequence[BinaryIO], targets: Sequence[BinaryIO], family: int) -> None:
    """Send parts of one file one after the other, then parts of all at once; relay, and store."""
    transfers = 0
    for by in SENDS.values():
        for offset, count in ((0, None), (0, 1), (1, 300_000), (4095, None), (4096, MIB)):
            await send(by, files[0], offset, count, family)
        await asyncio.gather(*(send(by, file, 1, 300_000, family) for file in files))
        transfers += 5 + len(files)
    await asyncio.gather(*(relay_and_store(target, family) for target in targets))
    assert aiozc.get_reactor().statistics().transfers == transfers + 2 * len(targets)


async def warm_up(file: BinaryIO, target: BinaryIO, family: int) -> None:
    """Import all there is to import."""
    for by in SENDS.values():
        await send(by, file, 0, MIB, family)
    await relay_and_store(target, family)


@pytest.mark.parametrize(("budget", "at_once"), [("left", 20), ("used up", 5)])
def test_an_unprivileged_user_gets_every_byte(
    budget: str,
    at_once: int,
    family: int,
    loop_factory: LoopFactory,
    make_file: MakeFile,
    tmp_path: Path,
) -> None:
    """Where the budget is left, so many at once use it up."""
    path = make_file(CONTENT, again=True).name
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path, "rb")) for _ in range(at_once)]
        targets = [stack.enter_context(tempfile.TemporaryFile(dir=tmp_path)) for _ in range(3)]
        run_on(loop_factory, warm_up(files[0], targets[0], family))

        def child() -> None:
            drop_privileges()
            if budget == "used up":
                use_up_pipe_budget()
            run_on(loop_factory, move_all(files, targets, family))

        Child(child).wait()
