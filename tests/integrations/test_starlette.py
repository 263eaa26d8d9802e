"""Starlette's files, and ours, on uvicorn with files: answers are Starlette's on uvicorn's own."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import starlette.responses
import starlette.staticfiles
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from uvicorn.protocols.http.h11_impl import H11Protocol as UvicornsH11
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as UvicornsHttpTools

import aiozc
from aiozc.integrations.starlette import FileResponse, StaticFiles
from aiozc.integrations.uvicorn import HttpToolsProtocol
from tests.kit.content import KIB, MIB, digest, pattern
from tests.kit.waiting import until

from .conftest import Serve

pytestmark = pytest.mark.anyio

SIZES = {"empty": 0, "small": 4 * KIB, "medium": 256 * KIB + 1, "large": 8 * MIB + 3}
SPARSE = 5 << 30
PAST, FUTURE = "Mon, 01 Jan 2001 00:00:00 GMT", "Fri, 01 Jan 2038 00:00:00 GMT"


STARLETTES = (starlette.responses.FileResponse, starlette.staticfiles.StaticFiles)
OURS = (FileResponse, StaticFiles)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make files."""
    for name, size in SIZES.items():
        (tmp_path / name).write_bytes(pattern(size))
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(SPARSE)
        os.pwrite(sparse.fileno(), pattern(MIB), SPARSE - MIB)
    return tmp_path


def answering_with_files(folder: Path, classes: tuple[Any, Any]) -> Starlette:
    """Make an application that answers with files in three ways."""
    response, static_files = classes

    async def file(request: Request) -> Any:
        return response(folder / request.path_params["name"], filename="a name.bin")

    async def hello(request: Request) -> PlainTextResponse:  # noqa: ARG001
        return PlainTextResponse("hello")

    routes = [
        Route("/file/{name}", file, methods=["GET", "HEAD"]),
        Route("/hello", hello),
        Mount("/static", static_files(directory=folder)),
    ]
    return Starlette(routes=routes)


@pytest.fixture(params=[pytest.param(STARLETTES, id="starlettes"), pytest.param(OURS, id="ours")])
def app(folder: Path, request: pytest.FixtureRequest) -> Starlette:
    """Answer with files by Starlette's classes, and by ours."""
    return answering_with_files(folder, request.param)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Fetch by httpx."""
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        yield client


async def shape(client: httpx.AsyncClient, url: str, method: str, headers: Any) -> Any:
    """Return all of an answer, but for what chance and time put into it."""
    response = await client.request(method, url, headers=headers)
    content, kind = response.content, response.headers.get("content-type", "")
    if "boundary=" in kind:
        boundary = kind.partition("boundary=")[2]
        content = content.replace(boundary.encode(), b"boundary")
    fields = {name: value for name, value in response.headers.items() if name != "date"}
    fields["content-type"] = kind.partition("boundary=")[0]
    return response.status_code, fields, len(content), digest(content)


REQUESTS: dict[str, tuple[str, dict[str, str]]] = {
    "whole": ("GET", {}),
    "head": ("HEAD", {}),
    "range": ("GET", {"Range": "bytes=5-4000"}),
    "end": ("GET", {"Range": "bytes=-100"}),
    "head of a range": ("HEAD", {"Range": "bytes=5-4000"}),
    "ranges": ("GET", {"Range": "bytes=0-9,100-200,4000-"}),
    "ranges out of order": ("GET", {"Range": "bytes=60000-200000,30-40,35-50,-9"}),
    "head of ranges": ("HEAD", {"Range": "bytes=0-9,100-200,4000-"}),
    "as many ranges as may be": (
        "GET",
        {"Range": "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 200, 2))},
    ),
    "too many ranges": (
        "GET",
        {"Range": "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 202, 2))},
    ),
    "beyond the end": ("GET", {"Range": f"bytes={SPARSE + 1}-"}),
    "no range": ("GET", {"Range": "lines=1-2"}),
    "range if old": ("GET", {"Range": "bytes=5-4000", "If-Range": '"another"'}),
    "if changed": ("GET", {"If-Modified-Since": FUTURE}),
    "if changed since": ("GET", {"If-Modified-Since": PAST}),
}


async def test_each_request_is_answered_as_uvicorns_own_protocols_do(
    serve: Serve, app: Starlette, folder: Path, client: httpx.AsyncClient
) -> None:
    """So it is by our classes on uvicorn's own protocols."""
    own = UvicornsHttpTools if issubclass(serve.protocol, HttpToolsProtocol) else UvicornsH11
    ours, on_stock = await serve(app), await serve(answering_with_files(folder, OURS), own)
    theirs = await serve(answering_with_files(folder, STARLETTES), own)
    for method, headers in REQUESTS.values():
        for way in ("file", "static"):
            for name in [*SIZES, "nobody"]:
                if way == "file" and name == "nobody":
                    continue
                path = f"/{way}/{name}"
                answer = await shape(client, theirs.url + path, method, headers)
                for served in (ours, on_stock):
                    assert await shape(client, served.url + path, method, headers) == answer, path


