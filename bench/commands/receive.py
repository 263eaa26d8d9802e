"""``relay`` and ``recvfile``: what comes from a source, and is passed on or kept as a file.

Contenders on a loop measure themselves; HAProxy is measured from outside.
"""

import asyncio
import ctypes
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, Final

import psutil  # type: ignore[import-untyped]

import aiozc
from bench.contenders import CONTENDERS, Running
from bench.ends import CONGESTION, SinkProcess, listen, source_of
from bench.errors import BenchError
from bench.measure import Case, Values, Work
from bench.meter import in_units
from bench.on_loop import OnLoop, start
from bench.processes import Helper, Watch, allow_many_descriptors, cpu_time, told_by
from bench.scratch import hash_of, make_file, make_sparse_file, warm
from bench.units import KIB, MIB, parse_size, show_size

SERVER: Final = "bench.commands.receive:Server"
_TIME_LIMIT: Final = 120.0


class Server(OnLoop):
    """Takes connections, and lets its contender pass on or keep what comes over them."""

    def __init__(
        self, channel: socket.socket, contender: dict[str, Any], target: Sequence[Any] = ()
    ) -> None:
        super().__init__(channel, contender)
        self._target, self._path = tuple(target), ""
        self._moved: asyncio.Queue[int] = asyncio.Queue()
        """How many bytes came over each connection that has ended."""

    async def open(self) -> Any:
        """Listen, and tell where."""
        listener = listen()
        listener.setblocking(False)
        self.tasks.create_task(self._accept(listener))
        return listener.getsockname()

    async def begin(self, *, path: str = "", **how: Any) -> None:
        """Begin to measure; what comes is kept as that file, if it is not passed on."""
        self._path = path
        await super().begin(**how)

    async def end(self, *, connections: int = 1, **_: Any) -> dict[str, Any]:
        """End to measure, when so many connections have ended."""
        moved = [await self._moved.get() for _ in range(connections)]
        return {**await super().end(), "moved": sum(moved)}

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            near, _ = await asyncio.get_running_loop().sock_accept(listener)
            self.tasks.create_task(self._move(near))

    async def _move(self, near: socket.socket) -> None:
        do = self.contender.function()
        if not self._target:
            near.setblocking(self.contender.blocking)
            with near, _new_file(self._path) as file:
                moved = await do(near, file)
        else:
            with near, socket.socket() as far:
                for sock in near, far:
                    sock.setblocking(False)
                    # asyncio sets it for its streams, and HAProxy for both sides.
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
                await asyncio.get_running_loop().sock_connect(far, self._target)
                moved, _ = await do(near, far)
        self._moved.put_nowait(moved)


def _new_file(path: str) -> IO[bytes]:
    return Path(path).open("xb")


async def forward_by_streams(
    near: socket.socket, far: socket.socket, *, relayed: bool = False
) -> tuple[int, int]:
    """Forward both ways by asyncio's streams; give how many bytes went each way."""
    a, b = await asyncio.open_connection(sock=near), await asyncio.open_connection(sock=far)
    if relayed:
        there, back = await aiozc.streams.relay(a, b)
    else:
        there, back = await asyncio.gather(_pump(a[0], b[1]), _pump(b[0], a[1]))
    for _, writer in a, b:
        writer.close()
        await writer.wait_closed()
    return there, back


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    forwarded = 0
    while data := await reader.read(64 * KIB):
        writer.write(data)
        await writer.drain()
        forwarded += len(data)
    writer.write_eof()
    return forwarded


async def write_in_threads(sock: socket.socket, file: IO[bytes]) -> int:
    """Receive into memory, and write in a thread."""
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(256 * KIB))
    received = 0
    while count := await loop.sock_recv_into(sock, buffer):
        await asyncio.to_thread(file.write, buffer[:count])
        received += count
    return received


async def copy(sock: socket.socket, file: IO[bytes]) -> int:
    """Receive from a socket that blocks, and write."""
    with sock.makefile("rb") as stream:
        shutil.copyfileobj(stream, file)
    return file.tell()


# HAProxy

# The same number on every architecture; Linux 5.6 (include/uapi/asm-generic/unistd.h).
_NR_PIDFD_GETFD: Final = 438


