"""Where bytes come from: a process of its own that sends a file, by sendfile(2) that blocks."""

import json
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from bench.errors import BenchError
from bench.processes import Helper
from bench.scratch import hash_of
from bench.sink import MARK

CONGESTION: Final = b"cubic"
"""The senders' congestion control: the kernel's default, whatever this machine has set.

BBR paces by timers, at a rate that it estimates anew in every gap: on loopback one and the same
sender took 0.13 or 0.46 s for a GiB, with 300 or 14,000 timer interrupts (Linux 6.18).
"""
AT_ONCE: Final = 64
"""The connections, at most, that are sent to at once; the others wait for their turn."""


def connect(address: Sequence[Any], *, mark: bool = False) -> socket.socket:
    """Connect to a receiver, which with ``mark`` is to hash what it gets."""
    sock = socket.create_connection((address[0], address[1]), timeout=10)
    sock.settimeout(None)
    with suppress(OSError):  # a module that may not be loaded
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
    if mark:
        sock.sendall(MARK)
    return sock


def check_answer(answer: dict[str, Any] | None, count: int, sha256: str | None = None) -> None:
    """Raise BenchError where a receiver has something else than was sent."""
    received = None if answer is None else answer["received"]
    if answer is None or received != count:
        raise BenchError(f"the receiver got {received or 0} bytes in place of {count}")
    if sha256 is not None and answer["sha256"] != sha256:
        raise BenchError("the receiver's bytes are not those of the file, by their hash")


def source_of(file: Path) -> Helper:
    """Start a process that sends parts of a file, which should be cached."""
    return Helper("the source", "bench.sources:Source", file=str(file))


class Source:
    """Connections, each with its own part of a file."""

    ready = True

    def __init__(self, _: socket.socket, file: str) -> None:
        self._path = Path(file)
        self._socks: list[socket.socket] = []
        self._threads = ThreadPoolExecutor(AT_ONCE)

    def connect(self, address: Sequence[Any], connections: int, mark: bool = False) -> None:
        """Open connections; they stand until `end`."""
        self._socks = [connect(address, mark=mark) for _ in range(connections)]

    def send(self, size: int) -> None:
        """Send so many bytes over each connection, to all at once."""
        self._all(size, self._send_one)

    def end(self, size: int, before: int = 0, answered: bool = True) -> None:
        """Send so many bytes, end each connection, and check what its receiver answers."""
        for at, answer in self._all(size, self._end_one):
            if answered:
                told = json.loads(answer or "null")
                marked = told is not None and told["sha256"] is not None
                check_answer(told, before + size, hash_of(self._path, at, size) if marked else None)

    def _all(self, size: int, do: Callable[[int, int, socket.socket], Any]) -> list[Any]:
        # A thread each, which is one system call for most of a GB: it costs next to no CPU time.
        starts = [place * size for place in range(len(self._socks))]
        gave = self._threads.map(do, starts, [size] * len(starts), self._socks)
        return list(zip(starts, gave, strict=True))

    def _send_one(self, at: int, size: int, sock: socket.socket) -> None:
        with self._path.open("rb") as file:
            if size and sock.sendfile(file, at, size) != size:
                raise BenchError(f"the file that is sent ends before byte {at + size}")

    def _end_one(self, at: int, size: int, sock: socket.socket) -> bytes:
        self._send_one(at, size, sock)
        sock.shutdown(socket.SHUT_WR)
        with sock, sock.makefile("rb") as stream:
            return stream.read()
