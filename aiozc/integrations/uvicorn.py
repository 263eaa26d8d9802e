"""uvicorn's HTTP protocols with ASGI's two extensions for files, carried out by aiozc.

    uvicorn --http aiozc.integrations.uvicorn:HttpToolsProtocol app:app

`http.response.pathsend` is offered on every connection, `http.response.zerocopysend` on those
without TLS. Starlette's and FastAPI's `FileResponse` and `StaticFiles` use the first by
themselves.

Three things are uvicorn's own, as before: what is parsed, what is logged, and each byte that is
no file's. What stands here comes between the application and the `send` of its request:

- A small file whose bytes are cached becomes a body message.
- A larger one goes by `loop_sendfile` into the transport's socket, once the transport has
  written what it held. Nothing is written to the transport meanwhile: other messages of that
  response are refused, and what uvicorn would say of requests behind it waits.
- Over TLS, and on transports of other loops, a file is read in worker threads, as body messages.

The start of a response is kept until the next message, or to the next turn of the loop: it is
sent together with a small file, and a file that cannot be opened is a 500 as long as it has not
left.
"""

import asyncio
import functools
import io
import os
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import h11
from uvicorn.protocols.http import h11_impl, httptools_impl

from aiozc import loop_sendfile
from aiozc._api.arguments import check_offset
from aiozc._api.sendfile import size_of_regular
from aiozc._api.transports import TransportSocket, socket_beneath, wait_written
from aiozc._engines.hosts import in_thread, in_thread_that_may_be_left
from aiozc._engines.opening import open_regular, read_cached
from aiozc._errors import tells_of_lost_connection

Message = Any
"""An event of ASGI's: a dictionary."""

START = "http.response.start"
PATHSEND = "http.response.pathsend"
ZEROCOPYSEND = "http.response.zerocopysend"
_FILES = (PATHSEND, ZEROCOPYSEND)

SMALL = 16 * 1024
"""The most bytes that are read and written rather than sent by the kernel."""
READ = 256 * 1024
"""Bytes of one read in a worker thread."""


async def _nothing() -> None:
    pass


async def _refuse_during_file(kind: str) -> NoReturn:
    raise RuntimeError(f"Unexpected ASGI message {kind!r} sent, during a file.")


