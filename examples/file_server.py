"""Serve the files below a folder, by HTTP/1.1.

    python examples/file_server.py DIR [--host H] [--port P]

Then ask for one (127.0.0.1 and port 8080 unless others are given; with port 0 the system picks
one):

    curl --range 0-99 http://127.0.0.1:8080/name

GET and HEAD, conditional requests, ranges (of several in one request the whole file is sent, as
RFC 9110 allows), keep-alive and pipelining. Folders are refused, symbolic links below DIR are not
followed, and what is no regular file is not there.

It waits for no disk: what has not been opened lately is opened in a thread, what is small and
cached goes with its header, and everything else by `loop.sendfile`, which is aiozc's. Logs, and
patience with slow clients, are left to a proxy before it.
"""

import argparse
import asyncio
import contextlib
import email.utils
import functools
import mimetypes
import os
import stat
import time
import urllib.parse
from http import HTTPStatus
from typing import Any, NamedTuple

import httptools
import uvloop

import aiozc

SMALL = 16 * 1024  # bytes of a file that is read and written with its header
LONGEST = 64 * 1024  # bytes of a request
KNOWN = 10_000  # files that are remembered as opened
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Names = tuple[bytes, ...]  # folders and a file, each below the one before

http_date = functools.lru_cache(1000)(functools.partial(email.utils.formatdate, usegmt=True))


class Request(NamedTuple):
    method: str
    url: bytes
    headers: dict[bytes, bytes]
    keep_alive: bool


class Answer(NamedTuple):
    """A status, lines of the header, and the part of the file that is sent."""

    status: HTTPStatus
    lines: str = ""
    first: int = 0
    end: int = 0


@functools.lru_cache(1000)
def type_of(name: bytes) -> str:
    """Return the content type for a file's name."""
    kind, encoding = mimetypes.guess_type(os.fsdecode(name))
    return kind if kind and not encoding else "application/octet-stream"


def names_in(url: bytes) -> Names:
    """Return the names on a URL's path; PermissionError where it is none of a file below DIR."""
    path = urllib.parse.unquote_to_bytes(httptools.parse_url(url).path or b"/")
    names = tuple(name for name in path.split(b"/") if name not in (b"", b"."))
    if b".." in names or b"\0" in path or path.endswith((b"/", b"/.")):
        raise PermissionError(path)
    return names


def open_below(folder: int, names: Names) -> tuple[int, os.stat_result]:
    """Open a file name by name, so that no link on the way leads out of the folder."""
    with contextlib.ExitStack() as stack:
        for name in names[:-1]:
            folder = os.open(name, FLAGS | os.O_DIRECTORY, dir_fd=folder)
            stack.callback(os.close, folder)
        fd = os.open(names[-1], FLAGS, dir_fd=folder)
    return fd, os.fstat(fd)


def range_in(field: bytes, size: int) -> tuple[int, int] | None:
    """Return a range's first byte and the one behind its last; None for what is no single range."""
    unit, _, text = field.partition(b"=")
    first, dash, last = text.strip().partition(b"-")
    if unit.lower() != b"bytes" or not (dash and (first + last).isdigit()) or len(text) > 40:
        return None
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size


def is_known(headers: dict[bytes, bytes], tag: bytes, changed: float) -> bool:
    """Return whether the client has the file as it is (RFC 9110, 13.2.2)."""
    if tags := headers.get(b"if-none-match"):
        return tags == b"*" or tag in [
            each.strip().removeprefix(b"W/") for each in tags.split(b",")
        ]
    if since := headers.get(b"if-modified-since"):
        with contextlib.suppress(ValueError, OverflowError):  # where it is no date
            date = email.utils.parsedate_to_datetime(since.decode("latin-1"))
            return int(changed) <= date.timestamp()
    return False


def answer_with(file: os.stat_result, name: bytes, request: Request) -> Answer:
    """Return the answer to a request for what was found by that name."""
    if not stat.S_ISREG(file.st_mode):
        folder = stat.S_ISDIR(file.st_mode)
        return Answer(HTTPStatus.FORBIDDEN if folder else HTTPStatus.NOT_FOUND)
    headers, size = request.headers, file.st_size
    tag, changed = f'"{file.st_mtime_ns:x}-{size:x}"', http_date(int(file.st_mtime))
    lines = f"ETag: {tag}\r\nLast-Modified: {changed}\r\nAccept-Ranges: bytes\r\n"
    if is_known(headers, tag.encode(), file.st_mtime):
        return Answer(HTTPStatus.NOT_MODIFIED, lines)
    status, first, end = HTTPStatus.OK, 0, size
    as_known = headers.get(b"if-range", tag.encode()).decode("latin-1") in (tag, changed)
    if as_known and request.method == "GET":
        part = range_in(headers.get(b"range", b""), size)
        if part is not None and part[0] >= part[1]:
            lines = f"Content-Range: bytes */{size}\r\n"
            return Answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, lines)
        if part is not None:
            status, (first, end) = HTTPStatus.PARTIAL_CONTENT, part
            lines += f"Content-Range: bytes {first}-{end - 1}/{size}\r\n"
    lines += f"Content-Type: {type_of(name)}\r\nContent-Length: {end - first}\r\n"
    return Answer(status, lines, first, first if request.method == "HEAD" else end)


