"""What is compared: TCP proxies, each a process of its own that forwards to one address.

A proxy that runs on a loop measures itself; HAProxy is measured from outside, by a helper process
that also ends it, should the benchmark be killed.
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
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import uvloop

import aiozc
from bench.errors import describe, first
from bench.measure import Meter, Turn
from bench.processes import Helper, allow_many_descriptors, begin_helper, cpu_time, tell
from bench.receivers import HOST
from bench.senders import LoopFactory
from bench.sources import CONGESTION
from bench.units import KIB, MIB

Address = tuple[str, int]
Forward = Callable[[socket.socket, socket.socket], Awaitable[tuple[int, int]]]
"""Forwards between two sockets, both ways; gives the bytes each way."""

_BACKLOG: Final = 4096


@dataclass(frozen=True, slots=True)
class Proxy(ABC):
    """One way to be a proxy."""

    name: str

    @property
    def judged(self) -> bool:
        """Targets are for aiozc alone."""
        return False

    @abstractmethod
    def serve(self, listener: socket.socket, target: Address, control: socket.socket) -> None:
        """Forward what is accepted, and obey the parent, until it goes; in a process of its own."""


class RunningProxy(Helper):
    """A proxy's process."""

    def __init__(self, proxy: Proxy, target: Address) -> None:
        super().__init__(f"the proxy ({proxy.name})", "bench.proxies", proxy.name)
        try:
            self.tell(target=target)
            ready = self.hear(timeout=30)
        except BaseException:
            self.close()
            raise
        self.address: Address = (HOST, int(ready["port"]))
        self.measured = int(ready["measured"])
        """The id of the process that forwards."""

    def begin(self, *, timer: bool) -> None:
        """Begin to measure; with a timer that is late when the loop is."""
        self.tell(begin=True, timer=timer)
        self.hear(timeout=30)

    def end(self) -> tuple[Turn, int | None]:
        """End to measure, when all connections have ended; give what the proxy says it forwarded.

        The turn's time is the one between ``begin`` and here.
        """
        self.tell(end=True)
        found = self.hear(timeout=60, late="has not ended every connection")
        return Turn(**found["turn"]), found["forwarded"]


# On a loop


@dataclass(frozen=True, slots=True)
class LoopProxy(Proxy):
    """A proxy in Python, on a loop."""

    loop_factory: LoopFactory
    forward: Forward

    @property
    def judged(self) -> bool:
        """Targets are for aiozc alone."""
        return self.forward is aiozc.relay

    def serve(self, listener: socket.socket, target: Address, control: socket.socket) -> None:
        """Run the loop."""
        with asyncio.Runner(loop_factory=self.loop_factory) as runner:
            runner.run(_Server(self.forward, listener, target).run(control))