class _Shut:
    """A transport to which a cycle must not write: a file is sent beneath it.

    `Response.send` refuses what it is asked for meanwhile, but not the coroutines that it made
    before and that other tasks run now.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> NoReturn:  # noqa: ARG002
        raise RuntimeError("Unexpected ASGI message sent, during a file.")


class Response:
    """What the application sends in answer to one request.

    Responses without a file come through here too, and take 1.5 us more: so much is done without
    a coroutine, and attributes have their first values from the class.
    """

    held: Message = None
    """The start of the response, until it is sent."""
    leaving: asyncio.Task[None] | None = None
    """What sends it, where the application waits for something else first."""
    _start: Message = None
    _mixed = False
    _busy = False

    def __init__(self, protocol: "SendsFiles", cycle: Any) -> None:
        self._protocol = protocol
        self._cycle = cycle

    def send(self, message: Message) -> Any:
        """Do as the application says: ASGI's `send`."""
        kind = message["type"]
        if self._start is None:
            return self._begin(message) if kind == START else self._cycle.send(message)
        if self._busy:
            return _refuse_during_file(kind)
        if kind in _FILES and self._may_send_file(kind):
            return self._send_file(message)
        self._mixed = True
        if self.held is None and self.leaving is None:
            return self._cycle.send(message)
        return self._send_behind_start(message)

    def _begin(self, start: Message) -> Coroutine[Any, Any, None]:
        """Keep the start of the response for the rest of this turn of the loop."""
        cycle = self._cycle
        self._start = self.held = start
        cycle.waiting_for_100_continue = False
        if cycle.flow.write_paused and not cycle.disconnected:
            return self.flush()
        self._protocol.running_loop.call_soon(self._let_go)
        return _nothing()

    def _let_go(self) -> None:
        if self.held is not None and not self._busy:
            start, self.held = self.held, None
            self.leaving = self._protocol.running_loop.create_task(self._cycle.send(start))

    async def flush(self) -> None:
        """Send the start of the response, if it has not left."""
        if self.held is not None:
            start, self.held = self.held, None
            await self._cycle.send(start)
        elif self.leaving is not None:
            # It stays until it has left: messages of several tasks may wait for it.
            await asyncio.shield(self.leaving)
            self.leaving = None

    async def _send_behind_start(self, message: Message) -> None:
        if self.held is not None:  # as `flush` does, without its coroutine
            start, self.held = self.held, None
            await self._cycle.send(start)
        else:
            await self.flush()
        await self._cycle.send(message)

    # Files

    async def _send_file(self, message: Message) -> None:
        if self._busy:  # another was begun since `send` was called
            await _refuse_during_file(message["type"])
        self._busy = True
        try:
            await (self._send_path if message["type"] == PATHSEND else self._send_object)(message)
        finally:
            self._busy = False

    def _may_send_file(self, kind: str) -> bool:
        """Return whether a file may come now; uvicorn's own `send` says why not."""
        offered = kind == PATHSEND or self._protocol.socket is not None
        return offered and not self._cycle.response_complete

    async def _send_path(self, message: Message) -> None:
        if self._mixed:
            raise RuntimeError(f"Unexpected ASGI message {PATHSEND!r} sent, after other content.")
        self._mixed = True
        cycle = self._cycle
        if not self._has_body():
            await self._end(False)
            return
        length = self._content_length()
        try:
            fd, size = await open_regular(message["path"])
        except Exception:
            if self.held is not None:
                # Nothing has left: the application, or uvicorn, may answer otherwise.
                self.held = self._start = None
                self._mixed = False
            raise
        count = size if length is None else min(size, length)
        data = None
        try:
            if count <= SMALL:
                data = read_cached(fd, 0, count)
        except BaseException:
            os.close(fd)
            raise
        if data is not None:
            os.close(fd)
            await self.flush()
            await cycle.send({"type": "http.response.body", "body": data})
            return
        with io.BufferedReader(io.FileIO(fd)) as file:
            await self._send_content(file, 0, count)
        await self._end(False)

    async def _send_object(self, message: Message) -> None:
        file, offset, count = message["file"], message.get("offset"), message.get("count")
        self._mixed = True
        if self._has_body():
            if offset is None:
                offset = file.tell()
            check_offset(offset)
            if count is not None and count < 0:
                raise ValueError(f"count must be a non-negative integer (got {count!r})")
            try:
                rest = max(0, size_of_regular(file) - offset)
                count = rest if count is None else min(count, rest)
            except asyncio.SendfileNotAvailableError:
                await self._read_content(file, offset, count)
            else:
                await self._send_content(file, offset, count)
        await self._end(message.get("more_body", False))

    async def _end(self, more_body: bool) -> None:
        """End the response, as an empty last body message does, if nothing more is to come."""
        await self.flush()
        if not more_body:
            if not self._has_body():
                self._protocol.expect_nothing(self._cycle)
            await self._cycle.send({"type": "http.response.body", "body": b""})
        self._protocol.end_file()

    def _has_body(self) -> bool:
        """Return whether the response has any, as to its request and its status."""
        return self._cycle.scope["method"] != "HEAD" and self._start["status"] not in (204, 304)

    def _content_length(self) -> int | None:
        for name, value in self._start.get("headers", []):
            if name.lower() == b"content-length":
                return int(value)
        return None

    async def _send_content(self, file: Any, offset: int, count: int) -> None:
        """Send bytes of a regular file that has so many."""
        await self.flush()
        protocol, cycle = self._protocol, self._cycle
        sock = protocol.socket
        if sock is None:
            read = await self._read_content(file, offset, count)
            if read < count and not cycle.disconnected:
                raise self._cut(file, offset + read)
            return
        if not count or cycle.disconnected:
            return
        before, after = protocol.frame(cycle, count)
        transport = cycle.transport
        if before:
            transport.write(before)
        protocol.begin_file()
        cycle.transport = _Shut(transport)
        try:
            await wait_written(transport)
            sent = await loop_sendfile(sock, file, offset, count)
        except OSError as error:
            closing = transport.is_closing()
            # A file on a network, or in another process, fails with the same numbers.
            lost = tells_of_lost_connection(error, closing=closing)
            if not lost or (not closing and sock.is_connected()):
                transport.close()
                raise
            if not closing:
                transport.abort()
            # What uvicorn does when it is told, a turn of the loop later.
            self._lose()
            return
        except BaseException:
            transport.close()
            # A transport that has something to write yet takes more of it, closed or not.
            self._lose()
            raise
        finally:
            cycle.transport = transport
        if sent < count:
            raise self._cut(file, offset + sent)
        if after:
            transport.write(after)

    def _lose(self) -> None:
        """Have nothing of the response leave any more."""
        self._cycle.disconnected = True
        self._cycle.message_event.set()

    def _cut(self, file: Any, place: int) -> RuntimeError:
        """Close the connection; return what to raise for a file that ended too early."""
        self._cycle.transport.close()
        return RuntimeError(f"{file!r} was cut at {place} bytes while it was sent")

    async def _read_content(self, file: Any, offset: int, count: int | None) -> int:
        """Send what can be read from a file, as body messages; return how much that was."""
        await self.flush()
        cycle, transport = self._cycle, self._cycle.transport
        cycle.transport = shut = _Shut(transport)
        done = 0
        try:
            seekable = await in_thread(file.seekable)
            if seekable:
                await in_thread(file.seek, offset)
            read = in_thread if seekable else in_thread_that_may_be_left
            while count is None or done < count:
                size = READ if count is None else min(READ, count - done)
                data: Any = await read(file.read, size)
                await cycle.flow.drain()  # so that the next `send` waits for nothing
                if not data or cycle.disconnected:
                    break
                cycle.transport = transport
                await cycle.send({"type": "http.response.body", "body": data, "more_body": True})
                cycle.transport = shut
                done += len(data)
        finally:
            cycle.transport = transport
        return done


