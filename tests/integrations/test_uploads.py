"""Bodies of requests into files: from the socket by aiozc, and by `request.stream()`."""

import asyncio
import contextlib
import io
import random
import resource
import shutil
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol as UvicornsH11
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as UvicornsHttpTools

import aiozc
from aiozc.integrations.starlette import receive_file
from tests.kit.content import KIB, MIB, assert_same, pattern
from tests.kit.folding import each
from tests.kit.waiting import until

from .conftest import Client, Serve

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_backend")]

RECEIVEFILE = "http.request.receivefile"
LARGE = 3 * MIB + 5
AHEAD = 10 * KIB
"""Bytes that a test sends first: they have been read when the rest follows."""


def received() -> int:
    """Return how many bytes aiozc has moved on this loop."""
    return aiozc.get_reactor().statistics().bytes


class Uploads:
    """An application that takes uploads into a folder, and notes what is raised."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.raised: list[BaseException] = []
        self.max_size: int | None = None
        self.mode = "wb"
        self.app: Any = Starlette(routes=[self.route()])

    def route(self) -> Route:
        """Return where they go."""
        return Route("/{name}", self.put, methods=["PUT", "POST"])

    async def put(self, request: Request) -> Response:
        """Take one."""
        try:
            with self.path(request.path_params["name"]).open(self.mode, 0) as file:
                count = await receive_file(request, file, max_size=self.max_size)
                assert self.mode == "ab" or file.tell() == count
        except BaseException as error:
            self.raised.append(error)
            raise
        return JSONResponse(count)

    def held(self, may_begin: asyncio.Event) -> Any:
        """Return the application, which begins with each request when it may."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await may_begin.wait()
            await self.app(scope, receive, send)

        return app

    def path(self, name: str) -> Path:
        """Return the path of an upload."""
        return self.folder / name

    def is_there(self, name: str, count: int) -> bool:
        """Return whether so much of it has been written."""
        return self.path(name).exists() and self.path(name).stat().st_size == count


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    """Make the application."""
    return Uploads(tmp_path)


def put(name: str, length: int, *lines: str) -> bytes:
    """Return the head of a request with a body."""
    fields = [f"PUT /{name} HTTP/1.1", "Host: here", f"Content-Length: {length}", *lines]
    return "\r\n".join([*fields, "", ""]).encode()


