"""The far ends of what is measured: a sink, which what is sent comes to, and a source.

A sink reads connections to their end, answers with one line of JSON what came, and closes:
``{"received": BYTES, "sha256": HEX}``. The hash is null but for a connection whose first bytes are
`MARK`, which do not count: hashing takes longer than most senders. Such a connection is neither
discarded nor paced.

- ``discard``: by ``recv`` with MSG_TRUNC, which for TCP throws the bytes away without a copy (man
  7 tcp): as near to a peer that costs nothing as loopback has. Else every byte is copied.
- ``pace``: so many bytes from each connection in a second, as slow clients read.
- ``awake``: seconds to look for more before sleeping. On loopback the sender pays for waking a
  receiver that sleeps, in a virtual machine some 10 us each time. One a little faster than the
  sender sleeps after every segment, one a little slower never does: the same ``sock_sendfile`` of
  512 MiB ran at 1.9 to 5.2 GB/s, and at 6.7 to 7.1 to one that looked for another 50 us. A peer
  at the far end of a network is never woken by the sender's CPU.
"""

import hashlib
import heapq
import json
import mmap
import random
import select
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.errors import BadInputError, BenchError
from bench.processes import Helper, allow_many_descriptors, obey, tell
from bench.scratch import hash_of

MARK: Final = b"aiozc-bench-hash"
HOST: Final = "127.0.0.1"
_READ: Final = 256 * 1024
_DISCARD: Final = 16 * 1024 * 1024
_PACED, _PACE_STEP = 16 * 1024, 0.02
"""Bytes that a paced connection reads at once, or what it reads in so many seconds if more."""
CONGESTION: Final = b"cubic"
"""The senders' congestion control: the kernel's default, whatever this machine has set.

BBR paces by timers, at a rate that it estimates anew in every gap: on loopback one and the same
sender took 0.13 or 0.46 s for a GiB, with 300 or 14,000 timer interrupts (Linux 6.18).
"""
_AT_ONCE: Final = 64
"""The connections, at most, that are sent to at once; the others wait for their turn."""
_SMALL_BUFFER: Final = 4096
_LARGE_BUFFER: Final = 1024 * 1024


class SinkProcess(Helper):
    """A sink in a process of its own."""

    def __init__(self, **how: Any) -> None:
        super().__init__("the receiver", "bench.ends:Sink", **how)

    def counts(self, clients: int | None = None) -> list[int]:
        """Give the count of each open connection; raise BenchError if they are not so many."""
        counts = list(self.ask("counts"))
        if clients not in (None, len(counts)):
            raise BenchError(f"{(clients or 0) - len(counts)} clients were given up")
        return counts

    def wait_counts(
        self, enough: Callable[[Sequence[int]], bool], check: Callable[[], None] = lambda: None
    ) -> None:
        """Wait until the counts of the open connections are enough; ``check`` may give up."""
        deadline = time.monotonic() + 60
        while not enough(counts := self.counts()):
            if time.monotonic() > deadline:
                raise BenchError(f"{len(counts)} connections brought {sum(counts)} bytes in 60 s")
            check()
            time.sleep(0.005)