class SendsFiles:
    """What both protocols have in common."""

    transport: Any
    flow: Any
    scheme: Any
    running_loop: asyncio.AbstractEventLoop
    """Asked for once: that is a system call, before Python 3.12."""
    socket: TransportSocket | None
    """The connection's socket; None where only its transport may write to it."""
    _application: Any
    _file_under_way = False
    _delayed: Callable[[], None] | None = None

    def connection_made(self, transport: Any) -> None:
        """See uvicorn's protocols."""
        parent: Any = super()
        parent.connection_made(transport)
        self.running_loop = asyncio.get_running_loop()
        self.socket = socket_beneath(transport) if self.scheme == "http" else None

    @property
    def app(self) -> Any:
        """The application as uvicorn's cycle calls it."""
        return self._run

    @app.setter
    def app(self, app: Any) -> None:
        self._application = app

    async def _run(self, scope: Any, receive: Any, send: Any) -> Any:
        """Call the application with what is offered here, for one request."""
        plain = self.socket is not None
        scope["extensions"] = {PATHSEND: {}, ZEROCOPYSEND: {}} if plain else {PATHSEND: {}}
        response = Response(self, send.__self__)
        try:
            return await self._application(scope, receive, response.send)
        finally:
            if response.held is not None or response.leaving is not None:
                await response.flush()

    def begin_file(self) -> None:
        """Let nobody write to the transport."""
        self._file_under_way = True

    def end_file(self) -> None:
        """Let them, and do what somebody wanted to do meanwhile."""
        self._file_under_way = False
        delayed, self._delayed = self._delayed, None
        if delayed is not None and not self.transport.is_closing():
            delayed()

    def _behind_file(self, action: Callable[[], None]) -> None:
        """Do what writes to the transport, now or behind the file."""
        if self._file_under_way:
            self.flow.pause_reading()
            self._delayed = action
        else:
            action()

    def send_400_response(self, msg: str) -> None:
        """See uvicorn's protocols."""
        parent: Any = super()
        self._behind_file(functools.partial(parent.send_400_response, msg))

    def handle_websocket_upgrade(self, *arguments: Any) -> None:
        """See uvicorn's protocols."""
        parent: Any = super()
        self._behind_file(functools.partial(parent.handle_websocket_upgrade, *arguments))

    def frame(self, cycle: Any, count: int) -> tuple[bytes, bytes]:
        """Note that a file's bytes are sent as content; return what to put around them."""
        raise NotImplementedError

    def expect_nothing(self, cycle: Any) -> None:
        """Note that the response has no body, whatever its header says."""


class HttpToolsProtocol(SendsFiles, httptools_impl.HttpToolsProtocol):
    """uvicorn's protocol on httptools, with files."""

    def frame(self, cycle: Any, count: int) -> tuple[bytes, bytes]:
        """See SendsFiles."""
        if cycle.chunked_encoding:
            return b"%x\r\n" % count, b"\r\n"
        if count > cycle.expected_content_length:
            raise RuntimeError("Response content longer than Content-Length")
        cycle.expected_content_length -= count
        return b"", b""

    def expect_nothing(self, cycle: Any) -> None:
        """See SendsFiles."""
        cycle.expected_content_length = 0
        cycle.chunked_encoding = False


class H11Protocol(SendsFiles, h11_impl.H11Protocol):
    """uvicorn's protocol on h11, with files."""

    def frame(self, cycle: Any, count: int) -> tuple[bytes, bytes]:
        """See SendsFiles."""
        content = _Placeholder(count)
        parts = cycle.conn.send_with_data_passthrough(h11.Data(data=content))  # type: ignore[arg-type]
        place = parts.index(content)
        return b"".join(parts[:place]), b"".join(parts[place + 1 :])


class _Placeholder:
    """Stands for a file's bytes in what h11 gives back ("Support for sendfile()", its docs)."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size
