"""`sendfile_zc` of a sequence of many parts: gathered, and taken up when it is their turn."""

import array
import asyncio
import errno
import itertools
import mmap
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import aiozc
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.far_ends import Connect
from tests.kit.leaks import holdings
from tests.kit.tasks import outcome_of
from tests.kit.waiting import turns

pytestmark = pytest.mark.anyio

Make = Callable[[bytes], Any]


def whole_of(parts: Sequence[Any]) -> bytes:
    """Return what is in memory objects."""
    return b"".join(bytes(part) for part in parts)


def some_parts(make: Make, count: int) -> list[Any]:
    """Return small objects whose bytes tell their places."""
    return [make(b"%07d," % number * 12) for number in range(count)]


@pytest.mark.parametrize(
    "make",
    [bytes, bytearray, memoryview, lambda data: array.array("d", data)],
    ids=["bytes", "bytearray", "memoryview", "array"],
)
async def test_thousands_of_small_objects_are_few_steps_and_the_loop_turns_meanwhile(
    make: Make, family: int, connect: Connect
) -> None:
    parts = some_parts(make, 5000)
    content = whole_of(parts)
    sock, receiver = connect(family)
    loop, gone_round = asyncio.get_running_loop(), itertools.count()

    def go_round() -> None:
        if not sending.done():
            next(gone_round)
            loop.call_soon(go_round)

    before = aiozc.get_reactor().statistics()
    sending = asyncio.create_task(aiozc.sendfile_zc(sock, parts))
    go_round()
    send = await sending
    assert (send.sent, send.copied) == (len(content), True)
    assert next(gone_round) > 4
    assert aiozc.get_reactor().statistics().submissions < before.submissions + 50
    sock.close()
    assert_same(await receiver.wait_end(), content)


@pytest.mark.parametrize("make", [bytes, bytearray])
async def test_what_was_copied_with_its_neighbours_may_be_changed_at_once(
    make: Make, family: int, connect: Connect
) -> None:
    sizes = [96, 5000, 1]
    parts = [make(pattern(size, seed)) for seed in range(30) for size in sizes]
    content = whole_of(parts)
    sock, receiver = connect(family, limit=0, sndbuf=MIB)
    send = await aiozc.sendfile_zc(sock, parts, fallback=True)
    with pytest.raises(StopIteration):  # it returns without waiting
        send.released().send(None)
    assert send.copied is True
    for part in parts:
        if isinstance(part, bytearray):
            part.clear()
    sock.close()
    assert_same(await receiver.wait_end(), content)


async def test_files_and_objects_of_all_sizes_arrive_in_order(
    family: int, connect: Connect, make_file: MakeFile, tmp_path: Path
) -> None:
    file = pattern(4096, 1)
    (tmp_path / "mapped").write_bytes(pattern(50_000, 2))
    with (tmp_path / "mapped").open("rb") as source:
        mapped = memoryview(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ))
    parts: list[Any] = [pattern(MIB, 3)]
    content = [pattern(MIB, 3)]
    for number in range(100):
        size = number * 300
        some = [b"head%d" % number, b"", bytearray(b"x" * size), mapped[size : size + 70]]
        parts += [*some, make_file(file, again=True), b"tail"]
        content += [bytes(part) for part in some] + [file, b"tail"]
    whole = b"".join(content)
    for offset, count in ((0, None), (MIB - 3, 500_000), (MIB + 5000, None)):
        sock, receiver = connect(family)
        async with await aiozc.sendfile_zc(sock, parts, offset, count) as send:
            pass
        chosen = whole[offset:][:count]
        assert send.sent == len(chosen)
        sock.close()
        assert_same(await receiver.wait_end(), chosen)
    assert {part.tell() for part in parts if hasattr(part, "tell")} == {4096}


class Made(Sequence[bytes]):
    """A sequence that makes each of its parts when it is asked for it."""

    def __init__(self, count: int) -> None:
        self.asked = 0
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if index >= self._count:
            raise IndexError(index)
        self.asked += 1
        return b"%d," % self.asked


