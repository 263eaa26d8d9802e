"""Connections between two sockets."""

import contextlib
import io
import socket
import time

from tests.kit.content import KIB

Descriptor = socket.socket | io.RawIOBase


def socket_pair(
    family: int = socket.AF_INET, *, sndbuf: int | None = None, rcvbuf: int | None = None
) -> tuple[socket.socket, socket.socket]:
    """Return two ends of a stream connection, the near one and the far one, both non-blocking."""
    if family == socket.AF_UNIX:
        near, far = socket.socketpair(socket.AF_UNIX)
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            if rcvbuf is not None:  # the window is agreed on while connecting
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
    if sndbuf is not None:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    near.setblocking(False)
    far.setblocking(False)
    return near, far


def fill(sock: socket.socket) -> int:
    """Send zeros until the send buffer takes no more; return how many it took.

    What the kernel moves on to the receiver's buffer a moment later makes room once more.
    """
    sent, before = 0, -1
    while sent != before:
        before = sent
        for size in (64 * KIB, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += sock.send(bytes(size))
        time.sleep(0.002)
    return sent
