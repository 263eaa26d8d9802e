"""uvicorn with files: both extensions, over real connections."""

import asyncio
import errno
import functools
import io
import os
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiofiles.threadpool.binary import AsyncFileIO

import aiozc
from aiozc._engines.inline import SMALL
from aiozc._kernel.paths import CachedOpener
from tests.kit.content import KIB, MIB, assert_same, pattern, write_out
from tests.kit.waiting import until

from .conftest import Client, Serve

pytestmark = pytest.mark.anyio

SIZES = [0, 1, SMALL, SMALL + 1, 256 * KIB + 1, 8 * MIB + 3]
LARGE = 8 * MIB + 3
PATHSEND = "http.response.pathsend"
ZEROCOPYSEND = "http.response.zerocopysend"

Send = Callable[[dict[str, Any]], Coroutine[Any, Any, None]]


def start(length: int | None = None, status: int = 200) -> dict[str, Any]:
    """Return the message that starts a response."""
    headers = [] if length is None else [(b"Content-Length", b"%d" % length)]
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(content: bytes = b"", more_body: bool = False) -> dict[str, Any]:
    """Return a message with a part of the body."""
    return {"type": "http.response.body", "body": content, "more_body": more_body}


def pathsend(path: object) -> dict[str, Any]:
    """Return the message that sends a file by its path."""
    return {"type": PATHSEND, "path": str(path)}


def zerocopysend(file: Any, more_body: bool = False, **place: int) -> dict[str, Any]:
    """Return the message that sends a part of an open file."""
    return {"type": ZEROCOPYSEND, "file": file, "more_body": more_body, **place}


def answering(*messages: dict[str, Any]) -> Any:
    """Return an application that answers each request so."""

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        if PATHSEND in scope["extensions"]:
            for message in messages:
                await send(message)

    return app


