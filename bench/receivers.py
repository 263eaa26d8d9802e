"""The far ends of the connections: processes of their own that take bytes and count them.

``Receiver`` starts one such process and talks to it: it hears the port, the count of each
connection that has ended, with the time of its end, and counts so far when it asks.

Ways to receive:

- ``discard``: ``recv`` with MSG_TRUNC, which for TCP throws the bytes away without a copy
  (man 7 tcp): as near to a peer that costs nothing as loopback has.
- ``read``: copies every byte into one buffer, as a client does.
- ``slow``: reads 16 KiB from each connection every 40 ms, the connections spread over that time.

On loopback the sender pays for waking a receiver that sleeps: in a virtual machine some 10 us each
time. A receiver a little faster than the sender sleeps after every segment, one a little slower
never does: one and the same ``sock_sendfile`` of 512 MiB ran at 1.9 to 5.2 GB/s, and at 6.7 to 7.1
to a receiver that looked for more for another 50 us before it slept (``awake``). A peer at the far
end of a network is never woken by the sender's CPU.
"""

import mmap
import select
import socket
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from bench.errors import BenchError
from bench.processes import Helper, begin_helper, tell

Mode = Literal["discard", "read", "slow"]

HOST: Final = "127.0.0.1"
SLOW_READ: Final = 16 * 1024
SLOW_PERIOD: Final = 0.040
_SLOW_SLOTS: Final = 10
_DISCARD_AT_ONCE: Final = 16 * 1024 * 1024
_READ_AT_ONCE: Final = 256 * 1024
_LARGE_BUFFER: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection that the receiver has read to its end."""

    received: int
    at: float
    """When, by ``time.monotonic``."""
    error: str | None


class Receiver(Helper):
    """A receiver process."""

    def __init__(self, mode: Mode, *, awake: float = 0, large_buffers: bool = False) -> None:
        super().__init__(
            "the receiver", "bench.receivers", mode, str(awake), str(int(large_buffers))
        )
        self._ended: dict[int, Ended] = {}
        try:
            self.address: tuple[str, int] = (HOST, int(self.hear(timeout=30)["port"]))
        except BaseException:
            self.close()
            raise

    def wait_ended(self, ports: Collection[int], timeout: float = 60) -> dict[int, Ended]:
        """Wait for the end of the connections from these local ports; give each one's count.

        Raises BenchError when the process dies, a connection breaks, or the time is over.
        """
        self._wait(lambda: self._ended.keys() >= set(ports), timeout)
        return self._take(ports)

    def wait_all_ended(self, count: int, timeout: float = 60) -> list[Ended]:
        """Wait for the end of so many connections, from wherever they come, as wait_ended does."""
        self._wait(lambda: len(self._ended) >= count, timeout)
        return list(self._take(list(self._ended)).values())

    def counts(self, timeout: float = 60) -> list[int]:
        """Give the count of each open connection, as it is now."""
        self.tell(ask="counts")
        deadline = time.monotonic() + timeout
        while True:
            message = self._hear_in_time(deadline)
            if "counts" in message:
                return [int(count) for count in message["counts"]]
            self._note(message)

    def wait_counts(
        self, expected: list[int], timeout: float = 60, check: Callable[[], None] = lambda: None
    ) -> None:
        """Wait until the counts of the open connections are these; ``check`` may give up."""
        deadline = time.monotonic() + timeout
        while (counts := self.counts()) != expected:
            if time.monotonic() > deadline:
                raise BenchError(
                    f"{len(counts)} connections brought {sum(counts)} bytes to the receiver, "
                    f"in place of {len(expected)} and {sum(expected)}"
                )
            check()
            time.sleep(0.005)

    def _wait(self, done: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            self._note(self._hear_in_time(deadline))

    def _hear_in_time(self, deadline: float) -> dict[str, Any]:
        late = "has not seen the end of every connection"
        return self.hear(deadline - time.monotonic(), late)

    def _take(self, ports: Collection[int]) -> dict[int, Ended]:
        ended = {port: self._ended.pop(port) for port in ports}
        for end in ended.values():
            if end.error is not None:
                raise BenchError(f"a connection broke at the receiver: {end.error}")
        return ended

    def _note(self, message: dict[str, Any]) -> None:
        if "ended" in message:
            self._ended[message["ended"]] = Ended(
                message["received"], message["at"], message["error"]
            )


# What follows runs in the receiver process.


@dataclass(slots=True)
class _Connection:
    sock: socket.socket
    port: int
    received: int = 0
    open: bool = True


class _Counter:
    """Accepts connections, keeps their counts, and tells them to the parent."""

    def __init__(self, control: socket.socket, large_buffers: bool) -> None:
        self.control = control
        self.connections: dict[int, _Connection] = {}
        self.listener = socket.create_server((HOST, 0), backlog=4096)
        self.listener.setblocking(False)
        if large_buffers and _largest_buffer() >= _LARGE_BUFFER:  # else the kernel's are larger
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LARGE_BUFFER)
        self.epoll = select.epoll()
        self.epoll.register(self.listener, select.EPOLLIN)
        self.epoll.register(control, select.EPOLLIN)
        tell(self.control, port=self.listener.getsockname()[1])

    def accept(self) -> _Connection | None:
        try:
            sock, (_, port) = self.listener.accept()
        except BlockingIOError:
            return None
        sock.setblocking(False)
        connection = self.connections[sock.fileno()] = _Connection(sock, port)
        return connection

    def answer(self) -> None:
        """Answer the parent; end the process with it."""
        if not self.control.recv(64):
            raise SystemExit(0)
        counts = [connection.received for connection in self.connections.values()]
        tell(self.control, counts=counts)

    def receive(self, connection: _Connection, into: Callable[[socket.socket], int]) -> None:
        """Receive once; at its end, close the connection and tell its count."""
        error = None
        try:
            received = into(connection.sock)
        except BlockingIOError:
            return
        except ConnectionError as broken:
            received, error = 0, str(broken)
        if received:
            connection.received += received
            return
        at = time.monotonic()
        connection.open = False
        del self.connections[connection.sock.fileno()]
        connection.sock.close()
        tell(
            self.control,
            ended=connection.port,
            received=connection.received,
            at=at,
            error=error,
        )


def _largest_buffer() -> int:
    return int(Path("/proc/sys/net/core/rmem_max").read_text())


def _serve_at_once(counter: _Counter, into: Callable[[socket.socket], int], awake: float) -> None:
    """Receive whatever is there, from every connection; look ``awake`` seconds before a sleep."""
    listener = counter.listener.fileno()
    poll, connections, receive = counter.epoll.poll, counter.connections, counter.receive
    monotonic = time.monotonic
    while True:
        asleep_from = monotonic() + awake
        while not (events := poll(0)):
            if monotonic() >= asleep_from:
                events = poll()
                break
        for descriptor, _ in events:
            connection = connections.get(descriptor)
            if connection is not None:
                receive(connection, into)
            elif descriptor == listener:
                accepted = counter.accept()
                if accepted is not None:
                    counter.epoll.register(accepted.sock, select.EPOLLIN)
            else:
                counter.answer()


def _serve_slowly(counter: _Counter, into: Callable[[socket.socket], int]) -> None:
    """Receive once from each connection in every period, each at its own time in the period."""
    slots: list[list[_Connection]] = [[] for _ in range(_SLOW_SLOTS)]
    listener = counter.listener.fileno()
    due, turn, accepted = time.monotonic(), 0, 0
    while True:
        for descriptor, _ in counter.epoll.poll(max(due - time.monotonic(), 0)):
            if descriptor != listener:
                counter.answer()
            elif (connection := counter.accept()) is not None:
                slots[accepted % _SLOW_SLOTS].append(connection)
                accepted += 1
        if time.monotonic() < due:
            continue
        slot = slots[turn % _SLOW_SLOTS]
        for connection in slot:
            counter.receive(connection, into)
        slot[:] = [connection for connection in slot if connection.open]
        turn += 1
        due += SLOW_PERIOD / _SLOW_SLOTS


def _main(mode: str, awake: float, large_buffers: bool, control: int) -> None:
    with begin_helper(control) as channel:
        counter = _Counter(channel, large_buffers)
        try:
            if mode == "discard":
                # Never touched: it only has to be as long as what may be thrown away at once.
                nothing = mmap.mmap(-1, _DISCARD_AT_ONCE)
                _serve_at_once(
                    counter, lambda sock: sock.recv_into(nothing, 0, socket.MSG_TRUNC), awake
                )
            elif mode == "read":
                buffer = bytearray(_READ_AT_ONCE)
                _serve_at_once(counter, lambda sock: sock.recv_into(buffer), awake)
            else:
                little = bytearray(SLOW_READ)
                _serve_slowly(counter, lambda sock: sock.recv_into(little))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the parent has gone


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]), sys.argv[3] == "1", int(sys.argv[4]))
