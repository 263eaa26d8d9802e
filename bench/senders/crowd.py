"""What a sender does for many at once: slow clients, or small requests beside all."""

import asyncio
import hashlib
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Any, Final

from bench.ends import connect, listen
from bench.errors import BenchError
from bench.meter import ranks
from bench.on_loop import OnLoop
from bench.senders.lanes import Lane, SendFile, opened

_NOBODY: Final = 65534
_GRACE: Final = 15.0


class Crowd(OnLoop):
    """A sender that has many to send to, all at once, from the first ``begin`` to ``stop``."""

    async def open(self) -> None:
        """Have none yet."""
        self._stack = ExitStack()
        self._waiting: list[Any] = []
        self._sending: list[asyncio.Task[None]] = []

    async def add(
        self,
        address: Sequence[Any],
        files: Sequence[str],
        clients: int,
        then: str,
        every: float = 0,
        send_buffer: int = 0,
    ) -> None:
        """Connect to clients, who will be sent these files in turn, one after ``every`` seconds.

        What comes ``then`` is the same "again", the "end", or none too soon: an "error".
        """
        for place in range(clients):
            _, send = await self._lane(address, send_buffer)
            file = opened(files[place % len(files)], self._stack)
            self._waiting.append(_send(send, file, place * every, then))

    async def answer(self, address: Sequence[Any], connections: int, path: str) -> None:
        """Answer each byte of some connections with a file."""
        for _ in range(connections):
            sock, send = await self._lane(address)
            self._waiting.append(_answer(sock, send, opened(path, self._stack)))

    async def become_nobody(self) -> None:
        """Go on as an unprivileged process, where this is root's."""
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)

    async def begin(self, **how: Any) -> None:
        """Begin to measure, and to send, if that has not begun."""
        self._sending += [self.tasks.create_task(each) for each in self._waiting]
        self._waiting.clear()
        await super().begin(**how)

    async def stop(self) -> None:
        """Cancel all transfers."""
        for task in self._sending:
            task.cancel()
        _, stuck = await asyncio.wait(self._sending, timeout=_GRACE)
        if stuck:
            raise BenchError(f"{len(stuck)} transfers do not end when they are cancelled")

    async def _lane(
        self, address: Sequence[Any], send_buffer: int = 0
    ) -> tuple[socket.socket, SendFile]:
        sock = self._stack.enter_context(connect(address))
        if send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sock.setblocking(False)
        return sock, await self.contender.function()(Lane(sock, self._stack))


async def _send(send: SendFile, file: IO[bytes], delay: float, then: str) -> None:
    size = os.stat(file.fileno()).st_size
    await asyncio.sleep(delay)
    while (sent := await send(file, size)) == size and then == "again":
        pass
    if sent != size or then == "error":
        raise BenchError(f"a transfer ended too early: {sent}")


async def _answer(sock: socket.socket, send: SendFile, file: IO[bytes]) -> None:
    loop, size = asyncio.get_running_loop(), os.stat(file.fileno()).st_size
    while asked := await loop.sock_recv(sock, 4096):
        for _ in asked:
            await send(file, size)


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
        return ranks("wait", waits)

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
