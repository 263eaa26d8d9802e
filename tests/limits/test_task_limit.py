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
from tests.kit import in_children
from tests.kit.children import Child
from tests.kit.connections import socket_pair
from tests.kit.faults.privileges import drop_privileges
from tests.kit.in_children import TRANSFERS, file_for_anybody
from tests.kit.loops import LoopFactory, run_on
from tests.kit.waiting import until


def allow_no_more_tasks(folder: Path) -> None:
    """Be a user who may have no more threads, nor processes, in that folder."""
    os.chdir(folder)
    drop_privileges()
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threading.Thread(target=print).start()


@pytest.mark.parametrize("way", TRANSFERS)
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
    run_on(loop_factory, in_children.recvfile(path))  # imports all there is to import
    said: list[str] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    async def main(file: Any) -> None:
        near, far = socket_pair()
        async with aiozc.Reactor() as reactor:
            await in_children.sendfile(Path("file"))
            await in_children.recvfile(Path("file"))
            assert reactor.backend == "readiness"
            resource.setrlimit(resource.RLIMIT_NPROC, (4000, 4000))
            with near, far:
                # It is asked for in a tick, and these come as long as something waits.
                waiting = asyncio.create_task(aiozc.loop_recvfile(near, file))
                await until(lambda: reactor.backend == "io_uring")
                far.shutdown(socket.SHUT_WR)
                assert await waiting == 0
            await in_children.sendfile(Path("file"))
            assert reactor.backend == "io_uring"

    def child() -> None:
        workers.ANEW_S = 0.01
        logging.getLogger("aiozc").addHandler(Note())
        os.chdir(tmp_path)
        drop_privileges()
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, 4000))
        with open("spliced", "wb") as file:
            run_on(loop_factory, main(file))
        assert sum("no more tasks" in line for line in said) == 1, said
        assert not any("disks" in line for line in said), said

    Child(child).wait()
