"""What is measured of ``relay``: proxies between a source and a receiver.

A proxy that runs on a loop measures itself; HAProxy is measured from outside, by a helper.
"""

import asyncio
import ctypes
import gc
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import aiozc
from bench.errors import BenchError
from bench.measure import Case, Contender, Settings, present
from bench.meter import CPU_UNITS, LATE_UNITS, Meter, per_gigabyte
from bench.processes import (
    Helper,
    Watch,
    allow_many_descriptors,
    cpu_time,
    end_with_parent,
    told_by,
)
from bench.scratch import make_file, make_sparse_file, warm
from bench.senders.worker import run_on
from bench.sink import HOST, SinkProcess, listen
from bench.sources import AT_ONCE, CONGESTION, source_of
from bench.units import KIB, MIB


class ProxyProcess(Helper):
    """A proxy's process."""

    def __init__(self, name: str, target: tuple[str, int]) -> None:
        start = "bench.commands.relay:start"
        super().__init__(f"the proxy ({name})", start, name=name, target=target)

    @property
    def address(self) -> tuple[str, int]:
        """Where it takes connections."""
        return HOST, int(self.ready["port"])


class _Server:
    """One that runs; ``begin`` and ``end`` are what the parent asks for."""

    def __init__(self, proxy: Contender, channel: socket.socket, target: tuple[str, int]) -> None:
        self._proxy, self._channel, self._target = proxy, channel, target
        self._listener = listen()
        self._forwarded = 0
        self._lanes: set[asyncio.Task[None]] = set()
        self._meter = Meter()
        self.ready = {"port": self._listener.getsockname()[1], "measured": os.getpid()}
        if proxy.backend is not None:
            os.environ["AIOZC_BACKEND"] = proxy.backend

    def serve(self) -> None:
        """Run the loop until the parent goes."""
        run_on(self._proxy.loop, self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self._channel.setblocking(False)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._accept(group))
            # One order at a time: the parent waits for each answer.
            while line := await loop.sock_recv(self._channel, 4096):
                order = json.loads(line)
                gave = await getattr(self, f"_{order.pop('do')}")(**order)
                await loop.sock_sendall(self._channel, json.dumps({"gave": gave}).encode() + b"\n")
            os._exit(0)  # closing a loop with transfers that do not end would not end

    async def _accept(self, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(self._listener)
            lane = group.create_task(self._forward(near))
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)

    async def _forward(self, near: socket.socket) -> None:
        with near, socket.socket() as far:
            for sock in near, far:
                sock.setblocking(False)
                # asyncio sets it for its streams, and HAProxy for both sides.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
            await asyncio.get_running_loop().sock_connect(far, tuple(self._target))
            there, _ = await self._proxy.do(near, far)
            self._forwarded += there

    async def _begin(self, timer: bool) -> None:
        gc.collect()
        gc.disable()
        self._forwarded, self._meter = 0, Meter(timer=timer)

    async def _end(self) -> dict[str, Any]:
        while self._lanes:
            await asyncio.wait(self._lanes)
        gc.enable()
        return {**self._meter.stop(), "forwarded": self._forwarded}


async def _forward_by_streams(near: socket.socket, far: socket.socket) -> tuple[int, int]:
    near_reader, near_writer = await asyncio.open_connection(sock=near)
    far_reader, far_writer = await asyncio.open_connection(sock=far)
    async with asyncio.TaskGroup() as group:
        there = group.create_task(_pump(near_reader, far_writer))
        back = group.create_task(_pump(far_reader, near_writer))
    for writer in near_writer, far_writer:
        writer.close()
        await writer.wait_closed()
    return there.result(), back.result()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    forwarded = 0
    while data := await reader.read(64 * KIB):
        writer.write(data)
        await writer.drain()
        forwarded += len(data)
    writer.write_eof()
    return forwarded


# HAProxy

# Debian has it where only root's PATH looks.
_HAPROXY: Final = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
_CONFIGURATION: Final = Path(__file__).with_name("haproxy.cfg")
# A connection takes two descriptors, and some of them have pipes.
_DESCRIPTORS_PER_CONNECTION: Final = 3
# The same number on every architecture; Linux 5.6 (include/uapi/asm-generic/unistd.h).
_NR_PIDFD_GETFD: Final = 438


