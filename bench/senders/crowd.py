"""What a sender does for many at once: slow clients, or small requests beside all."""

import asyncio
import hashlib
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

from bench.errors import BenchError
from bench.meter import Meter, percentile
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
            meter = Meter(timer=True, period=_PERIOD)
            done, _ = await asyncio.wait(
                tasks, timeout=duration, return_when=asyncio.FIRST_COMPLETED
            )
            spent = meter.stop()
            for task in done:
                told = task.exception() or task.result()
                raise BenchError(f"a transfer ended too early: {told!r}")
            spent |= {"CPU": _percent(spent), "seconds": spent["elapsed"]}
            values |= {f"{part} {name}": value for name, value in spent.items()}
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
        meter = Meter()
        await asyncio.gather(*(answer() for _ in range(connections)))
        spent = meter.stop()
        for task in tasks:
            if task.done():
                task.result()
        _stand_still(channel)
        await _cancel(tasks)
    return {"process CPU": _percent(spent), "seconds": spent["elapsed"]}


def _percent(spent: dict[str, float]) -> float:
    return spent["process_cpu"] / spent["elapsed"] * 100


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
        self._listener.setblocking(False)
        self.ready = self._listener.getsockname()

    def run(self, seconds: float, **how: Any) -> dict[str, float]:
        """Ask so often in each second; give how long answers took, in ms."""
        waits: list[float] = []
        try:
            asyncio.run(asyncio.wait_for(self._run(waits, seconds, **how), seconds + _PATIENCE))
        except TimeoutError:
            raise BenchError(f"requests were not answered, but {len(waits)}") from None
        told = {f"wait p{rank}": percentile(waits, rank) * 1e3 for rank in (50, 99)}
        return told | {"wait max": max(waits) * 1e3}

    async def _run(
        self,
        waits: list[float],
        seconds: float,
        connections: int,
        rate: int,
        size: int,
        sha256: str,
    ) -> None:
        loop, total, all_came = (
            asyncio.get_running_loop(),
            max(1, int(rate * seconds)),
            asyncio.Event(),
        )

        async def hear(reader: asyncio.StreamReader, due: deque[float]) -> None:
            while answer := await reader.read(1):
                answer += await reader.readexactly(size - 1)
                if not due or hashlib.sha256(answer).hexdigest() != sha256:
                    raise BenchError("an answer is not what was asked for, by its hash")
                waits.append(time.monotonic() - due.popleft())
                if len(waits) == total:
                    all_came.set()
            raise BenchError("the server has closed a connection")

        async with asyncio.TaskGroup() as group:
            lanes, hearing = [], []
            for _ in range(connections):
                sock, _ = await loop.sock_accept(self._listener)
                reader, writer = await asyncio.open_connection(sock=sock)
                lanes.append((writer, due := deque[float]()))
                hearing.append(group.create_task(hear(reader, due)))
            began = time.monotonic()
            for number in range(total):
                writer, due = lanes[number % connections]
                due.append(began + number / rate)
                if (early := due[-1] - time.monotonic()) > 0:
                    await asyncio.sleep(early)
                writer.write(b"?")
            await all_came.wait()
            for task in hearing:
                task.cancel()
        for writer, _ in lanes:
            writer.close()
