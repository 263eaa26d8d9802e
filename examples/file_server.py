"""Serve the files below a folder, by HTTP/1.1.

    python examples/file_server.py DIR [--host H] [--port P]

Then ask for one (127.0.0.1 and port 8080 unless others are given; with port 0 the system picks
one):

    curl --range 0-99 http://127.0.0.1:8080/name

GET and HEAD, conditional requests, ranges (of several in one request the whole file is sent, as
RFC 9110 allows), keep-alive and pipelining. Folders are refused, symbolic links below DIR are not
followed, and what is no regular file is not there. A request with a body is its connection's last.

It waits for no disk: what has not been opened lately is opened in a thread, what is small and
cached goes with its header, and everything else by `loop.sendfile`, which is aiozc's. Logs, and
patience with slow clients, are left to a proxy before it.
"""

import argparse
import asyncio
import contextlib
import email.utils
import errno
import functools
import mimetypes
import os
import re
import stat
import time
import urllib.parse
from http import HTTPStatus

import httptools
import uvloop

import aiozc

SMALL = 16 * 1024  # bytes of a file that is read and written with its header
LONGEST = 64 * 1024  # bytes of a request's header
KNOWN = 10_000  # files that are remembered as opened
LINGER = 2  # seconds for the client to read the last answer in
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
RANGE = re.compile(rb"bytes=\s*(\d{0,18})-(\d{0,18})", re.IGNORECASE)

Names = tuple[bytes, ...]  # folders and a file, each below the one before
Headers = dict[bytes, bytes]
Bytes = bytes | bytearray

guess_type = functools.lru_cache(1000)(mimetypes.guess_type)
http_date = functools.lru_cache(1000)(functools.partial(email.utils.formatdate, usegmt=True))


def names_in(url: bytes) -> Names:
    """Return the names on a URL's path; PermissionError where it is none of a file below DIR."""
    path = urllib.parse.unquote_to_bytes(httptools.parse_url(url).path or b"/")
    names = tuple(name for name in path.split(b"/") if name not in (b"", b"."))
    if b".." in names or b"\0" in path or path.endswith((b"/", b"/.")):
        raise PermissionError(path)
    return names


def open_below(folder: int, names: Names) -> int:
    """Open a file name by name, so that no link on the way leads out of the folder."""
    if len(names) == 1:
        return os.open(names[0], FLAGS, dir_fd=folder)
    inner = os.open(names[0], FLAGS | os.O_DIRECTORY, dir_fd=folder)
    try:
        return open_below(inner, names[1:])
    finally:
        os.close(inner)


def range_in(field: bytes, size: int) -> tuple[int, int] | None:
    """Return a range's first byte and the one behind its last; None for what is no single range."""
    match = RANGE.fullmatch(field)
    first, last = match.groups() if match else (b"", b"")
    if not first:
        return (max(0, size - int(last)), size) if last else None
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size


def is_known(headers: Headers, tag: bytes, changed: float) -> bool:
    """Return whether the client has the file as it is (RFC 9110, 13.2.2)."""
    if tags := headers.get(b"if-none-match"):
        return tags == b"*" or tag in tags  # with its quotes it is no part of another
    if since := headers.get(b"if-modified-since"):
        with contextlib.suppress(ValueError, OverflowError):  # where it is no date
            date = email.utils.parsedate_to_datetime(since.decode("latin-1"))
            return int(changed) <= date.timestamp()
    return False


