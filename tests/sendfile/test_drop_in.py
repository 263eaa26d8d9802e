"""The same calls by `loop.sock_sendfile` of asyncio and by aiozc have the same outcome."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import aiozc
from tests.kit.content import KIB, MIB, MakeFile, digest, pattern
from tests.kit.far_ends import Connect
from tests.kit.loops import run_on
from tests.kit.waiting import in_a_thread

pytestmark = pytest.mark.anyio

# Size, position before, offset, count.
REGULAR = [
    (0, 0, 0, None),
    (0, 0, 0, 5),
    (1, 0, 0, None),
    (1, 1, 0, None),
    (1, 0, 0, 1),
    (4096, 0, 0, None),
    (4096, 4096, 4096, None),
    (4096, 5000, 5000, None),
    (4096, 5000, 5000, 5),
    (4096, 0, 4095, None),
    (10_000, 0, 1, 4096),
    (10_000, 7, 5000, 1_000_000),
    (10_000, 9_999, 0, 9_999),
    (256 * KIB, 0, 0, None),
    (256 * KIB + 1, 0, 0, None),
    (256 * KIB + 1, 0, 0, 256 * KIB),
    (3 * MIB + 3, 0, 0, None),
    (3 * MIB + 3, 0, 0, 3 * MIB + 3),
    (3 * MIB + 3, 0, 0, 4 * MIB),
    (3 * MIB + 3, 100, 0, 3 * MIB),
    (3 * MIB + 3, 100, 4097, None),
    (3 * MIB + 3, 100, 4097, 2 * MIB),
    (3 * MIB + 3, 3 * MIB + 3, 3 * MIB + 3, 1),
]

Send = Callable[..., Awaitable[int]]
Outcome = tuple[int, int, str]


@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("buffering", [-1, 0], ids=["buffered", "raw"])
async def test_a_regular_call_has_the_outcome_that_it_has_by_asyncio(
    buffering: int, fallback: bool, family: int, connect: Connect, make_file: MakeFile
) -> None:
    async def outcomes(send: Send) -> list[Outcome]:
        return [await outcome(send, *case) for case in REGULAR]

    async def outcome(
        send: Send, size: int, before: int, offset: int, count: int | None
    ) -> Outcome:
        sock, receiver = connect(family)
        file = make_file(pattern(size), buffering=buffering)
        file.seek(before)
        sent = await send(sock, file, offset, count, fallback=fallback)
        position = file.tell()
        sock.close()
        return sent, position, digest(await receiver.wait_end())

    async def by_asyncio() -> list[Outcome]:
        return await outcomes(asyncio.get_running_loop().sock_sendfile)

    expected = in_a_thread(lambda: run_on(asyncio.SelectorEventLoop, by_asyncio()))
    assert await outcomes(aiozc.loop_sendfile) == expected