class HAProxy(Running):
    """HAProxy in TCP mode, with one thread, which may splice."""

    def ask(self, do: str, *_: Any, **__: Any) -> dict[str, float]:
        """Begin or end to measure, as others are asked to."""
        if do == "begin":
            self._set_congestion_control()
            self._began = cpu_time(self.pid)
        cpu = cpu_time(self.pid) - self._began
        return {"loop CPU": cpu, "process CPU": cpu}

    def _set_congestion_control(self) -> None:
        """Set it for all its TCP sockets, which HAProxy 2.6 cannot do itself."""
        libc = ctypes.CDLL(None, use_errno=True)
        process = os.pidfd_open(self.pid)
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            if os.readlink(descriptor).startswith("socket:"):
                number = ctypes.c_int(int(descriptor.name))
                call = ctypes.c_long(_NR_PIDFD_GETFD), ctypes.c_int(process)
                copied = libc.syscall(*call, number, ctypes.c_uint(0))
                if copied < 0:
                    raise OSError(ctypes.get_errno(), "pidfd_getfd(2) is refused")
                with socket.socket(fileno=copied) as sock:
                    if sock.proto == socket.IPPROTO_TCP:
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
        os.close(process)


# Relays

Proxy = Helper | HAProxy
Ends = tuple[Helper, SinkProcess]
_CHECKED: Final = 1_400_002
_GREETING: Final = 4 * KIB


def start_proxy(name: str, target: tuple[str, int], scratch: Path) -> Proxy:
    """Start a proxy's process; its files are made below a directory."""
    if (contender := CONTENDERS["proxy"][name]).command:
        return HAProxy(contender, scratch, target=target)
    return start("proxy", name, SERVER, target=target)