def chunked(name: str, content: bytes) -> bytes:
    """Return a request whose body comes in chunks."""
    head = f"PUT /{name} HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    pieces = (content[place : place + 100_000] for place in range(0, len(content), 100_000))
    chunks = (b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"".join([head, *chunks, b"0\r\n\r\n"])


async def count_of(client: Client) -> int:
    """Return what the application answers: how much it was."""
    answer = await client.answer()
    assert answer.status == 200, answer
    return int(answer.body)


async def begin(client: Client, uploads: Uploads, name: str, size: int = LARGE) -> bytes:
    """Have an upload be received from the socket; return what is to follow."""
    content = pattern(size)
    client.writer.write(put(name, size) + content[:AHEAD])
    await until(lambda: uploads.is_there(name, AHEAD))
    client.writer.write(content[AHEAD : 2 * AHEAD])
    await until(lambda: uploads.is_there(name, 2 * AHEAD))
    return content[2 * AHEAD :]


SIZES = [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 256 * KIB + 1, LARGE]


async def test_bodies_of_all_sizes_and_requests_behind_them_come_in_one_stream(
    serve: Serve, uploads: Uploads
) -> None:
    served = await serve(uploads.app)
    async with await served.connect() as client:
        for number, size in enumerate(SIZES * 2):
            client.writer.write(put(str(number), size) + pattern(size, number))
        for number, size in enumerate(SIZES * 2):
            assert await count_of(client) == size
            assert_same(uploads.path(str(number)).read_bytes(), pattern(size, number))


@each("ahead", [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 200_000, LARGE - 1, LARGE])
async def test_what_has_come_already_stands_before_what_is_in_the_socket(
    ahead: int, serve: Serve, uploads: Uploads
) -> None:
    """And the requests behind the body, which came with its end, are answered."""
    may_begin = asyncio.Event()
    served = await serve(uploads.held(may_begin))
    content = pattern(LARGE)
    async with await served.connect() as client:
        client.writer.write(put("first", LARGE) + content[:ahead])
        await until(lambda: bool(served.state.tasks))
        protocol: Any
        [protocol] = served.state.connections
        await until(lambda: len(protocol.cycle.body) >= min(ahead, 64 * KIB))
        may_begin.set()
        client.writer.write(content[ahead:] + put("second", 3) + b"abc" + put("third", 0))
        assert [await count_of(client) for _ in range(3)] == [LARGE, 3, 0]
    assert_same(uploads.path("first").read_bytes(), content)
    assert uploads.path("second").read_bytes() == b"abc"


async def test_the_rest_of_a_body_goes_from_the_socket_into_the_file(
    serve: Serve, uploads: Uploads
) -> None:
    served = await serve(uploads.app)
    before = received()
    async with await served.connect() as client:
        client.writer.write(await begin(client, uploads, "a"))
        assert await count_of(client) == LARGE
    assert received() - before == LARGE - AHEAD
    assert_same(uploads.path("a").read_bytes(), pattern(LARGE))


def in_fastapi(uploads: Uploads) -> Any:
    """Return the application in FastAPI's."""
    app = FastAPI()

    @app.put("/{name}")
    async def upload(request: Request) -> int:
        response = await uploads.put(request)
        return int(bytes(response.body))

    return app


def behind(middleware: Any, **options: Any) -> Callable[[Uploads], Any]:
    """Return what makes the application behind a middleware."""
    return lambda uploads: Starlette(
        routes=[uploads.route()], middleware=[Middleware(middleware, **options)]
    )


class Counts:
    """A middleware that sees what is received."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run what is beneath."""
        count = 0

        async def counting() -> Any:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            return message

        await self.app(scope, counting, send)
        if scope["type"] == "http":
            assert count == LARGE


class Dispatches(BaseHTTPMiddleware):
    """A middleware of Starlette's that reads ahead of the application."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        """Read all, and let the application read it again."""
        assert len(await request.body()) == LARGE
        response: Response = await call_next(request)
        return response


APPS: dict[str, tuple[Callable[[Uploads], Any], bool]] = {
    "fastapi": (in_fastapi, True),
    "cors": (behind(CORSMiddleware, allow_origins=["*"]), True),
    "counts": (behind(Counts), False),
    "dispatches": (behind(Dispatches), False),
}


@each("make, by_aiozc", APPS)
async def test_who_sees_the_body_on_its_way_sees_all_of_it(
    make: Callable[[Uploads], Any],
    by_aiozc: bool,
    serve: Serve,
    uploads: Uploads,
    errors: list[str],
) -> None:
    served = await serve(make(uploads))
    before = received()
    async with await served.connect() as client:
        client.writer.write(put("a", LARGE) + pattern(LARGE))
        assert await count_of(client) == LARGE
    assert (received() > before) == by_aiozc
    assert_same(uploads.path("a").read_bytes(), pattern(LARGE))
    assert not errors


WAYS: dict[str, tuple[Callable[[str, bytes], bytes], bool, bool]] = {
    "chunked": (chunked, False, False),
    "tls": (lambda name, content: put(name, len(content)) + content, True, False),
    "uvicorn's own": (lambda name, content: put(name, len(content)) + content, False, True),
}


@each("ask, tls, own", WAYS)
async def test_what_cannot_come_from_the_socket_comes_by_the_stream(
    ask: Callable[[str, bytes], bytes], tls: bool, own: bool, serve: Serve, uploads: Uploads
) -> None:
    theirs = UvicornsH11 if "H11" in serve.protocol.__name__ else UvicornsHttpTools
    served = await serve(uploads.app, theirs if own else None, tls=tls)
    before = received()
    async with await served.connect() as client:
        for size in SIZES:
            client.writer.write(ask(str(size), pattern(size)))
            assert await count_of(client) == size
            assert_same(uploads.path(str(size)).read_bytes(), pattern(size))
    assert received() == before


async def test_a_file_that_is_appended_to_is_written_at_its_end(
    serve: Serve, uploads: Uploads
) -> None:
    uploads.mode = "ab"
    served = await serve(uploads.app)
    async with await served.connect() as client:
        for _ in range(2):
            client.writer.write(put("a", LARGE) + pattern(LARGE))
            assert await count_of(client) == LARGE
    assert_same(uploads.path("a").read_bytes(), pattern(LARGE), pattern(LARGE))


async def test_files_of_anyio_and_places_in_files_are_kept(serve: Serve, uploads: Uploads) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with await anyio.open_file(uploads.path("a"), "wb") as file:
            await file.write(b"before")
            assert await receive_file(Request(scope, receive), file) == LARGE
            await file.write(b"behind")
        await PlainTextResponse("1")(scope, receive, send)

    served = await serve(app)
    async with await served.connect() as client:
        client.writer.write(put("a", LARGE) + pattern(LARGE))
        await count_of(client)
    assert_same(uploads.path("a").read_bytes(), b"before", pattern(LARGE), b"behind")


async def test_a_request_that_is_the_last_ends_the_connection(
    serve: Serve, uploads: Uploads
) -> None:
    served = await serve(uploads.app)
    async with await served.connect() as client:
        client.writer.write(put("a", LARGE, "Connection: close") + pattern(LARGE))
        assert await count_of(client) == LARGE
        assert await client.rest() == b""
    assert_same(uploads.path("a").read_bytes(), pattern(LARGE))


# The extension


async def save(scope: Any, receive: Any, file: Any) -> int:
    """Write a body into a file, without any framework; return what the server has written."""
    offer = scope.get("extensions", {}).get(RECEIVEFILE)
    count = 0 if offer is None else int(await offer["receive_file"](receive, file))
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        file.write(message["body"])
        if not message["more_body"]:
            return count


async def test_it_is_offered_for_bodies_of_known_length_that_have_not_come(
    serve: Serve, uploads: Uploads
) -> None:
    """Written once, they are not written again; an offer that was kept does nothing any more."""
    offers: list[Any] = []
    counts: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        offers.append(scope["extensions"].get(RECEIVEFILE))
        copy = dict(scope, extensions=dict(scope["extensions"]))
        with uploads.path("a").open("wb", 0) as file:
            counts.append(await save(copy, receive, file))
            for offer in filter(None, offers):
                assert await offer["receive_file"](receive, file) == 0
        await PlainTextResponse("1")(scope, receive, send)

    served = await serve(app)
    async with await served.connect() as client:
        client.ask()
        await client.answer()
        client.writer.write(put("a", 3) + b"abc")
        await count_of(client)
        for _ in range(2):
            client.writer.write(await begin(client, uploads, "a"))
            await count_of(client)
            assert_same(uploads.path("a").read_bytes(), pattern(LARGE))
        client.writer.write(chunked("a", pattern(LARGE)))
        await count_of(client)
        assert_same(uploads.path("a").read_bytes(), pattern(LARGE))
    assert [offer and offer["length"] for offer in offers] == [None, None, LARGE, LARGE, None]
    assert counts == [0, 0, LARGE, LARGE, 0]


async def test_it_is_not_offered_where_nothing_is(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.protocol, "offers_files", False)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(str(RECEIVEFILE in scope.get("extensions", {})))(
            scope, receive, send
        )

    served = await serve(app)
    async with await served.connect() as client:
        client.writer.write(put("a", 3))
        assert (await client.answer()).body == b"False"


async def test_a_length_may_have_thousands_of_zeros_in_front(
    serve: Serve, uploads: Uploads
) -> None:
    """Where the parser takes that: h11 answers 400, by itself."""
    served = await serve(uploads.app)
    async with await served.connect() as client:
        head = put("a", 3).replace(b"Length: ", b"Length: " + b"0" * 5000)
        client.writer.write(head + b"abc")
        status, _ = await client.head()
        assert status == (400 if issubclass(serve.protocol, UvicornsH11) else 200)


# What is asked for, and what is refused


async def test_a_client_that_waits_is_asked_for_the_body_when_the_application_wants_it(
    serve: Serve, uploads: Uploads
) -> None:
    may_begin = asyncio.Event()
    served = await serve(uploads.held(may_begin))
    async with await served.connect() as client:
        for size in (1, LARGE):
            client.writer.write(put("a", size, "Expect: 100-continue"))
            await until(lambda: bool(served.state.tasks))
            asked = asyncio.ensure_future(client.head())
            await asyncio.sleep(0)
            assert not asked.done()
            may_begin.set()
            assert (await asked)[0] == 100
            client.writer.write(pattern(size))
            assert await count_of(client) == size
            may_begin.clear()
    assert_same(uploads.path("a").read_bytes(), pattern(LARGE))


async def test_a_body_that_is_too_long_is_refused_before_the_client_is_asked_for_it(
    serve: Serve, uploads: Uploads
) -> None:
    uploads.max_size = LARGE
    served = await serve(uploads.app)
    async with await served.connect() as client:
        client.writer.write(put("long", LARGE + 1, "Expect: 100-continue"))
        answer = await client.answer()
        assert (answer.status, answer.body) == (413, b"Content Too Large")
        assert uploads.is_there("long", 0)
        # What it sends nevertheless is thrown away.
        client.writer.write(pattern(LARGE + 1) + put("exact", LARGE) + pattern(LARGE))
        assert await count_of(client) == LARGE
    assert uploads.is_there("long", 0)
    assert_same(uploads.path("exact").read_bytes(), pattern(LARGE))


async def test_a_chunked_body_ends_where_it_is_too_long(serve: Serve, uploads: Uploads) -> None:
    uploads.max_size = LARGE
    served = await serve(uploads.app)
    async with await served.connect() as client:
        client.writer.write(chunked("exact", pattern(LARGE)))
        assert await count_of(client) == LARGE
        client.writer.write(chunked("long", pattern(LARGE + 1)))
        assert (await client.answer()).status == 413
        client.writer.write(put("next", 1) + b"a")
        assert await count_of(client) == 1
    assert uploads.path("long").stat().st_size <= LARGE


@pytest.mark.parametrize(
    ("max_size", "error"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError)]
)
async def test_a_size_that_is_none_is_refused(max_size: Any, error: type[Exception]) -> None:
    request = Request({"type": "http", "headers": []})
    with pytest.raises(error, match="max_size must be a non-negative integer"):
        await receive_file(request, io.BytesIO(), max_size=max_size)


async def test_two_at_once_are_refused(serve: Serve, uploads: Uploads, errors: list[str]) -> None:
    """Whoever comes second; the first goes on."""
    refused: list[str] = []
    may_ask = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        with uploads.path("a").open("wb", 0) as file:
            receiving = asyncio.ensure_future(receive_file(request, file))
            await may_ask.wait()
            for other in (Request(scope, receive).body(), receive_file(request, file)):
                with pytest.raises(RuntimeError) as info:
                    await other
                refused.append(str(info.value))
            await receiving
        await PlainTextResponse("1")(scope, receive, send)

    served = await serve(app)
    async with await served.connect() as client:
        rest = await begin(client, uploads, "a")
        may_ask.set()
        await until(lambda: len(refused) == 2)
        client.writer.write(rest)
        await count_of(client)
    assert refused == [
        "the body of this request is being received into a file",
        "another task is reading the body of this request",
    ]
    assert_same(uploads.path("a").read_bytes(), pattern(LARGE))
    assert not errors


async def test_a_reader_that_waits_already_is_not_robbed(
    serve: Serve, uploads: Uploads, errors: list[str]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        reading = asyncio.ensure_future(Request(scope, receive).body())
        await asyncio.sleep(0)
        refused = pytest.raises(RuntimeError, match="another task is reading the body")
        with uploads.path("a").open("wb", 0) as file, refused:
            await receive_file(Request(scope, receive), file)
        await PlainTextResponse(str(len(await reading)))(scope, receive, send)

    served = await serve(app)
    async with await served.connect() as client:
        client.writer.write(put("a", LARGE))
        await until(lambda: uploads.is_there("a", 0))
        client.writer.write(pattern(LARGE))
        assert await count_of(client) == LARGE
    assert not errors


# What ends it


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
async def test_of_a_client_that_goes_away_the_file_has_what_came(
    reset: bool, serve: Serve, uploads: Uploads
) -> None:
    served = await serve(uploads.app)
    async with await served.connect() as client:
        await begin(client, uploads, "a")
        if reset:
            sock = client.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.writer.transport.abort()
        else:
            client.writer.close()
        await until(lambda: bool(uploads.raised))
        await until(lambda: not served.state.connections)
    assert [type(error) for error in uploads.raised] == [ClientDisconnect]
    assert_same(uploads.path("a").read_bytes(), pattern(LARGE)[: 2 * AHEAD])


async def test_a_server_that_closes_the_connection_ends_it(serve: Serve, uploads: Uploads) -> None:
    served = await serve(uploads.app)
    async with await served.connect() as client:
        await begin(client, uploads, "a")
        [protocol] = served.state.connections
        protocol.transport.close()
        await until(lambda: bool(uploads.raised))
        assert await client.rest() == b""
    assert [type(error) for error in uploads.raised] == [ClientDisconnect]


async def test_behind_a_body_that_was_given_up_the_next_request_is_answered(
    serve: Serve, uploads: Uploads
) -> None:
    """What is left of it is thrown away, as uvicorn does."""
    may_end = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/late":
            await uploads.app(scope, receive, send)
            return
        with uploads.path("late").open("wb", 0) as file:
            receiving = asyncio.ensure_future(receive_file(Request(scope, receive), file))
            await may_end.wait()
            receiving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await receiving
            uploads.raised.append(receiving._exception or asyncio.CancelledError())
        await PlainTextResponse("late", 408)(scope, receive, send)

    served = await serve(app)
    async with await served.connect() as client:
        for _ in range(2):
            rest = await begin(client, uploads, "late")
            may_end.set()
            assert (await client.answer()).status == 408
            client.writer.write(rest + put("next", LARGE) + pattern(LARGE, 1))
            assert await count_of(client) == LARGE
            assert_same(uploads.path("next").read_bytes(), pattern(LARGE, 1))
            may_end.clear()


async def test_the_rest_of_a_body_that_was_given_up_can_be_read(
    serve: Serve, uploads: Uploads
) -> None:
    may_end = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        with uploads.path("a").open("wb", 0) as file:
            receiving = asyncio.ensure_future(receive_file(request, file))
            await may_end.wait()
            receiving.cancel()
            with pytest.raises(asyncio.CancelledError) as info:
                await receiving
            file.seek(info.value.transferred)  # type: ignore[attr-defined]
            await receive_file(request, file)
        await PlainTextResponse("1")(scope, receive, send)

    served = await serve(app)
    async with await served.connect() as client:
        rest = await begin(client, uploads, "a")
        may_end.set()
        client.writer.write(rest)
        await count_of(client)
    assert_same(uploads.path("a").read_bytes(), pattern(LARGE))


async def test_a_response_that_is_complete_ends_it(serve: Serve, uploads: Uploads) -> None:
    may_end = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/early":
            await uploads.app(scope, receive, send)
            return
        with uploads.path("early").open("wb", 0) as file:
            receiving = asyncio.ensure_future(receive_file(Request(scope, receive), file))
            await may_end.wait()
            await PlainTextResponse("early")(scope, receive, send)
            with pytest.raises(ClientDisconnect):
                await receiving

    served = await serve(app)
    async with await served.connect() as client:
        rest = await begin(client, uploads, "early")
        may_end.set()
        assert (await client.answer()).body == b"early"
        client.writer.write(rest + put("next", LARGE) + pattern(LARGE, 1))
        assert await count_of(client) == LARGE
    assert_same(uploads.path("next").read_bytes(), pattern(LARGE, 1))
    assert pattern(LARGE).startswith(uploads.path("early").read_bytes())


async def test_a_response_that_is_complete_ends_it_while_a_disk_is_slow(
    serve: Serve, uploads: Uploads
) -> None:
    began, may_end = threading.Event(), threading.Event()

    class Slow(io.FileIO):
        def write(self, data: Any) -> int:
            began.set()
            may_end.wait()
            return super().write(data)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/early":
            await uploads.app(scope, receive, send)
            return
        with Slow(uploads.path("early"), "wb") as file:
            receiving = asyncio.ensure_future(receive_file(Request(scope, receive), file))
            await until(began.is_set)
            await PlainTextResponse("early")(scope, receive, send)
            may_end.set()
            with pytest.raises(ClientDisconnect):
                await receiving

    served = await serve(app)
    async with await served.connect() as client:
        client.writer.write(put("early", LARGE) + pattern(AHEAD))
        assert (await client.answer()).body == b"early"
        await until(lambda: not served.state.tasks)
        assert uploads.is_there("early", AHEAD)
        client.writer.write(bytes(LARGE - AHEAD) + put("next", 1) + b"a")
        assert await count_of(client) == 1


async def test_a_response_and_a_body_pass_each_other(serve: Serve, uploads: Uploads) -> None:
    """Bytes of the application's, and those of a file."""
    source = uploads.path("source")
    source.write_bytes(pattern(LARGE, 1))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with uploads.path("a").open("wb", 0) as file, source.open("rb") as answer:
            receiving = asyncio.ensure_future(receive_file(Request(scope, receive), file))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            if "http.response.zerocopysend" in scope["extensions"]:
                await send(
                    {"type": "http.response.zerocopysend", "file": answer, "more_body": True}
                )
            await receiving
            await send({"type": "http.response.body", "body": b"last"})

    served = await serve(app)
    async with await served.connect() as client:
        for _ in range(2):
            client.writer.write(await begin(client, uploads, "a"))
            assert_same((await client.answer()).body, b"first", pattern(LARGE, 1), b"last")
            assert_same(uploads.path("a").read_bytes(), pattern(LARGE))


async def test_of_a_full_disk_the_application_hears_and_the_next_request_is_answered(
    serve: Serve, uploads: Uploads
) -> None:
    room = MIB + 123
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    app = Starlette(routes=[uploads.route()], exception_handlers={OSError: full})
    served = await serve(app)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        async with await served.connect() as client:
            client.writer.write(put("a", LARGE) + pattern(LARGE) + put("next", 3) + b"abc")
            assert (await client.answer()).status == 507
            assert await count_of(client) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert_same(uploads.path("a").read_bytes(), pattern(LARGE)[:room])
    assert uploads.raised[0].transferred == room  # type: ignore[attr-defined]


async def full(_: Request, error: Exception) -> Response:
    """Answer for a disk that is full."""
    return PlainTextResponse(str(error), 507)


async def test_uploads_that_abort_at_random_leave_nothing(serve: Serve, uploads: Uploads) -> None:
    """The fixtures look for what is left."""
    chance = random.Random(17)
    served = await serve(uploads.app)

    async def upload(number: int) -> None:
        async with await served.connect() as client:
            size = chance.choice([1, 64 * KIB, LARGE])
            cut = chance.randrange(size + 1)
            client.writer.write(put(str(number), size) + pattern(size)[:cut])
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
            if chance.random() < 0.5:
                client.writer.transport.abort()

    for first in range(0, 200, 20):
        await asyncio.gather(*map(upload, range(first, first + 20)))
    await until(lambda: not served.state.connections and not served.state.tasks)
    assert {type(error) for error in uploads.raised} <= {ClientDisconnect}
    for path in uploads.folder.iterdir():
        assert pattern(LARGE).startswith(path.read_bytes())


# Clients


async def test_curl_and_httpx_upload(serve: Serve, uploads: Uploads, tmp_path: Path) -> None:
    served = await serve(uploads.app)
    source = tmp_path / "source"
    source.write_bytes(pattern(LARGE))
    curl = shutil.which("curl")
    if curl:
        for name, options in {
            "asked": ["--expect100-timeout", "60"],
            "chunked": ["-H", "Transfer-Encoding: chunked"],
            "at once": ["-H", "Expect:"],
        }.items():
            url = f"{served.url}/{name}".replace(" ", "%20")
            command = [curl, "-sS", *options, "-T", str(source), url]
            assert (await anyio.run_process(command)).stdout == str(LARGE).encode()
            assert_same(uploads.path(name).read_bytes(), pattern(LARGE))
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        for _ in range(2):
            answer = await client.put(f"{served.url}/httpx", content=pattern(LARGE))
            assert answer.json() == LARGE
            assert_same(uploads.path("httpx").read_bytes(), pattern(LARGE))