class Connection(asyncio.Protocol):
    """One client: its requests are answered in their order, one after the other."""

    transport: asyncio.Transport

    def __init__(self, folder: int, known: dict[Names, None]) -> None:
        self.folder, self.known = folder, known
        self.loop = asyncio.get_running_loop()
        self.parser = httptools.HttpRequestParser(self)
        self.url, self.headers, self.fed = b"", Headers(), 0
        self.requests: list[tuple[bytes, bytes, Headers]] = []
        self.task: asyncio.Task[None] | None = None  # answers them
        self.ended = False  # nothing that comes is a request any more
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def eof_received(self) -> bool:
        self.ended = True
        return self.task is not None  # then the connection stays, for the answers

    def data_received(self, data: bytes) -> None:
        if self.ended:
            return
        self.fed += len(data)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self.ended:
                self.requests.append((b"", b"", {}))  # no method that there is
                self.ended = True
        if self.fed > LONGEST:
            self.transport.abort()
        elif self.task:
            self.transport.pause_reading()
        elif self.requests:
            self.task = self.loop.create_task(self.answer_all())

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self.ended:
            return
        parser, headers = self.parser, self.headers
        self.requests.append((parser.get_method(), self.url, headers))
        has_body = b"content-length" in headers or b"transfer-encoding" in headers
        keeps_alive = parser.should_keep_alive() and parser.get_http_version() == "1.1"
        self.ended = has_body or parser.should_upgrade() or not keeps_alive
        self.url, self.headers, self.fed = b"", {}, 0

    async def answer_all(self) -> None:
        """Answer what has been asked, and end the connection behind the last request."""
        try:
            while self.requests and not self.transport.is_closing():
                await self.answer(*self.requests.pop(0))
                await self.writable.wait()
                if self.requests:  # others have their turn between two of one client
                    await asyncio.sleep(0)
        except BaseException:
            self.transport.abort()
            raise
        self.task = None
        if not self.transport.is_closing():
            self.transport.resume_reading()
            if self.ended:  # closed with something unread, it would take the answer back
                self.transport.write_eof()
                self.loop.call_later(LINGER, self.transport.close)

    async def answer(self, method: bytes, url: bytes, headers: Headers) -> None:
        """Answer a request."""
        if not method:
            self.begin(method, HTTPStatus.BAD_REQUEST)
            return
        if method not in (b"GET", b"HEAD"):
            self.begin(method, HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD\r\n")
            return
        try:
            names = names_in(url)
            if names in self.known:
                fd = open_below(self.folder, names)
            else:
                fd = await asyncio.to_thread(open_below, self.folder, names)
                self.known[names] = None
                if len(self.known) > KNOWN:
                    del self.known[next(iter(self.known))]
        except PermissionError:
            self.begin(method, HTTPStatus.FORBIDDEN)
        except (OSError, httptools.HttpParserInvalidURLError) as error:
            full = getattr(error, "errno", 0) in (errno.EMFILE, errno.ENFILE)
            self.begin(method, HTTPStatus.SERVICE_UNAVAILABLE if full else HTTPStatus.NOT_FOUND)
        else:
            try:
                await self.give(method, headers, os.fsdecode(names[-1]), fd)
            finally:
                os.close(fd)

    async def give(self, method: bytes, headers: Headers, name: str, fd: int) -> None:
        """Answer with what was found by that name."""
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            is_folder = stat.S_ISDIR(found.st_mode)
            self.begin(method, HTTPStatus.FORBIDDEN if is_folder else HTTPStatus.NOT_FOUND)
            return
        size, changed = found.st_size, http_date(int(found.st_mtime))
        tag = f'"{found.st_mtime_ns:x}-{size:x}"'
        lines = f"ETag: {tag}\r\nLast-Modified: {changed}\r\nAccept-Ranges: bytes\r\n"
        if is_known(headers, tag.encode(), found.st_mtime):
            self.begin(method, HTTPStatus.NOT_MODIFIED, lines)
            return
        status, part = HTTPStatus.OK, None
        as_known = headers.get(b"if-range", tag.encode()).decode("latin-1") in (tag, changed)
        if as_known and method == b"GET":
            part = range_in(headers.get(b"range", b""), size)
        first, end = part or (0, size)
        if part and first >= end:
            lines = f"Content-Range: bytes */{size}\r\n"
            self.begin(method, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, lines)
            return
        if part:
            status = HTTPStatus.PARTIAL_CONTENT
            lines += f"Content-Range: bytes {first}-{end - 1}/{size}\r\n"
        kind, encoding = guess_type(name)
        kind = "application/octet-stream" if encoding or not kind else kind
        lines += f"Content-Type: {kind}\r\nContent-Length: {end - first}\r\n"
        count = 0 if method == b"HEAD" else end - first
        if count <= SMALL:
            data = bytearray(count)
            with contextlib.suppress(OSError):  # where it is not cached
                if os.preadv(fd, [data], first, os.RWF_NOWAIT) == count:
                    self.begin(method, status, lines, data)
                    return
        self.begin(method, status, lines)
        sent = 0
        with contextlib.suppress(OSError, RuntimeError), os.fdopen(fd, "rb", closefd=False) as file:
            sent = await self.loop.sendfile(self.transport, file, first, count)
        if sent < count:
            self.transport.abort()  # nobody must take a part for the whole

    def begin(self, method: bytes, status: HTTPStatus, lines: str = "", data: Bytes = b"") -> None:
        """Write the header, and what is given of the content."""
        if status >= HTTPStatus.BAD_REQUEST:
            text = f"{status.value} {status.phrase}\n".encode()
            data = b"" if method == b"HEAD" else text
            lines += f"Content-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
        if self.ended and not self.requests:
            lines += "Connection: close\r\n"
        date = http_date(int(time.time()))
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nDate: {date}\r\n{lines}\r\n"
        if not self.transport.is_closing():
            self.transport.write(head.encode("latin-1") + data)


async def main(folder: str, host: str, port: int) -> None:
    """Serve until cancelled."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    known: dict[Names, None] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(fd, known), host, port)
    print("listening on", *server.sockets[0].getsockname()[:2], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the files below a folder.")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = vars(parser.parse_args())
    factory = functools.partial(aiozc.new_event_loop, uvloop.new_event_loop)
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(**arguments))
