"""Every transfer function over every pair of ends: what arrives, and what is accounted for."""

import errno
import itertools
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import aiozc
from tests.kit import tasks
from tests.kit.connections import socket_pair
from tests.kit.content import MIB, assert_same, pattern
from tests.kit.ends import (
    OLD,
    STREAMS,
    Ends,
    FileSource,
    FileTarget,
    StreamSource,
    StreamTarget,
    Told,
)
from tests.kit.leaks import IDLE_PIPES
from tests.kit.tasks import outcome_of
from tests.kit.waiting import turns, until
from tests.kit.ways import (
    CONTENT,
    SEEN,
    SIZE,
    STUCK,
    WAYS,
    Stalled,
    Stuck,
    Way,
    each_stuck,
    each_way,
    get_stuck,
    told,
)

pytestmark = pytest.mark.anyio

SIZES = [
    *(0, 1, 4095, 4096, 4097, 65535, 65536, 65537),
    *(MIB - 1, MIB, MIB + 1),
]
LESS = 3 * MIB  # more than all the buffers between two ends hold
FROM_STREAMS = [way for way in WAYS if way.source in STREAMS]
TO_STREAMS = [way for way in WAYS if way.target in STREAMS]
LARGE = [  # what sends files is tested so elsewhere
    Way("loop_recvfile", "tcp", "file"),
    Way("relay", "tcp", "tcp"),
    Way("splice_pipe", "file", "file"),
    Way("splice_pipe", "pipe", "file"),
]


async def move_whole(ends: Ends, way: Way, content: bytes, **of_source: Any) -> None:
    """Move all of it, and check that it was."""
    source, target = ends.source(way.source, content, **of_source), ends.target(way.target)
    assert await way.move(source.end, target.end) == len(content)
    await target.check(content)
    assert await source.rest() == b""


# What arrives


@each_way(WAYS)
async def test_content_of_any_size_arrives_whole(way: Way, ends: Ends) -> None:
    for size in SIZES:
        await move_whole(ends, way, pattern(size))


@each_way(LARGE)
async def test_content_of_64_mib_arrives_whole(way: Way, ends: Ends) -> None:
    await move_whole(ends, way, pattern(64 * MIB))


@each_way([way for way in WAYS if way.has_count])
async def test_a_count_chooses_what_arrives_and_leaves_the_rest(way: Way, ends: Ends) -> None:
    """Where the source has so many, its end is not waited for."""
    size = 300_001
    content = pattern(size)
    for count in (1, 4095, 4096, 40_000, 65_537, size - 1, size, size + 1, 10 * size):
        source = ends.source(way.source, content, end=count > size)
        target = ends.target(way.target)
        moved = min(count, size)
        assert await way.move(source.end, target.end, count) == moved
        await target.check(content[:moved])
        await source.check_left(Told(moved, 0))


@each_way([way for way in WAYS if way.has_count])
async def test_transfers_follow_each_other(way: Way, ends: Ends) -> None:
    """Each goes on where the last one has ended, on both sides."""
    content = pattern(600_000)
    source, target = ends.source(way.source, content), ends.target(way.target)
    for count in (1, 4095, 100_000, 4097, 300_000):
        assert await way.move(source.end, target.end, count) == count
    assert await way.move(source.end, target.end) == 600_000 - 408_193
    assert await way.move(source.end, target.end) == 0
    await target.check(content)
    assert await source.rest() == b""


@each_way(FROM_STREAMS)
async def test_what_comes_in_small_pieces_arrives_whole(way: Way, ends: Ends) -> None:
    """Each piece takes a slot of a pipe, or none has room for it."""
    for piece, size in ((1, 300), (37, 15_000), (4097, 500_000)):
        await move_whole(ends, way, pattern(size), piece=piece)


