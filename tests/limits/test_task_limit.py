"""Where the process may have no more tasks everything goes on, without the ring's threads."""

import asyncio
import logging
import os
import resource
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

import aiozc
from aiozc._engines import workers
from aiozc._engines.reactor import Reactor
from tests.conftest import LoopFactory
from tests.kit.children import Child
from tests.kit.connections import socket_pair
from tests.kit.content import MIB, assert_same, pattern, write_out
from tests.kit.waiting import run_on, until
from tests.limits.test_unprivileged import drop_privileges

CONTENT = pattern(3 * MIB + 5)


def allow_no_more_tasks(folder: Path) -> None:
    """Be a user who may have no more threads, nor processes, in that folder."""
    os.chdir(folder)
    drop_privileges()
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threading.Thread(target=print).start()


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


WAYS = [sendfile, sendfile_zc, recvfile, splice, relay]


@pytest.mark.parametrize("way", WAYS)
def test_all_goes_on_where_no_task_is_left(
    way: Any, loop_factory: LoopFactory, tmp_path: Path
) -> None:
    path = file_for_anybody(tmp_path)

    run_on(loop_factory, way(path))  # imports all there is to import

    def child() -> None:
        allow_no_more_tasks(tmp_path)
        run_on(loop_factory, way(Path("file")))

    Child(child).wait()


@pytest.mark.ring
@pytest.mark.parametrize("limit", [0, 1])
def test_it_is_said_once_and_the_ring_is_used_again_when_there_are_tasks(
    limit: int, loop_factory: LoopFactory, tmp_path: Path
) -> None:
    """Of a limit of 0 the kernel makes one of no workers, and is silent where one is needed."""
    path = file_for_anybody(tmp_path)
    run_on(loop_factory, recvfile(path))  # imports all there is to import
    said: list[str] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    async def main(file: Any) -> None:
        near, far = socket_pair()
        async with Reactor() as reactor:
            await sendfile(Path("file"))
            await recvfile(Path("file"))
            assert reactor.backend == "readiness"
            resource.setrlimit(resource.RLIMIT_NPROC, (4000, 4000))
            with near, far:
                # It is asked for in a tick, and these come as long as something waits.
                waiting = asyncio.create_task(aiozc.loop_recvfile(near, file))
                await until(lambda: reactor.backend == "io_uring")
                far.shutdown(socket.SHUT_WR)
                assert await waiting == 0
            await sendfile(Path("file"))
            assert reactor.backend == "io_uring"

    def child() -> None:
        workers.ANEW = 0.01
        logging.getLogger("aiozc").addHandler(Note())
        os.chdir(tmp_path)
        drop_privileges()
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, 4000))
        with open("spliced", "wb") as file:
            run_on(loop_factory, main(file))
        assert sum("no more tasks" in line for line in said) == 1, said
        assert not any("disks" in line for line in said), said

    Child(child).wait()
