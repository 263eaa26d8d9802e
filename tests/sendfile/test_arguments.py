"""Wrong arguments raise what `loop.sock_sendfile` of asyncio raises: the same type and words.

`loop_recvfile`, its mirror, raises the same.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pytest

import aiozc
from tests.kit.content import MakeFile, case, pattern
from tests.kit.ends import Ends
from tests.kit.far_ends import Connect, Receiver
from tests.kit.loops import run_on
from tests.kit.waiting import in_a_thread

pytestmark = pytest.mark.anyio

Transfer = Callable[..., Awaitable[int]]
Raised = tuple[type[BaseException], str]


@dataclass
class Things:
    """What the arguments are made of."""

    stream: socket.socket
    receiver: Receiver
    datagram: socket.socket
    binary: BinaryIO
    text: TextIO

    def blocking(self, timeout: float | None) -> socket.socket:
        """Return the stream socket, waiting for so long when it is used by itself."""
        self.stream.settimeout(timeout)
        return self.stream


@pytest.fixture
def things(connect: Connect, make_file: MakeFile, tmp_path: Path) -> Iterator[Things]:
    """Make one of each."""
    stream, receiver = connect()
    path = tmp_path / "text"
    path.write_text("text")
    with socket.socket(type=socket.SOCK_DGRAM) as datagram, path.open() as text:
        datagram.setblocking(False)
        yield Things(stream, receiver, datagram, make_file(pattern(5000)), text)


WRONG: dict[str, Callable[[Things], tuple[Any, ...]]] = {
    "a text file": lambda the: (the.stream, the.text),
    "a datagram socket": lambda the: (the.datagram, the.binary),
    "count 0": lambda the: (the.stream, the.binary, 0, 0),
    "count False": lambda the: (the.stream, the.binary, 0, False),
    "count -1": lambda the: (the.stream, the.binary, 0, -1),
    "count 1.0": lambda the: (the.stream, the.binary, 0, 1.0),
    "count '1'": lambda the: (the.stream, the.binary, 0, "1"),
    "count b''": lambda the: (the.stream, the.binary, 0, b""),
    "offset -1": lambda the: (the.stream, the.binary, -1),
    "offset 1.0": lambda the: (the.stream, the.binary, 1.0),
    "offset '1'": lambda the: (the.stream, the.binary, "1"),
    "offset None": lambda the: (the.stream, the.binary, None),
    "a text file and a datagram socket": lambda the: (the.datagram, the.text),
    "a datagram socket and count 0": lambda the: (the.datagram, the.binary, 0, 0),
    "count 0 and offset -1": lambda the: (the.stream, the.binary, -1, 0),
    "count -1 and offset '1'": lambda the: (the.stream, the.binary, "1", -1),
}
WRONG_IN_DEBUG_MODE: dict[str, Callable[[Things], tuple[Any, ...]]] = {
    "a blocking socket": lambda the: (the.blocking(None), the.binary),
    "a socket with a timeout": lambda the: (the.blocking(5.0), the.binary),
    "a blocking socket and a text file": lambda the: (the.blocking(None), the.text),
    "a blocking socket and count 0": lambda the: (the.blocking(None), the.binary, 0, 0),
    "a text file": lambda the: (the.stream, the.text),
    "count 0": lambda the: (the.stream, the.binary, 0, 0),
}


async def raised_by(transfer: Transfer, arguments: tuple[Any, ...], **options: bool) -> Raised:
    """Return the type and the words of what the call raises."""
    try:
        returned = await transfer(*arguments, **options)
    except Exception as error:
        return type(error), str(error)
    raise AssertionError(f"returned {returned!r}")


def raised_by_asyncio(arguments: tuple[Any, ...], *, debug: bool = False) -> Raised:
    """Return the type and the words of what asyncio's own method raises."""

    async def main() -> Raised:
        asyncio.get_running_loop().set_debug(debug)
        return await raised_by(asyncio.get_running_loop().sock_sendfile, arguments)

    return in_a_thread(lambda: run_on(asyncio.SelectorEventLoop, main()))


TRANSFERS: list[Transfer] = [aiozc.loop_sendfile, aiozc.loop_recvfile]
by_transfers = pytest.mark.parametrize("transfer", TRANSFERS, ids=lambda one: one.__name__)


@by_transfers
async def test_a_wrong_argument_raises_what_asyncio_raises(
    transfer: Transfer, things: Things
) -> None:
    for name, wrong in WRONG.items():
        with case(wrong=name):
            arguments = wrong(things)
            expected = raised_by_asyncio(arguments)
            for fallback in (True, False):
                assert await raised_by(transfer, arguments, fallback=fallback) == expected
                check_not_moved(things)
    await check_nothing_sent(things)


@by_transfers
async def test_a_wrong_argument_in_debug_mode_raises_what_asyncio_raises(
    transfer: Transfer, things: Things
) -> None:
    for name, wrong in WRONG_IN_DEBUG_MODE.items():
        with case(wrong=name):
            things.stream.setblocking(False)
            arguments = wrong(things)
            expected = raised_by_asyncio(arguments, debug=True)
            asyncio.get_running_loop().set_debug(True)
            try:
                assert await raised_by(transfer, arguments) == expected
            finally:
                asyncio.get_running_loop().set_debug(False)
            check_not_moved(things)
    await check_nothing_sent(things)


def check_not_moved(things: Things) -> None:
    """Check that the call has moved no file."""
    assert things.binary.tell() == things.text.tell() == 0


async def check_nothing_sent(things: Things) -> None:
    """Check that the calls did no more than raise."""
    things.stream.close()
    assert await things.receiver.wait_end() == b""


async def test_arguments_are_keywords_as_asyncio_names_them(things: Things) -> None:
    sent = await aiozc.loop_sendfile(
        sock=things.stream, file=things.binary, offset=10, count=True, fallback=False
    )
    assert sent == 1
    things.stream.close()
    assert await things.receiver.wait_end() == pattern(5000)[10:11]


async def test_arguments_of_its_mirror_have_the_same_names(ends: Ends) -> None:
    source, file = ends.source("tcp", b"abc"), ends.file(b"", "wb")
    received = await aiozc.loop_recvfile(
        sock=source.end, file=file, offset=10, count=True, fallback=False
    )
    assert received == 1
    assert file.tell() == 11
    assert await source.rest() == b"bc"


async def test_no_offset_is_taken_for_a_smaller_one(things: Things) -> None:
    """Also on the way of most transfers, which is there once another has gone."""
    for _ in range(2):
        await aiozc.loop_sendfile(things.stream, things.binary, 0, 10)
    for offset in (1 << 63, (1 << 64) - 1, 1 << 64, (1 << 64) + 10):
        with case(offset=offset), pytest.raises(ValueError, match="offset must be"):
            await aiozc.loop_sendfile(things.stream, things.binary, offset, 10)
    assert things.binary.tell() == 10
    things.stream.close()
    assert await things.receiver.wait_end() == pattern(5000)[:10] * 2