@each_way(FROM_STREAMS)
async def test_a_slow_source_is_waited_for_and_nothing_is_held_back(way: Way, ends: Ends) -> None:
    """It gives the next bytes once the last have arrived at the far end."""
    content = pattern(400_003)
    source, target = ends.source(way.source, content, limit=0), ends.target(way.target)
    moving = tasks.start(way.move(source.end, target.end))
    for due in (1, 2, 4097, 8192, 70_000, 70_001, 300_000, len(content) - 1):
        source.allow(due)
        await until(lambda due=due: target.count >= due or moving.done())  # type: ignore[misc]
        assert not moving.done(), moving
    source.allow(None)
    assert await moving == len(content)
    await target.check(content)


@each_way(TO_STREAMS)
@pytest.mark.parametrize("small", [True, False], ids=["small buffers", "buffers as they are"])
async def test_a_slow_target_gets_everything(small: bool, way: Way, ends: Ends) -> None:
    """It takes the next step once the last has arrived."""
    content = pattern(MIB + 3)
    source = ends.source(way.source, content, small=small)
    target = ends.target(way.target, limit=0, small=small)
    moving = tasks.start(way.move(source.end, target.end))
    for due in range(100_000, len(content), 100_000):
        target.allow(due)
        await target.wait_arrived(due)
    target.allow(None)
    assert await moving == len(content)
    await target.check(content)


@each_stuck()
async def test_a_stalled_transfer_stops_neither_its_loop_nor_another_transfer(
    way: Way, stalled: Stalled, ends: Ends
) -> None:
    content = CONTENT[:LESS]
    stuck = await get_stuck(ends, way, stalled, content)
    await move_whole(ends, way, pattern(MIB, 1))
    assert not stuck.task.done()
    stuck.release()
    assert await stuck.task == LESS
    await stuck.check(LESS)


@each_way([way for way in FROM_STREAMS if way.target in STREAMS])
async def test_a_source_is_not_read_for_a_target_that_has_stalled(way: Way, ends: Ends) -> None:
    """It could give 10 MiB; what it gets rid of stays within what the buffers hold.

    Meanwhile another transfer is served from beginning to end.
    """
    content = pattern(10 * MIB)
    stuck = await get_stuck(ends, way, "target", content)
    await move_whole(ends, way, pattern(2 * MIB, 1))
    assert isinstance(stuck.source, StreamSource)
    assert stuck.source.peer.sent < 6 * MIB
    stuck.release()
    assert await stuck.task == len(content)
    await stuck.check(len(content))


@each_way([way for way in WAYS if way.source in STREAMS or way.target in STREAMS])
async def test_many_transfers_at_once_all_arrive_by_a_small_ring(way: Way, ends: Ends) -> None:
    contents = [pattern(50_000 + 997 * number, number % 8) for number in range(20)]
    async with aiozc.Reactor(entries=8) as reactor:
        pairs = [
            (ends.source(way.source, content), ends.target(way.target)) for content in contents
        ]
        moved = await tasks.at_once(way.move(source.end, target.end) for source, target in pairs)
        assert moved == list(map(len, contents))
        statistics = reactor.statistics()
        assert statistics.in_flight == 0
        assert statistics.pipes <= IDLE_PIPES
    for content, (_, target) in zip(contents, pairs, strict=True):
        await target.check(content)


async def test_transfers_whose_source_has_stalled_hold_no_pipe(ends: Ends) -> None:
    async with aiozc.Reactor(entries=64) as reactor:
        stuck = [await get_stuck(ends, *case) for case in STUCK if case[1] == "source"]
        await until(lambda: reactor.statistics().pipes <= IDLE_PIPES)
        assert reactor.statistics().in_flight >= len(stuck)
        for one in stuck:
            one.release()
        assert [await one.task for one in stuck] == [SIZE] * len(stuck)


# Cancellation


def rising() -> Iterator[int]:
    """Count 0, 1, 2, 3, 4, and on by a third each time."""
    number = 0
    while True:
        yield number
        number += 1 + number // 5 * 2


