"""uvicorn's protocols with files, served on the loop under test; and clients for them."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple, Self

import pytest
import uvicorn
from uvicorn.server import ServerState

from aiozc.integrations.uvicorn import H11Protocol, HttpToolsProtocol
from tests.kit.tls import CERTIFICATE
from tests.kit.waiting import until

Application = Callable[[Any, Any, Any], Any]


class Answer(NamedTuple):
    """A response, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """A connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def ask(self, method: str = "GET", path: str = "/", **headers: str) -> None:
        """Send a request without a body."""
        lines = [f"{method} {path} HTTP/1.1", "Host: here"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())

    async def head(self) -> tuple[int, dict[str, str]]:
        """Return the next response's status and headers, once they are there."""
        status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines if line)
        return int(status.split()[1]), {name.lower(): value for name, value in pairs}

    async def answer(self, method: str = "GET") -> Answer:
        """Return the next response, once it is there, all of it; `method`: asked for by that."""
        status, headers = await self.head()
        if method == "HEAD" or status in (204, 304):
            body = b""
        elif "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            assert headers["transfer-encoding"] == "chunked"
            body = await self._chunks()
        return Answer(status, headers, body)

    async def get(self, path: str = "/", method: str = "GET") -> Answer:
        """Ask, and return the response."""
        self.ask(method, path)
        return await self.answer(method)

    async def rest(self) -> bytes:
        """Return what comes until the server ends the connection."""
        return await self.reader.read()

    async def _chunks(self) -> bytes:
        chunks = []
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            chunks.append(await self.reader.readexactly(size))
            assert await self.reader.readexactly(2) == b"\r\n"
        assert await self.reader.readexactly(2) == b"\r\n"
        return b"".join(chunks)


class Served:
    """An application, served by one of the protocols."""

    def __init__(self, server: asyncio.Server, state: ServerState, *, tls: bool) -> None:
        self.server = server
        self.state = state
        self.host, self.port = server.sockets[0].getsockname()
        self._tls = ssl.create_default_context(cafile=CERTIFICATE) if tls else None
        self.url = f"{'https' if tls else 'http'}://{'localhost' if tls else self.host}:{self.port}"

    async def connect(self, limit: int = 64 * 1024) -> Client:
        """Connect to it; the client reads `limit` bytes ahead, or twice of it."""
        name = "localhost" if self._tls else None
        return Client(
            *await asyncio.open_connection(
                self.host, self.port, ssl=self._tls, server_hostname=name, limit=limit
            )
        )

    async def close(self) -> None:
        """End it: connections that are idle end, those that are not are waited for."""
        self.server.close()
        for connection in list(self.state.connections):
            connection.shutdown()
        await until(lambda: not self.state.connections and not self.state.tasks)


class Serve:
    """Serve applications; see `serve`."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self._served: list[Served] = []

    async def __call__(
        self, app: Application, protocol: Any = None, *, tls: bool = False, **options: Any
    ) -> Served:
        """Serve it, by another protocol if one is given."""
        config = uvicorn.Config(
            app, http=protocol or self.protocol, lifespan="off", log_config=None, **options
        )
        config.load()
        state = ServerState()
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
        make: Any = config.http_protocol_class
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: make(config=config, server_state=state, app_state={}, _loop=loop),
            "127.0.0.1",
            0,
            ssl=context,
        )
        served = Served(server, state, tls=tls)
        self._served.append(served)
        return served

    async def close(self) -> None:
        """End them all."""
        for served in self._served:
            await served.close()


@pytest.fixture(
    params=[pytest.param(HttpToolsProtocol, id="httptools"), pytest.param(H11Protocol, id="h11")]
)
def protocol(request: pytest.FixtureRequest) -> Any:
    """Run the test with each of the protocols."""
    return request.param


@pytest.fixture
async def serve(protocol: Any) -> AsyncIterator[Serve]:
    """Serve applications on this loop."""
    serve = Serve(protocol)
    yield serve
    await serve.close()


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """Keep what uvicorn logs as an error, each with its exception's text."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            exception = record.exc_info[1] if record.exc_info else ""
            lines.append(f"{record.getMessage().strip()} {exception}".strip())

    handler = Keep(logging.ERROR)
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
