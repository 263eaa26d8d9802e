"""Objects that only look like files, or like sockets: unwrapped, or refused before a byte moves."""

import asyncio
import contextlib
import functools
import gzip
import io
import itertools
import ssl
import tempfile
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiofiles
import aiofiles.tempfile
import anyio
import pytest
import trio
import trio.testing

import aiozc
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, assert_same, case, pattern
from tests.kit.ends import Ends
from tests.kit.far_ends import Connect
from tests.kit.folding import each
from tests.kit.ways import send_uncopied, splice_file, splice_upload

pytestmark = pytest.mark.anyio

HEAD, CONTENT, TAIL = pattern(1000, 1), pattern(300 * KIB + 5), pattern(500, 2)

# Async files

Open = Callable[[Path, str], Any]


def content_of(path: Path) -> bytes:
    """Read a file."""
    return path.read_bytes()


def keep(path: Path, content: bytes) -> None:
    """Write a file."""
    path.write_bytes(content)


@contextlib.asynccontextmanager
async def by_trio(path: Path, mode: str) -> AsyncIterator[Any]:
    """Wrap a file as trio does; no run of trio is needed for that."""
    with open(path, mode) as file:  # noqa: ASYNC230
        yield _OnThisLoop(trio.wrap_file(file))


class _OnThisLoop:
    """What a test does with trio's file where trio does not run."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            return getattr(self.given.wrapped, name)(*arguments)

        return call


@contextlib.asynccontextmanager
async def by_aiofiles_temporary(path: Path, mode: str, *, named: bool = False) -> Any:
    """Have a temporary file with the content of that path, or nothing in it."""
    make: Any = aiofiles.tempfile.NamedTemporaryFile if named else aiofiles.tempfile.TemporaryFile
    async with make("w+b") as file:
        if mode == "rb":
            await file.write(content_of(path))
            await file.seek(0)
        yield file
        await file.flush()
        await file.seek(0)
        if mode == "wb":
            keep(path, await file.read())


@contextlib.asynccontextmanager
async def by_spooled(path: Path, mode: str, *, make: Any) -> AsyncIterator[Any]:
    """Have a temporary file that is in memory until it is large."""
    async with make(max_size=2000) as file:
        if mode == "rb":
            await file.write(content_of(path))
            await file.seek(0)
        yield file
        await file.seek(0)
        if mode == "wb":
            keep(path, await file.read())


@contextlib.asynccontextmanager
async def by_anyio(path: Path, mode: Any) -> AsyncIterator[Any]:
    """Open a file as anyio does."""
    async with await anyio.open_file(path, mode) as file:
        yield file


OPENERS: dict[str, Open] = {
    "aiofiles": lambda path, mode: aiofiles.open(path, mode),  # type: ignore[call-overload]
    "aiofiles, unbuffered": lambda path, mode: aiofiles.open(path, mode, 0),  # type: ignore[call-overload]
    "aiofiles, temporary": by_aiofiles_temporary,
    "aiofiles, named": functools.partial(by_aiofiles_temporary, named=True),
    "aiofiles, spooled": functools.partial(by_spooled, make=aiofiles.tempfile.SpooledTemporaryFile),
    "anyio": by_anyio,
    "anyio, spooled": functools.partial(by_spooled, make=anyio.SpooledTemporaryFile),
    "trio": by_trio,
}
MEMORY = ("aiofiles, spooled", "anyio, spooled")


async def send_second(sock: Any, file: Any, offset: int = 0, count: int | None = None) -> int:
    """Send a file as the second of a sequence."""
    send = await aiozc.sendfile_zc(sock, [b"first", file], offset + 5 if offset else 0, count)
    await send.released()
    return send.sent if offset else send.sent - 5


def each_opener(moves: list[Any]) -> pytest.MarkDecorator:
    """Run the test by each of the functions with files that are opened in each way."""
    pairs = {
        f"{move.__name__}-{name}": (move, name)
        for move, name in itertools.product(moves, OPENERS)
        # What is in memory has no descriptor.
        if name not in MEMORY or move not in (splice_upload, splice_file)
    }
    return each("move, opener", pairs, group=lambda move, _: move.__name__)


@each_opener([aiozc.loop_recvfile, splice_upload])
async def test_an_async_file_goes_on_behind_what_was_received(
    move: Any, opener: str, tmp_path: Path, ends: Ends
) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"")
    source = ends.source("tcp", CONTENT).end
    async with OPENERS[opener](path, "wb") as file:
        await file.write(HEAD)
        given = getattr(file, "given", file) if opener == "trio" else file
        if move is splice_upload:
            assert await aiozc.splice_pipe(source, given) == len(CONTENT)
        else:
            assert await move(source, given, len(HEAD)) == len(CONTENT)
        assert await file.tell() == len(HEAD + CONTENT)
        await file.write(TAIL)
    assert_same(path.read_bytes(), HEAD, CONTENT, TAIL)


@each_opener([aiozc.loop_sendfile, splice_file, send_uncopied, send_second])
async def test_an_async_file_stands_behind_what_was_sent(
    move: Any, opener: str, tmp_path: Path, connect: Connect
) -> None:
    path = tmp_path / "download"
    path.write_bytes(HEAD + CONTENT + TAIL)
    sock, receiver = connect()
    async with OPENERS[opener](path, "rb") as file:
        given = getattr(file, "given", file) if opener == "trio" else file
        assert await file.read(10) == HEAD[:10]
        if move is splice_file:
            await file.seek(len(HEAD))
            assert await aiozc.splice_pipe(given, sock, len(CONTENT)) == len(CONTENT)
        else:
            assert await move(sock, given, len(HEAD), len(CONTENT)) == len(CONTENT)
        assert await file.tell() == len(HEAD + CONTENT)
        assert await file.read() == TAIL
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


class Asynchronous:
    """A file of nobody's library whose methods are coroutines."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def fileno(self) -> int:
        """Tell it, as most of them do without a coroutine."""
        return int(self._file.fileno())

    async def read(self, size: int = -1) -> Any:
        """Read."""
        return self._file.read(size)

    async def write(self, data: Any) -> Any:
        """Write."""
        return self._file.write(data)

    async def seek(self, place: int) -> Any:
        """Move."""
        return self._file.seek(place)

    async def tell(self) -> Any:
        """Tell the place."""
        return self._file.tell()

    async def flush(self) -> None:
        """Do nothing."""


