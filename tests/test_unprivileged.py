"""A user without privileges, whose pipes may take no more memory, gets every byte all the same."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

import aiozc

from .conftest import LoopFactory, MakeFile
from .support import MIB, Child, assert_same, fill, pattern, run_on, socket_pair

NOBODY = 65534
CONTENT = pattern(2 * MIB + 5)


def drop_privileges() -> None:
    """Become nobody, if this is root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


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


async def send(file: BinaryIO, offset: int, count: int | None, family: int) -> None:
    """Send to a reader in the same loop, which begins when the send buffer is full."""
    chosen = CONTENT[offset:] if count is None else CONTENT[offset : offset + count]
    loop = asyncio.get_running_loop()
    near, far = socket_pair(family)
    with near, far:
        filler = fill(near)
        sending = loop.create_task(aiozc.loop_sendfile(near, file, offset, count))
        arrived = bytearray()
        while len(arrived) < filler + len(chosen):
            arrived += await loop.sock_recv(far, 100_000)
        assert await sending == len(chosen)
        assert file.tell() == offset + len(chosen)
    assert_same(bytes(arrived), bytes(filler), chosen)


async def send_all(files: Sequence[BinaryIO], family: int) -> None:
    """Send parts of one file one after the other, then parts of all at once."""
    for offset, count in ((0, None), (0, 1), (1, 300_000), (4095, None), (4096, MIB)):
        await send(files[0], offset, count, family)
    await asyncio.gather(*(send(file, 1, 600_000, family) for file in files))
    assert aiozc.get_reactor().statistics().transfers == 5 + len(files)


@pytest.mark.parametrize("budget", ["left", "used up"])
def test_an_unprivileged_user_gets_every_byte(
    budget: str, family: int, loop_factory: LoopFactory, make_file: MakeFile
) -> None:
    path = make_file(CONTENT).name
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path, "rb")) for _ in range(20)]
        run_on(loop_factory, send_all(files[:1], family))  # imports all there is to import

        def child() -> None:
            drop_privileges()
            if budget == "used up":
                use_up_pipe_budget()
            run_on(loop_factory, send_all(files, family))

        Child(child).wait()
