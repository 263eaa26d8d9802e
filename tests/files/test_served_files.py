"""Files that another process serves (FUSE; NFS is the same): a status call is a question to it.

The loop stands still for each that it asks, so there are two in a transfer at the most: for the
size, and for whether it has grown.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import aiozc
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, assert_same, case, pattern
from tests.kit.far_ends import Connect
from tests.kit.faults.fuse import Fuse, Op

pytestmark = pytest.mark.anyio

SMALL, LARGE = pattern(5_000), pattern(3 * MIB + 11)


@pytest.fixture(scope="module")
def served() -> Iterator[Fuse]:
    """Serve two files, and two to be written."""
    with Fuse({"small": SMALL, "large": LARGE, "new": b"", "newer": b""}) as fuse:
        yield fuse


Transfer = Callable[[Any, Any], Awaitable[Any]]
SENDS: dict[str, Transfer] = {
    "loop_sendfile": aiozc.loop_sendfile,
    "counted": lambda sock, file: aiozc.loop_sendfile(sock, file, 0, 5_000),
    "no fallback": lambda sock, file: aiozc.loop_sendfile(sock, file, fallback=False),
    "splice_pipe": aiozc.splice_pipe,
    "splice_pipe, by number": lambda sock, file: aiozc.splice_pipe(file.fileno(), sock),
    "sendfile_zc": aiozc.sendfile_zc,
    "sendfile_zc, direct": lambda sock, file: aiozc.sendfile_zc(sock, file, direct=True),
}


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("name", SENDS)
async def test_a_send_asks_twice_at_the_most(name: str, served: Fuse, connect: Connect) -> None:
    send: Transfer = SENDS[name]
    if name.startswith("splice"):
        function = send

        def send(sock: Any, file: Any) -> Awaitable[Any]:
            return function(file, sock) if name == "splice_pipe" else function(sock, file)

    for content in (SMALL, LARGE):
        for buffering in (-1, 0):
            for cached in (False, True):
                fd = served.open("small" if content is SMALL else "large")
                if not cached:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                sock, receiver = connect()
                with (
                    os.fdopen(fd, "rb", buffering) as file,
                    case(size=len(content), cached=cached),
                ):
                    before = served.asked(Op.GETATTR)
                    await send(sock, file)
                    # Reads past the cache go beyond the file's end, and the kernel asks then.
                    asked = served.asked_by(Op.GETATTR, served.asked(Op.GETATTR) - before)
                    assert asked.count(threading.get_native_id()) <= 2
                    assert len(asked) <= 2 or "direct" in name
                sock.close()
                sent = content[:5_000] if name == "counted" else content
                assert_same(await receiver.wait_end(), sent)


@pytest.mark.usefixtures("each_backend")
async def test_while_a_peer_does_not_read_nothing_is_asked(served: Fuse, connect: Connect) -> None:
    sock, receiver = connect(limit=0, sndbuf=32 * KIB, rcvbuf=32 * KIB)
    with os.fdopen(served.open("large"), "rb") as file:
        before = served.asked(Op.GETATTR)
        sending = asyncio.create_task(aiozc.loop_sendfile(sock, file))
        await asyncio.sleep(0.35)  # three ticks, and chains that are ended by them
        assert served.asked(Op.GETATTR) - before <= 1
        receiver.allow(None)
        assert await sending == len(LARGE)
        assert served.asked(Op.GETATTR) - before <= 2
    sock.close()
    assert_same(await receiver.wait_end(), LARGE)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("function", ["loop_recvfile", "splice_pipe", "from a file"])
async def test_what_is_written_asks_twice_at_the_most(function: str, served: Fuse) -> None:
    for buffering in (-1, 0):
        near, far = socket_pair(socket.AF_UNIX)
        with near, far, os.fdopen(served.open("new", os.O_RDWR), "r+b", buffering) as file:
            far.send(SMALL)
            far.close()
            before = served.asked(Op.GETATTR)
            if function == "loop_recvfile":
                assert await aiozc.loop_recvfile(near, file) == len(SMALL)
            elif function == "splice_pipe":
                assert await aiozc.splice_pipe(near, file) == len(SMALL)
            else:
                with os.fdopen(served.open("small"), "rb", buffering) as source:
                    assert await aiozc.splice_pipe(source, file) == len(SMALL)
            assert served.asked(Op.GETATTR) - before <= 2
            assert os.pread(file.fileno(), len(SMALL) + 1, 0) == SMALL