class Hidden:
    """The same by functions that return the coroutines: only calling them shows it."""

    def __init__(self, file: Any) -> None:
        self._asynchronous = Asynchronous(file)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._asynchronous, name)
        return (lambda *arguments: method(*arguments)) if name != "fileno" else method


Move = Callable[[Any, Any], Awaitable[Any]]
MOVES: dict[str, Move] = {
    "loop_sendfile": aiozc.loop_sendfile,
    "loop_recvfile": aiozc.loop_recvfile,
    "splice from": lambda sock, file: aiozc.splice_pipe(file, sock),
    "splice into": lambda sock, file: aiozc.splice_pipe(sock, file),
    "sendfile_zc": aiozc.sendfile_zc,
    "sendfile_zc of two": lambda sock, file: aiozc.sendfile_zc(sock, [b"head", file]),
}


class Line:
    """A socket whose peer has sent `WAITING`; nothing may leave it, either way."""

    WAITING = b"x" * 1000

    def __init__(self) -> None:
        self.sock, self.far = socket_pair()
        self.far.send(self.WAITING)

    def check_nothing_moved(self) -> None:
        """Check that what the peer has sent is still there, and that it got nothing."""
        assert self.sock.recv(2000) == self.WAITING
        self.far.send(self.WAITING)
        with pytest.raises(BlockingIOError):
            self.far.recv(1)


@pytest.fixture
def line() -> Iterator[Line]:
    """Make one."""
    line = Line()
    with line.sock, line.far:
        yield line


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def streams() -> AsyncIterator[Streams]:
    """Make a connection of asyncio's streams."""
    near, far = socket_pair()
    with far:
        reader, writer = await asyncio.open_connection(sock=near)
        yield reader, writer
        writer.close()
        await writer.wait_closed()


async def refused(line: Line, moving: Awaitable[Any], *words: str) -> Exception:
    """Check that it is refused in a sentence with these words, and nothing has moved."""
    with pytest.raises((TypeError, ValueError)) as caught:
        await asyncio.wait_for(moving, 10)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "attribute" not in text
    line.check_nothing_moved()
    return caught.value


@each("move", MOVES)
@pytest.mark.parametrize("kind", [Asynchronous, Hidden])
async def test_other_objects_whose_methods_are_coroutines_are_refused(
    move: Move, kind: Any, line: Line, ends: Ends
) -> None:
    file = ends.file(CONTENT, "r+b")
    await refused(line, move(line.sock, kind(file)), "coroutines", kind.__name__)
    assert file.tell() == 0
    assert file.read() == CONTENT


