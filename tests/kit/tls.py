"""A TLS connection, whose far end is a thread."""

import contextlib
import ssl
import threading
from pathlib import Path

from tests.kit.connections import socket_pair
from tests.kit.content import KIB

CERTIFICATE = Path(__file__).with_name("certificate.pem")


class Tls:
    """A TLS connection: a non-blocking socket, and a thread that sends `content` and receives.

    It does so when told to proceed, and sends no more when the socket is closed.
    """

    def __init__(self, content: bytes = b"") -> None:
        near, far = socket_pair(sndbuf=64 * KIB, rcvbuf=64 * KIB)
        near.setblocking(True)
        far.setblocking(True)
        self._far = far
        self._content = content
        self.proceed = threading.Event()
        self._received = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        self.sock = context.wrap_socket(near, server_side=True)
        self.sock.setblocking(False)

    def _serve(self) -> None:
        context = ssl.create_default_context(cafile=CERTIFICATE)
        with context.wrap_socket(self._far, server_hostname="localhost") as sock:
            self.proceed.wait()
            if self._content:
                with contextlib.suppress(OSError):  # it was closed over what it did not read
                    sock.sendall(self._content)
                    sock.unwrap()
                return
            while chunk := sock.recv(64 * KIB):
                self._received += chunk

    def end(self) -> bytes:
        """Close, and return what arrived."""
        self.sock.close()
        self.proceed.set()
        self._thread.join()
        return self._received


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the server's and the client's."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(CERTIFICATE)
    return server, ssl.create_default_context(cafile=CERTIFICATE)
