"""The process that one sender runs in, and a turn of it."""

import asyncio
import hashlib
import json
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from fcntl import ioctl
from typing import Any, Final

from bench.contenders import Contender
from bench.ends import check_answer, connect, listen
from bench.errors import BenchError, describe
from bench.meter import ranks
from bench.on_loop import OnLoop
from bench.senders.lanes import Lane, counted, opened

TIME_LIMIT: Final = 120.0
"""Seconds after which a turn is given up."""
_GRACE: Final = 0.5
"""Seconds to wait for the answer of a receiver that may give none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is sent in a turn, and what is looked at meanwhile."""

    address: Sequence[Any]
    paths: Sequence[str]
    """The file that each connection sends, or those that they share out among them."""
    size: int
    """Bytes of each."""
    cold: bool = False
    """Whether they are shared out, and each is sent once."""
    connections: int = 1
    warm_file: str
    warm_size: int = 0
    warm_times: int = 0
    """What each connection sends before anything is measured."""
    times: int = 1
    """How often each connection sends a file."""
    seconds: float = 0
    """How long it does, where that is longer."""
    buffer: int = 65536
    hash: bool = False
    """Whether the receiver is to hash what comes."""
    timer: bool = False
    """Whether a timer of 1 ms runs on the loop."""
    count: bool = False
    """Whether system calls are counted."""


class Worker(OnLoop):
    """One sender; the parent is told first why it cannot be had, if so."""

    async def open(self) -> str | None:
        """Send a little to this process itself; give the reason if that cannot be done."""
        with listen() as listener, ThreadPoolExecutor() as threads:
            far = threads.submit(_swallow, listener)
            little = {"paths": [__file__], "size": 1, "warm_file": __file__}
            try:
                await self.send(address=listener.getsockname(), **little)
                far.result()
            except Exception as error:  # whatever it is, the sender cannot be had
                return describe(error)
        return None

    async def send(self, **told: Any) -> dict[str, Any]:
        """Open connections, send over all of them at once, and measure."""
        plan, blocking = Plan(**told), self.contender.blocking
        with ExitStack() as stack:
            routes = [_Route(plan, place, stack) for place in range(plan.connections)]
            for route in routes:
                await route.prepare(self.contender)
            before, *_ = [await route.finish() for route in routes]
            with counted(self.contender) if plan.count else nullcontext() as counts:
                await self.begin(timer=plan.timer and not blocking)
                await _run(routes, blocking=blocking)
                after, *_ = [await route.finish() for route in routes]
                for route in routes:
                    route.sock.shutdown(socket.SHUT_WR)
                # Nothing is left to do on the loop: it may stand still meanwhile.
                spent = await self.end()
            answers = [route.check() for route in routes]
        files = sum(route.sent for route in routes)
        values: dict[str, Any] = {
            **spent,
            "elapsed": max(at for _, at in answers) - self._meter.began,
            "checked": all(checked for checked, _ in answers),
            "files": files,
            "bytes": files * plan.size,
            **{name: number - before[name] for name, number in after.items()},
        }
        if blocking:  # it has no loop
            del values["loop CPU"]
        else:
            latencies = [each for route in routes for each in route.latencies]
            values |= ranks("latency", latencies, 1e6)
        return values | (counts(values["bytes"]) if counts is not None else {})


def _swallow(listener: socket.socket) -> None:
    listener.settimeout(10)
    with listener.accept()[0] as sock:
        while sock.recv(4096):
            pass


class _Route(Lane):
    """A connection, with the files that go over it."""

    def __init__(self, plan: Plan, place: int, stack: ExitStack) -> None:
        sock = connect(plan.address, mark=plan.hash)
        super().__init__(stack.enter_context(sock), stack, plan.buffer)
        self._plan = plan
        paths = plan.paths[place :: plan.connections] if plan.cold else plan.paths
        self._files = [opened(path, stack) for path in paths]
        self._warm = opened(plan.warm_file, stack)
        self.sent = 0
        """How many files were sent while measuring."""
        self.latencies: list[float] = []

    async def prepare(self, contender: Contender) -> None:
        """Let a sender prepare the connection, and send what is not measured."""
        self.sock.setblocking(contender.blocking)
        self._send = await contender.function()(self)
        for _ in range(self._plan.warm_times):
            await self._send(self._warm, self._plan.warm_size)

    async def run(self) -> None:
        """Send the files."""
        send, size, clock = self._send, self._plan.size, time.perf_counter
        until, rounds = time.monotonic() + self._plan.seconds, 0
        times = 1 if self._plan.cold else self._plan.times
        while rounds < times or time.monotonic() < until:
            for file in self._files:
                began = clock()
                sent = await send(file, size)
                self.latencies.append(clock() - began)
                if sent != size:
                    raise BenchError(f"it says it sent {sent} bytes in place of {size}")
            rounds += 1
        self.sent = rounds * len(self._files)

    def check(self) -> tuple[bool, float]:
        """Wait until the far end has every byte; raise BenchError if it has something else.

        Give whether it has told so, and when it was.
        """
        answer, ended = _hear_answer(self.sock)
        if answer is None:
            return False, ended
        digest, plan = hashlib.sha256(), self._plan
        for file in self._files if plan.hash else ():
            digest.update(os.pread(file.fileno(), plan.size, 0))
        count = plan.warm_size * plan.warm_times + self.sent * plan.size
        check_answer(answer, count, digest.hexdigest() if plan.hash else None)
        return True, ended


async def _run(routes: Sequence[_Route], *, blocking: bool) -> None:
    """Let all connections send at once: on the loop, or in threads if their sender blocks."""
    if len(routes) == 1:
        await routes[0].run()
    elif blocking:
        with ThreadPoolExecutor(len(routes)) as threads:
            list(threads.map(_run_alone, routes))
    else:
        async with asyncio.TaskGroup() as group:
            for route in routes:
                group.create_task(route.run())


def _run_alone(route: _Route) -> None:
    with suppress(StopIteration):  # it never waits for a loop
        route.run().send(None)


def _hear_answer(sock: socket.socket) -> tuple[dict[str, Any] | None, float]:
    """Wait for a sink's answer, and give when it came.

    There is none from a receiver that closes, or that has acknowledged every byte and says nothing.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    acknowledged: float | None = None
    while not poll.poll(1):
        if struct.unpack("i", ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]:
            continue
        acknowledged = acknowledged or time.monotonic()
        if time.monotonic() > acknowledged + _GRACE:
            return None, acknowledged
    ended = time.monotonic()
    sock.settimeout(TIME_LIMIT)
    try:
        answer = json.loads(sock.makefile("rb").readline(4096))
    except ConnectionError as error:
        raise BenchError(f"its connection broke: {error}") from None
    except ValueError:
        return None, ended
    known = isinstance(answer, dict) and {"received", "sha256"} <= answer.keys()
    return (answer if known else None), ended
