"""Small requests at a steady rate: a process that asks by a byte, and waits for each answer.

Each has its time on the clock, whether or not those before it have been answered: what it waits is
counted from then. A server that stands still for a second keeps a thousand of them waiting.
"""

import hashlib
import select
import socket
import time
from collections import deque
from typing import Final

from bench.errors import BenchError
from bench.meter import percentile
from bench.sink import listen

_PATIENCE: Final = 30.0


class Requests:
    """Servers connect to it, and read their requests there."""

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