async def test_a_file_that_is_as_known_is_not_sent_again(
    serve: Serve, app: Starlette, client: httpx.AsyncClient
) -> None:
    served = await serve(app)
    first = await client.get(f"{served.url}/static/large")
    assert digest(first.content) == digest(pattern(SIZES["large"]))
    headers = {"If-None-Match": first.headers["etag"]}
    again = await client.get(f"{served.url}/static/large", headers=headers)
    assert (again.status_code, again.content) == (304, b"")


async def test_the_end_of_5_gib_arrives(
    serve: Serve, app: Starlette, client: httpx.AsyncClient
) -> None:
    served = await serve(app)
    headers = {"Range": f"bytes=-{MIB + 9}"}
    response = await client.get(f"{served.url}/file/sparse", headers=headers)
    assert response.status_code == 206
    assert response.headers["content-range"] == f"bytes {SPARSE - MIB - 9}-{SPARSE - 1}/{SPARSE}"
    assert digest(response.content) == digest(bytes(9) + pattern(MIB))


async def test_files_arrive_through_starlettes_middleware(
    serve: Serve, app: Starlette, client: httpx.AsyncClient
) -> None:
    """The messages wait for one another in streams; paths are known to it."""

    async def dispatch(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    served = await serve(app)
    for name, size in SIZES.items():
        before = aiozc.get_reactor().statistics().bytes
        response = await client.get(f"{served.url}/static/{name}")
        assert digest(response.content) == digest(pattern(size))
        if name == "large":
            await until(lambda: aiozc.get_reactor().statistics().bytes == before + size)  # noqa: B023


@pytest.mark.parametrize("base", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_has_aiozc_installed_is_as_good(base: Any, app: Starlette) -> None:
    async def main() -> None:
        server, serving, url = await serve_by_uvicorn(app)
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            for name, size in SIZES.items():
                response = await client.get(f"{url}/file/{name}")
                assert digest(response.content) == digest(pattern(size))
        server.should_exit = True
        await serving

    with asyncio.Runner(loop_factory=lambda: aiozc.new_event_loop(base)) as runner:
        runner.run(main())


async def test_a_file_that_is_missing_is_a_500(
    serve: Serve, app: Starlette, client: httpx.AsyncClient
) -> None:
    served = await serve(app)
    assert (await client.get(f"{served.url}/file/nobody")).status_code == 500
    assert (await client.get(f"{served.url}/hello")).text == "hello"


async def test_the_access_log_is_as_before(
    serve: Serve, app: Starlette, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "uvicorn.access")
    logs: list[list[str]] = []
    for protocol in (serve.protocol, UvicornsHttpTools):
        served = await serve(app, protocol)
        caplog.clear()
        for path in ("/file/small?a=b", "/file/large", "/file/nobody", "/hello", "/nothing"):
            # Behind an exception the server closes the connection, as it may be used again.
            await client.get(served.url + path, headers={"connection": "close"})
        lines = [entry.getMessage() for entry in caplog.records if entry.name == "uvicorn.access"]
        logs.append([line.partition(" - ")[2] for line in lines])
    ours, theirs = logs
    assert ours == theirs
    assert len(ours) == 5


async def serve_by_uvicorn(app: Any, **options: Any) -> tuple[uvicorn.Server, Any, str]:
    """Serve by uvicorn itself, with the protocol that its flag names; return its address too."""
    config = uvicorn.Config(
        app,
        port=0,
        http="aiozc.integrations.uvicorn:HttpToolsProtocol",
        lifespan="off",
        log_config=None,
        **options,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    return server, serving, f"http://127.0.0.1:{port}"


async def test_a_graceful_shutdown_waits_for_a_file(
    app: Starlette, client: httpx.AsyncClient
) -> None:
    server, serving, url = await serve_by_uvicorn(app)
    async with client.stream("GET", f"{url}/file/large") as response:
        chunks = response.aiter_raw(64 * KIB)
        content = await anext(chunks)
        server.should_exit = True
        await until(lambda: not server.servers[0].is_serving())
        content += b"".join([chunk async for chunk in chunks])
    assert digest(content) == digest(pattern(SIZES["large"]))
    await serving
    assert not server.server_state.connections


async def test_a_shutdown_that_waits_no_longer_ends_a_file(
    app: Starlette, client: httpx.AsyncClient
) -> None:
    server, serving, url = await serve_by_uvicorn(app, timeout_graceful_shutdown=0)
    async with client.stream("GET", f"{url}/file/sparse") as response:
        chunks = response.aiter_raw(64 * KIB)
        await anext(chunks)
        server.should_exit = True
        await serving
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in chunks:
                pass
    await until(lambda: not server.server_state.tasks)
    assert aiozc.get_reactor().statistics().in_flight == 0
