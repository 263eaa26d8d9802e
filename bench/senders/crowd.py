"""What a sender does for many at once: slow clients, or small requests beside all."""

import asyncio
import hashlib
import os
import socket
import time
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

    async def add(self, address: Any, files: Sequence[str], clients: int, **how: Any) -> None:
        """Connect to clients, who will be sent these files in turn, as `_send` says.

        Their connections have a ``send_buffer`` of that size, if it is given.
        """
        send_buffer = how.pop("send_buffer", 0)
        for place in range(clients):
            sock = self._stack.enter_context(connect(address))
            if send_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            sock.setblocking(False)
            send = await self.contender.function()(Lane(sock, self._stack))
            file = opened(files[place % len(files)], self._stack)
            self._waiting.append(_send(sock, send, file, place, **how))

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


async def _send(
    sock: socket.socket, send: SendFile, file: IO[bytes], place: int, then: str, every: float = 0
) -> None:
    """Send a file, or "answer" with it each byte that comes.

    What comes ``then`` is the same "again", or none too soon: an "error"; or the "end" of one that
    begins with its place among others, ``every`` seconds one.
    """
    size, sent = os.stat(file.fileno()).st_size, 0
    if then == "answer":
        while asked := await asyncio.get_running_loop().sock_recv(sock, 4096):
            for _ in asked:
                await send(file, size)
        return sock.shutdown(socket.SHUT_WR)
    await asyncio.sleep(place * every if then == "end" else 0)
    while (sent := await send(file, size)) == size and then == "again":
        pass
    if sent != size or then == "error":
        raise BenchError(f"a transfer ended too early: {sent}")
    return None


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

    def run(
        self, seconds: float, connections: int, rate: int, size: int, sha256: str
    ) -> dict[str, float]:
        """Ask so often in each second; give how long answers took, in ms."""
        numbers, waits = range(max(1, int(rate * seconds))), list[float]()
        due = [
            [number / rate for number in numbers[place::connections]]
            for place in range(connections)
        ]
        asking = self._ask_all(due, size, sha256, waits)
        try:
            asyncio.run(asyncio.wait_for(asking, seconds + _PATIENCE))
        except TimeoutError:
            raise BenchError(f"requests were not answered, but {len(waits)}") from None
        return ranks("wait", waits)

    async def _ask_all(
        self, due: Sequence[Sequence[float]], size: int, sha256: str, waits: list[float]
    ) -> None:
        async def ask(writer: asyncio.StreamWriter, due: Sequence[float]) -> None:
            for at in due:
                await asyncio.sleep(max(began + at - time.monotonic(), 0))
                writer.write(b"?")
            writer.write_eof()

        async def hear(reader: asyncio.StreamReader, due: Sequence[float]) -> None:
            for at in due:
                try:
                    answer = await reader.readexactly(size)
                except asyncio.IncompleteReadError:
                    raise BenchError("the server has closed a connection") from None
                waits.append(time.monotonic() - began - at)
                if hashlib.sha256(answer).hexdigest() != sha256:
                    raise BenchError("an answer is not what was asked for, by its hash")
            if await reader.read():
                raise BenchError("an answer is not what was asked for: there are too many")

        loop, streams = asyncio.get_running_loop(), []
        for _ in due:
            sock, _ = await loop.sock_accept(self._listener)
            streams.append(await asyncio.open_connection(sock=sock))
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for (reader, writer), times in zip(streams, due, strict=True):
                group.create_task(ask(writer, times))
                group.create_task(hear(reader, times))
        for _, writer in streams:
            writer.close()