def pass_through(
    ends: Ends,
    proxy: Proxy,
    connections: int,
    size: int,
    *,
    timer: bool = False,
    mark: bool = False,
) -> dict[str, Any]:
    """Send through a proxy, to be hashed with ``mark``; give what was spent.

    Raises BenchError if a byte is missing at the receiver.
    """
    source, sink = ends
    with told_by(proxy):
        source.ask("connect", address=proxy.ready, connections=connections, mark=mark)
        sink.wait_counts(lambda counts: len(counts) == connections, lambda: proxy.check(0))
        proxy.ask("begin", timer=timer)
        elapsed = _end(source, size // connections)
        turn: dict[str, Any] = proxy.ask("end", connections=connections)
        expected = (size // connections + 16 * mark) * connections
        if turn.get("moved", expected) != expected:
            raise BenchError(f"it says it forwarded {turn['moved']} bytes, not {expected}")
    return turn | {"elapsed": elapsed}


def _end(source: Helper, size: int, before: int = 0) -> float:
    """Send over connections that stand, and end them; give the seconds until all had come."""
    began = time.monotonic()
    source.ask("end", size=size, before=before)
    return time.monotonic() - began


def _between(work: Work, size: int) -> Ends:
    """Start a source and a receiver."""
    file = make_sparse_file(work.scratch / "source", size)
    source = work.enter(source_of(warm(file)))
    return source, work.enter(SinkProcess(discard=True, large_buffers=True))


def _twice(work: Work, size: int, take: Callable[..., dict[str, Any]], *, late: bool) -> Values:
    """Let a contender do it, and where it can and should be told how ``late`` a timer is, again.

    Another time, for waits of a loop with a timer cost more, and the timer is a load.
    """
    values = in_units(take(), work.units, size)
    return take(timer=True) | values if late and "lateness max" in work.units else values


def streams(work: Work, *, megabytes: int, connections: Sequence[int]) -> Iterator[Case]:
    """Give the cases of streams through proxies."""
    size = megabytes * 10**6
    source, sink = _between(work, size)
    names = work.present()
    proxies = [start_proxy(name, sink.ready, work.scratch) for name in names]
    running: dict[str, Any] = dict(zip(names, map(work.enter, proxies), strict=True))
    checking = work.enter(source_of(make_file(work.scratch / "relayed", _CHECKED)))

    @cache
    def check(name: str) -> None:
        pass_through((checking, sink), running[name], 2, _CHECKED, mark=True)

    def turn(several: int, name: str) -> Values:
        take = partial(pass_through, (source, sink), running[name], several, size)
        return _twice(work, size, take, late=isinstance(running[name], Helper))

    for several in connections:
        title, parts = f"{megabytes} MB, {several} conn.", (names, partial(turn, several))
        yield work.case(title, *parts, check=check, check_peers=sink.check)


def idle(work: Work, *, relays: int, seconds: float, settling: float) -> Iterator[Case]:
    """Give the case of relays over which, after a little, nothing goes."""
    need, hard = 3 * relays + 100, allow_many_descriptors()
    if hard < need:
        raise BenchError(f"{relays} relays need {need} descriptors, and the hard limit is {hard}")
    source, sink = _between(work, relays * _GREETING)
    greeted = [_GREETING] * relays

    def turn(name: str) -> Values:
        with start_proxy(name, sink.ready, work.scratch) as proxy, told_by(proxy):
            address, watch = proxy.ready, Watch(proxy.pid)
            source.ask("connect", address=address, connections=relays)
            source.ask("send", size=_GREETING)
            sink.wait_counts(lambda counts: list(counts) == greeted, lambda: proxy.check(0))
            time.sleep(settling)
            cpu = watch.look(seconds)
            _end(source, 0, before=_GREETING)
        growth = watch.growth / MIB
        return {"process CPU": cpu, "threads": watch.threads, "memory growth": growth}

    title = f"{relays}, for {seconds:g} s"
    yield work.case(title, work.present(), turn, check_peers=sink.check)


def direct(work: Work, *, megabytes: int, connections: Sequence[int]) -> Iterator[Case]:
    """Give the cases without a proxy."""
    size = megabytes * 10**6
    source, sink = _between(work, size)

    def turn(several: int, _: str) -> Values:
        source.ask("connect", address=sink.ready, connections=several)
        return {"throughput": size / _end(source, size // several) / 1e9}

    for several in connections:
        yield work.case(f"{megabytes} MB, {several} conn.", work.contenders, partial(turn, several))


# Uploads


def take_upload(
    uploader: Helper, source: Helper, path: Path, size: int, *, timer: bool = False
) -> dict[str, Any]:
    """Let one receive an upload into a new file; raise BenchError if a byte is missing.

    The time is the one until all is in the file, which is not synced. A little is received before,
    so that loop and engine are set up.
    """
    first = path.with_name("first-upload")
    for part, file in ((min(MIB, size), first), (size, path)):
        uploader.ask("begin", path=str(file), timer=timer)
        source.ask("connect", address=uploader.ready, connections=1)
        began = time.monotonic()
        source.begin("end", size=part, answered=False)
        found: dict[str, Any] = uploader.ask("end", _TIME_LIMIT)
        found["elapsed"] = time.monotonic() - began
        source.hear()
    first.unlink()
    if (length := path.stat().st_size) != size:
        raise BenchError(f"{uploader.name} wrote {length} bytes in place of {size}")
    if found["moved"] != size:
        raise BenchError(f"it says it received {found['moved']} bytes in place of {size}")
    return found


def uploads(work: Work, *, size: str, where: str) -> Iterator[Case]:
    """Give the case of uploads into a file, on a disk or on a tmpfs."""
    place = work.scratch
    if where == "tmpfs":
        name = tempfile.TemporaryDirectory(prefix="aiozc-bench-", dir="/dev/shm")
        place = Path(work.enter(name))
    if ((found := _filesystem(place)) == "tmpfs") != (where == "tmpfs"):
        raise BenchError(f"files would lie on {found}; choose a directory on a disk with --dir")
    length = parse_size(size)
    if (free := shutil.disk_usage(place).free) < length + 64 * MIB:
        raise BenchError(f"{place} has room for {free // MIB} MiB, not for {show_size(length)}")
    file, path = make_file(work.scratch / "upload", length), place / "received"
    expected = hash_of(file)
    source = work.enter(source_of(file))
    names = work.present()
    running = {name: work.enter(start("uploader", name, SERVER)) for name in names}

    def take(name: str, *, timer: bool = False) -> dict[str, Any]:
        # Only now: a virtual machine's host may take back memory that was free for a second or two,
        # and a GiB written to memory like that took 1.0 to 2.5 s of CPU time in place of 0.34. It
        # is soon enough to keep the file from being written back, which would slow others.
        path.unlink(missing_ok=True)
        warm(file)
        return take_upload(running[name], source, path, length, timer=timer)

    def check(name: str) -> None:
        take(name)
        if hash_of(path) != expected:
            raise BenchError(f"{name} wrote other bytes than were sent")

    def turn(name: str) -> Values:
        late = not CONTENDERS["uploader"][name].blocking
        return _twice(work, length, partial(take, name), late=late)

    title = f"{show_size(length)}, {found or 'disk'}"
    yield work.case(title, names, turn, check=check, check_peers=source.check)


def _filesystem(path: Path) -> str | None:
    """Give the type of the filesystem that a directory is on, where the kernel tells."""
    mounted = psutil.disk_partitions(all=True)
    below = [each for each in mounted if path.resolve().is_relative_to(each.mountpoint)]
    return max(below, key=lambda each: len(each.mountpoint)).fstype if below else None
