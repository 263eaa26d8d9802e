"""uvicorn's HTTP protocols with ASGI's two extensions for files, carried out by aiozc.

    uvicorn --http aiozc.integrations.uvicorn:Auto app:app

`http.response.pathsend` is offered on every connection, `http.response.zerocopysend` on those
without TLS; both to those alone whose messages arrive here (`_offers`), and to nobody where
`AIOZC_PATHSEND=0` is set. Starlette's and FastAPI's `FileResponse` and `StaticFiles` use the first
by themselves.

`Auto` is `HttpToolsProtocol` where httptools is installed, otherwise `H11Protocol`. `use()` makes
it uvicorn's default, for what runs uvicorn and lets nobody choose.

Three things are uvicorn's own, as before: what is parsed, what is logged, and each byte that is
no file's. What stands here comes between the application and the `send` of its request:

- A small file whose bytes are cached becomes a body message.
- A larger one goes by `loop_sendfile` into the socket of the transport, which is held meanwhile:
  other messages of that response are refused, and requests behind it are read afterwards.
- Over TLS, and on transports of other loops, a file is read in worker threads, as body messages.

Where an application has asked for one of the two, the start of its response is kept until the next
message, or to the next turn of the loop: it is sent together with a small file, and a file that
cannot be opened is a 500 as long as it has not left.
"""

import asyncio
import fcntl
import functools
import io
import logging
import os
import stat
import sys
import termios
from collections.abc import Coroutine
from functools import partial
from typing import Any, NoReturn

import h11
import uvicorn
import uvicorn.config
from uvicorn.protocols.http import h11_impl

from aiozc import probe, splice_pipe
from aiozc._api.arguments import check_binary, check_offset, check_readable, plain_file, shown
from aiozc._api.gates import Gate, can_be_held, refusing
from aiozc._api.sendfile import send_regular, size_of_regular
from aiozc._api.transports import Reading, Send, send_through
from aiozc._drivers.fallback import READ
from aiozc._engines.inline import SMALL
from aiozc._engines.opening import open_regular, read_cached
from aiozc._engines.registry import count_fallback
from aiozc._runtime.runtime import current
from aiozc._runtime.threads import in_thread, in_thread_that_may_be_left
from aiozc.integrations._bodies import Body, length_of_body
from aiozc.integrations._offers import PATHSEND, ZEROCOPYSEND, Offers

Message = Any
"""An event of ASGI's: a dictionary."""

START = "http.response.start"
_FILES = (PATHSEND, ZEROCOPYSEND)
_PLAIN, _TLS = _FILES, (PATHSEND,)
VARIABLE = "AIOZC_PATHSEND"

_REREAD_S = 60.0
"""Seconds after which a stream that was silent is read again, in case it was missed."""

_logger = logging.getLogger("uvicorn.error")


async def _nothing() -> None:
    pass


async def _refuse_during_file(kind: str) -> NoReturn:
    raise RuntimeError(f"Unexpected ASGI message {kind!r} sent, during a file.")