def paths(folder: Path) -> Any:
    """Return an application that answers with the folder's files."""

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        if PATHSEND in scope["extensions"]:
            path = folder / scope["path"].strip("/")
            await send(start(path.stat().st_size))
            await send(pathsend(path))

    return app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with a file of each size."""
    for size in SIZES:
        (tmp_path / str(size)).write_bytes(pattern(size))
    return tmp_path


@pytest.fixture
def large(folder: Path) -> Path:
    """Return the path of the largest of them."""
    return folder / str(LARGE)


def has_sent(count: int) -> bool:
    """Return whether aiozc has sent so many bytes on this loop."""
    return sent() == count


def sent() -> int:
    """Return how many bytes aiozc has sent on this loop."""
    return aiozc.get_reactor().statistics().bytes


# pathsend


async def test_files_of_all_sizes_arrive_over_one_connection(serve: Serve, folder: Path) -> None:
    """Those that are not small enough to be copied were sent by aiozc."""
    served = await serve(paths(folder))
    async with await served.connect() as client:
        for size in SIZES * 2:
            before = sent()
            answer = await client.get(f"/{size}")
            assert answer.status == 200
            assert_same(answer.body, pattern(size))
            due = before + (size if size > SMALL else 0)
            await until(functools.partial(has_sent, due))


async def test_requests_in_one_packet_are_answered_in_order(serve: Serve, folder: Path) -> None:
    served = await serve(paths(folder))
    async with await served.connect() as client:
        for size in SIZES * 3:
            client.ask(path=f"/{size}")
        for size in SIZES * 3:
            assert_same((await client.answer()).body, pattern(size))


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_what_is_not_cached_is_opened_and_read_elsewhere(
    size: int, serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the path nor the bytes may be waited for by the loop."""
    path = folder / str(size)
    with path.open("rb") as file:
        write_out(file)
    loops_thread = threading.get_ident()
    opened_by: list[int] = []
    own_open = os.open

    def noted(*arguments: Any) -> int:
        opened_by.append(threading.get_ident())
        return own_open(*arguments)

    def refuse(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(CachedOpener, "open", refuse)
    monkeypatch.setattr(os, "open", noted)
    served = await serve(answering(start(size), pathsend(path)))
    async with await served.connect() as client:
        assert_same((await client.get()).body, pattern(size))
    assert len(opened_by) == 1
    assert loops_thread not in opened_by


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_files_do_not_wait_for_the_applications_own_threads(
    tls: bool, serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither over TLS nor where no path is opened at once (openat2 is refused, say)."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(CachedOpener, "open", refuse)
    may_end = threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, may_end.wait)
    served = await serve(paths(folder), tls=tls)
    async with await served.connect() as client:
        for size in SIZES:
            async with asyncio.timeout(30):
                assert_same((await client.get(f"/{size}")).body, pattern(size))
    assert not busy.done()
    may_end.set()
    await busy


async def test_an_application_that_is_cancelled_while_a_file_is_opened_leaves_none_open(
    serve: Serve, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixtures look for what is left."""
    opening, may_open = threading.Event(), threading.Event()
    own_open = os.open

    def slow(*arguments: Any) -> int:
        opening.set()
        may_open.wait()
        return own_open(*arguments)

    def refuse(*_: object) -> int:
        raise BlockingIOError

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        await send(start(LARGE))
        sending = asyncio.ensure_future(send(pathsend(large)))
        await until(opening.is_set)
        sending.cancel()
        may_open.set()
        await sending

    monkeypatch.setattr(CachedOpener, "open", refuse)
    monkeypatch.setattr(os, "open", slow)
    served = await serve(app)
    async with await served.connect() as client:
        client.ask()
        assert (await client.head())[0] == 200
        assert await client.rest() == b""


async def test_a_relative_path_begins_at_the_current_folder(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    served = await serve(answering(start(1), pathsend("./1")))
    async with await served.connect() as client:
        assert (await client.get()).body == pattern(1)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_file_longer_than_its_content_length_is_cut(
    size: int, serve: Serve, folder: Path
) -> None:
    served = await serve(answering(start(size - 7), pathsend(folder / str(size))))
    async with await served.connect() as client:
        for _ in range(2):
            assert_same((await client.get()).body, pattern(size)[:-7])


@pytest.mark.parametrize("size", [0, SMALL, LARGE])
async def test_a_file_shorter_than_its_content_length_ends_the_connection_and_is_logged(
    size: int, serve: Serve, folder: Path, errors: list[str]
) -> None:
    served = await serve(answering(start(size + 1), pathsend(folder / str(size))))
    async with await served.connect() as client:
        client.ask()
        status, headers = await client.head()
        assert (status, headers["content-length"]) == (200, str(size + 1))
        assert_same(await client.rest(), pattern(size))
    [error] = errors
    assert error.startswith("Exception in ASGI application")
    assert "Content-Length" in error


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)], ids=["HEAD", "204", "304"]
)
async def test_a_response_without_a_body_sends_nothing_of_the_file(
    method: str, status: int, serve: Serve, large: Path
) -> None:
    with large.open("rb") as file:
        for last in (pathsend(large), zerocopysend(file)):
            served = await serve(answering(start(LARGE, status), last))
            async with await served.connect() as client:
                for _ in range(2):
                    answer = await client.get(method=method)
                    assert (answer.status, answer.headers["content-length"]) == (status, str(LARGE))


def missing(folder: Path) -> dict[str, str]:
    """Return paths behind which no file is, and what to hear of each."""
    os.mkfifo(folder / "fifo")
    return {
        str(folder / "nobody"): "No such file",
        str(folder): "no regular file",
        str(folder / "fifo"): "no regular file",
        str(folder / "1\0"): "null byte",
    }


async def test_a_file_that_cannot_be_opened_is_a_500_before_the_headers_have_left(
    serve: Serve, folder: Path, errors: list[str]
) -> None:
    for path, reason in missing(folder).items():
        errors.clear()
        served = await serve(answering(start(LARGE), pathsend(path)))
        async with await served.connect() as client:
            answer = await client.get()
            assert (answer.status, answer.body) == (500, b"Internal Server Error")
            assert await client.rest() == b""
        assert len(errors) == 1
        assert reason in errors[0]


async def test_a_file_that_cannot_be_opened_ends_the_connection_after_the_headers_have_left(
    serve: Serve, folder: Path, errors: list[str]
) -> None:
    head_is_there = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        await send(start(LARGE))
        await head_is_there.wait()
        await send(pathsend(folder / "nobody"))

    served = await serve(app)
    async with await served.connect() as client:
        client.ask()
        assert (await client.head())[0] == 200
        head_is_there.set()
        assert await client.rest() == b""
    [error] = errors
    assert error.endswith(f"No such file or directory: {str(folder / 'nobody')!r}")


async def test_an_application_may_answer_otherwise_where_there_is_no_file(
    serve: Serve, folder: Path, errors: list[str]
) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        if PATHSEND in scope["extensions"]:
            await send(start(LARGE))
        try:
            await send(pathsend(folder / "nobody"))
        except FileNotFoundError:
            await send(start(4, status=404))
            await send(body(b"none"))

    served = await serve(app)
    async with await served.connect() as client:
        for _ in range(2):
            answer = await client.get()
            assert (answer.status, answer.body) == (404, b"none")
    assert not errors


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_without_a_content_length_the_file_is_one_chunk(
    tls: bool, serve: Serve, folder: Path
) -> None:
    for size in SIZES:
        served = await serve(answering(start(), pathsend(folder / str(size))), tls=tls)
        async with await served.connect() as client:
            for _ in range(2):
                assert_same((await client.get()).body, pattern(size))


async def test_pathsend_stands_alone(serve: Serve, folder: Path) -> None:
    refusals: list[str] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        async def refused(message: dict[str, Any]) -> None:
            with pytest.raises(RuntimeError) as caught:
                await send(message)
            refusals.append(str(caught.value))

        path = folder / "1"
        await refused(pathsend(path))
        await send(start(2))
        if scope["path"] == "/mixed":
            await send(body(b"a", more_body=True))
            await refused(pathsend(path))
            await send(body(b"b"))
            return
        await send(pathsend(folder / str(LARGE)))
        await refused(pathsend(path))
        await refused(body())

    served = await serve(app)
    async with await served.connect() as client:
        assert (await client.get("/mixed")).body == b"ab"
        assert (await client.get("/")).body == pattern(LARGE)[:2]
    assert [refusal.split("'")[1::2] for refusal in refusals] == [
        ["http.response.start", PATHSEND],
        [PATHSEND],
        ["http.response.start", PATHSEND],
        [PATHSEND],
        ["http.response.body"],
    ]


async def test_over_tls_files_arrive_and_zerocopysend_is_not_offered(
    serve: Serve, folder: Path
) -> None:
    offers: list[tuple[bool, bool]] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        extensions = scope["extensions"]
        offers.append((PATHSEND in extensions, ZEROCOPYSEND in extensions))
        if PATHSEND in scope["extensions"]:
            path = folder / scope["path"].strip("/")
            await send(start(path.stat().st_size))
            await send(pathsend(path))

    for tls in (True, False):
        served = await serve(app, tls=tls)
        async with await served.connect() as client:
            for size in SIZES:
                assert_same((await client.get(f"/{size}")).body, pattern(size))
        assert [offers.pop() for _ in SIZES] == [(True, not tls)] * len(SIZES)
    served = await serve(answering(start(1), zerocopysend(io.BytesIO(b"a"))), tls=True)
    async with await served.connect() as client:
        client.ask()
        assert await client.head()
        assert await client.rest() == b""


# zerocopysend


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
async def test_parts_of_files_and_of_bodies_arrive_in_order(
    framing: str, serve: Serve, large: Path
) -> None:
    """The application closes each file, and has others take its number, as soon as it may."""
    content = pattern(LARGE)
    places = [(0, 5), (3 * MIB + 1, 2 * MIB), (SMALL, SMALL), (LARGE - 7, None), (LARGE, None)]
    due = [b"first"]
    for offset, count in places:
        due += [content[offset:][:count], b"between"]
    due += [content[100 : 100 + MIB], content[100 + MIB :], b"last"]
    expected = b"".join(due)

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        await send(start(len(expected) if framing == "content-length" else None))
        await send(body(b"first", more_body=True))
        for offset, count in places:
            with large.open("rb") as file:
                place = {"offset": offset} if count is None else {"offset": offset, "count": count}
                await send(zerocopysend(file, more_body=True, **place))
            with io.FileIO("/dev/zero"):
                await send(body(b"between", more_body=True))
        with large.open("rb") as file:
            file.seek(100)
            await send(zerocopysend(file, more_body=True, count=MIB))
            assert file.tell() == 100 + MIB
            await send(zerocopysend(file, more_body=True))
            assert file.tell() == LARGE
            await send(body(b"last", more_body=True))
            await send(zerocopysend(file))

    served = await serve(app)
    async with await served.connect() as client:
        for _ in range(2):
            assert_same((await client.get()).body, expected)


async def test_what_the_kernel_cannot_send_is_read(serve: Serve) -> None:
    content = pattern(MIB)
    reading, writing = os.pipe()

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        await send(start())
        await send(zerocopysend(io.BytesIO(content), more_body=True, offset=5, count=600_000))
        with io.FileIO(reading) as pipe:
            await send(zerocopysend(pipe, offset=0))

    os.write(writing, b"from the pipe")
    os.close(writing)
    served = await serve(app)
    async with await served.connect() as client:
        assert_same((await client.get()).body, content[5:600_005], b"from the pipe")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"offset": -1}, "offset must be a non-negative integer (got -1)"),
        ({"offset": "1"}, "offset must be a non-negative integer (got '1')"),
        ({"count": -1}, "count must be a non-negative integer (got -1)"),
        ({"count": 1.0}, "count must be a non-negative integer (got 1.0)"),
        ({"file": "/a/path"}, "'/a/path' cannot be read"),
        ({"file": 1 << 20}, "Bad file descriptor"),
        ({"file": io.StringIO("text")}, "binary mode"),
    ],
    ids=["offset", "no offset", "count", "no count", "path", "number", "text"],
)
async def test_what_is_no_file_or_no_place_in_one_is_refused_before_anything_leaves(
    message: dict[str, Any], reason: str, serve: Serve, large: Path, errors: list[str]
) -> None:
    with large.open("rb") as file:
        refused = {**zerocopysend(file), **message}
        served = await serve(answering(start(), refused))
        async with await served.connect() as client:
            assert (await client.get()).status == 500
        served = await serve(answering(start(), body(b"first", more_body=True), refused))
        async with await served.connect() as client:
            client.ask()
            await client.head()
            assert await client.rest() == b"5\r\nfirst\r\n"
    assert [reason in error for error in errors] == [True, True]


class HasNumber:
    """Has a descriptor, and nothing else of a file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        """Return it."""
        return self.fd


@pytest.mark.parametrize("kind", ["number", "fileno", "anyio", "aiofiles", "unbuffered"])
async def test_whatever_has_a_descriptor_is_sent_from_its_position_on(
    kind: str, serve: Serve, large: Path
) -> None:
    """It stays open: closing it is the application's."""
    content = pattern(LARGE)
    ends: list[tuple[bool, bool]] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        with large.open("rb", buffering=0) as raw:
            number = raw.fileno()
            file: Any = {
                "number": lambda: number,
                "fileno": lambda: HasNumber(number),
                "anyio": lambda: anyio.wrap_file(raw),
                "aiofiles": lambda: AsyncFileIO(raw, loop=None, executor=None),  # type: ignore[no-untyped-call]
                "unbuffered": lambda: raw,
            }[kind]()
            os.lseek(number, 1000, os.SEEK_SET)
            await send(start(LARGE - 1000 + 20 + 5))
            await send(zerocopysend(file, more_body=True, count=100_000))
            await send(zerocopysend(file, more_body=True))
            await send(zerocopysend(file, more_body=True, offset=7, count=20))
            await send(body(b"quite"))
            os.fstat(number)
            ends.append((os.lseek(number, 0, os.SEEK_CUR) == 27, raw.closed))

    served = await serve(app)
    async with await served.connect() as client:
        for _ in range(2):
            assert_same((await client.get()).body, content[1000:], content[7:27], b"quite")
    assert ends == [(True, False)] * 2


@pytest.mark.parametrize("kind", ["number", "file", "waiting number", "waiting file", "socket"])
@pytest.mark.parametrize("framing", ["content-length", "chunked"])
async def test_a_stream_is_sent_until_its_end_as_it_comes(
    framing: str, kind: str, serve: Serve
) -> None:
    """What comes is sent before more does; a stream that does not block is waited for."""
    arrived = asyncio.Event()
    parts = [b"one", b"two" * 100_000, b"three"]

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        if kind == "socket":
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            reading, writing = ours.detach(), theirs.detach()
        else:
            reading, writing = os.pipe()
            os.set_blocking(reading, not kind.startswith("waiting"))
        given: Any = reading if "number" in kind or kind == "socket" else open(reading, "rb")  # noqa: ASYNC230, SIM115
        await send(start(sum(map(len, parts)) if framing == "content-length" else None))
        sending = asyncio.ensure_future(send(zerocopysend(given)))
        for part in parts:
            arrived.clear()
            await asyncio.to_thread(os.write, writing, part)
            await arrived.wait()
        os.close(writing)
        await sending
        if isinstance(given, int):
            os.close(given)
        else:
            given.close()

    served = await serve(app)
    async with await served.connect() as client:
        client.ask()
        await client.head()
        for part in parts:
            got = b""
            while len(got) < len(part):
                if framing == "chunked":
                    size = int(await client.reader.readuntil(b"\r\n"), 16)
                    got += await client.reader.readexactly(size)
                    await client.reader.readexactly(2)
                else:
                    got += await client.reader.read(len(part) - len(got))
            assert_same(got, part)
            arrived.set()
        if framing == "chunked":
            assert await client.reader.readexactly(5) == b"0\r\n\r\n"


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
async def test_what_stands_in_a_pipe_goes_by_the_kernel(framing: str, serve: Serve) -> None:
    """Up to the end or `count`: what is behind that stays in the pipe."""
    content = pattern(50_000)
    left: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        await send(start(len(content) if framing == "content-length" else None))
        await send(zerocopysend(reading, more_body=True, count=20_000))
        await send(zerocopysend(reading, more_body=True, count=20_000))
        left.append(os.read(reading, 1))
        await send(body(left[0], more_body=True))
        await send(zerocopysend(reading))
        os.close(reading)

    served = await serve(app)
    before = sent()
    async with await served.connect() as client:
        for _ in range(2):
            assert_same((await client.get()).body, content)
    assert left == [content[40_000:40_001]] * 2
    await until(functools.partial(has_sent, before + 2 * (len(content) - 1)))


async def test_a_place_in_what_has_none_is_refused(serve: Serve, errors: list[str]) -> None:
    reading, writing = os.pipe()
    try:
        served = await serve(answering(start(), zerocopysend(reading, offset=1)))
        async with await served.connect() as client:
            assert (await client.get()).status == 500
    finally:
        os.close(reading)
        os.close(writing)
    assert "its offset must be 0, not 1" in errors[0]


async def test_more_than_the_content_length_is_refused_before_any_of_it(
    serve: Serve, large: Path, errors: list[str]
) -> None:
    with large.open("rb") as file:
        served = await serve(answering(start(LARGE - 1), zerocopysend(file)))
        async with await served.connect() as client:
            client.ask()
            await client.head()
            assert await client.rest() == b""
    assert len(errors) == 1


async def test_bytes_behind_4_gib_arrive(serve: Serve, tmp_path: Path) -> None:
    end = pattern(MIB)
    with (tmp_path / "sparse").open("wb+") as file:
        file.truncate(5 << 30)
        os.pwrite(file.fileno(), end, (5 << 30) - MIB)
        place = zerocopysend(file, offset=(5 << 30) - 2 * MIB)
        served = await serve(answering(start(2 * MIB), place))
        async with await served.connect() as client:
            assert_same((await client.get()).body, bytes(MIB), end)


# What else happens meanwhile


def reset(client: Client) -> None:
    """End the connection by a reset."""
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_client_that_goes_away_in_the_middle_is_a_disconnect_and_no_error(
    end: str, serve: Serve, tmp_path: Path, errors: list[str]
) -> None:
    """The application's `send` returns, and so does the `receive` that waited beside it."""
    heard: list[Any] = []
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 30)

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        assert (await receive())["type"] == "http.request"
        receiving = asyncio.create_task(receive())
        await send(start(1 << 30))
        await send(pathsend(path))
        heard.append(await receiving)
        await send(body(b"to nobody"))

    served = await serve(app)
    client = await served.connect()
    client.ask()
    await client.head()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    if end == "reset":
        reset(client)
    else:
        client.writer.transport.abort()
    await until(lambda: not served.state.tasks)
    assert heard == [{"type": "http.disconnect"}]
    assert not errors


async def test_garbage_behind_a_request_for_a_file_is_refused_behind_the_file(
    serve: Serve, large: Path
) -> None:
    served = await serve(answering(start(LARGE), pathsend(large)))
    async with await served.connect() as client:
        client.ask()
        await client.head()
        client.writer.write(b"\0\r\n\r\n")
        assert_same(await client.reader.readexactly(LARGE), pattern(LARGE))
        refusal = await client.answer()
        assert (refusal.status, refusal.body) == (400, b"Invalid HTTP request received.")
        assert await client.rest() == b""


async def test_a_websocket_behind_a_request_for_a_file_begins_behind_the_file(
    serve: Serve, large: Path
) -> None:
    send_file = answering(start(LARGE), pathsend(large))

    async def app(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "http":
            await send_file(scope, receive, send)
            return
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})
        assert (await receive())["type"] == "websocket.disconnect"

    served = await serve(app, ws="websockets-sansio")
    async with await served.connect() as client:
        client.ask()
        await client.head()
        upgrade = {"Connection": "upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        client.ask(**upgrade, **{"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="})
        assert_same(await client.reader.readexactly(LARGE), pattern(LARGE))
        assert (await client.head())[0] == 101
        assert await client.reader.readexactly(7) == b"\x81\x05hello"


async def test_a_file_that_is_cut_while_it_is_sent_ends_the_connection_and_is_logged(
    serve: Serve, tmp_path: Path, errors: list[str]
) -> None:
    path = tmp_path / "file"
    for tls in (False, True):
        with path.open("wb") as file:
            file.truncate(1 << 30)
        served = await serve(answering(start(), pathsend(path)), tls=tls)
        async with await served.connect() as client:
            client.ask()
            await client.head()
            os.truncate(path, 1000)
            rest = await client.rest()
        assert len(rest) < 1 << 30
        assert not rest.endswith(b"0\r\n\r\n")
    assert len(errors) == 2
    assert all(f"{str(path)!r}" in error and "was cut" in error for error in errors)


async def test_a_file_that_fails_as_connections_do_is_logged(
    serve: Serve, large: Path, errors: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those on a network do, whose own connection is lost."""

    async def fail(*_: object) -> int:
        raise TimeoutError(errno.ETIMEDOUT, "the file's server is away")

    monkeypatch.setattr("aiozc.integrations.uvicorn.send_regular", fail)
    served = await serve(answering(start(LARGE), pathsend(large)))
    async with await served.connect() as client:
        client.ask()
        assert (await client.head())[0] == 200
        assert await client.rest() == b""
    [error] = errors
    assert "is away" in error


async def test_a_file_that_takes_too_long_ends_the_connection_with_what_the_peer_has(
    serve: Serve, tmp_path: Path, errors: list[str]
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    began = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        await send(start(1 << 30))
        sending = asyncio.ensure_future(send(pathsend(path)))
        await began.wait()
        sending.cancel()
        await asyncio.wait([sending])
        await send(body(b"x" * 1000, more_body=True))

    served = await serve(app)
    async with await served.connect() as client:
        client.ask()
        await client.head()
        began.set()
        assert not any(await client.rest())
    assert not any("pathsend" in error for error in errors)


async def test_two_files_at_once_are_refused(serve: Serve, large: Path) -> None:
    refused: list[BaseException | None] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        await send(start(LARGE))
        with large.open("rb") as file:
            first = asyncio.ensure_future(send(zerocopysend(file)))
            await asyncio.sleep(0)
            for message in (zerocopysend(file), body(b"x")):
                outcomes = await asyncio.gather(send(message), return_exceptions=True)
                refused.extend(outcomes)
            await first

    served = await serve(app)
    async with await served.connect() as client:
        assert_same((await client.get()).body, pattern(LARGE))
    assert [type(error) for error in refused] == [RuntimeError, RuntimeError]


@pytest.mark.parametrize("kind", ["on disk", "in memory"])
async def test_what_other_tasks_send_does_not_come_into_a_file(
    kind: str, serve: Serve, large: Path
) -> None:
    """The coroutines are made at once; the file's goes first, into a socket that is soon full."""
    refused: list[BaseException | None] = []

    def opened() -> io.BufferedIOBase:
        return large.open("rb") if kind == "on disk" else io.BytesIO(large.read_bytes())

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        await send(start())
        await send(body(b"first", more_body=True))
        with opened() as file:
            messages = (zerocopysend(file, True), body(b"x", True), zerocopysend(file, True))
            refused.extend(await asyncio.gather(*map(send, messages), return_exceptions=True))
        await send(body(b"last"))

    served = await serve(app)
    async with await served.connect() as client:
        for _ in range(2):
            assert_same((await client.get()).body, b"first", pattern(LARGE), b"last")
    assert [type(error) for error in refused] == [type(None), RuntimeError, RuntimeError] * 2


async def test_a_start_that_nobody_waits_for_leaves_before_the_body(serve: Serve) -> None:
    """The coroutines that send the body are made in another order than they run in."""

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        await send(start())
        later, sooner = send(body(b"two")), send(body(b"one", more_body=True))
        await sooner
        await later

    served = await serve(app)
    async with await served.connect() as client:
        assert (await client.get()).body == b"onetwo"


async def test_tasks_that_wait_for_the_start_may_send_at_once(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        started = asyncio.Event()

        async def add(part: bytes) -> None:
            await started.wait()
            await send(body(part, more_body=True))

        adding = [asyncio.ensure_future(add(part)) for part in (b"one", b"two", b"three")]
        await asyncio.sleep(0)
        await send(start())
        started.set()
        await asyncio.gather(*adding)
        await send(body())

    served = await serve(app)
    async with await served.connect() as client:
        assert (await client.get()).body == b"onetwothree"


async def test_a_start_leaves_before_what_the_application_waits_for(serve: Serve) -> None:
    has_head = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        await send(start(5))
        await has_head.wait()
        await send(body(b"hello"))

    served = await serve(app)
    async with await served.connect() as client:
        client.ask()
        assert (await client.head())[0] == 200
        has_head.set()
        assert await client.reader.readexactly(5) == b"hello"


@pytest.mark.parametrize("fault", ["raises", "returns"])
async def test_an_application_that_ends_after_the_start_has_sent_it(
    fault: str, serve: Serve, errors: list[str]
) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        await send(start(5))
        if fault == "raises":
            raise ValueError("a fault of the application's")

    served = await serve(app)
    async with await served.connect() as client:
        client.ask()
        assert (await client.head())[0] == 200
        assert await client.rest() == b""
    assert len(errors) == 1


async def test_many_clients_that_abort_at_random_leave_nothing_behind(
    serve: Serve, folder: Path, errors: list[str]
) -> None:
    """200 of them, in all places of a response; the test's fixtures look for what is left."""
    served = await serve(paths(folder))
    wanted = [SMALL, 256 * KIB + 1, LARGE]

    async def visit(number: int) -> None:
        client = await served.connect(limit=KIB)
        client.ask(path=f"/{wanted[number % 3]}")
        if number % 5:
            await client.head()
        with_bytes = (number * 7919) % 300_000 if number % 3 == 2 else number % 900
        if number % 7 and with_bytes and number % 5:
            await client.reader.readexactly(with_bytes)
        if number % 2:
            reset(client)
        else:
            client.writer.close()

    await asyncio.gather(*(visit(number) for number in range(200)))
    await until(lambda: not served.state.tasks and not served.state.connections)
    assert aiozc.get_reactor().statistics().in_flight == 0
    assert not errors


async def test_stalled_readers_keep_nobody_else_waiting(serve: Serve, folder: Path) -> None:
    served = await serve(paths(folder))
    stalled = [await served.connect(limit=KIB) for _ in range(30)]
    for client in stalled:
        client.ask(path=f"/{LARGE}")
        await client.head()
    async with await served.connect() as client:
        for size in SIZES * 3:
            assert_same((await client.get(f"/{size}")).body, pattern(size))
    for client in stalled[:5]:
        assert_same(await client.reader.readexactly(LARGE), pattern(LARGE))
    for client in stalled:
        client.writer.transport.abort()


async def test_the_transport_is_as_before(serve: Serve, folder: Path) -> None:
    """Its settings, its protocol, and the options of its socket; behind a file and without one."""
    seen: list[tuple[Any, ...]] = []
    send_path = paths(folder)

    async def app(scope: Any, receive: Any, send: Send) -> None:
        if scope["path"] == "/hello":
            await answering(start(5), body(b"hello"))(scope, receive, send)
        else:
            await send_path(scope, receive, send)
        [connection] = served.state.connections
        transport: Any = connection.transport
        sock = transport.get_extra_info("socket")
        seen.append(
            (
                transport.get_protocol(),
                transport.get_write_buffer_limits(),
                transport.is_reading(),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK),
            )
        )

    served = await serve(app)
    async with await served.connect() as client:
        for path in ["/hello", *(f"/{size}" for size in SIZES), "/hello"]:
            await client.get(path)
            await until(lambda: not served.state.tasks)
    assert len(set(seen)) == 1


async def test_a_file_waits_for_what_the_transport_has_to_write_yet(
    serve: Serve, large: Path, errors: list[str]
) -> None:
    """Behind a body of the same response, and behind another response in the same pipeline."""
    content, file = bytes(32 * MIB), large.open("rb")

    async def app(scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG001
        await send(start(len(content) + LARGE))
        await send(body(content, more_body=True))
        await send(zerocopysend(file, offset=0))

    served = await serve(app)
    async with await served.connect(limit=KIB) as client:
        for _ in range(2):
            client.ask()
        for _ in range(2):
            assert_same((await client.answer()).body, content, pattern(LARGE))
        [connection] = served.state.connections
        transport: Any = connection.transport
        assert transport.get_protocol() is connection
        assert transport.get_write_buffer_limits() != (0, 0)
    file.close()
    assert not errors
