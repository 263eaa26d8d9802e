"""TLS connections, whose far ends are threads."""

import asyncio
import contextlib
import socket
import ssl
import threading
from pathlib import Path
from typing import Self

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


class Terminator:
    """The far ends of TLS connections, decrypted by a thread with a loop of its own.

    TLS ends both ways: so does each of these connections when the decrypted side has ended.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._bridges: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def decrypted(self, far: socket.socket) -> socket.socket:
        """Take the server's end of a connection; return what is to be used in its place."""
        outer, inner = socket_pair(socket.AF_UNIX)

        def start() -> None:
            bridge = self._loop.create_task(self._bridge(far, inner))
            self._bridges.add(bridge)

        self._loop.call_soon_threadsafe(start)
        return outer

    async def _bridge(self, far: socket.socket, inner: socket.socket) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        plain_reader, plain = await asyncio.open_connection(sock=inner)
        transports: list[asyncio.WriteTransport] = [plain.transport]
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: protocol, far, ssl=contexts()[0]
            )
            transports.append(transport)
            tls = asyncio.StreamWriter(transport, protocol, reader, self._loop)
            back = asyncio.create_task(self._copy(plain_reader, tls))
            await self._copy(reader, plain)
            back.cancel()
            await asyncio.wait([back])
            plain.close()
            await plain.wait_closed()
        except OSError:
            pass
        finally:
            for closing in transports:
                with contextlib.suppress(AttributeError):  # it has closed, and has no loop
                    closing.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(64 * KIB):
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            else:
                writer.close()

    async def _end(self) -> None:
        for bridge in self._bridges:
            bridge.cancel()
        if self._bridges:
            await asyncio.wait(self._bridges)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