class Response:
    """What the application sends in answer to one request.

    Responses without a file come through here too: so nothing is kept where nobody has asked for
    files, much is done without a coroutine, and slots are set where it is made, without a call.
    """

    __slots__ = (
        *("cycle", "held", "is_mixed", "is_plain", "leaving", "offers", "protocol", "start"),
        "_busy",
    )

    protocol: "SendsFiles"
    cycle: Any
    offers: Offers
    is_plain: bool
    """Whether nobody has been told that files may come, and none has."""
    start: Message
    """What the application has begun with."""
    is_mixed: bool
    """Whether more has followed."""
    held: Message
    """The start of the response, until it is sent."""
    leaving: asyncio.Task[None] | None
    """What sends it, where the application waits for something else first."""
    _busy: bool

    def expect_files(self) -> None:
        """Take files from here on."""
        if self.is_plain:
            self.is_plain = self._busy = False
            self.held = self.leaving = None

    def send(self, message: Message) -> Any:
        """Do as the application says: ASGI's `send`."""
        kind = message["type"]
        if not self.is_plain or kind in _FILES:
            return self._send(kind, message)
        if self.start is not None:
            self.is_mixed = True
        elif kind == START:
            self.start = message
        return self.cycle.send(message)

    def _send(self, kind: str, message: Message) -> Any:
        """Do so where there may be files."""
        self.expect_files()
        if self.start is None:
            return self._hold(message) if kind == START else self.cycle.send(message)
        if self._busy:
            return _refuse_during_file(kind)
        if kind in _FILES and self._may_send_file(kind):
            return self._send_file(message)
        self.is_mixed = True
        if self.held is None and self.leaving is None:
            return self.cycle.send(message)
        return self._send_behind_start(message)

    def _hold(self, start: Message) -> Coroutine[Any, Any, None]:
        """Keep the start of the response for the rest of this turn of the loop."""
        cycle = self.cycle
        self.start = self.held = start
        cycle.waiting_for_100_continue = False
        if cycle.flow.write_paused and not cycle.disconnected:
            return self.flush()
        self.protocol.running_loop.call_soon(self._let_go)
        return _nothing()

    def _let_go(self) -> None:
        if self.held is not None and not self._busy:
            start, self.held = self.held, None
            if not self.cycle.response_started:  # by uvicorn, as a 500
                self.leaving = self.protocol.running_loop.create_task(self.cycle.send(start))

    async def flush(self) -> None:
        """Send the start of the response, if it has not left."""
        if self.held is not None:
            start, self.held = self.held, None
            await self.cycle.send(start)
        elif self.leaving is not None:
            # It stays until it has left: messages of several tasks may wait for it.
            await asyncio.shield(self.leaving)
            self.leaving = None

    async def _send_behind_start(self, message: Message) -> None:
        if self.held is not None:  # as `flush` does, without its coroutine
            start, self.held = self.held, None
            await self.cycle.send(start)
        else:
            await self.flush()
        await self.cycle.send(message)

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
        offered = kind == PATHSEND or self.protocol.is_plain
        return offered and not self.cycle.response_complete

    async def _send_path(self, message: Message) -> None:
        if self.is_mixed:
            raise RuntimeError(f"Unexpected ASGI message {PATHSEND!r} sent, after other content.")
        self.is_mixed = True
        cycle = self.cycle
        if not self._has_body():
            await self._end(False)
            return
        length = self._content_length()
        try:
            fd, size = await open_regular(message["path"])
        except Exception:
            self._forget_start()
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
        file: Any
        with io.FileIO(fd) as file:
            file.name = message["path"]  # errors show it
            loop = self.protocol.running_loop

            def send(sock: Any) -> Coroutine[Any, Any, int]:
                return send_regular(loop, sock, file, 0, count, count)

            await self._send_content(send, file, 0, count)
        await self._end(False)

    async def _send_object(self, message: Message) -> None:
        if self._has_body():
            try:
                file = _as_file(message["file"])
                offset, count = _place(file, message.get("offset"), message.get("count"))
            except Exception:
                if not self.is_mixed:
                    self._forget_start()
                raise
            self.is_mixed = True
            try:
                rest = max(0, size_of_regular(file) - offset)
                count = rest if count is None else min(count, rest)
            except asyncio.SendfileNotAvailableError:
                await self._read_content(file, offset, count)
            else:
                loop, end = self.protocol.running_loop, offset + count

                def send(sock: Any) -> Coroutine[Any, Any, int]:
                    return send_regular(loop, sock, file, offset, count, end)

                await self._send_content(send, file, offset, count)
        self.is_mixed = True
        await self._end(message.get("more_body", False))

    def _forget_start(self) -> None:
        """Let the application, or uvicorn, answer otherwise, if nothing has left."""
        if self.held is not None:
            self.held = self.start = None
            self.is_mixed = False

    async def _end(self, more_body: bool) -> None:
        """End the response, as an empty last body message does, if nothing more is to come."""
        await self.flush()
        if not more_body:
            if not self._has_body():
                self.protocol.expect_nothing(self.cycle)
            await self.cycle.send({"type": "http.response.body", "body": b""})

    def _has_body(self) -> bool:
        """Return whether the response has any, as to its request and its status."""
        return self.cycle.scope["method"] != "HEAD" and self.start["status"] not in (204, 304)

    def _content_length(self) -> int | None:
        for name, value in self.start.get("headers", []):
            if name.lower() == b"content-length":
                return int(value)
        return None

    async def _send_content(self, send: Send, file: Any, offset: int, count: int) -> None:
        """Send bytes of a regular file that has so many, by `send` if the kernel may."""
        await self.flush()
        protocol, cycle = self.protocol, self.cycle
        if not protocol.is_plain:
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
        try:
            sent = await send_through(transport, protocol.gate, send, Reading.DEFERRED)
        except BaseException as error:
            # A file on a network, or in another process, fails as a connection does.
            is_lost = isinstance(error, ConnectionError) and transport.is_closing()
            transport.close()
            # What uvicorn does when it is told, a turn of the loop later; and a transport that has
            # something to write yet takes more of it, closed or not.
            cycle.disconnected = True
            cycle.message_event.set()
            if is_lost:
                return
            raise
        if sent < count:
            raise self._cut(file, offset + sent)
        if after:
            transport.write(after)

    def _cut(self, file: Any, place: int) -> RuntimeError:
        """Close the connection; return what to raise for a file that ended too early."""
        self.cycle.transport.close()
        return RuntimeError(f"{file!r} was cut at {place} bytes while it was sent")

    async def _read_content(self, file: Any, offset: int, count: int | None) -> int:
        """Send what can be read from a file, as body messages; return how much that was.

        What stands in a pipe is spliced. `send` refuses what it is asked for meanwhile, but not the
        coroutines that it made before and that other tasks run now: so the transport does.
        """
        await self.flush()
        count_fallback(self.protocol.running_loop)
        cycle, gate = self.cycle, self.protocol.gate
        done = 0
        gate.shut()
        try:
            seekable = _is_seekable(file)
            if seekable:
                await in_thread(file.seek, offset)
            while (count is None or done < count) and not cycle.disconnected:
                size = READ if count is None else min(READ, count - done)
                if spliced := min(size, _bytes_in_pipe(file)) if self.protocol.is_plain else 0:
                    gate.open()
                    await self._send_content(partial(_splice, file, spliced), file, done, spliced)
                    gate.shut()
                    done += spliced
                    continue
                data: Any = await (
                    in_thread(file.read, size) if seekable else _read_some(file, size)
                )
                await cycle.flow.drain()  # so that the next `send` waits for nothing
                if not data or cycle.disconnected:
                    break
                gate.open()
                await cycle.send({"type": "http.response.body", "body": data, "more_body": True})
                gate.shut()
                done += len(data)
        finally:
            gate.open()
        return done