@each_way(WAYS)
@pytest.mark.parametrize("again", [None, 1], ids=["once", "twice"])
async def test_cancelled_after_any_number_of_turns_every_byte_is_accounted_for(
    again: int | None, way: Way, ends: Ends
) -> None:
    """Go on until one has ended before its cancellation, or for some steps."""
    content = CONTENT[: MIB + 300_000]
    for number in itertools.islice(rising(), 10 if again is None else 6):
        source = ends.source(way.source, content)
        target = ends.target(way.target)
        task = tasks.start(way.move(source.end, target.end))
        await turns(number)
        asked = task.cancel()
        if again is not None:
            await turns(again)
            task.cancel()
        outcome = await outcome_of(task)
        assert isinstance(outcome, tasks.CANCELLED) == asked, repr(outcome)
        assert aiozc.get_reactor().statistics().in_flight == 0
        # A coroutine that never began has nothing to tell.
        said = told(way, outcome, source) if number else Told(0, 0)
        await target.check(content[: said.transferred])
        await source.check_left(said)
        if not asked:
            break


@each_stuck()
async def test_cancelled_when_it_has_stalled_every_byte_is_accounted_for(
    way: Way, stalled: Stalled, ends: Ends
) -> None:
    stuck = await get_stuck(ends, way, stalled)
    stuck.task.cancel()
    outcome = await outcome_of(stuck.task)
    assert isinstance(outcome, tasks.CANCELLED)
    said = await stuck.check(outcome)
    if stalled == "source":
        assert said == Told(SEEN, 0), "what came from the source did not go on to the target"


@each_stuck()
async def test_cancelled_as_it_goes_on_every_byte_is_accounted_for(
    way: Way, stalled: Stalled, ends: Ends
) -> None:
    for number in (0, 1, 3, 9, 40):
        stuck = await get_stuck(ends, way, stalled, CONTENT[:MIB])
        stuck.release()
        await turns(number)
        asked = stuck.task.cancel()
        outcome = await outcome_of(stuck.task)
        assert isinstance(outcome, tasks.CANCELLED) == asked, repr(outcome)
        await stuck.check(outcome)


@each_stuck()
async def test_cancelled_in_every_turn_every_byte_is_accounted_for(
    way: Way, stalled: Stalled, ends: Ends
) -> None:
    stuck = await get_stuck(ends, way, stalled)
    while not stuck.task.done():
        stuck.task.cancel()
        await turns(1)
    await stuck.check(await outcome_of(stuck.task))


@each_stuck(together=True)
async def test_a_timeout_ends_it_and_every_byte_is_accounted_for(
    way: Way, stalled: Stalled, ends: Ends
) -> None:
    limits = [SEEN if stalled == side else None for side in ("source", "target")]
    source = ends.source(way.source, CONTENT, limit=limits[0], small=True)
    target = ends.target(way.target, limit=limits[1], small=True)
    with pytest.raises(TimeoutError) as caught:
        async with tasks.timeout(0.05):
            await way.move(source.end, target.end)
    said = told(way, caught.value.__cause__, source)
    await target.check(CONTENT[: said.transferred])
    await source.check_left(said)


@each_way(WAYS)
async def test_cancelled_and_resumed_again_and_again_all_arrives_but_what_was_told_lost(
    way: Way, ends: Ends
) -> None:
    content = CONTENT[: MIB + 300_000]
    source, target = ends.source(way.source, content), ends.target(way.target)
    pieces = []
    place = 0
    for number in rising():
        task = tasks.start(way.move(source.end, target.end))
        await turns(number + 1)
        task.cancel()
        outcome = await outcome_of(task)
        if way.function == "loop_sendfile":
            said = Told(outcome if isinstance(outcome, int) else source.moved - place, 0)
        else:
            said = told(way, outcome, source)
        pieces.append(content[place : place + said.transferred])
        place += said.transferred + said.lost
        if isinstance(outcome, int):
            break
        assert isinstance(outcome, tasks.CANCELLED)
    assert place == len(content)
    await target.check(*pieces)
    assert await source.rest() == b""


# An end that goes away


