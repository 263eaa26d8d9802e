"""Where bytes come from: a process of its own that sends a file, by sendfile(2) that blocks."""

import json
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final

from bench.processes import Helper, begin_helper, tell

CONGESTION: Final = b"cubic"
"""The senders' congestion control: the kernel's default, whatever this machine has set.

BBR paces by timers, at a rate that it estimates anew in every gap: on loopback one and the same
sender took 0.13 or 0.46 s for a GiB, with 300 or 14,000 timer interrupts (Linux 6.18).
"""
AT_ONCE: Final = 64
"""The connections, at most, that are sent to at once; the others wait for their turn."""


class Source(Helper):
    """A process that sends parts of one file, which should be cached."""

    def __init__(self, file: Path) -> None:
        super().__init__("the source", "bench.sources", str(file))

    def connect(self, address: tuple[str, int], connections: int) -> None:
        """Open connections; they stand until ``send`` has ended them."""
        self.tell(do="connect", address=address, connections=connections)
        self.hear(timeout=30)

    def send(self, size: int, *, end: bool = True) -> None:
        """Begin to send so many bytes over each connection, to all at once, each its own part.

        With ``end`` each is shut down after its last byte, and closed when the far end has ended
        it too.
        """
        self.tell(do="send", size=size, end=end)

    def wait_sent(self, timeout: float = 60) -> None:
        """Wait until all is done that ``send`` began."""
        self.hear(timeout, late="has not seen the end of every connection")


# What follows runs in the source process.


class _Sender:
    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.length = os.fstat(file.fileno()).st_size
        self.socks: list[socket.socket] = []
        self.threads = ThreadPoolExecutor(AT_ONCE)

    def connect(self, address: tuple[str, int], connections: int) -> None:
        for _ in range(connections):
            sock = socket.create_connection(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
            self.socks.append(sock)

    def send(self, size: int, end: bool) -> None:
        # A thread each, which is one system call for most of a GB: it costs next to no CPU time.
        list(self.threads.map(lambda i: self._send_one(i, size, end), range(len(self.socks))))
        if end:
            for sock in self.socks:
                if sock.recv(1):
                    raise ValueError("the far end sent something")
                sock.close()
            self.socks.clear()

    def _send_one(self, index: int, size: int, end: bool) -> None:
        sock, sent = self.socks[index], 0
        offset = index * size % self.length
        while sent < size:
            at = (offset + sent) % self.length
            sent += os.sendfile(
                sock.fileno(), self.file.fileno(), at, min(size - sent, self.length - at)
            )
        if end:
            sock.shutdown(socket.SHUT_WR)


def _main(path: str, control: int) -> None:
    with begin_helper(control) as channel, Path(path).open("rb") as file:
        sender = _Sender(file)
        actions: dict[str, Callable[..., None]] = {"connect": sender.connect, "send": sender.send}
        for line in channel.makefile("rb"):
            order: dict[str, Any] = json.loads(line)
            action = actions[order.pop("do")]
            try:
                action(**order)
            except (OSError, ValueError) as error:
                tell(channel, failed=str(error))
                # At once: threads may still be sending to a far end that does not read.
                os._exit(1)
            tell(channel, done=True)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
