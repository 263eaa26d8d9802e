"""Relays of asyncio's streams: `aiozc.streams.relay`."""

import asyncio
from typing import Any

import pytest

from aiozc.streams import relay
from tests.kit.content import KIB, MIB, assert_same, pattern
from tests.kit.tasks import outcome_of
from tests.kit.waiting import until
from tests.streams.conftest import Connect

pytestmark = pytest.mark.anyio

plain_pairs = pytest.mark.parametrize("kinds", [("tcp", "tcp"), ("tcp", "unix")], ids="-".join)
tls_pairs = pytest.mark.parametrize(
    "kinds", [("tls", "tcp"), ("unix", "tls"), ("tls", "tls")], ids="-".join
)
Kinds = tuple[str, str]


@pytest.mark.parametrize("ahead", [0, 1, 64 * KIB, 64 * KIB + 1, MIB])
@plain_pairs
async def test_both_ways_are_copied_behind_what_was_read_ahead_with_half_closes(
    ahead: int, kinds: Kinds, connect: Connect
) -> None:
    a, b = await connect(kinds[0]), await connect(kinds[1])
    there, back = pattern(3 * MIB), pattern(2 * MIB + 5, 1)
    a.peer.send(b"?" + there, limit=1 + ahead, end=True)
    b.peer.send(b"?" + back, limit=1 + ahead, end=True)
    for line in a, b:
        assert await line.reader.readexactly(1) == b"?"
        await until(lambda: line.read_ahead >= min(ahead, 128 * KIB))  # noqa: B023
        line.writer.write(b"before")
    relaying = asyncio.ensure_future(relay(a.both, b.both))
    a.peer.allow_sending(None)
    assert_same(await b.peer.wait_end(), b"before", there)
    b.peer.allow_sending(None)
    assert await relaying == (len(there), len(back))
    assert_same(await a.peer.wait_end(), b"before", back)
    assert await a.reader.read() == await b.reader.read() == b""


@plain_pairs
async def test_ends_that_the_readers_know_of_are_passed_on(kinds: Kinds, connect: Connect) -> None:
    a, b = await connect(kinds[0]), await connect(kinds[1])
    for line in a, b:
        line.peer.send(b"?ahead", end=True)
        assert await line.reader.readexactly(1) == b"?"
        await until(lambda: line.reader._eof)  # type: ignore[attr-defined]  # noqa: B023
    assert await relay(a.both, b.both) == (5, 5)
    assert await a.peer.wait_end() == await b.peer.wait_end() == b"ahead"
    assert a.reader.at_eof()


@tls_pairs
async def test_what_tls_carries_is_copied_to_the_end_of_a_side(
    kinds: Kinds, connect: Connect
) -> None:
    a, b = await connect(kinds[0]), await connect(kinds[1])
    there, back = pattern(3 * MIB), pattern(2 * MIB + 5, 1)
    a.peer.send(b"?" + there)
    b.peer.send(b"?" + back)
    for line in a, b:
        assert await line.reader.readexactly(1) == b"?"
        line.writer.write(b"before")
    relaying = asyncio.ensure_future(relay(a.both, b.both))
    await b.peer.wait_arrived(6 + len(there))
    await a.peer.wait_arrived(6 + len(back))
    for line in a, b:
        with pytest.raises(RuntimeError):
            line.writer.write(b"never")
        with pytest.raises(RuntimeError):
            await line.reader.read(1)
    (a if kinds[0] == "tls" else b).peer.send(b"", end=True)
    assert await relaying == (len(there), len(back))
    assert_same(await b.finish(), b"before", there)
    assert_same(await a.finish(), b"before", back)


async def test_the_end_of_a_plain_side_leaves_the_tls_side_its_answer(connect: Connect) -> None:
    a, b = await connect("tcp"), await connect("tls")
    a.peer.send(b"request", end=True)
    relaying = asyncio.ensure_future(relay(a.both, b.both))
    await b.peer.wait_arrived(7)
    answer = pattern(MIB)
    b.peer.send(answer, end=True)
    assert await relaying == (7, len(answer))
    assert_same(await a.peer.wait_end(), answer)


@pytest.mark.parametrize("kinds", [("tcp", "tcp"), ("tcp", "tls"), ("tls", "tcp")], ids="-".join)
async def test_a_relay_that_is_cancelled_leaves_streams_that_go_on(
    kinds: Kinds, connect: Connect
) -> None:
    a, b = await connect(kinds[0]), await connect(kinds[1])
    a.peer.send(b"?ahead")
    assert await a.reader.readexactly(1) == b"?"
    relaying = asyncio.ensure_future(relay(a.both, b.both))
    await b.peer.wait_arrived(5)
    b.peer.send(b"back")
    await a.peer.wait_arrived(4)
    relaying.cancel()
    outcome: Any = await outcome_of(relaying)
    assert isinstance(outcome, asyncio.CancelledError)
    assert (outcome.transferred, outcome.lost) == ((5, 4), (0, 0))  # type: ignore[attr-defined]
    for line in a, b:
        line.peer.send(b"more")
        assert await line.reader.readexactly(4) == b"more"
        line.writer.write(b"end")
    assert await a.finish() == b"backend"
    assert await b.finish() == b"aheadend"


@pytest.mark.parametrize("kinds", [("tcp", "tcp"), ("tls", "tcp")], ids="-".join)
async def test_a_reset_is_passed_on_and_told_to_the_readers(kinds: Kinds, connect: Connect) -> None:
    a, b = await connect(kinds[0]), await connect(kinds[1])
    b.peer.send(b"some")
    relaying = asyncio.ensure_future(relay(a.both, b.both))
    await a.peer.wait_arrived(4)
    b.peer.reset()
    outcome: Any = await outcome_of(relaying)
    assert isinstance(outcome, ConnectionError)
    assert outcome.transferred == (0, 4)  # type: ignore[attr-defined]
    assert await a.peer.wait_end() == b"some"
    if kinds[0] == "tcp":
        assert isinstance(a.peer.error, ConnectionResetError)
    for line in a, b:
        assert line.writer.is_closing()


async def test_a_connection_is_not_relayed_to_itself(connect: Connect) -> None:
    line = await connect("tcp")
    with pytest.raises(ValueError, match="cannot be relayed to itself"):
        await relay(line.both, line.both)
    wrong: Any
    for wrong in (line.writer, line.both[::-1], (line.reader,), None):
        with pytest.raises(TypeError, match=r"is no .*aiozc.streams take"):
            await relay(line.both, wrong)
    line.writer.write(b"used on")
    assert await line.finish() == b"used on"
