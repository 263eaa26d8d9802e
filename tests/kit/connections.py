"""Connections between two sockets."""

import contextlib
import fcntl
import io
import socket
import sys
import time

from tests.kit.content import KIB

Descriptor = socket.socket | io.RawIOBase
_SIOCOUTQ, _SIOCOUTQNSD = 0x5411, 0x894B  # linux/sockios.h: all that is queued, the unsent of it


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

    By TCP what the receiver acknowledges a moment later makes room once more.
    """
    sent, before = 0, -1
    while sent != before:
        before = sent
        for size in (64 * KIB, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += sock.send(bytes(size))
        while sock.family != socket.AF_UNIX and _in_flight(sock):
            time.sleep(0.001)
    return sent


def _in_flight(sock: socket.socket) -> int:
    """Return how many bytes have been sent and not been acknowledged."""
    queued, unsent = (fcntl.ioctl(sock, what, bytes(4)) for what in (_SIOCOUTQ, _SIOCOUTQNSD))
    return int.from_bytes(queued, sys.byteorder) - int.from_bytes(unsent, sys.byteorder)
