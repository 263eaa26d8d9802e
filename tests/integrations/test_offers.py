"""Who is offered files: whoever's messages arrive; everybody else is served as by uvicorn's own."""

import asyncio
import copy
import functools
import hashlib
import importlib
import json
import linecache
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from uvicorn.protocols.http.h11_impl import H11Protocol as UvicornsH11
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as UvicornsHttpTools

import aiozc
from aiozc.integrations.uvicorn import HttpToolsProtocol
from tests.kit.content import KIB, pattern
from tests.kit.folding import each
from tests.kit.waiting import until

from .conftest import Answer, Serve

pytestmark = pytest.mark.anyio

PATHSEND = "http.response.pathsend"
ZEROCOPYSEND = "http.response.zerocopysend"
SIZE = 40 * KIB
CONTENT = pattern(SIZE // 2) * 2

Make = Callable[[Path], Any]


def uvicorns(protocol: Any) -> Any:
    """Return uvicorn's own protocol of the same kind."""
    return UvicornsHttpTools if issubclass(protocol, HttpToolsProtocol) else UvicornsH11


async def asked(
    serve: Serve, app: Any, protocol: Any = None, path: str = "/file"
) -> tuple[Answer, int]:
    """Return an application's answer, and how many bytes aiozc sent for it."""
    served = await serve(app, protocol)
    before = aiozc.get_reactor().statistics().bytes
    async with await served.connect() as client:
        client.ask(path=path, **{"Accept-Encoding": "gzip", "Origin": "https://here"})
        answer = await client.answer()
        await until(lambda: not served.state.tasks)
    return answer, aiozc.get_reactor().statistics().bytes - before


def starlette(*middleware: Any, route: Any = (), **options: Any) -> Make:
    """Return what makes an application of a file, with middlewares around it."""

    def make(path: Path) -> Any:
        async def file(request: Any) -> Response:  # noqa: ARG001
            return FileResponse(path, **options)

        routes = [
            Route("/file", file, middleware=[Middleware(each) for each in route]),
            Mount("/static", StaticFiles(directory=path.parent)),
        ]
        return Starlette(routes=routes, middleware=[Middleware(each) for each in middleware])

    return make


def around(*wrappers: Callable[[Any], Any]) -> Make:
    """Return what makes an application with others around all of it, the last outermost."""

    def make(path: Path) -> Any:
        app = starlette()(path)
        for wrap in wrappers:
            app = wrap(app)
        return app

    return make


def dispatched(dispatch: Any) -> Callable[[Any], Any]:
    """Return a BaseHTTPMiddleware of a function."""
    return lambda app: BaseHTTPMiddleware(app, dispatch)


# Middlewares that let files pass


def plain_wrapper(app: Any) -> Any:
    async def wrapper(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    return wrapper


async def given_app(app: Any, scope: Any, receive: Any, send: Any) -> None:
    await app({**scope, "seen": True}, receive, send)


class AddsHeader:
    """Adds a header, as most middlewares that wrap `send` do."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        started = time.perf_counter()

        async def send_with_header(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-time"] = str(started > 0)
                message.setdefault("headers", []).append((b"x-status", b"%d" % message["status"]))
            await send(message)

        await self.app(scope, receive, send_with_header)


class AddsHeaderByMethod:
    """The same, as Starlette's CORSMiddleware does it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, functools.partial(self.send, send=send, value=b"1"))

    async def send(self, message: Any, send: Any, value: bytes) -> None:
        if message["type"] != "http.response.start":
            await send(message)
            return
        message["headers"] = [*message["headers"], (b"x-value", value)]
        await send(message)


async def add_header(request: Any, call_next: Any) -> Any:
    response = await call_next(request)
    response.headers["x-path"] = request.url.path
    if response.status_code == 404:
        return PlainTextResponse("nobody is here", 404)
    return response


async def return_at_once(request: Any, call_next: Any) -> Any:
    return await call_next(request)


class AddsCookie(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.set_cookie("seen", "1")
        return response


class AddsHeaderByObject:
    """And as its middleware does that limits bodies: an object for each request."""

    def __init__(self, app: Any, send: Any = None) -> None:
        self.app, self.send = app, send

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, AddsHeaderByObject(self.app, send).send_on)

    async def send_on(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-object", b"1")]
        await self.send(message)


class CopiesScope:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(copy.copy(scope), receive, send)


def fastapi(path: Path) -> Any:
    app = FastAPI()

    @app.middleware("http")
    async def add(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-app"] = app.title
        return response

    @app.get("/file")
    def file() -> FileResponse:
        return FileResponse(path)

    return app


FAST: dict[str, Make] = {
    "nothing": starlette(),
    "CORS": starlette(functools.partial(CORSMiddleware, allow_origins=["*"])),
    "hosts": starlette(functools.partial(TrustedHostMiddleware, allowed_hosts=["*"])),
    "a closure": around(plain_wrapper),
    "a partial": around(lambda app: functools.partial(given_app, app), plain_wrapper),
    "a copy of the scope": around(CopiesScope),
    "a header": starlette(AddsHeader),
    "a header by a method": starlette(AddsHeaderByMethod),
    "a header by an object": starlette(AddsHeaderByObject),
    "headers around the application": around(AddsHeader, AddsHeaderByMethod),
    "a header for a route": starlette(route=[AddsHeader]),
    "a response's header": starlette(dispatched(add_header)),
    "a response's cookie": starlette(AddsCookie),
    "two that dispatch": starlette(
        AddsCookie,
        functools.partial(CORSMiddleware, allow_origins=["*"]),
        dispatched(return_at_once),
        AddsHeader,
    ),
    "FastAPI": fastapi,
}


# Middlewares that see bodies, or may


def collects(app: Any) -> Any:
    """Buffer a body, and send it in one piece with an ETag."""

    async def wrapper(scope: Any, receive: Any, send: Any) -> None:
        messages: list[Any] = []

        async def collect(message: Any) -> None:
            messages.append(message)

        await app(scope, receive, collect)
        content = b"".join(message.get("body", b"") for message in messages[1:])
        etag = hashlib.sha256(content).hexdigest().encode()
        headers = [*messages[0]["headers"], (b"x-etag", etag)]
        await send({**messages[0], "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return wrapper


class Counts:
    """Tells the size of the bodies that passed: by a closure, a method, or an object."""

    def __init__(self, app: Any, way: str) -> None:
        self.app, self.way = app, way
        self.total = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def count(message: Any) -> None:
            if message["type"] == "http.response.body":
                self.total += len(message["body"])
            await send(message)

        @functools.wraps(count)
        async def wrapped(message: Any) -> None:
            await self.note(message)
            await send(message)

        ways = {"closure": count, "wrapped": wrapped, "object": Counting(self, send)}
        ways["partial"] = functools.partial(self.send, send)
        await self.app(scope, receive, ways[self.way])
        assert self.total == SIZE

    async def note(self, message: Any) -> None:
        self.total += len(message.get("body", b""))

    async def send(self, send: Any, message: Any) -> None:
        await self.note(message)
        await send(message)


class Counting:
    def __init__(self, counts: Counts, send: Any) -> None:
        self.counts, self.send = counts, send

    async def __call__(self, message: Any) -> None:
        await self.counts.send(self.send, message)


def counts(way: str) -> Callable[[Any], Any]:
    return functools.partial(Counts, way=way)


class TakesAway:
    """Compresses in its way, as starlette-compress does: from a copy it takes what cannot pass."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        extensions = scope.get("extensions", {})
        if ZEROCOPYSEND in extensions:
            extensions = dict(extensions)
            del extensions[ZEROCOPYSEND]
            scope = {**scope, "extensions": extensions}

        async def swapped(message: Any) -> None:
            if message["type"] == "http.response.body":
                message["body"] = message["body"].swapcase()
            await send(message)

        await self.app(scope, receive, swapped)


class MakesUpItsOwn:
    """Asks for what is beneath it, by a name that says nothing, and hands on what it heard."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        heard: dict[str, Any] = {}
        if PATHSEND in scope.get("extensions", {}):
            heard[PATHSEND] = {}
        await self.handler({**scope, "extensions": heard}, receive, swapping(send))


class TakesAwayByAnotherName(TakesAway):
    def __init__(self, handler: Any) -> None:
        self.handler = handler

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        extensions = scope.get("extensions", {})
        if PATHSEND in extensions:
            extensions = dict(extensions)
            del extensions[PATHSEND]
        await self.handler({**scope, "extensions": extensions}, receive, swapping(send))


def swapping(send: Any) -> Any:
    """Return a `send` that changes bodies."""

    async def swap(message: Any) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": message.get("body", b"").swapcase()}
        await send(message)

    return swap


def swaps_from_the_start_on(app: Any) -> Any:
    """Change bodies once a response has started: the closure's `send` is another one then."""

    async def wrapper(scope: Any, receive: Any, send: Any) -> None:
        def begin() -> None:
            nonlocal send
            send = swapping(send)

        async def wrapped(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                begin()

        await app(scope, receive, wrapped)

    return wrapper


class SwapsFromTheStartOn:
    """The same by an object, whose attribute is another one then."""

    def __init__(self, app: Any, send: Any = None) -> None:
        self.app, self.pass_on = app, send

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, SwapsFromTheStartOn(self.app, send).sent)

    async def sent(self, message: Any) -> None:
        await self.pass_on(message)
        if message["type"] == "http.response.start":
            self.pass_on = swapping(self.pass_on)


class SwapsByAProperty:
    """The same, by a property."""

    def __init__(self, app: Any, send: Any = None) -> None:
        self.app, self.given, self.started = app, send, False

    @property
    def onward(self) -> Any:
        return swapping(self.given) if self.started else self.given

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, SwapsByAProperty(self.app, send).sent)

    async def sent(self, message: Any) -> None:
        await self.onward(message)
        if message["type"] == "http.response.start":
            self.started = True


def swaps_what_it_does_not_name(app: Any) -> Any:
    async def wrapper(scope: Any, receive: Any, send: Any) -> None:
        async def wrapped(message: Any) -> None:
            for value in [*locals().values()]:
                if isinstance(value, dict) and "body" in value:
                    value["body"] = value["body"].swapcase()
            await send(message)

        await app(scope, receive, wrapped)

    return wrapper


class SwapsBesideCors(CORSMiddleware):
    """Is one that is known by name, and whose `send` does something of its own besides."""

    async def send(self, message: Any, send: Any, request_headers: Any) -> None:
        await super().send(message, swapping(send), request_headers)


async def read_body(request: Any, call_next: Any) -> Any:
    response = await call_next(request)
    content = b"".join([part async for part in response.body_iterator])
    return Response(content, response.status_code, dict(response.headers))


async def read_in_passing(request: Any, call_next: Any) -> Any:
    response = await call_next(request)
    return await reread(response)


async def reread(response: Any) -> Any:
    async def doubled() -> Any:
        async for part in response.body_iterator:
            yield part + part

    del response.headers["content-length"]
    return StreamingResponse(doubled(), headers=dict(response.headers))


async def by_another_name(request: Any, call_next: Any) -> Any:
    response = await call_next(request)
    for other in [response]:
        other.headers["x-size"] = str(sum([len(part) async for part in other.body_iterator]))
        del other.headers["content-length"]
    return response


async def call_elsewhere(request: Any, call_next: Any) -> Any:
    return await read_body(request, call_next)


class ReadsBody(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Response:
        try:
            async with asyncio.timeout(30):
                response: Any = await call_next(request)
        finally:
            request.state.done = True
        response.body_iterator = aiter_of([part async for part in response.body_iterator])
        read: Response = response
        return read


async def aiter_of(parts: list[bytes]) -> Any:
    for part in parts:
        yield part


class Swaps(BaseHTTPMiddleware):
    """Is a BaseHTTPMiddleware that does something of its own besides."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def swapped(message: Any) -> None:
            if message["type"] == "http.response.body":
                message["body"] = message["body"].swapcase()
            await send(message)

        await super().__call__(scope, receive, swapped)

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


class Upper(FileResponse):
    """A response that changes its body on the way."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def upper(message: Any) -> None:
            if "body" in message:
                message["body"] = message["body"].upper()
            await send(message)

        await super().__call__(scope, receive, upper)


def responding(path: Path) -> Any:
    async def file(request: Any) -> Response:  # noqa: ARG001
        return Upper(path)

    return Starlette(routes=[Route("/file", file)])


def mounted(path: Path) -> Any:
    beneath = starlette(GZipMiddleware)(path)
    return Starlette(routes=[Mount("/", beneath)], middleware=[Middleware(AddsCookie)])


def dispatching_beneath(path: Path) -> Any:
    """What is in front of the inner one is not known by name."""
    return Starlette(routes=[Mount("/", starlette(dispatched(return_at_once))(path))])


STOCK: dict[str, Make] = {
    "gzip": starlette(GZipMiddleware),
    "gzip for a route": starlette(route=[GZipMiddleware]),
    "gzip around all": around(GZipMiddleware),
    "gzip behind others": starlette(AddsCookie, AddsHeader, GZipMiddleware, AddsHeaderByMethod),
    "gzip in front of others": starlette(GZipMiddleware, AddsCookie, AddsHeader),
    "gzip in a mounted application": mounted,
    "another collects": around(collects),
    "another collects behind a header": starlette(AddsHeader, collects),
    "a closure counts": starlette(counts("closure")),
    "a wrapped closure counts": starlette(counts("wrapped")),
    "an object counts": starlette(counts("object")),
    "a method counts": around(counts("partial")),
    "one takes an offer away": starlette(TakesAway),
    "one takes an offer away by another name": starlette(TakesAwayByAnotherName),
    "one makes up its own offers": starlette(MakesUpItsOwn),
    "a closure changes from the start on": starlette(swaps_from_the_start_on),
    "an object changes from the start on": starlette(SwapsFromTheStartOn),
    "a property changes from the start on": starlette(SwapsByAProperty),
    "a closure changes what it does not name": starlette(swaps_what_it_does_not_name),
    "a subclass of a known one changes": starlette(
        functools.partial(SwapsBesideCors, allow_origins=["*"]), AddsCookie
    ),
    "a function reads": starlette(dispatched(read_body)),
    "a function calls one that reads": starlette(dispatched(read_in_passing)),
    "a function has another that reads": starlette(dispatched(call_elsewhere)),
    "a function reads by another name": starlette(dispatched(by_another_name)),
    "a method reads": starlette(ReadsBody),
    "a method reads in front of one that does not": starlette(ReadsBody, AddsCookie),
    "a method reads behind one that does not": starlette(AddsCookie, ReadsBody),
    "a subclass changes": starlette(Swaps),
    "a response changes": responding,
    "dispatching in a mounted application": dispatching_beneath,
}


APPLICATIONS = {
    f"{'pass' if ways is FAST else 'see bodies'}-{name}": (make, SIZE if ways is FAST else 0)
    for ways in (FAST, STOCK)
    for name, make in ways.items()
}


@each(
    "make, expected", APPLICATIONS, group=lambda _, expected: "pass" if expected else "see bodies"
)
async def test_files_go_by_the_kernel_where_messages_pass_and_otherwise_as_by_uvicorns_own(
    make: Make, expected: int, serve: Serve, tmp_path: Path, errors: list[str]
) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(CONTENT)
    theirs, _ = await asked(serve, make(path), uvicorns(serve.protocol))
    ours, by_kernel = await asked(serve, make(path))
    assert ours == theirs
    assert by_kernel == expected
    assert not errors


async def test_static_files_are_compressed_as_by_uvicorns_own(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file.js").write_bytes(b"// comment" * 4000)
    app = starlette(GZipMiddleware)(tmp_path / "file.js")
    answer, _ = await asked(serve, app, path="/static/file.js")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["vary"] == "Accept-Encoding"
    assert len(answer.body) < KIB


def asking(ask: Callable[[Any], Any], heard: list[Any]) -> Any:
    """Return an application that asks what it is offered, and notes the answer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append(ask(scope["extensions"]))
        # In this function, whose `send` it is:
        extensions = scope["extensions"]
        heard.append(
            (
                PATHSEND in extensions,
                ZEROCOPYSEND in extensions,
                extensions.get(ZEROCOPYSEND),
                "tls" in extensions,
                extensions.get("none", 5),
            )
        )
        await PlainTextResponse("done")(scope, receive, send)

    return app


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_who_asks_by_its_own_send_hears_what_is_offered(tls: bool, serve: Serve) -> None:
    """And whoever asks without one, or copies what is there, hears of nothing."""
    heard: list[Any] = []
    without_one = [
        lambda extensions: PATHSEND in extensions,
        lambda extensions: PATHSEND in dict(extensions),
        lambda extensions: PATHSEND in {**extensions},
        lambda extensions: PATHSEND in copy.deepcopy(extensions),
        lambda extensions: PATHSEND in pickle.loads(pickle.dumps(extensions)),
        lambda extensions: PATHSEND in json.loads(json.dumps(extensions)),
        lambda extensions: PATHSEND in list(extensions),
    ]
    for ask in without_one:
        served = await serve(asking(ask, heard), tls=tls)
        async with await served.connect() as client:
            await client.get()
        assert heard == [False, (True, not tls, None if tls else {}, False, 5)]
        heard.clear()


async def test_each_may_be_taken_away_or_switched_off(serve: Serve) -> None:
    heard: list[Any] = []
    app = asking(lambda _: None, heard)

    async def takes(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/pop":
            assert scope["extensions"].pop(PATHSEND) == {}
            assert scope["extensions"].pop(PATHSEND, None) is None
        elif scope["path"] == "/del":
            del scope["extensions"][ZEROCOPYSEND]
        await app(scope, receive, send)

    served = await serve(takes)
    async with await served.connect() as client:
        for path in ("/pop", "/del", "/"):
            await client.get(path)
    assert [each[:2] for each in heard[1::2]] == [(False, True), (True, False), (True, True)]

    heard.clear()
    without = type("Without", (serve.protocol,), {"offers_files": False})
    served = await serve(
        asking(lambda extensions: PATHSEND in extensions, heard), protocol_with({}, without)
    )
    async with await served.connect() as client:
        await client.get()
    assert heard == [False, (False, False, None, False, 5)]


def protocol_with(extensions: dict[str, Any], base: Any) -> Any:
    """Return a protocol with extensions of its own in the scope of its applications."""

    class Extended(base):  # type: ignore[misc]
        async def _run(self, scope: Any, receive: Any, send: Any) -> Any:
            scope["extensions"] = extensions
            return await super()._run(scope, receive, send)

    return Extended


async def test_what_others_offer_stays_and_requests_share_nothing(serve: Serve) -> None:
    offered = {"tls": {"tls_version": 772}}
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        extensions = scope["extensions"]
        seen.append((extensions["tls"], PATHSEND in extensions, "mine" in extensions))
        extensions["mine"] = {}
        await PlainTextResponse("done")(scope, receive, send)

    served = await serve(app, protocol_with(offered, serve.protocol))
    async with await served.connect() as client:
        for _ in range(2):
            await client.get()
    assert seen == [({"tls_version": 772}, True, False)] * 2
    assert offered == {"tls": {"tls_version": 772}}


async def test_a_sources_change_on_the_disk_is_no_licence(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read is believed only if it is what runs."""
    source = tmp_path / "middleware_of_a_test.py"
    reads = """
async def dispatch(request, call_next):
    response = await call_next(request)
    body = b"".join([part async for part in response.body_iterator])
    return type(response)(iter_of(body[::-1]), headers=dict(response.headers))

async def iter_of(body):
    yield body
"""
    source.write_text(reads)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(source.stem)
    source.write_text(reads.partition("    body = ")[0] + "    return response\n")
    linecache.checkcache()
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    answer, by_kernel = await asked(serve, starlette(dispatched(module.dispatch))(path))
    assert (answer.body, by_kernel) == (CONTENT[::-1], 0)