@each_stuck(lambda way, _: way.source in ("tcp", "unix"))
async def test_a_source_that_resets_ends_it_with_a_connection_error_after_what_came_before(
    way: Way, stalled: Stalled, ends: Ends
) -> None:
    """A UNIX socket resets where it is closed over something unread."""
    stuck = await get_stuck(ends, way, stalled, unread=b"unread")
    assert isinstance(stuck.source, StreamSource)
    stuck.source.peer.reset()
    fed = stuck.source.peer.sent
    stuck.target.allow(None)
    outcome = await outcome_of(stuck.task)
    assert isinstance(outcome, ConnectionResetError | BrokenPipeError), repr(outcome)
    said = told(way, outcome, stuck.source)
    assert said.transferred + said.lost <= fed
    if stalled == "source":
        assert said == Told(SEEN, 0)
    if way.function == "relay":  # which resets the target
        assert_same(
            await stuck.target.receiver.wait_end(),  # type: ignore[attr-defined]
            CONTENT[: stuck.target.count],
        )
        assert stuck.target.count <= said.transferred
    else:
        await stuck.target.check(CONTENT[: said.transferred])


@each_stuck(lambda way, stalled: way.target in STREAMS and stalled == "target")
@pytest.mark.parametrize("ending", ["reset", "close"])
async def test_a_target_that_goes_away_ends_it_with_a_connection_error(
    ending: str, way: Way, stalled: Stalled, ends: Ends
) -> None:
    stuck = await get_stuck(ends, way, stalled)
    target = stuck.target
    assert isinstance(target, StreamTarget)
    if ending == "reset":
        target.receiver.reset()
    else:
        target.receiver.close()
    outcome = await outcome_of(stuck.task)
    assert isinstance(outcome, ConnectionResetError | BrokenPipeError), repr(outcome)
    said = told(way, outcome, stuck.source)
    assert SEEN <= said.transferred < SIZE
    assert_same(await target.receiver.wait_end(), CONTENT[:SEEN])
    if way.function != "relay":  # which resets the source
        await stuck.source.check_left(said)


async def check_target(stuck: Stuck, transferred: int | None) -> None:
    """Check what has arrived: so many bytes, or as many as there are."""
    stuck.target.end.close()
    if isinstance(stuck.target, StreamTarget):
        arrived = await stuck.target.receiver.wait_end()
        assert_same(arrived, CONTENT[: len(arrived)])
        assert transferred in (None, len(arrived))
    else:
        assert transferred is not None
        await stuck.target.check(CONTENT[:transferred])


def told_without_source(stuck: Stuck, outcome: object) -> int | None:
    """Return how many bytes are said to have arrived, when the source was closed."""
    if stuck.way.function == "loop_sendfile":  # whose file had the position
        return None
    return told(stuck.way, outcome, stuck.source).transferred


@each_stuck(together=True)
@pytest.mark.parametrize("closed", ["source", "target"])
async def test_an_end_closed_in_mid_transfer_ends_it_with_ebadf(
    closed: str, way: Way, stalled: Stalled, ends: Ends
) -> None:
    stuck = await get_stuck(ends, way, stalled)
    (stuck.source if closed == "source" else stuck.target).end.close()
    outcome = await outcome_of(stuck.task)
    assert isinstance(outcome, OSError), repr(outcome)
    assert outcome.errno == errno.EBADF
    if closed == "source":
        await check_target(stuck, told_without_source(stuck, outcome))
    else:
        await stuck.check(outcome)


@each_stuck(together=True)
@pytest.mark.parametrize("closing", [True, False], ids=["closed before", "closed by dup2"])
async def test_another_that_takes_the_number_of_a_target_gets_nothing(
    closing: bool, way: Way, stalled: Stalled, ends: Ends
) -> None:
    stuck = await get_stuck(ends, way, stalled)
    stranger = ends.target(way.target)
    number = stuck.target.end.fileno()
    if closing:
        stuck.target.end.close()
    os.dup2(stranger.end.fileno(), number)
    stuck.release()
    outcome = await outcome_of(stuck.task)
    assert isinstance(outcome, OSError), repr(outcome)
    said = told(way, outcome, stuck.source)
    if isinstance(stranger, FileTarget):
        assert os.lseek(number, 0, os.SEEK_CUR) == stranger.file.tell()
    if closing:
        os.close(number)
    await check_target(stuck, said.transferred)
    await stuck.source.check_left(said)
    await stranger.check()