def _as_file(given: Any) -> Any:
    """Return a file object for what a message has as its file: closing it is left to others."""
    if isinstance(given, int):
        return io.FileIO(given, closefd=False)
    file = plain_file(given)
    check_binary(file)
    if not hasattr(file, "read") and hasattr(file, "fileno"):
        return io.FileIO(file.fileno(), closefd=False)
    check_readable(file, 0)
    return file


def _place(file: Any, offset: int | None, count: int | None) -> tuple[int, int | None]:
    """Return where to begin, and how much to send. A file without places has 0 alone."""
    seekable = _is_seekable(file)
    if offset is None:
        offset = file.tell() if seekable else 0
    check_offset(offset)
    if offset and not seekable:
        raise ValueError(f"{shown(file)} cannot seek: its offset must be 0, not {offset}")
    if count is not None and not isinstance(count, int):
        raise TypeError(f"count must be a non-negative integer (got {count!r})")
    if count is not None and count < 0:
        raise ValueError(f"count must be a non-negative integer (got {count!r})")
    return offset, count


def _is_seekable(file: Any) -> bool:
    return bool(file.seekable()) if hasattr(file, "seekable") else hasattr(file, "seek")


def _bytes_in_pipe(file: Any) -> int:
    """Return how many bytes stand in a pipe that nobody reads ahead; 0 for what is none."""
    if not isinstance(file, io.FileIO) or not stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
        return 0
    return int.from_bytes(fcntl.ioctl(file.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


def _splice(pipe: Any, count: int, sock: Any) -> Coroutine[Any, Any, int]:
    return splice_pipe(pipe, sock, count)


async def _read_some(stream: Any, size: int) -> Any:
    """Return what a stream has to give, once there is something; nothing at its end."""
    read = getattr(stream, "read1", stream.read)
    while True:
        data = await in_thread_that_may_be_left(read, size)
        if data:
            return data
        if data is not None:
            raw = getattr(stream, "raw", None)
            if not isinstance(raw, io.FileIO) or os.get_blocking(raw.fileno()):
                return data
            # `read1` says the same of an end and of nothing yet.
            data = await in_thread_that_may_be_left(raw.read, size)
            if data is not None:
                return data
        # It does not block, and has nothing yet. Others may wait for its number.
        fd = os.dup(stream.fileno())
        try:
            await current().wait_ready(fd, _REREAD_S, writing=False)
        finally:
            os.close(fd)


class SendsFiles:
    """What both protocols have in common."""

    offers_files = os.environ.get(VARIABLE) != "0"
    """Whether applications are offered the extensions; false in a subclass, or by AIOZC_PATHSEND=0,
    files are sent as by uvicorn's own protocols."""

    transport: Any
    flow: Any
    scheme: Any
    running_loop: asyncio.AbstractEventLoop
    """Asked for once: that is a system call, before Python 3.12."""
    gate: Gate
    """Shut while something of a file is sent."""
    is_plain: bool
    """Whether the kernel may send into the connection's socket."""
    app: Any
    application: Any
    """The application that is served: `app` offers it files."""
    _names: tuple[str, ...]

    def connection_made(self, transport: Any) -> None:
        """See uvicorn's protocols."""
        parent: Any = super()
        proxy, self.gate = refusing(transport)
        parent.connection_made(proxy)
        _tell()
        self.running_loop = asyncio.get_running_loop()
        self.is_plain = self.scheme == "http" and can_be_held(transport)
        self._names = (_PLAIN if self.is_plain else _TLS) if self.offers_files else ()
        self.application, self.app = self.app, self._run

    def connection_lost(self, exc: Exception | None) -> None:
        """See uvicorn's protocols."""
        parent: Any = super()
        parent.connection_lost(exc)
        self.app = self.application  # the other leads here: a circle

    def _run(self, scope: Any, receive: Any, send: Any) -> Any:
        """Call the application with what is offered here, for one request."""
        if not self._names:
            return self.application(scope, receive, send)
        offers = Offers(scope["extensions"]) if "extensions" in scope else Offers()
        offers.application, offers.names = self.application, self._names
        scope["extensions"] = offers
        response = Response()
        response.protocol, response.cycle, response.offers = self, send.__self__, offers
        response.is_plain, response.start, response.is_mixed = True, None, False
        cycle = response.cycle
        if cycle.more_body and self.is_plain and (length := length_of_body(scope["headers"])):
            return Body(self, cycle, length).run(self.application, scope, response.send, offers)
        return self.application(scope, receive, response.send)

    def frame(self, cycle: Any, count: int) -> tuple[bytes, bytes]:
        """Note that a file's bytes are sent as content; return what to put around them."""
        raise NotImplementedError

    def expect_nothing(self, cycle: Any) -> None:
        """Note that the response has no body, whatever its header says."""

    def answer_continue(self) -> None:
        """Ask a client for the body that waits with it (RFC 9110, 10.1.1)."""
        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def expects_of_body(self, rest: int) -> bool:
        """Return whether the parser waits for so many bytes of a body, as far as can be known."""
        raise NotImplementedError

    def skip_body(self, gone: int, rest: int) -> None:
        """Have the parser go on behind bytes of a body that it has not seen, before `rest` more."""
        raise NotImplementedError


class H11Protocol(SendsFiles, h11_impl.H11Protocol):
    """uvicorn's protocol on h11, with files."""

    def frame(self, cycle: Any, count: int) -> tuple[bytes, bytes]:
        """See SendsFiles."""
        content = _Placeholder(count)
        parts = cycle.conn.send_with_data_passthrough(h11.Data(data=content))  # type: ignore[arg-type]
        place = parts.index(content)
        return b"".join(parts[:place]), b"".join(parts[place + 1 :])

    def answer_continue(self) -> None:
        """See SendsFiles."""
        answer = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
        self.transport.write(self.conn.send(answer))

    def expects_of_body(self, rest: int) -> bool:
        """See SendsFiles: h11 counts down, in a place that nothing else leads to."""
        reader = getattr(self.conn, "_reader", None)
        return bool(getattr(reader, "_remaining", None) == rest)

    def skip_body(self, gone: int, rest: int) -> None:  # noqa: ARG002
        """See SendsFiles."""
        reader: Any = self.conn._reader
        reader._remaining -= gone
        self.handle_events()


class _Placeholder:
    """Stands for a file's bytes in what h11 gives back ("Support for sendfile()", its docs)."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


try:
    import httptools
    from uvicorn.protocols.http import httptools_impl
except ImportError:
    _auto: type[SendsFiles] = H11Protocol
else:

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

        def expects_of_body(self, rest: int) -> bool:
            """See SendsFiles: this parser does not tell."""
            return rest > 0

        def skip_body(self, gone: int, rest: int) -> None:  # noqa: ARG002
            """See SendsFiles: another parser begins with a request that has `rest` of a body."""
            keeps = b"keep-alive" if self.parser.should_keep_alive() else b"close"
            self.parser = httptools.HttpRequestParser(_WithinBody(self))
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.parser.feed_data(
                b"POST / HTTP/1.1\r\nconnection: %b\r\ncontent-length: %d\r\n\r\n" % (keeps, rest)
            )

    class _WithinBody:
        """A protocol that is told of the body of a parser's first request, and not of its head."""

        def __init__(self, protocol: HttpToolsProtocol) -> None:
            self._protocol = protocol
            self._has_begun = False

        def __getattr__(self, name: str) -> Any:
            return getattr(self._protocol, name)

        def on_headers_complete(self) -> None:
            """See httptools."""
            if self._has_begun:
                self._protocol.on_headers_complete()
            self._has_begun = True

    _auto = HttpToolsProtocol

Auto: type[SendsFiles]
"""The one of both whose parser is there."""


def __getattr__(name: str) -> Any:
    if name == "Auto":
        _tell_if_heard()  # `use` was called, and its module imported, before there was a log
        return _auto
    if name == "HttpToolsProtocol":
        raise ImportError(
            "HttpToolsProtocol needs httptools, which cannot be imported: pip install httptools, or"
            " take H11Protocol, or Auto"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def use() -> None:
    """Have uvicorn take `Auto` wherever nothing else is asked for.

    For what runs uvicorn and has no option for its protocol, as `fastapi run`: called in the module
    of the application, which that imports before. Servers that a program has configured already
    stay as they are.
    """
    name = f"{__name__}:Auto"
    uvicorn.config.HTTP_PROTOCOLS["auto"] = name
    # A process that it starts (--workers, --reload) imports the application later than that, and
    # gets this.
    defaults: Any = uvicorn.run.__kwdefaults__
    if defaults and defaults.get("http") == "auto":
        defaults["http"] = name


@functools.cache
def _tell() -> None:
    """Say once how files are sent, and why."""
    if not SendsFiles.offers_files:
        _logger.info("aiozc: files are sent by uvicorn itself: %s=0", VARIABLE)
        return
    try:
        found = probe()
    except (OSError, ValueError) as error:
        _logger.warning("aiozc: how files are sent cannot be told: %s", error)
        return
    level = logging.WARNING if found.refused or found.liburing_fault else logging.INFO
    _logger.log(level, "aiozc: files are sent by %s: %s", found.backend, found.reason)


def _tell_if_heard() -> None:
    """Say it at once where uvicorn has set its logging up, and begins; else a connection does."""
    if _logger.hasHandlers():
        _tell()


_tell_if_heard()