class _HAProxyServer:
    """HAProxy in TCP mode, with one thread, which may splice; looked at from here."""

    def __init__(self, tuning: str, target: tuple[str, int]) -> None:
        listener = listen()
        most = (allow_many_descriptors() - 256) // _DESCRIPTORS_PER_CONNECTION
        configuration = os.memfd_create("configuration")
        text = _CONFIGURATION.read_text().format(
            connections=min(most, 4096),
            tuning=tuning,
            listener=listener.fileno(),
            host=target[0],
            port=target[1],
        )
        os.write(configuration, text.encode())
        process = subprocess.Popen(
            [str(_HAPROXY), "-db", "-f", f"/dev/fd/{configuration}"],
            pass_fds=[listener.fileno(), configuration],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=end_with_parent,
        )
        self._pid, self._began = process.pid, 0.0
        self.ready = {"port": listener.getsockname()[1], "measured": process.pid}

    def begin(self, timer: bool) -> None:  # noqa: ARG002
        """Begin to measure."""
        _set_congestion_control(self._pid)
        self._began = cpu_time(self._pid)

    def end(self) -> dict[str, float]:
        """End to measure."""
        cpu = cpu_time(self._pid) - self._began
        return {"loop_cpu": cpu, "process_cpu": cpu}


def _set_congestion_control(pid: int) -> None:
    """Set it for all TCP sockets of a process, which HAProxy 2.6 cannot do itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(descriptor).startswith("socket:"):
            number = ctypes.c_int(int(descriptor.name))
            call = ctypes.c_long(_NR_PIDFD_GETFD), ctypes.c_int(process)
            copy = libc.syscall(*call, number, ctypes.c_uint(0))
            if copy < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd(2) is refused")
            with socket.socket(fileno=copy) as sock:
                if sock.proto == socket.IPPROTO_TCP:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
    os.close(process)


# Who takes turns

BASELINE: Final = "streams"
# Left to itself, HAProxy takes pipes as they come, of 64 KiB.
_TUNINGS: Final = {"HAProxy": "", "HAProxy, large pipes": f"tune.pipesize {MIB}"}
_ON_LOOPS: Final = (
    Contender(BASELINE, "asyncio", _forward_by_streams),
    Contender("streams uvloop", "uvloop", _forward_by_streams),
    Contender("aiozc", "asyncio", aiozc.relay, "io_uring"),
    Contender("aiozc readiness", "asyncio", aiozc.relay, "readiness"),
    Contender("aiozc uvloop", "uvloop", aiozc.relay, "io_uring"),
)
PROXIES: Final[dict[str, Contender | str]] = {
    **{proxy.name: proxy for proxy in _ON_LOOPS},
    **(_TUNINGS if _HAPROXY is not None else {}),
}
"""Those on a loop, and how HAProxy is tuned: a line of its section ``global``."""


def haproxy_remark(path: str | None) -> str:
    """Say how HAProxy takes part, or why it does not."""
    if path is None:
        return "not measured, for haproxy is not installed (Debian package haproxy)"
    told = subprocess.run([path, "-v"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\S+)", told)
    return (
        f"version {found[1] if found else 'unknown'}, one thread, option splice-auto, -request and "
        "-response; with large pipes also tune.pipesize 1 MiB"
    )


def start(channel: socket.socket, name: str, target: tuple[str, int]) -> Any:
    """Start the proxy of a process."""
    proxy = PROXIES[name]
    if isinstance(proxy, str):
        return _HAProxyServer(proxy, target)
    return _Server(proxy, channel, target)


# What is measured

_MEGABYTE: Final = 10**6
SIZES: Final = {True: 96 * _MEGABYTE, False: 1000 * _MEGABYTE}
"""Bytes of a stream with --quick, and without; the tests have less."""
_CHECKED: Final = 1_400_002
_GREETING: Final = 4 * KIB
_SETTLING: Final = 0.5


def pass_through(
    source: Helper,
    proxy: ProxyProcess,
    sink: SinkProcess,
    connections: int,
    size: int,
    *,
    timer: bool = False,
    mark: bool = False,
) -> dict[str, Any]:
    """Send through a proxy, to be hashed with ``mark``; give what was spent.

    Raises BenchError if a byte is missing at the receiver.
    """
    with told_by(proxy):
        source.ask("connect", address=proxy.address, connections=connections, mark=mark)
        sink.wait_counts(lambda counts: len(counts) == connections, lambda: proxy.check(0))
        proxy.ask("begin", timer=timer)
        elapsed = _end(source, size // connections)
        turn: dict[str, Any] = proxy.ask("end", late="has not ended every connection")
        expected = (size // connections + 16 * mark) * connections
        if turn.get("forwarded", expected) != expected:
            raise BenchError(f"it says it forwarded {turn['forwarded']} bytes, not {expected}")
    return turn | {"elapsed": elapsed}


def _end(source: Helper, size: int, before: int = 0) -> float:
    """Send over connections that stand, and end them; give the seconds until all had come."""
    began = time.monotonic()
    source.ask("end", late="has not seen the end of every connection", size=size, before=before)
    return time.monotonic() - began


def _start(settings: Settings, stack: ExitStack, size: int) -> tuple[Helper, SinkProcess]:
    """Start a source and a receiver."""
    file = make_sparse_file(settings.scratch / "source", size)
    source = stack.enter_context(source_of(warm(file)))
    return source, stack.enter_context(SinkProcess(discard=True, large_buffers=True))


def streams(work: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the cases of streams through proxies."""
    size = SIZES[settings.quick]
    source, sink = _start(settings, stack, size)
    settings.remarks["HAProxy"] = haproxy_remark(_HAPROXY)
    names = present(settings, PROXIES)
    running = {name: stack.enter_context(ProxyProcess(name, sink.address)) for name in names}
    checked = make_file(settings.scratch / "relayed", _CHECKED)
    checking = stack.enter_context(source_of(checked))

    @cache
    def check(name: str) -> None:
        pass_through(checking, running[name], sink, 2, _CHECKED, mark=True)

    def turn(connections: int, name: str) -> dict[str, float]:
        used = running[name]
        values = per_gigabyte(size, pass_through(source, used, sink, connections, size))
        if isinstance(PROXIES[name], Contender):
            # Another time: waits of a loop with a timer cost more, and the timer is a load.
            return pass_through(source, used, sink, connections, size, timer=True) | values
        return values

    for connections in (1, AT_ONCE):
        yield Case(
            f"{work}: {size // _MEGABYTE} MB, {connections} conn.",
            {"throughput": "GB/s", **CPU_UNITS, **LATE_UNITS},
            names,
            partial(turn, connections),
            check,
            sink.check,
            rounds=(2, 5),
            budget=3.0,
        )