async def test_what_is_no_file_is_refused_before_the_first_byte(
    line: Line, ends: Ends, streams: Streams
) -> None:
    path = Path(ends.file(CONTENT, "rb").name)
    reader, writer = streams
    opening = aiofiles.open(path, "rb")
    wrong: dict[str, Any] = {
        "path": path,
        "async path": anyio.Path(path),
        "str": str(path),
        "int": 0,
        "None": None,
        "StreamReader": reader,
        "StreamWriter": writer,
        "transport": writer.transport,
        "socket": line.far,
        "object": object(),
        "class": io.BytesIO,
        "opening": opening,
        "coroutine": None,
    }
    for name, file in wrong.items():
        for function, move in MOVES.items():
            if "splice" in function and name in ("int", "socket"):
                continue  # they are what it takes
            if name == "coroutine":
                file = anyio.open_file(path)
            if name == "StreamReader" or "sendfile_zc" in function:
                words: tuple[str, ...] = ()
            else:
                words = ("wanted",)
            with case(given=name, function=function):
                await refused(line, move(line.sock, file), *words, repr(file)[:20])
    # It was closed, and nothing complains that nobody has awaited it.
    with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
        await opening


@pytest.mark.parametrize("name", ["loop_sendfile", "loop_recvfile", "splice from", "splice into"])
@each("kind", [bytes, bytearray, memoryview])
async def test_bytes_are_refused_where_a_file_is_wanted(kind: Any, name: str, line: Line) -> None:
    given = kind(b"content" * 10**5)
    error = await refused(line, MOVES[name](line.sock, given), kind.__name__)
    assert len(str(error)) < 300


async def test_what_is_no_socket_is_refused_in_every_transfer(
    line: Line, ends: Ends, streams: Streams
) -> None:
    file = ends.file(CONTENT, "r+b")
    reader, writer = streams
    context = ssl.create_default_context()
    left, _ = trio.testing.memory_stream_pair()
    memory = anyio.create_memory_object_stream[bytes](1)
    wrong: dict[str, Any] = {
        "file": file,
        "None": None,
        "int": line.sock.fileno(),
        "str": "localhost:80",
        "StreamReader": reader,
        "StreamWriter": writer,
        "transport": writer.transport,
        "trio.SSLStream": trio.SSLStream(left, context, server_hostname="localhost"),
        "SSLObject": context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="x"),
        "memory": io.BytesIO(),
        "stream": memory[0],
    }
    for name, sock in wrong.items():
        for move in (aiozc.loop_sendfile, aiozc.loop_recvfile, aiozc.sendfile_zc):
            with case(given=name, move=move):
                await refused(line, move(sock, file), "no socket", "SSL" if "SSL" in name else "")
        with case(given=name, move=aiozc.relay):
            await refused(line, aiozc.relay(sock, line.sock), "no socket")
            await refused(line, aiozc.relay(line.sock, sock), "no socket")
    with case(given="the two the other way round"):
        await refused(line, aiozc.loop_sendfile(file, line.sock), "no socket")
        await refused(line, aiozc.loop_recvfile(file, line.sock), "no socket")
    assert file.tell() == 0
    memory[0].close()
    memory[1].close()


@each("move", MOVES)
async def test_text_in_memory_is_refused_as_a_text_file_is(move: Move, line: Line) -> None:
    for file in (io.StringIO("text"), io.TextIOWrapper(io.BytesIO(b"text"))):
        await refused(line, move(line.sock, file), "binary mode")


async def test_what_is_not_open_for_writing_is_refused_before_bytes_leave_the_socket(
    line: Line, tmp_path: Path
) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(CONTENT))
    with gzip.open(path) as compressed, open(path, "rb") as plain:  # noqa: ASYNC230
        for file in (compressed, io.BufferedReader(io.BytesIO(CONTENT)), plain):
            with case(file=file), pytest.raises(OSError, match="not open for writing") as caught:
                await aiozc.loop_recvfile(line.sock, file)
            error: Any = caught.value
            assert (error.transferred, error.lost) == (0, 0)
            line.check_nothing_moved()
    closed = io.BytesIO()
    closed.close()
    await refused(line, aiozc.loop_recvfile(line.sock, closed), "closed")
    await refused(line, aiozc.loop_recvfile(line.sock, plain), "closed")
    await refused(line, aiozc.loop_sendfile(line.sock, closed), "closed")


