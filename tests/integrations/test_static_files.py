"""`aiozc.integrations.starlette`: what is opened is what is sent, and nothing else ever."""

import asyncio
import email
import errno
import os
import random
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.routing import Mount
from uvicorn.protocols.http.h11_impl import H11Protocol as UvicornsH11

import aiozc
from aiozc._engines import opening
from aiozc._engines.inline import SMALL
from aiozc._kernel import paths
from aiozc.integrations.starlette import FileResponse, StaticFiles
from tests.kit.content import KIB, MIB, assert_same, digest, pattern
from tests.kit.waiting import until

from .conftest import Answer, Client, Serve

pytestmark = pytest.mark.anyio

CONTENT = pattern(MIB)
SMALL_ONE = pattern(4 * KIB, 1)
SECRET = b"secret"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a directory to be served, beside what is not to be."""
    (tmp_path / "secret").write_bytes(SECRET)
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "file").write_bytes(CONTENT)
    (root / "folder" / "page.txt").write_bytes(SMALL_ONE)
    return root


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail what asks for a thread."""

    async def in_thread(*_: Any) -> None:
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr(opening, "in_thread", in_thread)
    monkeypatch.setattr(anyio.to_thread, "run_sync", in_thread)


@pytest.fixture
def no_openat2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have openat2(2) refused."""
    monkeypatch.setattr(paths, "may_call", lambda _: False)


async def get(serve: Serve, app: Any, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask once, by a connection of its own."""
    served = await serve(app)
    async with await served.connect() as client:
        return await ask(client, path, method, **headers)