def listen(host: str = HOST, port: int = 0) -> socket.socket:
    """Listen for connections; raise BadInputError where that cannot be."""
    if not 0 <= port < 65536:
        raise BadInputError(f"there is no port {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=4096)
    except OSError as error:
        raise BadInputError(f"cannot listen on {host}:{port}: {error}") from None


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


@dataclass(slots=True)
class _Connection:
    sock: socket.socket
    received: int = 0
    digest: Any = None


class Sink:
    """Reads connections to their end, in one thread."""

    def __init__(
        self,
        control: socket.socket | None,
        *,
        at: tuple[str, int] = (HOST, 0),
        discard: bool = False,
        pace: int = 0,
        awake: float = 0.0,
        large_buffers: bool = False,
    ) -> None:
        self._listener, self._awake, self._pace, self._control = listen(*at), awake, pace, control
        self.ready = self._listener.getsockname()[:2]
        self.connections = self.received = 0
        self._open: dict[int, _Connection] = {}
        self._paced: list[tuple[float, int]] = []
        """When which connection, by its number, is read again."""
        self._listener.setblocking(False)
        largest = int(Path("/proc/sys/net/core/rmem_max").read_text())
        if large_buffers and largest >= _LARGE_BUFFER:  # else the kernel's own are larger
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LARGE_BUFFER)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        if control is not None:
            self._epoll.register(control, select.EPOLLIN)
        # Never touched where bytes are thrown away: then it only has to be as long.
        self._memory = mmap.mmap(-1, _DISCARD if discard else _READ)
        most = max(_PACED, int(pace * _PACE_STEP)) if pace else _DISCARD
        self._most = min(len(self._memory), most)
        self._flags = int(socket.MSG_TRUNC) if discard else 0
        self._hashed = memoryview(bytearray(_READ))

    def serve(self) -> None:
        """Serve, until the parent ends or an exception comes."""
        listener = self._listener.fileno()
        while True:
            for descriptor, _ in self._events():
                if (connection := self._open.get(descriptor)) is not None:
                    self._read(connection)
                elif descriptor == listener:
                    self._accept()
                elif not self._obey():
                    return  # the parent has gone

    def _events(self) -> list[tuple[int, int]]:
        """Wait for what can be read; look for a while before sleeping."""
        asleep_from = time.monotonic() + self._awake
        while True:
            self._read_paced()
            if events := self._epoll.poll(0):
                return events
            if time.monotonic() >= asleep_from:
                until = max(self._paced[0][0] - time.monotonic(), 0) if self._paced else None
                if events := self._epoll.poll(until):
                    return events

    def _obey(self) -> bool:
        """Do what the parent asks for, if it is there still."""
        if self._control is None or not (line := self._control.recv(4096)):
            return False
        tell(self._control, gave=obey(self, line))
        return True

    def counts(self) -> list[int]:
        """Give the count of each open connection."""
        return [each.received for each in self._open.values()]

    def ask_for(self, port: int, path: str, count: int) -> None:
        """Ask a web server for a file so many times, with little room for it."""
        for _ in range(count):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
            sock.connect((HOST, port))
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            self._take(sock)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self._take(self._listener.accept()[0])

    def _take(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._open[sock.fileno()] = _Connection(sock)
        self.connections += 1
        if self._pace:  # each at its own time
            due = time.monotonic() + random.random() * self._most / self._pace
            heapq.heappush(self._paced, (due, sock.fileno()))
        else:
            self._epoll.register(sock, select.EPOLLIN)

    def _read(self, connection: _Connection) -> int:
        """Read once; give the number of bytes, 0 also where there were none yet."""
        sock = connection.sock
        try:
            # A mark is sent by one call, in one segment.
            first = not connection.received and connection.digest is None
            if first and sock.recv(len(MARK), socket.MSG_PEEK) == MARK:
                sock.recv(len(MARK))
                connection.digest = hashlib.sha256()
            if connection.digest is None:
                got = sock.recv_into(self._memory, self._most, self._flags)
            else:
                got = sock.recv_into(self._hashed)
                connection.digest.update(self._hashed[:got])
        except BlockingIOError:
            return 0
        except OSError:
            self._close(connection)
            return 0
        connection.received += got
        self.received += got
        if not got:
            sha256 = connection.digest.hexdigest() if connection.digest is not None else None
            answer = json.dumps({"received": connection.received, "sha256": sha256})
            with suppress(OSError):
                sock.send(answer.encode() + b"\n")
            self._close(connection)
        return got

    def _close(self, connection: _Connection) -> None:
        del self._open[connection.sock.fileno()]
        connection.sock.close()

    def _read_paced(self) -> None:
        """Read from the connections whose time has come; no poll is needed for them."""
        now = time.monotonic()
        while self._paced and self._paced[0][0] <= now:
            due, number = heapq.heappop(self._paced)
            connection = self._open[number]
            got = self._read(connection)
            if number not in self._open:
                continue
            if connection.digest is not None:
                self._epoll.register(number, select.EPOLLIN)
            else:
                later = (got or self._most) / self._pace
                heapq.heappush(self._paced, (max(due, now - _PACE_STEP) + later, number))


def main(options: Any, notes: Any) -> int:
    """Serve the command ``sink`` until Ctrl-C; give the exit status."""
    from bench.console import say  # only now: helpers need it not

    allow_many_descriptors()
    at = options.host, options.port
    sink = Sink(None, at=at, discard=options.discard, pace=options.pace)
    say(notes, "receiving on {}:{}".format(*sink.ready))
    try:
        sink.serve()
    finally:
        say(notes, f"{sink.connections} connections brought {sink.received} bytes")
    return 0


# A source


def source_of(file: Path) -> Helper:
    """Start a process that sends parts of a file, which should be cached."""
    return Helper("the source", "bench.ends:Source", file=str(file))


class Source:
    """Connections, each with its own part of a file, sent by sendfile(2) that blocks."""

    ready = True

    def __init__(self, _: socket.socket, file: str) -> None:
        self._path = Path(file)
        self._socks: list[socket.socket] = []
        self._threads = ThreadPoolExecutor(_AT_ONCE)

    def connect(self, address: Sequence[Any], connections: int, mark: bool = False) -> None:
        """Open connections; they stand until `end`."""
        self._socks = [connect(address, mark=mark) for _ in range(connections)]

    def end(self, size: int, before: int = 0, answered: bool = True) -> None:
        """Send so many bytes, end each connection, and check what its receiver answers."""
        for place, answer in enumerate(self.send(size, ends=True)):
            if answered:
                told = json.loads(answer or "null")
                marked = told is not None and told["sha256"] is not None
                sha256 = hash_of(self._path, place * size, size) if marked else None
                check_answer(told, before + size, sha256)

    def send(self, size: int, *, ends: bool = False) -> list[str]:
        """Send so many bytes over each connection, to all at once; give what they answer."""

        def send_one(place: int, sock: socket.socket) -> str:
            with self._path.open("rb") as file:
                if size and sock.sendfile(file, place * size, size) != size:
                    raise BenchError(f"the file that is sent ends before byte {(place + 1) * size}")
            if not ends:
                return ""
            sock.shutdown(socket.SHUT_WR)
            with sock, sock.makefile() as stream:
                return stream.read()

        # A thread each, which is one system call for most of a GB: it costs next to no CPU time.
        return list(self._threads.map(send_one, range(len(self._socks)), self._socks))
