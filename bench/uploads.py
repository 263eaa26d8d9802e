"""What is compared: ways to receive a stream into a file, and one turn of one of them."""

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import uvloop

import aiozc
from bench.errors import BenchError
from bench.measure import Meter, Turn, no_garbage_collection
from bench.receivers import HOST
from bench.senders import LoopFactory
from bench.sources import Source
from bench.transfers import TIME_LIMIT, run_on_loop, time_limit
from bench.units import KIB

Receive = Callable[[socket.socket, IO[bytes]], Awaitable[int]]
"""``await receive(sock, file)`` takes a stream to its end; gives the number of bytes."""

_AT_ONCE: Final = 256 * KIB
_WARM_SIZE: Final = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Uploader:
    """One way to receive, and the kind of loop it runs on."""

    name: str
    loop_factory: LoopFactory
    receive: Receive
    blocking: bool = False
    """Whether it takes a socket that blocks; then the loop stands still meanwhile."""

    @property
    def judged(self) -> bool:
        """Targets are for aiozc alone."""
        return self.receive is aiozc.loop_recvfile


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


UPLOADERS: Final = (
    Uploader("recv_into, write", asyncio.SelectorEventLoop, _write_in_threads),
    Uploader("recv_into, write, uvloop", uvloop.new_event_loop, _write_in_threads),
    Uploader("aiozc, asyncio", asyncio.SelectorEventLoop, aiozc.loop_recvfile),
    Uploader("aiozc, uvloop", uvloop.new_event_loop, aiozc.loop_recvfile),
    Uploader("copyfileobj, blocking", asyncio.SelectorEventLoop, _copy, blocking=True),
)
"""The baseline, then those that are set against it."""


def take_upload(
    uploader: Uploader, source: Source, path: Path, size: int, *, timer: bool = False
) -> Turn:
    """Receive an upload into a new file, on a new loop; raise BenchError if a byte is missing.

    The time is the one until all is in the file, which is not synced.
    """
    with socket.create_server((HOST, 0)) as listener, path.open("xb") as file:
        try:
            received, turn = run_on_loop(
                uploader.loop_factory,
                lambda: _take_upload(uploader, source, listener, file, size, timer),
            )
        except TimeoutError:
            raise BenchError(f"{uploader.name} was not done after {TIME_LIMIT:.0f} s") from None
    source.wait_sent()
    if received != size:
        raise BenchError(f"{uploader.name} says it received {received} bytes in place of {size}")
    if (length := path.stat().st_size) != size:
        raise BenchError(f"{uploader.name} wrote {length} bytes in place of {size}")
    return turn


async def _take_upload(
    uploader: Uploader,
    source: Source,
    listener: socket.socket,
    file: IO[bytes],
    size: int,
    timer: bool,
) -> tuple[int, Turn]:
    def accept() -> socket.socket:
        source.connect(listener.getsockname(), 1)
        sock, _ = listener.accept()
        sock.setblocking(uploader.blocking)
        return sock

    with time_limit():
        with accept() as sock, tempfile.TemporaryFile() as warm_file:
            source.send(_WARM_SIZE)
            await uploader.receive(sock, warm_file)
        source.wait_sent()
        with accept() as sock, no_garbage_collection():
            meter = Meter(timer=timer)
            source.send(size)
            received = await uploader.receive(sock, file)
            file.flush()
            turn = meter.stop()
    return received, turn