class Connection(asyncio.Protocol):
    """One client: its requests are answered in their order, one after the other."""

    def __init__(self, folder: int, known: dict[Names, None]) -> None:
        self.folder, self.known = folder, known
        self.loop: Any = asyncio.get_running_loop()
        self.parser = httptools.HttpRequestParser(self)
        self.transport: Any = None
        self.requests: list[Request] = []
        self.task: asyncio.Task[None] | None = None
        self.url, self.headers, self.fed, self.paused = b"", dict[bytes, bytes](), 0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        del self.parser  # it refers to this object

    def data_received(self, data: bytes) -> None:
        self.fed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # what comes behind it is no HTTP any more
            self.requests[-1] = self.requests[-1]._replace(keep_alive=False)
        except httptools.HttpParserError:
            self.requests.append(Request("", b"", {}, False))
        if self.fed > LONGEST:
            self.transport.abort()
        self.proceed()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_message_complete(self) -> None:
        method, keep_alive = self.parser.get_method().decode(), self.parser.should_keep_alive()
        self.requests.append(Request(method, self.url, self.headers, keep_alive))
        self.url, self.headers, self.fed = b"", {}, 0

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.proceed()

    def proceed(self) -> None:
        """Answer what has been asked, up to an answer that has to wait for something."""
        while self.requests and not (self.task or self.paused or self.transport.is_closing()):
            self.answer(self.requests.pop(0))
        if not self.transport.is_closing():
            waiting = self.task or self.paused
            (self.transport.pause_reading if waiting else self.transport.resume_reading)()

    def answer(self, request: Request) -> None:
        """Answer a request, or begin to."""
        if request.method not in ("GET", "HEAD"):
            status = HTTPStatus.METHOD_NOT_ALLOWED if request.method else HTTPStatus.BAD_REQUEST
            self.begin(request._replace(keep_alive=False), Answer(status))
            return
        try:
            names = names_in(request.url)
            if names in self.known:
                self.give(request, names[-1], *open_below(self.folder, names))
            else:
                self.task = self.loop.create_task(self.look_for(request, names))
        except (OSError, httptools.HttpParserInvalidURLError) as error:
            self.refuse(request, error)

    async def look_for(self, request: Request, names: Names) -> None:
        """Open in a thread what may have to be looked for on the disk, and answer."""
        try:
            fd, file = await asyncio.to_thread(open_below, self.folder, names)
            self.known[names] = None
            if len(self.known) > KNOWN:
                del self.known[next(iter(self.known))]
            self.task = None
            self.give(request, names[-1], fd, file)
        except OSError as error:
            self.task = None
            self.refuse(request, error)
        self.proceed()

    def give(self, request: Request, name: bytes, fd: int, file: os.stat_result) -> None:
        """Answer with what was opened, and have it closed in the end."""
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, fd)
            answer = answer_with(file, name, request)
            count = answer.end - answer.first
            if count <= SMALL:
                data = bytearray(count)
                with contextlib.suppress(BlockingIOError):
                    if not count or os.preadv(fd, [data], answer.first, os.RWF_NOWAIT) == count:
                        self.begin(request, answer, data)
                        return
            stack.pop_all()
        self.begin(request._replace(keep_alive=True), answer)
        self.task = self.loop.create_task(self.send(fd, answer.first, count, request.keep_alive))

    async def send(self, fd: int, first: int, count: int, keep_alive: bool) -> None:
        """Send what is not small, or not cached."""
        sent = 0
        with contextlib.suppress(OSError, RuntimeError), os.fdopen(fd, "rb") as file:
            sent = await self.loop.sendfile(self.transport, file, first, count)
        self.task = None
        if sent < count:
            self.transport.abort()  # nobody must take a part for the whole
        elif not keep_alive:
            self.transport.close()
        self.proceed()

    def refuse(self, request: Request, error: Exception) -> None:
        """Say that there is no such file, or that it may not be read."""
        forbidden = isinstance(error, PermissionError)
        self.begin(request, Answer(HTTPStatus.FORBIDDEN if forbidden else HTTPStatus.NOT_FOUND))

    def begin(self, request: Request, answer: Answer, data: bytes | bytearray = b"") -> None:
        """Write the header and what is given of the content."""
        status, lines = answer.status, answer.lines
        if status >= HTTPStatus.BAD_REQUEST:
            text = f"{status.value} {status.phrase}\n".encode()
            data = b"" if request.method == "HEAD" else text
            lines += f"Content-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
        if not request.keep_alive:
            lines += "Connection: close\r\n"
        date = http_date(int(time.time()))
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nDate: {date}\r\n{lines}\r\n"
        self.transport.write(head.encode("latin-1") + data)
        if not request.keep_alive:
            self.transport.close()


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
