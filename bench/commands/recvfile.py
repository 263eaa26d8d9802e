"""What is measured of ``loop_recvfile``: uploads into a file."""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

import psutil  # type: ignore[import-untyped]

import aiozc
from bench.errors import BenchError
from bench.measure import Case, Contender, Settings, present
from bench.meter import CPU_UNITS, LATE_UNITS, Meter, no_garbage_collection, per_gigabyte
from bench.processes import Helper, tell
from bench.scratch import hash_of, make_file, warm
from bench.senders.worker import run_on
from bench.sink import listen
from bench.sources import source_of
from bench.units import GIB, KIB, MIB, show_size

_AT_ONCE: Final = 256 * KIB
_WARM_SIZE: Final = 1024 * KIB
_TIME_LIMIT: Final = 120.0


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
        Contender(BASELINE, "asyncio", _write_in_threads),
        Contender("recv_into, write, uvloop", "uvloop", _write_in_threads),
        Contender("aiozc", "asyncio", aiozc.loop_recvfile, "io_uring"),
        Contender("aiozc readiness", "asyncio", aiozc.loop_recvfile, "readiness"),
        Contender("aiozc uvloop", "uvloop", aiozc.loop_recvfile, "io_uring"),
        Contender("copyfileobj, blocking", "asyncio", _copy, blocking=True),
    )
}


def start_uploader(name: str, factory: str = "bench.commands.recvfile:Receiver") -> Helper:
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
    for part in (min(_WARM_SIZE, size), size):
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

    def find(self, name: str) -> Contender:
        """Find the uploader."""
        return UPLOADERS[name]

    def receive(self, path: str, timer: bool) -> dict[str, Any]:
        """Receive a little, so that loop and engine are set up, and then what is measured."""
        return run_on(self._uploader.loop, self._receive(Path(path).open("xb"), timer))

    async def _receive(self, file: IO[bytes], timer: bool) -> dict[str, Any]:
        with self._accept() as sock, tempfile.TemporaryFile() as warm_file:
            await self._uploader.do(sock, warm_file)
        tell(self._channel, gave="warm")
        with file, self._accept() as sock, no_garbage_collection():
            meter = Meter(timer=timer)
            received = await self._uploader.do(sock, file)
            file.flush()
            return {**meter.stop(), "received": received}

    def _accept(self) -> socket.socket:
        sock, _ = self._listener.accept()
        sock.setblocking(self._uploader.blocking)
        tell(self._channel, gave="accepted")
        return sock


SIZES: Final = {True: 96 * MIB, False: GIB}
"""Bytes of an upload with --quick, and without; the tests have less."""
_TMPFS: Final = Path("/dev/shm")


def on_tmpfs(work: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the case of uploads into a file in memory."""
    if not _TMPFS.is_dir() or _filesystem(_TMPFS) != "tmpfs":
        raise BenchError(f"{_TMPFS} is not a tmpfs")
    name = stack.enter_context(tempfile.TemporaryDirectory(prefix="aiozc-bench-", dir=_TMPFS))
    yield _uploads(settings, stack, work, Path(name))


def on_disk(work: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the case of uploads into a file on a disk."""
    if _filesystem(settings.scratch) == "tmpfs":
        raise BenchError("files would lie on a tmpfs; choose a directory on a disk with --dir")
    yield _uploads(settings, stack, work, settings.scratch)


def _uploads(settings: Settings, stack: ExitStack, work: str, where: Path) -> Case:
    size = SIZES[settings.quick]
    if (free := shutil.disk_usage(where).free) < size + 64 * MIB:
        raise BenchError(f"{where} has room for {free // MIB} MiB, not for {show_size(size)}")
    file, path = make_file(settings.scratch / "upload", size), where / "received"
    expected = hash_of(file)
    source = stack.enter_context(source_of(file))
    names = present(settings, UPLOADERS)
    running = {name: stack.enter_context(start_uploader(name)) for name in names}

    def take(name: str, *, timer: bool) -> dict[str, float]:
        # Only now: a virtual machine's host may take back memory that was free for a second or two,
        # and a GiB written to memory like that took 1.0 to 2.5 s of CPU time in place of 0.34. It
        # is soon enough to keep the file from being written back, which would slow others.
        path.unlink(missing_ok=True)
        warm(file)
        return take_upload(running[name], source, path, size, timer=timer)

    def check(name: str) -> None:
        take(name, timer=False)
        if hash_of(path) != expected:
            raise BenchError(f"{name} wrote other bytes than were sent")

    def turn(name: str) -> dict[str, float]:
        values = per_gigabyte(size, take(name, timer=False))
        if UPLOADERS[name].blocking:
            return values
        # Another time: waits of a loop with a timer cost more, and the timer is a load.
        return take(name, timer=True) | values

    return Case(
        f"{work}: {show_size(size)}, {_filesystem(where) or 'disk'}",
        {"throughput": "GB/s", **CPU_UNITS, **LATE_UNITS},
        names,
        turn,
        check,
        source.check,
        rounds=(2, 5),
        budget=4.0,
    )


def _filesystem(path: Path) -> str | None:
    """Give the type of the filesystem that a directory is on, where the kernel tells."""
    mounted = psutil.disk_partitions(all=True)
    below = [each for each in mounted if path.resolve().is_relative_to(each.mountpoint)]
    return max(below, key=lambda each: len(each.mountpoint)).fstype if below else None
