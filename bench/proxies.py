"""What is compared: TCP proxies, each a process of its own that forwards to one address.

A proxy that runs on a loop measures itself; HAProxy is measured from outside, by a helper process.
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
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import aiozc
from bench.meter import LatenessTimer, Meter, late_values
from bench.processes import Helper, allow_many_descriptors, cpu_time, end_with_parent
from bench.senders.worker import loop_factory
from bench.sink import HOST, listen
from bench.sources import CONGESTION
from bench.units import KIB, MIB

Forward = Callable[[socket.socket, socket.socket], Awaitable[tuple[int, int]]]
"""Forwards between two sockets, both ways; gives the bytes each way."""


class ProxyProcess(Helper):
    """A proxy's process."""

    def __init__(self, name: str, target: tuple[str, int]) -> None:
        super().__init__(f"the proxy ({name})", "bench.proxies:start", name=name, target=target)

    @property
    def address(self) -> tuple[str, int]:
        """Where it takes connections."""
        return HOST, int(self.ready["port"])


@dataclass(frozen=True, slots=True)
class LoopProxy:
    """A proxy in Python, on a loop."""

    name: str
    loop: str
    forward: Forward
    backend: str | None = None
    """The backend of aiozc, where it is aiozc that forwards."""


class _Server:
    """One that runs; ``begin`` and ``end`` are what the parent asks for."""

    def __init__(self, proxy: LoopProxy, channel: socket.socket, target: tuple[str, int]) -> None:
        self._proxy, self._channel, self._target = proxy, channel, target
        self._listener = listen()
        self._forwarded = 0
        self._lanes: set[asyncio.Task[None]] = set()
        self._meter, self._timer = Meter(), LatenessTimer()
        self.ready = {"port": self._listener.getsockname()[1], "measured": os.getpid()}
        if proxy.backend is not None:
            os.environ["AIOZC_BACKEND"] = proxy.backend

    def serve(self) -> None:
        """Run the loop until the parent goes."""
        with asyncio.Runner(loop_factory=loop_factory(self._proxy.loop)) as runner:
            runner.run(self._run())

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
            there, _ = await self._proxy.forward(near, far)
            self._forwarded += there

    async def _begin(self, timer: bool) -> None:
        gc.collect()
        gc.disable()
        self._forwarded, self._timer = 0, LatenessTimer()
        if timer:
            self._timer.start()
        self._meter = Meter()

    async def _end(self) -> dict[str, Any]:
        while self._lanes:
            await asyncio.wait(self._lanes)
        spent = asdict(self._meter.stop()) | {"forwarded": self._forwarded}
        gc.enable()
        return spent | (late_values(self._timer.stop()) if self._timer.lateness else {})


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


@dataclass(frozen=True, slots=True)
class HAProxy:
    """HAProxy in TCP mode, with one thread, which may splice."""

    name: str
    tuning: str = ""
    """A line of its section ``global``."""


class _HAProxyServer:
    """One that runs, looked at from here."""

    def __init__(self, proxy: HAProxy, target: tuple[str, int]) -> None:
        listener = listen()
        most = (allow_many_descriptors() - 256) // _DESCRIPTORS_PER_CONNECTION
        configuration = os.memfd_create("configuration")
        text = _CONFIGURATION.read_text().format(
            connections=min(most, 4096),
            tuning=proxy.tuning,
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
_LARGE_PIPES: Final = HAProxy("HAProxy, large pipes", f"tune.pipesize {MIB}")
PROXIES: Final[dict[str, LoopProxy | HAProxy]] = {
    proxy.name: proxy
    for proxy in (
        LoopProxy(BASELINE, "asyncio", _forward_by_streams),
        LoopProxy("streams uvloop", "uvloop", _forward_by_streams),
        LoopProxy("aiozc", "asyncio", aiozc.relay, "io_uring"),
        LoopProxy("aiozc readiness", "asyncio", aiozc.relay, "readiness"),
        LoopProxy("aiozc uvloop", "uvloop", aiozc.relay, "io_uring"),
        # Left to itself, it takes pipes as they come, of 64 KiB.
        *((HAProxy("HAProxy"), _LARGE_PIPES) if _HAPROXY is not None else ()),
    )
}


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


REMARKS: Final = {"HAProxy": haproxy_remark(_HAPROXY)}


def start(channel: socket.socket, name: str, target: tuple[str, int]) -> Any:
    """Start the proxy of a process."""
    proxy = PROXIES[name]
    if isinstance(proxy, HAProxy):
        return _HAProxyServer(proxy, target)
    return _Server(proxy, channel, target)
