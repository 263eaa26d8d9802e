"""``python -m bench sink``: the far end of ``python -m bench send``, for another machine too.

It reads what comes over each connection to its end, answers with one line of JSON, and closes:
``{"received": BYTES, "sha256": HEX}``. The hash is null but for a connection whose first bytes are
`MARK`, which do not count: hashing takes longer than most senders. Such a connection is neither
discarded nor paced.

A sink that sleeps while there is nothing to read makes the sender pay for waking it, over loopback
alone; one that ``send`` starts looks for more for 50 us before it does (see `bench.receivers`).
"""

import hashlib
import heapq
import json
import mmap
import select
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.console import Console

from bench.console import Parser, size
from bench.errors import BadInputError
from bench.processes import Helper, allow_many_descriptors, begin_helper, tell

if TYPE_CHECKING:
    from hashlib import _Hash

MARK: Final = b"aiozc-bench-hash"
HOST: Final = "127.0.0.1"
_PORT: Final = 9999
_BACKLOG: Final = 4096
_AWAKE: Final = 50e-6
_READ: Final = 256 * 1024
_DISCARD: Final = 16 * 1024 * 1024
_PACE_STEP: Final = 0.02
"""Seconds' worth of bytes that a paced connection reads at once."""


class SinkProcess(Helper):
    """A sink in a process of its own, which ends with this one."""

    def __init__(self, *, discard: bool = False, pace: int | None = None) -> None:
        super().__init__("the receiver", "bench.sink", str(int(discard)), str(pace or 0))
        try:
            self.address: tuple[str, int] = (HOST, int(self.hear(timeout=30)["port"]))
        except BaseException:
            self.close()
            raise


def main(arguments: Sequence[str], notes: Console) -> int:
    """Serve until Ctrl-C; give the exit status."""
    parser = Parser(
        prog="python -m bench sink",
        description="Receive what python -m bench send sends, here or from another machine, "
        "until Ctrl-C.",
    )
    parser.add_argument("--host", default=HOST, help=f"address to listen on (default: {HOST})")
    parser.add_argument("--port", type=int, default=_PORT, help=f"default: {_PORT}; 0: any free")
    parser.add_argument(
        "--discard",
        action="store_true",
        help="throw bytes away in the kernel (MSG_TRUNC), in place of copying them into memory",
    )
    parser.add_argument(
        "--pace",
        metavar="BYTES/S",
        type=size,
        help="read no more than this from each connection in a second, as 400K",
    )
    options = parser.parse_args(arguments)
    allow_many_descriptors()
    with _listen(options.host, options.port) as listener:
        host, port = listener.getsockname()[:2]
        notes.print(f"bench: receiving on {host}:{port}", markup=False, highlight=False)
        sink = Sink(listener, discard=options.discard, pace=options.pace or 0)
        try:
            sink.serve()
        finally:
            notes.print(f"bench: {sink.connections} connections brought {sink.received} bytes")
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise BadInputError(f"cannot listen on {host}:{port}: {error}") from None


@dataclass(slots=True)
class _Connection:
    sock: socket.socket
    received: int = 0
    begun: bool = False
    digest: "_Hash | None" = None
    due: float = 0.0
    """When it may be read again, where it is paced."""


class Sink:
    """Reads connections to their end, in one thread."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        discard: bool = False,
        pace: int = 0,
        awake: float = 0.0,
        control: socket.socket | None = None,
    ) -> None:
        self.connections = self.received = 0
        self._listener, self._awake, self._pace = listener, awake, pace
        self._open: dict[int, _Connection] = {}
        self._paced: list[tuple[float, int]] = []
        """When which connection, by its number, may be read again."""
        listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(listener, select.EPOLLIN)
        if control is not None:
            self._epoll.register(control, select.EPOLLIN)
        # Never touched where bytes are thrown away: then it only has to be as long.
        self._memory = mmap.mmap(-1, _DISCARD if discard else _READ)
        self._most = max(1, min(len(self._memory), int(pace * _PACE_STEP) or _DISCARD))
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
                else:
                    return  # the parent never sends anything: it has gone

    def _events(self) -> list[tuple[int, int]]:
        """Wait for what can be read; look for a while before sleeping."""
        asleep_from = time.monotonic() + self._awake
        while True:
            self._wake_paced()
            if events := self._epoll.poll(0):
                return events
            if time.monotonic() >= asleep_from:
                until = self._paced[0][0] - time.monotonic() if self._paced else None
                if events := self._epoll.poll(until if until is None else max(until, 0)):
                    return events

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            self._open[sock.fileno()] = _Connection(sock)
            self._epoll.register(sock, select.EPOLLIN)
            self.connections += 1

    def _read(self, connection: _Connection) -> None:
        try:
            if not connection.begun:
                self._begin(connection)
            got = self._take(connection)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        connection.received += got
        self.received += got
        if not got:
            self._end(connection)
        elif self._pace and connection.digest is None:
            self._put_off(connection, got)

    def _begin(self, connection: _Connection) -> None:
        # A mark is sent by one call, in one segment.
        if connection.sock.recv(len(MARK), socket.MSG_PEEK) == MARK:
            connection.sock.recv(len(MARK))
            connection.digest = hashlib.sha256()
        connection.begun = True

    def _take(self, connection: _Connection) -> int:
        if connection.digest is None:
            return connection.sock.recv_into(self._memory, self._most, self._flags)
        got = connection.sock.recv_into(self._hashed)
        connection.digest.update(self._hashed[:got])
        return got

    def _end(self, connection: _Connection) -> None:
        digest = connection.digest.hexdigest() if connection.digest is not None else None
        answer = json.dumps({"received": connection.received, "sha256": digest})
        with suppress(OSError):
            connection.sock.send(answer.encode() + b"\n")
        self._close(connection)

    def _close(self, connection: _Connection) -> None:
        del self._open[connection.sock.fileno()]
        connection.sock.close()

    def _put_off(self, connection: _Connection, got: int) -> None:
        connection.due = max(connection.due, time.monotonic() - _PACE_STEP) + got / self._pace
        number = connection.sock.fileno()
        self._epoll.modify(number, 0)
        heapq.heappush(self._paced, (connection.due, number))

    def _wake_paced(self) -> None:
        while self._paced and self._paced[0][0] <= time.monotonic():
            _, number = heapq.heappop(self._paced)
            if number in self._open:  # it may have broken meanwhile
                self._epoll.modify(number, select.EPOLLIN)


def _serve_parent(discard: str, pace: str, control: str) -> None:
    with begin_helper(int(control)) as channel, _listen(HOST, 0) as listener:
        tell(channel, port=listener.getsockname()[1])
        sink = Sink(listener, discard=discard == "1", pace=int(pace), awake=_AWAKE, control=channel)
        sink.serve()


if __name__ == "__main__":
    _serve_parent(*sys.argv[1:])