class Sink:
    """An object that takes all that it is given, and returns nothing for it, as many do."""

    def __init__(self) -> None:
        self.content = b""

    def write(self, data: Any) -> None:
        """Keep the bytes."""
        self.content += bytes(data)


class RawSink(io.RawIOBase):
    """A raw file that does not tell that it is open for writing, and takes some bytes at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.content = b""
        self._refuses = False

    def write(self, data: Any) -> int | None:
        """Keep some; each second time there is no room."""
        self._refuses = not self._refuses
        if self._refuses:
            return None
        self.content += bytes(data[:1000])
        return min(1000, len(data))


@pytest.mark.parametrize("kind", [Sink, RawSink])
async def test_what_is_written_to_an_object_is_written_once(kind: Any, ends: Ends) -> None:
    source, sink = ends.source("tcp", CONTENT), kind()
    assert await asyncio.wait_for(aiozc.loop_recvfile(source.end, sink), 20) == len(CONTENT)
    assert_same(sink.content, CONTENT)


async def test_an_offset_is_refused_for_what_has_no_places(line: Line) -> None:
    await refused(line, aiozc.loop_recvfile(line.sock, Sink(), 5), "seek()", "not 5")
    await refused(line, aiozc.loop_sendfile(line.sock, Liar(bytes), 5), "seek()", "not 5")


class Liar:
    """A file object whose `read` gives what no file gives."""

    def __init__(self, gives: Any) -> None:
        self._gives = gives

    def read(self, size: int) -> Any:
        """Give it."""
        return self._gives(size)


async def nothing() -> None:
    """Be a coroutine."""


@pytest.mark.parametrize(
    "gives", [lambda _: "text", lambda _: nothing(), lambda size: bytes(size + 1)]
)
async def test_a_read_that_gives_no_bytes_is_refused(gives: Any, line: Line) -> None:
    await refused(line, aiozc.loop_sendfile(line.sock, Liar(gives)), "read(", "returned")


async def test_a_file_in_memory_is_not_written_to_a_disk_to_be_sent(connect: Connect) -> None:
    sock, receiver = connect()
    with tempfile.SpooledTemporaryFile() as file:
        file.write(CONTENT)
        assert await aiozc.loop_sendfile(sock, file, 5) == len(CONTENT) - 5
        assert file.tell() == len(CONTENT)
        with pytest.raises(asyncio.SendfileNotAvailableError, match="in memory"):
            await aiozc.loop_sendfile(sock, file, fallback=False)
        assert not file._rolled  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="in memory"):
            await aiozc.splice_pipe(file, sock)
        file.rollover()
        file.seek(0)
        assert await aiozc.loop_sendfile(sock, file, fallback=False) == len(CONTENT)
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT[5:], CONTENT)


class OnlyReadAndSeek:
    """`loop.sock_sendfile` asks no more of a file."""

    def __init__(self) -> None:
        self._file = io.BytesIO(CONTENT)
        self.read = self._file.read
        self.readinto = self._file.readinto
        self.seek = self._file.seek


@each("move", [aiozc.loop_sendfile, send_uncopied])
async def test_a_file_that_does_not_tell_its_place_is_sent(move: Any, line: Line) -> None:
    file = OnlyReadAndSeek()
    assert await move(line.sock, file, 5, 1000) == 1000
    assert line.far.recv(2000) == CONTENT[5:1005]
    assert file._file.tell() == 1005


@each("move", [aiozc.loop_sendfile, send_uncopied])
async def test_a_member_of_a_zip_file_is_sent(move: Any, line: Line, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("member", CONTENT[:1000])
        with archive.open("member") as file:
            assert await move(line.sock, file, 5) == 995
            assert line.far.recv(2000) == CONTENT[5:1000]
            assert file.tell() == 1000


class Unwritten:
    """Its `write` gives something else than a number."""

    def __init__(self, gives: Callable[[], Any]) -> None:
        self._gives = gives

    def write(self, _: bytes) -> Any:
        """Give it."""
        return self._gives()


@pytest.mark.parametrize("gives", [nothing, asyncio.Event, str])
async def test_a_write_that_gives_no_number_is_refused(gives: Any, line: Line) -> None:
    with pytest.raises(TypeError, match=r"write\(.* returned .*, not a number of bytes") as caught:
        await aiozc.loop_recvfile(line.sock, Unwritten(gives), count=len(HEAD))
    assert caught.value.transferred == 0  # type: ignore[attr-defined]
    assert caught.value.lost == len(HEAD)  # type: ignore[attr-defined]