class _Server:
    def __init__(self, forward: Forward, listener: socket.socket, target: Address) -> None:
        self.forward, self.listener, self.target = forward, listener, target
        self.forwarded = 0
        self.lanes: set[asyncio.Task[None]] = set()

    async def run(self, control: socket.socket) -> None:
        self.listener.setblocking(False)
        control.setblocking(False)
        tell(control, port=self.listener.getsockname()[1], measured=os.getpid())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._accept(group))
            await self._obey(control)

    async def _accept(self, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(self.listener)
            lane = group.create_task(self._serve(near))
            self.lanes.add(lane)
            lane.add_done_callback(self.lanes.discard)

    async def _serve(self, near: socket.socket) -> None:
        with near, socket.socket() as far:
            for sock in near, far:
                sock.setblocking(False)
                # asyncio sets it for its streams, and HAProxy for both sides.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
            await asyncio.get_running_loop().sock_connect(far, self.target)
            there, _ = await self.forward(near, far)
            self.forwarded += there

    async def _obey(self, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        meter: Meter | None = None
        # One order at a time: the parent waits for each answer.
        while line := await loop.sock_recv(control, 4096):
            order, answer = json.loads(line), {}
            if "begin" in order:
                gc.collect()
                gc.disable()
                self.forwarded = 0
                meter = Meter(timer=order["timer"])
            elif meter is not None:
                while self.lanes:
                    await asyncio.wait(self.lanes)
                answer = {"turn": asdict(meter.stop()), "forwarded": self.forwarded}
                gc.enable()
            await loop.sock_sendall(control, json.dumps(answer).encode() + b"\n")
        os._exit(0)  # closing a loop with transfers that do not end would not end


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
_HAPROXY: Final = shutil.which("haproxy") or shutil.which(
    "haproxy", path="/usr/sbin:/usr/local/sbin"
)
_HAPROXY_CONFIGURATION: Final = """
global
    nbthread 1
    maxconn {connections}
    {tuning}
defaults
    mode tcp
    option splice-auto
    option splice-request
    option splice-response
    timeout connect 30s
    timeout client 1h
    timeout server 1h
listen relay
    bind fd@{listener}
    server sink {host}:{port}
"""
# A connection takes two descriptors, and some of them have pipes.
_DESCRIPTORS_PER_CONNECTION: Final = 3
# The same number on every architecture; Linux 5.6 (include/uapi/asm-generic/unistd.h).
_NR_PIDFD_GETFD: Final = 438


@dataclass(frozen=True, slots=True)
class HAProxy(Proxy):
    """HAProxy in TCP mode, with one thread, which may splice."""

    tuning: str = ""
    """A line of its section ``global``."""

    def serve(self, listener: socket.socket, target: Address, control: socket.socket) -> None:
        """Start HAProxy and look at it from here."""
        assert _HAPROXY is not None
        most = (allow_many_descriptors() - 256) // _DESCRIPTORS_PER_CONNECTION
        text = _HAPROXY_CONFIGURATION.format(
            connections=min(most, _BACKLOG),
            tuning=self.tuning,
            listener=listener.fileno(),
            host=target[0],
            port=target[1],
        )
        with (
            os.fdopen(os.memfd_create("configuration"), "r+") as configuration,
            os.fdopen(os.memfd_create("complaints"), "r+") as complaints,
        ):
            configuration.write(text)
            configuration.flush()
            path = f"/dev/fd/{configuration.fileno()}"
            process = subprocess.Popen(
                [_HAPROXY, "-db", "-f", path],
                pass_fds=[listener.fileno(), configuration.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
            )
            try:
                tell(control, port=listener.getsockname()[1], measured=process.pid)
                self._obey(control, process.pid)
            finally:
                process.kill()
                process.wait()

    def _obey(self, control: socket.socket, pid: int) -> None:
        began = 0.0
        for line in control.makefile("rb"):
            if "begin" in json.loads(line):
                _set_congestion_control(pid)
                began = cpu_time(pid)
                tell(control)
            else:
                cpu = cpu_time(pid) - began
                tell(control, turn=asdict(Turn(0, cpu, cpu)), forwarded=None)


def _set_congestion_control(pid: int) -> None:
    """Set it for all TCP sockets of a process, which HAProxy 2.6 cannot do itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if not os.readlink(descriptor).startswith("socket:"):
                continue
            number = ctypes.c_int(int(descriptor.name))
            copy = libc.syscall(
                ctypes.c_long(_NR_PIDFD_GETFD), ctypes.c_int(process), number, ctypes.c_uint(0)
            )
            if copy < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd(2) is refused")
            with socket.socket(fileno=copy) as sock:
                if sock.proto == socket.IPPROTO_TCP:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
    finally:
        os.close(process)


def _haproxy_version(path: str) -> str:
    told = subprocess.run([path, "-v"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\S+)", told)
    return found[1] if found else "of an unknown version"


# Who takes turns

BASELINE: Final = LoopProxy("streams, asyncio", asyncio.SelectorEventLoop, _forward_by_streams)
HAPROXY: Final = HAProxy("HAProxy")
# Left to itself, it takes pipes as they come, of 64 KiB.
TUNED_HAPROXY: Final = HAProxy("HAProxy, large pipes", f"tune.pipesize {MIB}")

PROXIES: Final[tuple[Proxy, ...]] = (
    BASELINE,
    LoopProxy("streams, uvloop", uvloop.new_event_loop, _forward_by_streams),
    LoopProxy("aiozc, asyncio", asyncio.SelectorEventLoop, aiozc.relay),
    LoopProxy("aiozc, uvloop", uvloop.new_event_loop, aiozc.relay),
    *((HAPROXY, TUNED_HAPROXY) if _HAPROXY is not None else ()),
)
"""The baseline, then those that are set against it."""


def haproxy_remark(path: str | None) -> str:
    """Say how HAProxy takes part, or why it does not."""
    if path is None:
        return "not measured, for haproxy is not installed (Debian package haproxy)"
    return (
        f"version {_haproxy_version(path)}, one thread, option splice-auto, -request and "
        "-response; with large pipes also tune.pipesize 1 MiB"
    )


REMARKS: Final = {HAPROXY.name: haproxy_remark(_HAPROXY)}


def _main(name: str, control: int) -> None:
    with begin_helper(control) as channel:
        target: Address = tuple(json.loads(channel.recv(4096))["target"])
        proxy = next(proxy for proxy in PROXIES if proxy.name == name)
        with socket.create_server((HOST, 0), backlog=_BACKLOG) as listener:
            try:
                proxy.serve(listener, target, channel)
            except Exception as error:
                with suppress(OSError):
                    tell(channel, failed=describe(first(error)))
                # The loop is closed, but perhaps not every thread is done.
                os._exit(1)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