async def test_a_sequence_that_makes_its_parts_is_asked_once_for_each(connect: Connect) -> None:
    sock, receiver = connect()
    made = Made(1000)
    await aiozc.sendfile_zc(sock, made)
    assert made.asked == 1000
    sock.close()
    assert await receiver.wait_end() == b"".join(b"%d," % number for number in range(1, 1001))


@pytest.mark.parametrize("end", ["read", "cancelled"])
async def test_hundreds_of_files_take_the_descriptors_of_a_chain_and_stand_where_they_were_sent(
    end: str, family: int, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(5000)
    sock, receiver = connect(family, limit=0, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    files = [make_file(content, again=True) for _ in range(300)]
    before = len(holdings(quick=True).descriptors)
    sending = asyncio.create_task(aiozc.sendfile_zc(sock, files))
    await turns(30)
    assert not sending.done()
    assert len(holdings(quick=True).descriptors) < before + 40
    if end == "cancelled":
        sending.cancel()
    receiver.allow(None)
    outcome: Any = await outcome_of(sending)
    sent = outcome.sent if end == "read" else outcome.transferred
    assert sent == 300 * 5000 if end == "read" else 0 < sent < 300 * 5000
    assert [file.tell() for file in files] == [
        min(5000, max(0, sent - number * 5000)) for number in range(300)
    ]
    sock.close()
    assert_same(await receiver.wait_end(), (content * 300)[:sent])


async def test_files_are_sent_one_by_one_where_there_are_descriptors_for_one(
    connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(5000)
    sock, receiver = connect()
    files = [make_file(content, again=True) for _ in range(5)]
    await aiozc.sendfile_zc(sock, b"!")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    while not taken or taken[-1] < max(holdings().descriptors):
        taken.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 3, hard))
    try:
        send = await aiozc.sendfile_zc(sock, files)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    assert send.sent == 5 * 5000
    sock.close()
    assert_same(await receiver.wait_end(), b"!" + content * 5)


async def stalled(connect: Connect, family: int, parts: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Begin to send to a peer that does not read yet."""
    sock, receiver = connect(family, limit=0, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    sending = asyncio.create_task(aiozc.sendfile_zc(sock, parts))
    await turns(10)
    assert not sending.done()
    return sock, receiver, sending


@pytest.mark.parametrize("reused", [False, True])
async def test_a_file_that_was_closed_before_its_turn_is_an_error_and_no_other_is_sent_for_it(
    reused: bool, family: int, connect: Connect, make_file: MakeFile
) -> None:
    first = pattern(5 * MIB)
    last: BinaryIO = make_file(b"last", buffering=0)
    sock, receiver, sending = await stalled(connect, family, [first, last])
    if reused:  # another file behind the same number
        os.dup2(make_file(b"another").fileno(), last.fileno())
    else:
        last.close()
    receiver.allow(None)
    error: Any = await outcome_of(sending)
    assert (type(error), error.errno) == (OSError, errno.EBADF)
    sock.close()
    assert_same(await receiver.wait_end(), first[: error.transferred])


async def test_a_small_mapping_whose_file_was_truncated_is_an_error_and_no_signal(
    family: int, connect: Connect, tmp_path: Path
) -> None:
    path = tmp_path / "truncated"
    path.write_bytes(pattern(100))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    os.truncate(path, 0)
    sock, receiver = connect(family)
    with pytest.raises(OSError, match="a page of the file cannot be read"):
        await aiozc.sendfile_zc(sock, [b"before", mapped, b"behind"])
    sock.close()
    assert await receiver.wait_end() == b"before"


async def test_who_is_cancelled_while_the_parts_are_looked_at_has_sent_nothing(
    connect: Connect,
) -> None:
    sock, receiver = connect()
    sending = asyncio.create_task(aiozc.sendfile_zc(sock, some_parts(bytes, 5000)))
    await turns(2)
    with pytest.raises(RuntimeError, match="is sending already"):
        await aiozc.sendfile_zc(sock, b"x")
    sending.cancel()
    error: Any = await outcome_of(sending)
    assert repr(error).startswith("CancelledError")
    assert error.transferred == error.send.sent == 0
    await error.send.released()
    await aiozc.sendfile_zc(sock, b"y")
    sock.close()
    assert await receiver.wait_end() == b"y"