@each_stuck(together=True)
@pytest.mark.parametrize("closing", [True, False], ids=["closed before", "closed by dup2"])
async def test_another_that_takes_the_number_of_a_source_loses_nothing(
    closing: bool, way: Way, stalled: Stalled, ends: Ends
) -> None:
    other = pattern(50_000, 1)
    stuck = await get_stuck(ends, way, stalled)
    stranger = ends.source(way.source, other)
    if isinstance(stranger, StreamSource):
        await until(lambda: stranger.peer.sent == len(other))
    number = stuck.source.end.fileno()
    if closing:
        stuck.source.end.close()
    os.dup2(stranger.end.fileno(), number)
    stuck.target.allow(None)
    outcome = await outcome_of(stuck.task)
    assert isinstance(outcome, OSError), repr(outcome)
    if closing:
        os.close(number)
    await check_target(stuck, told_without_source(stuck, outcome))
    if isinstance(stranger, FileSource):
        assert stranger.moved == 0
    stuck.source.end.close()
    assert_same(await stranger.rest(), other)


# Two at once


@each_stuck(lambda _, stalled: stalled == "source")
async def test_a_second_transfer_that_reads_the_same_stream_is_refused(
    way: Way, stalled: Stalled, ends: Ends
) -> None:
    """By the same object, and by another one of the same stream."""
    stuck = await get_stuck(ends, way, stalled)
    busy, other = stuck.source.end, ends.target("file")
    duplicate = os.dup(busy.fileno())
    for again in (busy, duplicate):
        with pytest.raises(RuntimeError):
            await aiozc.splice_pipe(again, other.end)
    os.close(duplicate)
    if way.source != "pipe":
        with pytest.raises(RuntimeError):
            await aiozc.loop_recvfile(busy, other.end, other.end.tell())
        one, two = socket_pair(socket.AF_UNIX)
        with one, two:
            for pair in ((one, busy), (busy, one)):
                with pytest.raises(RuntimeError):
                    await aiozc.relay(*pair)
    await other.check()
    stuck.release()
    assert await stuck.task == SIZE
    await stuck.check(SIZE)


@each_stuck(lambda _, stalled: stalled == "target")
async def test_a_second_transfer_into_the_same_stream_is_refused(
    way: Way, stalled: Stalled, ends: Ends
) -> None:
    """By the same object, and by another one of the same stream."""
    stuck = await get_stuck(ends, way, stalled)
    busy, other = stuck.target.end, ends.file(OLD, "rb", at=10)
    duplicate = os.dup(busy.fileno())
    for again in (busy, duplicate):
        with pytest.raises(RuntimeError):
            await aiozc.splice_pipe(other, again)
        assert other.tell() == 10
    os.close(duplicate)
    if way.target != "pipe":
        with pytest.raises(RuntimeError):
            await aiozc.loop_sendfile(busy, other, 10)
        one, two = socket_pair(socket.AF_UNIX)
        with one, two:
            for pair in ((one, busy), (busy, one)):
                with pytest.raises(RuntimeError):
                    await aiozc.relay(*pair)
    assert other.read() == OLD[10:]
    stuck.release()
    assert await stuck.task == SIZE
    await stuck.check(SIZE)


@each_stuck()
async def test_closing_the_reactor_ends_it_and_every_byte_is_accounted_for(
    way: Way, stalled: Stalled, ends: Ends
) -> None:
    async with aiozc.Reactor(entries=8) as reactor:
        stuck = await get_stuck(ends, way, stalled)
    assert reactor.statistics().in_flight == 0
    outcome = await outcome_of(stuck.task)
    assert isinstance(outcome, OSError), repr(outcome)
    await stuck.check(outcome)
