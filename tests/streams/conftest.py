"""asyncio's streams on every loop, each with a far end."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.kit.connections import fill, socket_pair
from tests.kit.content import KIB
from tests.kit.far_ends import FarEnd, Peer
from tests.kit.loops import LOOPS, WITH_AIOZC
from tests.kit.tls import Terminator, contexts
from tests.kit.waiting import turns, until

ON = {**LOOPS, "uvloop installed": WITH_AIOZC["uvloop"]}
FAMILIES = {"tcp": socket.AF_INET, "unix": socket.AF_UNIX, "tls": socket.AF_INET}


@pytest.fixture(
    params=[pytest.param(("asyncio", {"loop_factory": make}), id=name) for name, make in ON.items()]
)
def anyio_backend(request: pytest.FixtureRequest, each_backend: str) -> object:  # noqa: ARG001
    """Run each test on both loops as they are, and on uvloop with aiozc installed."""
    return request.param


class Line:
    """A reader and a writer, and their far end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer):
        self.reader = reader
        self.writer = writer
        self.transport: Any = writer.transport
        self.peer = peer

    @property
    def both(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Both of them, as `relay` takes them."""
        return self.reader, self.writer

    @property
    def read_ahead(self) -> int:
        """How many bytes the reader has read ahead."""
        return len(self.reader._buffer)  # type: ignore[attr-defined]

    async def reads_ahead(self) -> None:
        """Wait until the reader has all that the far end has sent, or reads no more for now."""
        await until(lambda: self.read_ahead == self.peer.sent or not self.transport.is_reading())

    async def finish(self) -> bytes:
        """Close, and return what has arrived at the far end."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
        return await self.peer.wait_end()


class Connect:
    """Makes lines of a kind: "tcp", "unix" or "tls"."""

    def __init__(self, far_end: FarEnd, terminator: Terminator) -> None:
        self._far_end = far_end
        self._terminator = terminator
        self.lines: list[Line] = []

    async def __call__(self, kind: str, *, limit: int | None = None, full: bool = False) -> Line:
        """Make one with small buffers, of which that for sending may be full."""
        near, far = socket_pair(FAMILIES[kind], sndbuf=64 * KIB, rcvbuf=64 * KIB)
        if full:
            fill(near)
        options: dict[str, Any] = {}
        if kind == "tls":
            far = self._terminator.decrypted(far)
            options = {"ssl": contexts()[1], "server_hostname": "localhost"}
        streams = await asyncio.open_connection(sock=near, **options)
        line = Line(*streams, self._far_end.peer(far, limit=limit))
        self.lines.append(line)
        return line


@pytest.fixture
async def connect(far_end: FarEnd) -> AsyncIterator[Connect]:
    """Make lines that are closed behind the test."""
    with Terminator() as terminator:
        connect = Connect(far_end, terminator)
        yield connect
        for line in connect.lines:
            if not line.transport.is_closing():
                line.transport.abort()
        await turns(3)
