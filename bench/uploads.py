"""What is compared: ways to receive a stream into a file, each in a process of its own."""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

import aiozc
from bench.errors import BenchError
from bench.meter import LatenessTimer, Meter, late_values, no_garbage_collection
from bench.processes import Helper, tell
from bench.senders.worker import loop_factory
from bench.sink import listen
from bench.units import KIB

Receive = Callable[[socket.socket, IO[bytes]], Awaitable[int]]
"""``await receive(sock, file)`` takes a stream to its end; gives the number of bytes."""

_AT_ONCE: Final = 256 * KIB
_WARM_SIZE: Final = 1024 * KIB
_TIME_LIMIT: Final = 120.0


@dataclass(frozen=True, slots=True)
class Uploader:
    """One way to receive, and the kind of loop it runs on."""

    name: str
    loop: str
    receive: Receive
    backend: str | None = None
    """The backend of aiozc, where it is aiozc that receives."""
    blocking: bool = False
    """Whether it takes a socket that blocks; then the loop stands still meanwhile."""


async def _write_in_threads(sock: socket.socket, file: IO[bytes]) -> int:
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(_AT_ONCE))
    received = 0
    while count := await loop.sock_recv_into(sock, buffer):
        await asyncio.to_thread(file.write, buffer[:count])
        received += count
    return received


async def _copy(sock: socket.socket, file: IO[bytes]) -> int:
    with sock.makefile("rb") as stream:
        shutil.copyfileobj(stream, file)
    return file.tell()


BASELINE: Final = "recv_into, write"
UPLOADERS: Final = {
    uploader.name: uploader
    for uploader in (
        Uploader(BASELINE, "asyncio", _write_in_threads),
        Uploader("recv_into, write, uvloop", "uvloop", _write_in_threads),
        Uploader("aiozc", "asyncio", aiozc.loop_recvfile, "io_uring"),
        Uploader("aiozc readiness", "asyncio", aiozc.loop_recvfile, "readiness"),
        Uploader("aiozc uvloop", "uvloop", aiozc.loop_recvfile, "io_uring"),
        Uploader("copyfileobj, blocking", "asyncio", _copy, blocking=True),
    )
}


def start_uploader(name: str, factory: str = "bench.uploads:Receiver") -> Helper:
    """Start the process of one of them."""
    return Helper(name, factory, name=name)


def take_upload(
    uploader: Helper, source: Helper, path: Path, size: int, *, timer: bool = False
) -> dict[str, Any]:
    """Let one receive an upload into a new file; raise BenchError if a byte is missing.

    The time is the one until all is in the file, which is not synced.
    """
    uploader.begin("receive", path=str(path), timer=timer)
    found: Any = None
    for part in (_WARM_SIZE, size):
        source.ask("connect", address=uploader.ready, connections=1)
        uploader.hear(_TIME_LIMIT)
        source.begin("end", size=part, answered=False)
        found = uploader.hear(_TIME_LIMIT, "was not done in time")
        source.hear()
    if (length := path.stat().st_size) != size:
        raise BenchError(f"{uploader.name} wrote {length} bytes in place of {size}")
    if found["received"] != size:
        raise BenchError(f"it says it received {found['received']} bytes in place of {size}")
    return dict(found)


class Receiver:
    """An uploader in its process."""

    def __init__(self, channel: socket.socket, name: str) -> None:
        self._channel, self._uploader = channel, self.find(name)
        self._listener = listen()
        self.ready = self._listener.getsockname()
        if self._uploader.backend is not None:
            os.environ["AIOZC_BACKEND"] = self._uploader.backend

    def find(self, name: str) -> Uploader:
        """Find the uploader."""
        return UPLOADERS[name]

    def receive(self, path: str, timer: bool) -> dict[str, Any]:
        """Receive a little, so that loop and engine are set up, and then what is measured."""
        with asyncio.Runner(loop_factory=loop_factory(self._uploader.loop)) as runner:
            return runner.run(self._receive(Path(path).open("xb"), timer))

    async def _receive(self, file: IO[bytes], timer: bool) -> dict[str, Any]:
        with self._accept() as sock, tempfile.TemporaryFile() as warm_file:
            await self._uploader.receive(sock, warm_file)
        tell(self._channel, gave="warm")
        with file, self._accept() as sock, no_garbage_collection():
            late = LatenessTimer()
            if timer:
                late.start()
            meter = Meter()
            received = await self._uploader.receive(sock, file)
            file.flush()
            spent = asdict(meter.stop()) | {"received": received}
            return spent | (late_values(late.stop()) if timer else {})

    def _accept(self) -> socket.socket:
        sock, _ = self._listener.accept()
        sock.setblocking(self._uploader.blocking)
        tell(self._channel, gave="accepted")
        return sock
