"""What a sender does for many at once: slow clients alone, or small requests beside everything."""

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

from bench.errors import BenchError
from bench.meter import LatenessTimer, late_values
from bench.processes import tell
from bench.senders.lanes import AwaitFile, Lane
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
