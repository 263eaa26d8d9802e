"""Where no ring can be had."""

import asyncio
from collections.abc import Iterator

import pytest

import aiozc
from aiozc._kernel import liburing

from .conftest import Connect, MakeFile
from .support import MIB, assert_same, pattern
from .ways import Ends, Told, content_of

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def nothing_left_in_flight() -> None:
    """Without a ring there is nothing to look at: this stands in for the shared fixture."""


@pytest.fixture(autouse=True)
def no_liburing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the library look for liburing where there is none."""
    liburing.load.cache_clear()
    monkeypatch.setenv("AIOZC_LIBURING", "/nowhere/liburing.so")
    yield
    liburing.load.cache_clear()


@pytest.mark.parametrize("count", [None, 1000, 3 * MIB])
async def test_files_arrive_by_way_of_a_thread(
    count: int | None, family: int, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(3 * MIB + 1)
    sock, receiver = connect(family)
    file = make_file(content)
    expected = content[5:] if count is None else content[5 : 5 + count]
    assert await aiozc.loop_sendfile(sock, file, 5, count) == len(expected)
    assert file.tell() == 5 + len(expected)
    sock.close()
    assert_same(await receiver.wait_end(), expected)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("count", [None, 1000, 3 * MIB])
async def test_files_are_received_by_way_of_a_thread(
    count: int | None, kind: str, ends: Ends
) -> None:
    content = pattern(3 * MIB + 1)
    expected = content if count is None else content[:count]
    source, file = ends.source(kind, content, end=count is None), ends.file(b"", "wb")
    assert await aiozc.loop_recvfile(source.end, file, 5, count) == len(expected)
    assert file.tell() == 5 + len(expected)
    file.close()
    assert_same(content_of(file), bytes(5), expected)
    await source.check_left(Told(len(expected), 0))


async def test_what_has_no_fallback_says_why_and_moves_nothing(ends: Ends) -> None:
    content = pattern(5000)
    source, target = ends.source("tcp", content), ends.target("tcp")
    file = ends.file(b"", "wb")
    with pytest.raises(asyncio.SendfileNotAvailableError, match=r"/nowhere/liburing\.so"):
        await aiozc.loop_recvfile(source.end, file, fallback=False)
    with pytest.raises(aiozc.RingUnavailableError, match="no usable liburing"):
        await aiozc.splice_pipe(source.end, target.end)
    with pytest.raises(aiozc.RingUnavailableError, match="no usable liburing"):
        await aiozc.relay(source.end, target.end)
    assert_same(await source.rest(), content)
    await target.check()


async def test_without_a_fallback_the_reason_is_told(connect: Connect, make_file: MakeFile) -> None:
    sock, _ = connect()
    with pytest.raises(asyncio.SendfileNotAvailableError, match=r"/nowhere/liburing\.so"):
        await aiozc.loop_sendfile(sock, make_file(b"abc"), fallback=False)


async def test_the_reactor_says_why_and_is_not_tried_again_on_this_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(aiozc.RingUnavailableError, match="no usable liburing") as first:
        aiozc.get_reactor()
    monkeypatch.delenv("AIOZC_LIBURING")
    with pytest.raises(aiozc.RingUnavailableError) as second:
        aiozc.get_reactor()
    assert str(first.value) == str(second.value)
