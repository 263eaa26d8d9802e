"""What a sender does for many at once: slow clients, or small requests beside all."""

import asyncio
import hashlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

from bench.errors import BenchError
from bench.meter import LatenessTimer, late_values, percentile
from bench.processes import tell
from bench.senders.lanes import AwaitFile, Lane
from bench.sink import listen
from bench.sources import connect

_NOBODY: Final = 65534
_GRACE: Final = 15.0
_PERIOD: Final = 0.010
"""Seconds between two looks at how late the loop is: at 1 ms the timer takes 2 % of a core."""


async def serve(
    make: Any,
    channel: socket.socket,
    *,
    address: Sequence[Any],
    file: str,
    size: int,
    clients: int,
    filling: float,
    seconds: float,
    send_buffer: int,
) -> dict[str, float]:
    """Send to slow clients, whose buffers fill first; as nobody, where this is root.

    The parent is told before, between and behind these times, and answers when it has counted.
    """
    with ExitStack() as stack:
        lanes = [await _lane(make, address, stack, send_buffer) for _ in range(clients)]
        files = [stack.enter_context(_opened(file)) for _ in lanes]
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
        _stand_still(channel)
        sends = zip(lanes, files, strict=True)
        tasks = [asyncio.ensure_future(send(each, size)) for (_, send), each in sends]
        values: dict[str, float] = {}
        for part, duration in (("filling", filling), ("steady", seconds)):
            timer = LatenessTimer(_PERIOD)
            timer.start()
            cpu, began = time.process_time(), time.monotonic()
            done, _ = await asyncio.wait(
                tasks, timeout=duration, return_when=asyncio.FIRST_COMPLETED
            )
            cpu, passed = time.process_time() - cpu, time.monotonic() - began
            for task in done:
                told = task.exception() or task.result()
                raise BenchError(f"a transfer ended too early: {told!r}")
            late = {f"{part} {name}": value for name, value in late_values(timer.stop()).items()}
            values |= {f"{part} CPU": cpu / passed * 100, f"{part} seconds": passed, **late}
            _stand_still(channel)
        await _cancel(tasks)
    return values


async def mix(
    make: Any,
    channel: socket.socket,
    *,
    requests: Sequence[Any],
    connections: int,
    small: str,
    fast: Sequence[Any],
    streams: int,
    slow: Sequence[Any],
    clients: int,
    stream: str,
    cold: Sequence[str],
    every: float,
) -> dict[str, float]:
    """Answer small requests beside streams, slow clients and cold files, until they end."""

    async def beside(address: Sequence[Any], path: str, delay: float, repeat: bool) -> None:
        _, send = await _lane(make, address, stack)
        with _opened(path) as file:
            await asyncio.sleep(delay)
            while True:
                await send(file, os.stat(path).st_size)
                if not repeat:
                    break

    async def answer() -> None:
        sock, send = await _lane(make, requests, stack)
        loop = asyncio.get_running_loop()
        with _opened(small) as file:
            size = os.stat(small).st_size
            while asked := await loop.sock_recv(sock, 4096):
                for _ in asked:
                    await send(file, size)

    with ExitStack() as stack:
        work = [
            *(beside(fast, stream, 0, True) for _ in range(streams)),
            *(beside(slow, stream, 0, True) for _ in range(clients)),
            *(beside(fast, path, place * every, False) for place, path in enumerate(cold)),
        ]
        tasks = [asyncio.ensure_future(each) for each in work]
        cpu, began = time.process_time(), time.monotonic()
        await asyncio.gather(*(answer() for _ in range(connections)))
        cpu, passed = time.process_time() - cpu, time.monotonic() - began
        for task in tasks:
            if task.done():
                task.result()
        _stand_still(channel)
        await _cancel(tasks)
    return {"process CPU": cpu / passed * 100, "seconds": passed}


async def _lane(
    make: Any, address: Sequence[Any], stack: ExitStack, send_buffer: int = 0
) -> tuple[socket.socket, AwaitFile]:
    sock = stack.enter_context(connect(address))
    if send_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    sock.setblocking(False)
    return sock, await make(Lane(sock, stack))


def _opened(path: str) -> IO[bytes]:
    return Path(path).open("rb")


def _stand_still(channel: socket.socket) -> None:
    """Tell the parent, and wait until it answers."""
    tell(channel, gave="now")
    channel.recv(4096)


async def _cancel(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    _, stuck = await asyncio.wait(tasks, timeout=_GRACE)
    if stuck:
        raise BenchError(f"{len(stuck)} transfers do not end when they are cancelled")


_PATIENCE: Final = 30.0


class Requests:
    """Asks for small answers at a steady rate, by a byte, over connections that servers make to it.

    Each request has its time on the clock, whether or not those before it have been answered: what
    it waits is counted from then. A server that stands still for a second keeps a thousand waiting.
    """

    def __init__(self, _: socket.socket) -> None:
        self._listener = listen()
        self.ready = self._listener.getsockname()

    def run(
        self, connections: int, rate: int, seconds: float, size: int, sha256: str
    ) -> dict[str, float]:
        """Ask so often in each second; give how long answers took, in ms."""
        self._listener.settimeout(_PATIENCE)
        poll, waits = select.epoll(), list[float]()
        clients = [_Client(self._listener.accept()[0], size) for _ in range(connections)]
        by_number = {client.sock.fileno(): client for client in clients}
        for client in clients:
            poll.register(client.sock, select.EPOLLIN)
        total, asked, began = max(1, int(rate * seconds)), 0, time.monotonic()
        while len(waits) < total:
            now = time.monotonic()
            while asked < total and began + asked / rate <= now:
                clients[asked % connections].ask(began + asked / rate)
                asked += 1
            if now > began + seconds + _PATIENCE:
                raise BenchError(f"{total - len(waits)} of {total} requests were not answered")
            until = began + asked / rate - time.monotonic() if asked < total else 1.0
            for number, _ in poll.poll(max(until, 0)):
                waits += by_number[number].receive()
        poll.close()
        for client in clients:
            client.sock.close()
            if client.first and hashlib.sha256(client.first).hexdigest() != sha256:
                raise BenchError("the answers are not the bytes of the file, by their hash")
        told = {f"wait p{rank}": percentile(waits, rank) * 1e3 for rank in (50, 99)}
        return told | {"wait max": max(waits) * 1e3}


class _Client:
    """One connection: when its open requests were due, and the answer that is coming."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock, self._size = sock, size
        self._due: deque[float] = deque()
        self._coming = bytearray()
        self.first = b""

    def ask(self, due: float) -> None:
        """Ask for an answer."""
        self._due.append(due)
        self.sock.sendall(b"?")

    def receive(self) -> list[float]:
        """Take what is there; give how long the requests took that it completes."""
        piece, now, waits = self.sock.recv(1 << 18), time.monotonic(), []
        self._coming += piece
        while len(self._coming) >= self._size:
            answer = bytes(self._coming[: self._size])
            del self._coming[: self._size]
            self.first = self.first or answer
            if not self._due or answer != self.first:
                raise BenchError("an answer is not what was asked for")
            waits.append(now - self._due.popleft())
        if not piece:
            raise BenchError("the server has closed a connection")
        return waits
