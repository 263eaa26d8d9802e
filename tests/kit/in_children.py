"""Each transfer in a few lines, for a child that has a fault: it has no fixture, nor a far end."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import aiozc
from tests.kit.connections import socket_pair
from tests.kit.content import MIB, assert_same, pattern, write_out

CONTENT = pattern(3 * MIB + 5)


def file_for_anybody(folder: Path) -> Path:
    """Make a file with content, and those that are written into, for whatever user."""
    folder.chmod(0o777)
    for name in ("file", "upload", "spliced"):
        (folder / name).touch()
        (folder / name).chmod(0o666)
    (folder / "file").write_bytes(CONTENT)
    return folder / "file"


async def receive(sock: Any, count: int) -> bytes:
    """Receive so many bytes."""
    received = b""
    while len(received) < count:
        received += await asyncio.get_running_loop().sock_recv(sock, MIB)
    return received


async def sendfile(path: Path) -> None:
    """Send a file that is cached, and one that is not."""
    for cold in (False, True):
        near, far = socket_pair()
        with near, far, path.open("rb") as file:
            if cold:
                write_out(file)
            sending = asyncio.create_task(aiozc.loop_sendfile(near, file))
            assert_same(await receive(far, len(CONTENT)), CONTENT)
            assert await sending == len(CONTENT)


async def sendfile_zc(path: Path) -> None:
    """Send a file that is not cached without a copy, and past the cache."""
    for direct in (False, True):
        near, far = socket_pair()
        with near, far, path.open("rb") as file:
            write_out(file)
            sending = asyncio.create_task(aiozc.sendfile_zc(near, file, direct=direct))
            assert_same(await receive(far, len(CONTENT)), CONTENT)
            assert (await sending).sent == len(CONTENT)


async def recvfile(path: Path) -> None:
    """Receive into a file."""
    near, far = socket_pair()
    with near, far, path.with_name("upload").open("w+b") as file:
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(far, CONTENT))
        assert await aiozc.loop_recvfile(near, file, count=len(CONTENT)) == len(CONTENT)
        await sending
        assert_same(file.read(), b"")
        file.seek(0)
        assert_same(file.read(), CONTENT)


async def splice(path: Path) -> None:
    """Splice a file that is not cached into a pipe, and from there into a file."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    with (
        os.fdopen(reading, "rb", buffering=0) as source,
        os.fdopen(writing, "wb", buffering=0) as target,
        path.open("rb") as file,
        path.with_name("spliced").open("w+b") as end,
    ):
        write_out(file)
        there = asyncio.create_task(aiozc.splice_pipe(file, target))
        assert await aiozc.splice_pipe(source, end, len(CONTENT)) == len(CONTENT)
        assert await there == len(CONTENT)
        end.seek(0)
        assert_same(end.read(), CONTENT)


async def relay(_: Path) -> None:
    """Relay in bulk."""
    (a, b), (c, d) = socket_pair(), socket_pair()
    loop = asyncio.get_running_loop()
    with a, b, c, d:
        relaying = asyncio.create_task(aiozc.relay(b, c))
        sending = asyncio.create_task(loop.sock_sendall(a, CONTENT * 4))
        assert_same(await receive(d, 4 * len(CONTENT)), CONTENT * 4)
        await sending
        a.shutdown(socket.SHUT_WR)
        d.shutdown(socket.SHUT_WR)
        assert await relaying == (4 * len(CONTENT), 0)


TRANSFERS = [sendfile, sendfile_zc, recvfile, splice, relay]