def stay_idle(
    source: Helper, proxy: ProxyProcess, sink: SinkProcess, relays: int, seconds: float
) -> dict[str, float]:
    """Open connections through a proxy, send a little over each, and look at it meanwhile."""
    watch = Watch(proxy.ready["measured"])
    with told_by(proxy):
        source.ask("connect", address=proxy.address, connections=relays)
        source.ask("send", size=_GREETING)
        greeted = [_GREETING] * relays
        sink.wait_counts(lambda counts: list(counts) == greeted, lambda: proxy.check(0))
        time.sleep(_SETTLING)
        cpu = watch.look(seconds)
        _end(source, 0, before=_GREETING)
    return {"process CPU": cpu, "threads": watch.threads, "memory growth": watch.growth / MIB}


def idle(work: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the case of relays over which nothing goes."""
    relays, seconds = (200, 0.4) if settings.quick else (2000, 5.0)
    need, hard = 3 * relays + 100, allow_many_descriptors()
    if hard < need:
        raise BenchError(f"{relays} relays need {need} descriptors, and the hard limit is {hard}")
    source, sink = _start(settings, stack, relays * _GREETING)

    def turn(name: str) -> dict[str, float]:
        with ProxyProcess(name, sink.address) as proxy:
            return stay_idle(source, proxy, sink, relays, seconds)

    units = {"process CPU": "%", "threads": "", "memory growth": "MiB"}
    title = f"{work}: {relays}, for {seconds:g} s"
    names = present(settings, PROXIES)
    yield Case(title, units, names, turn, check_peers=sink.check, rounds=(1, 2))


def direct(work: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the cases without a proxy."""
    size = SIZES[settings.quick]
    source, sink = _start(settings, stack, size)

    def turn(connections: int, _: str) -> dict[str, float]:
        source.ask("connect", address=sink.address, connections=connections)
        return {"throughput": size / _end(source, size // connections) / 1e9}

    for connections in (1, AT_ONCE):
        name = f"{work}: {size // _MEGABYTE} MB, {connections} conn."
        case = partial(turn, connections)
        yield Case(name, {"throughput": "GB/s"}, ["no proxy"], case, rounds=(2, 3), budget=0.5)