async def ask(client: Client, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask by a connection."""
    client.ask(method, path, **{name.replace("_", "-"): value for name, value in headers.items()})
    return await client.answer(method)


def static(root: Path, **options: Any) -> Starlette:
    """Serve a directory; what is raised becomes an answer."""
    return Starlette(routes=[Mount("/", StaticFiles(directory=root, **options))])


@pytest.mark.usefixtures("each_backend")
async def test_several_ranges_arrive_whole_and_by_the_kernel(serve: Serve, root: Path) -> None:
    served = await serve(static(root))
    places = [(0, 9), (1000, 1000 + SMALL), (400_000, 700_000), (MIB - 5, MIB - 1)]
    asked = ",".join(f"{first}-{last}" for first, last in places)
    async with await served.connect() as client:
        before = aiozc.get_reactor().statistics().bytes
        answer = await ask(client, "/file", range=f"bytes={asked}")
        moved = aiozc.get_reactor().statistics().bytes - before
        kind = (await ask(client, "/file", "HEAD")).headers["content-type"]
    assert answer.status == 206
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts: Any = email.message_from_bytes(head + answer.body).get_payload()
    for (first, last), part in zip(places, parts, strict=True):
        assert part["Content-Range"] == f"bytes {first}-{last}/{MIB}"
        assert part["Content-Type"] == kind
        assert_same(part.get_payload(decode=True), CONTENT[first : last + 1])
    assert moved == SMALL + 1 + 300_001, "those of more than SMALL bytes"


@pytest.mark.usefixtures("each_backend")
async def test_a_range_goes_by_the_kernel(serve: Serve, root: Path) -> None:
    served = await serve(static(root))
    async with await served.connect() as client:
        before = aiozc.get_reactor().statistics().bytes
        answer = await ask(client, "/file", range="bytes=5-1000004")
        assert aiozc.get_reactor().statistics().bytes - before == 1_000_000
    assert_same(answer.body, CONTENT[5:1_000_005])


@pytest.mark.usefixtures("no_threads")
async def test_what_is_cached_needs_no_thread(serve: Serve, root: Path) -> None:
    (root / "404.html").write_bytes(b"none")
    (root / "folder" / "index.html").write_bytes(b"index")
    app = static(root, html=True, precompressed=True)
    assert not (root / "nobody").exists()  # which is cached as well
    app.router.routes[0].app.config_checked = True  # type: ignore[attr-defined]
    served = await serve(app)
    async with await served.connect() as client:
        first = await ask(client, "/folder/page.txt")
        assert_same(first.body, SMALL_ONE)
        assert_same((await ask(client, "/file")).body, CONTENT)
        assert_same((await ask(client, "/file", range="bytes=-9")).body, CONTENT[-9:])
        etag = first.headers["etag"]
        assert (await ask(client, "/folder/page.txt", if_none_match=etag)).status == 304
        assert (await ask(client, "/folder/")).body == b"index"
        redirect = await ask(client, "/folder")
        assert (redirect.status, redirect.headers["location"][-8:]) == (307, "/folder/")
        missing = await ask(client, "/nobody")
        assert (missing.status, missing.body) == (404, b"none")


async def test_symbolic_links_lead_where_they_may(serve: Serve, root: Path) -> None:
    (root / "inside").symlink_to("folder/page.txt")
    (root / "way").symlink_to("folder")
    (root / "outside").symlink_to("../secret")
    (root / "absolute").symlink_to(root.parent / "secret")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nothing")
    for follow in (False, True):
        served = await serve(static(root, follow_symlink=follow))
        async with await served.connect() as client:
            for name in ("inside", "way/page.txt"):
                assert_same((await ask(client, f"/{name}")).body, SMALL_ONE)
            for name in ("outside", "absolute", "up/secret"):
                answer = await ask(client, f"/{name}")
                assert answer.status == (200 if follow else 404), name
                assert (answer.body == SECRET) is follow
            for name in ("../secret", "folder/../../secret", "dangling", "/etc/passwd"):
                assert (await ask(client, f"/{name}")).status == 404, name


@pytest.mark.usefixtures("no_openat2")
async def test_the_same_is_right_where_openat2_is_refused(serve: Serve, root: Path) -> None:
    await test_symbolic_links_lead_where_they_may(serve, root)
    served = await serve(static(root))
    async with await served.connect() as client:
        assert_same((await ask(client, "/file")).body, CONTENT)
        assert (await ask(client, "/nobody")).status == 404


@pytest.mark.parametrize("part", ["file", "folder"])
@pytest.mark.usefixtures("no_openat2")
async def test_a_link_that_is_put_into_the_way_leads_nowhere(
    serve: Serve, root: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """By the way that looks before it opens; the other does both at once."""
    (root / "secret").mkdir()
    (root / "folder" / "file").write_bytes(CONTENT)
    (root.parent / "private").mkdir()
    (root.parent / "private" / "file").write_bytes(SECRET)
    look = opening._open_without_links

    def put_link(path: str) -> int:
        if part == "file":
            (root / "folder" / "file").unlink()
            (root / "folder" / "file").symlink_to(root.parent / "secret")
        else:
            shutil.rmtree(root / "folder")
            (root / "folder").symlink_to(root.parent / "private")
        return look(path)

    monkeypatch.setattr(opening, "_open_without_links", put_link)
    answer = await get(serve, static(root), "/folder/file")
    assert (answer.status, answer.body) == (404, b"Not Found")


async def test_a_link_that_is_none_any_more_when_it_is_read_leads_to_what_stands_there_or_nowhere(
    serve: Serve, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "link").symlink_to("file")
    readlink = os.readlink

    def replace(path: str) -> str:
        (root / "link").unlink()
        (root / "link").write_bytes(CONTENT)
        return readlink(path)

    monkeypatch.setattr(os, "readlink", replace)
    answer = await get(serve, static(root), "/link")
    # From CPython 3.13 on `os.path.realpath` takes what stands there now.
    assert (answer.status, answer.body) in ((404, b"Not Found"), (200, CONTENT))


async def test_what_was_opened_is_sent_whatever_its_path_leads_to_now(
    serve: Serve, root: Path
) -> None:
    class Late(StaticFiles):
        async def get_response(self, path: str, scope: Any) -> Response:
            response = await super().get_response(path, scope)
            (root / "another").write_bytes(SECRET)
            os.replace(root / "another", root / path)
            return response

    for path, content in (("file", CONTENT), ("folder/page.txt", SMALL_ONE)):
        answer = await get(serve, Late(directory=root), f"/{path}")
        assert answer.headers["content-length"] == str(len(content))
        assert_same(answer.body, content)


@pytest.mark.usefixtures("each_backend")
async def test_a_file_that_becomes_shorter_ends_the_connection(
    serve: Serve, root: Path, errors: list[str]
) -> None:
    """Nothing stands in the place of what is missing, not even the head of the next part."""

    class Cut(StaticFiles):
        async def get_response(self, path: str, scope: Any) -> Response:
            response = await super().get_response(path, scope)
            os.truncate(root / path, 600_000)
            return response

    for asked, arrives in ((None, 600_000), ("bytes=500000-", 100_000)):
        (root / "file").write_bytes(CONTENT)
        served = await serve(Cut(directory=root))
        async with await served.connect() as client:
            client.ask("GET", "/file", **({"Range": asked} if asked else {}))
            await client.head()
            assert_same(await client.rest(), CONTENT[600_000 - arrives : 600_000])
    (root / "file").write_bytes(CONTENT)
    served = await serve(Cut(directory=root))
    async with await served.connect() as client:
        client.ask("GET", "/file", Range="bytes=0-499999,550000-650000,700000-700009")
        await client.head()
        body = await client.rest()
    assert body.endswith(CONTENT[550_000:600_000])
    assert body.count(b"Content-Range") == 2
    await until(lambda: len(errors) == 3)


async def test_nothing_is_left_open_by_what_is_not_sent(serve: Serve, root: Path) -> None:
    """`nothing_left_behind` counts descriptors behind every test."""

    class Fickle(StaticFiles):
        async def get_response(self, path: str, scope: Any) -> Response:
            response = await super().get_response(path, scope)
            if scope["headers"] and dict(scope["headers"]).get(b"x-drop"):
                return Response("dropped")
            return response

    files = Fickle(directory=root, html=True, precompressed=True)
    served = await serve(Starlette(routes=[Mount("/", files)]))
    held = len(os.listdir("/proc/self/fd"))
    async with await served.connect() as client:
        for _ in range(3):
            assert (await ask(client, "/file", "HEAD")).headers["content-length"] == str(MIB)
            assert (await ask(client, "/file", x_drop="1")).body == b"dropped"
            answer = await ask(client, "/folder/page.txt", range="bytes=9999-")
            assert (answer.status, answer.headers["content-range"]) == (416, "bytes */4096")
            assert (await ask(client, "/file", range="bytes=9-1")).status == 400
            assert (await ask(client, "/folder")).status == 404
    await until(lambda: len(os.listdir("/proc/self/fd")) <= held)


@pytest.mark.usefixtures("each_backend")
async def test_errors_that_are_kept_keep_nothing_open(serve: Serve, root: Path) -> None:
    class Raising(StaticFiles):
        def file_response(self, *_: Any, **__: Any) -> Response:
            raise LookupError

    kept: list[BaseException] = []
    ways: list[Any] = [StaticFiles(directory=root, html=True), Raising(directory=root)]
    ways.append(FileResponse(root / "folder"))

    async def failing(message: Any) -> None:
        if message["type"] != "http.response.start":
            raise OSError("the client is gone")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        held = set(os.listdir("/proc/self/fd"))
        for way in ways:
            for path in ("/folder", "/file", "/folder/page.txt"):
                for offered in (True, False):
                    try:
                        there = scope["extensions"] if offered else {}
                        await way({**scope, "path": path, "extensions": there}, receive, failing)
                    except Exception as error:
                        kept.append(error)
        still = set(os.listdir("/proc/self/fd"))
        await Response(str(len(still - held)))(scope, receive, send)

    assert (await get(serve, app, "/")).body == b"0"
    assert len(kept) == 18


async def test_an_encoding_that_may_not_be_read_is_none(
    serve: Serve, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "file.gz").write_bytes(b"packed")
    look = opening._look_beneath

    def refuse(directory: str, path: str, follow: bool) -> Any:
        if path.endswith(".gz"):
            raise PermissionError(errno.EACCES, "not this one")
        return look(directory, path, follow)

    monkeypatch.setattr(opening, "_open_beneath_plainly", no_longer_cached)
    monkeypatch.setattr(opening, "_look_beneath", refuse)
    answer = await get(serve, static(root, precompressed=True), "/file", accept_encoding="gzip")
    assert_same(answer.body, CONTENT)


def no_longer_cached(*_: Any) -> int:
    """Answer as openat2(2) does with RESOLVE_CACHED."""
    raise BlockingIOError(errno.EAGAIN, "not cached")


async def test_what_is_cancelled_while_a_thread_opens_it_is_closed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, may_go_on = threading.Event(), threading.Event()
    look = opening._look_beneath

    def slow(*arguments: Any) -> Any:
        looking.set()
        may_go_on.wait()
        return look(*arguments)

    monkeypatch.setattr(opening, "_open_beneath_plainly", no_longer_cached)
    monkeypatch.setattr(opening, "_look_beneath", slow)
    held = len(os.listdir("/proc/self/fd"))
    scope = {"type": "http", "method": "GET", "path": "/file", "headers": []}
    asking = asyncio.create_task(StaticFiles(directory=root).get_response("file", scope))
    await until(looking.is_set)
    asking.cancel()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError) as kept:
        await asking
    assert kept.value
    assert len(os.listdir("/proc/self/fd")) == held


async def test_a_client_that_leaves_ends_its_file(serve: Serve, root: Path) -> None:
    with (root / "large").open("wb") as large:
        large.truncate(1 << 30)
    ended = asyncio.Event()

    class Watched(StaticFiles):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await super().__call__(scope, receive, send)
            finally:
                ended.set()

    served = await serve(Watched(directory=root))
    for headers in ({}, {"Range": "bytes=5-"}, {"Range": "bytes=0-500000000,600000000-"}):
        async with await served.connect() as client:
            client.ask("GET", "/large", **headers)
            await client.reader.readexactly(100_000)
        await asyncio.wait_for(ended.wait(), 10)
        ended.clear()


@pytest.mark.usefixtures("each_backend")
async def test_clients_that_leave_anywhere_leave_nothing_behind(serve: Serve, root: Path) -> None:
    chance = random.Random(7)
    served = await serve(static(root, precompressed=True))

    async def leave_somewhere(asked: str, size: int) -> None:
        async with await served.connect() as client:
            client.ask("GET", "/file", **({"Range": asked} if asked else {}))
            assert len(await client.reader.read(size)) > 0 or not size
            client.writer.transport.abort()

    for _ in range(10):
        asked = [chance.choice(["", "bytes=9-", "bytes=0-99,5000-900000"]) for _ in range(10)]
        await asyncio.gather(*(leave_somewhere(one, chance.randrange(MIB)) for one in asked))
    await until(lambda: not served.state.tasks)
    async with await served.connect() as client:
        assert_same((await ask(client, "/file")).body, CONTENT)


@pytest.mark.usefixtures("each_backend")
async def test_a_cancelled_answer_closes_its_file(serve: Serve, root: Path) -> None:
    with (root / "large").open("wb") as large:
        large.truncate(1 << 30)
    cancelled = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with anyio.CancelScope() as scope_of_it:
            asyncio.get_running_loop().call_later(0.05, scope_of_it.cancel)
            await FileResponse(root / "large")(scope, receive, send)
        cancelled.append(scope_of_it.cancelled_caught)

    served = await serve(app)
    async with await served.connect() as client:
        client.ask("GET", "/", Range="bytes=7-")
        await until(lambda: bool(cancelled))
    assert cancelled == [True]


@pytest.mark.parametrize("refused", [False, True])
async def test_what_is_no_file_is_not_found_and_holds_nobody_up(
    serve: Serve, root: Path, request: pytest.FixtureRequest, refused: bool
) -> None:
    if refused:
        request.getfixturevalue("no_openat2")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "socket"))
        served = await serve(static(root, html=True))
        async with await served.connect() as client:
            for name in ("fifo", "socket", "folder", "file/beneath", "a%00b", "n" * 300):
                assert (await ask(client, f"/{name}")).status == 404, name


async def test_what_may_not_be_read_is_a_401(
    serve: Serve, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "not this one")

    for name in ("_open_beneath_plainly", "_open_without_links"):
        monkeypatch.setattr(opening, name, refuse)
    assert (await get(serve, static(root), "/file")).status == 401


async def test_directories_and_packages_are_looked_through_in_order(
    serve: Serve, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package_of_a_test"
    (package / "statics").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "statics" / "file").write_bytes(b"hidden")
    (package / "statics" / "its.txt").write_bytes(b"its own")
    (package / "statics" / "its.txt.gz").write_bytes(b"packed")
    (root / "its.txt.br").write_bytes(b"another's")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    app = StaticFiles(directory="root", packages=[package.name], precompressed=True)
    served = await serve(Starlette(routes=[Mount("/", app)]))
    async with await served.connect() as client:
        assert_same((await ask(client, "/file")).body, CONTENT)
        assert (await ask(client, "/its.txt")).body == b"its own"
        # A file has its encodings beside it.
        assert (await ask(client, "/its.txt", accept_encoding="br, gzip")).body == b"packed"
        assert (await ask(client, "/nobody")).status == 404


async def test_a_subclass_decides_what_it_decides_at_starlettes(serve: Serve, root: Path) -> None:
    class Elsewhere(StaticFiles):
        def lookup_path(self, path: str) -> Any:
            return super().lookup_path(f"folder/{path}")

    class Kept(StaticFiles):
        def file_response(self, *args: Any, **options: Any) -> Response:
            response = super().file_response(*args, **options)
            response.headers["cache-control"] = "max-age=60"
            return response

    class Other(StaticFiles):
        def file_response(self, *_: Any, **options: Any) -> Response:
            return FileResponse(root / "folder" / "page.txt", **options)

    class OnePage(StaticFiles):
        async def get_response(self, path: str, scope: Any) -> Response:
            try:
                return await super().get_response(path, scope)
            except HTTPException:
                return await super().get_response("folder/page.txt", scope)

    assert_same((await get(serve, Elsewhere(directory=root), "/page.txt")).body, SMALL_ONE)
    assert_same((await get(serve, Other(directory=root), "/file")).body, SMALL_ONE)
    assert_same((await get(serve, OnePage(directory=root), "/any/where")).body, SMALL_ONE)
    for headers in ({}, {"range": "bytes=1-"}):
        answer = await get(serve, Kept(directory=root), "/file", **headers)
        assert answer.headers["cache-control"] == "max-age=60"
        assert_same(answer.body, CONTENT[len(headers) :])


async def test_headers_are_those_of_the_file_as_it_is_now(serve: Serve, root: Path) -> None:
    class Kept(StaticFiles):
        def file_response(self, *args: Any, **options: Any) -> Response:
            response = super().file_response(*args, **options)
            response.headers.append("x-number", str(len(numbers)))
            numbers.append(0)
            return response

    numbers: list[int] = []
    seen = set()
    served = await serve(Kept(directory=root))
    async with await served.connect() as client:
        for number in range(4):
            content = pattern(KIB + number // 2, number)
            (root / "file").write_bytes(content)
            os.utime(root / "file", ns=(number, number * 10**9))
            for _ in range(2):
                answer = await ask(client, "/file")
                assert_same(answer.body, content)
                seen.add((answer.headers["etag"], answer.headers["last-modified"]))
    assert answer.headers["x-number"] == "7"
    assert len(seen) == 4


async def test_fastapis_answers_with_files_are_as_good(serve: Serve, root: Path) -> None:
    app = FastAPI()
    app.mount("/static", StaticFiles(directory=root))

    @app.get("/file")
    async def file() -> FileResponse:
        return FileResponse(root / "file", filename="name")

    served = await serve(app)
    async with await served.connect() as client:
        before = aiozc.get_reactor().statistics().bytes
        for path in ("/file", "/static/file"):
            assert_same((await ask(client, path, range="bytes=9-900000")).body, CONTENT[9:900_001])
        assert aiozc.get_reactor().statistics().bytes - before == 2 * 899_992


async def test_background_tasks_run_behind_the_file(serve: Serve, root: Path) -> None:
    ran: list[str] = []
    served = await serve(FileResponse(root / "file", background=BackgroundTask(ran.append, "ran")))
    async with await served.connect() as client:
        for number, headers in enumerate(({}, {"range": "bytes=5-"}, {"range": "bytes=0-1,5-"}), 1):
            answer = await ask(client, "/", "GET", **headers)
            assert answer.status == (206 if headers else 200)
            await until(lambda: len(ran) == number)  # noqa: B023


async def test_where_bodies_are_changed_files_go_as_starlettes_do(serve: Serve, root: Path) -> None:
    app = static(root)
    app.add_middleware(GZipMiddleware)
    served = await serve(app)
    async with await served.connect() as client:
        packed = await ask(client, "/file", accept_encoding="gzip")
        assert packed.headers["content-encoding"] == "gzip"
        assert_same((await ask(client, "/file")).body, CONTENT)


# Encodings


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP;Q=0.5 , deflate", "gzip"),
        ("gzip, deflate, br, zstd", "br"),
        ("gzip, zstd", "zstd"),
        ("br;q=0.5, gzip;q=0.9", "gzip"),
        ("br;q=0, gzip;q=0.001", "gzip"),
        ("*", "br"),
        ("br;q=0, *;q=0.1", "zstd"),
        ("gzip;q=0", ""),
        ("identity", ""),
        ("gzip;q=0.5, identity", ""),
        ("gzip;q=0.5, identity;q=0.5", "gzip"),
        ("gzip;q=nonsense", ""),
        ("brotli", ""),
        (",;,q=1", ""),
    ],
)
async def test_a_file_goes_in_the_encoding_that_is_preferred(
    serve: Serve, root: Path, accepted: str, encoding: str
) -> None:
    (root / "app.js").write_bytes(CONTENT)
    for name, coding in ((".br", "br"), (".zst", "zstd"), (".gz", "gzip")):
        (root / f"app.js{name}").write_bytes(coding.encode())
    served = await serve(static(root, precompressed=True))
    async with await served.connect() as client:
        plain = await ask(client, "/app.js")
        answer = await ask(client, "/app.js", accept_encoding=accepted)
        assert answer.headers.get("content-encoding", "") == encoding
        assert answer.headers["vary"] == "Accept-Encoding"
        assert answer.headers["content-type"] == plain.headers["content-type"]
        assert "javascript" in plain.headers["content-type"]
        assert_same(answer.body, encoding.encode() or CONTENT)
        again = await ask(
            client,
            "/app.js",
            accept_encoding=accepted,
            if_none_match=answer.headers["etag"],
        )
        assert (again.status, again.headers["vary"]) == (304, "Accept-Encoding")
        if encoding:
            assert answer.headers["etag"] != plain.headers["etag"]
            ranged = await ask(client, "/app.js", accept_encoding=accepted, range="bytes=1-")
            assert (ranged.status, ranged.body) == (206, encoding[1:].encode())
            assert ranged.headers["content-encoding"] == encoding


async def test_encodings_of_one_size_and_time_have_etags_of_their_own(
    serve: Serve, root: Path
) -> None:
    for name in ("a.txt", "a.txt.gz", "a.txt.br"):
        (root / name).write_bytes(b"same")
        os.utime(root / name, (1, 1))
    etags = set()
    served = await serve(static(root, precompressed=True))
    async with await served.connect() as client:
        for accepted in ("identity", "gzip", "br"):
            etags.add((await ask(client, "/a.txt", accept_encoding=accepted)).headers["etag"])
    assert len(etags) == 3


async def test_the_page_of_a_folder_has_encodings_too(serve: Serve, root: Path) -> None:
    (root / "folder" / "index.html").write_bytes(b"index")
    (root / "folder" / "index.html.gz").write_bytes(b"packed")
    (root / "folder.gz").write_bytes(b"something else")
    app = static(root, html=True, precompressed=True)
    answer = await get(serve, app, "/folder/", accept_encoding="gzip")
    assert (answer.body, answer.headers["content-encoding"]) == (b"packed", "gzip")
    assert answer.headers["content-type"].startswith("text/html")


async def test_without_being_asked_for_no_encoding_is_sent(serve: Serve, root: Path) -> None:
    (root / "file.gz").write_bytes(b"packed")
    answer = await get(serve, static(root), "/file", accept_encoding="gzip")
    assert_same(answer.body, CONTENT)
    assert not answer.headers.keys() & {"vary", "content-encoding"}


# Other clients


@pytest.mark.parametrize("ours", [True, False])
async def test_a_download_that_was_cut_is_gone_on_with(
    serve: Serve, root: Path, tmp_path: Path, ours: bool
) -> None:
    """By the programs that are here, from our protocols and from one of uvicorn's own."""
    served = await serve(static(root), None if ours else UvicornsH11)
    copy, url = tmp_path / "copy", f"{served.url}/file"

    async def run(*line: str) -> bytes:
        if shutil.which(line[0]):
            await asyncio.to_thread(subprocess.run, line, check=True, timeout=30)
        return copy.read_bytes()

    for line in (
        ("curl", "-sS", "-C", "-", "-o", str(copy), url),
        ("wget", "-q", "--no-proxy", "-c", "-O", str(copy), url),
    ):
        copy.write_bytes(CONTENT[:300_001] if shutil.which(line[0]) else CONTENT)
        assert digest(await run(*line)) == digest(CONTENT)
    body = await run("curl", "-sS", "-r", "0-9,500000-600000", "-o", str(copy), url)
    assert CONTENT[:10] in body
    assert CONTENT[500_000:600_001] in body


def test_on_trio_they_answer_too(root: Path) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await anyio.sleep_forever()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.zerocopysend":
            message["body"] = os.pread(
                message["file"].fileno(), message["count"], message["offset"]
            )
        sent.append(message)

    async def main() -> None:
        app = StaticFiles(directory=root)
        scope = {"type": "http", "method": "GET", "path": "/file", "headers": []}
        await app({**scope, "extensions": {"http.response.zerocopysend": {}}}, receive, send)
        await app({**scope, "extensions": {}}, receive, send)

    anyio.run(main, backend="trio")
    assert_same(b"".join(message.get("body", b"") for message in sent), CONTENT, CONTENT)
