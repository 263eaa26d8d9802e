"""What `sendfile_zc` sends, of what, by which way; and what it tells of the pages."""

import array
import asyncio
import errno
import gzip
import io
import itertools
import mmap
import os
import resource
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aiozc
from aiozc._engines import uring
from aiozc._engines.uring import Uring
from aiozc._kernel.memory import Mapping
from aiozc._kernel.ring import Sqe, prep_send_zc
from tests.kit.backends import lends
from tests.kit.children import Child
from tests.kit.connections import fill, socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern, write_out
from tests.kit.far_ends import Connect, FarEnd
from tests.kit.faults.privileges import drop_privileges
from tests.kit.leaks import holdings
from tests.kit.loops import LoopFactory, run_on
from tests.kit.tasks import outcome_of
from tests.kit.tls import Tls
from tests.kit.waiting import turns, until

pytestmark = pytest.mark.anyio
ring = pytest.mark.ring

LARGE = 5 * MIB + 7
MEDIUM = 3 * MIB + 7
SIZES = [0, 1, 4095, 4096, 4097, 64 * KIB, MIB - 1, MIB, LARGE]


def pinned() -> int:
    """Return how many sends the kernel has not told the end of."""
    statistics = aiozc.get_reactor().statistics()
    return statistics.zero_copies - statistics.notifications


async def test_a_file_of_any_size_arrives_whole(
    family: int, connect: Connect, make_file: MakeFile
) -> None:
    uncopied = lends() and family == socket.AF_INET
    for size in SIZES:
        content = pattern(size)
        sock, receiver = connect(family)
        file = make_file(content)
        before = aiozc.get_reactor().statistics().zero_copies
        send = await aiozc.sendfile_zc(sock, file)
        assert send.sent == file.tell() == size
        await send.released()
        assert pinned() == 0
        assert send.copied is (size > 0)
        assert (aiozc.get_reactor().statistics().zero_copies > before) == (uncopied and size > 0)
        sock.close()
        assert_same(await receiver.wait_end(), content)


@pytest.mark.parametrize("offset", [0, 1, 4095, 61_441, MIB + 1, MEDIUM, MEDIUM + 1])
async def test_an_offset_and_a_count_choose_what_arrives(
    offset: int, family: int, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(MEDIUM)
    file = make_file(content)
    for count in (None, 1, 40_000, 2 * MIB + 1):
        chosen = content[offset:] if count is None else content[offset : offset + count]
        for source in (file, content):
            sock, receiver = connect(family)
            send = await aiozc.sendfile_zc(sock, source, offset, count)
            assert send.sent == len(chosen)
            assert file.tell() == offset + len(chosen)
            await send.released()
            sock.close()
            assert_same(await receiver.wait_end(), chosen)


@pytest.mark.parametrize(
    "make", [bytes, bytearray, memoryview, lambda data: array.array("b", data)]
)
async def test_a_bytes_like_object_stands_in_for_a_file(
    make: Callable[[bytes], Any], family: int, connect: Connect
) -> None:
    content = pattern(2 * MIB + 3)
    sock, receiver = connect(family)
    async with await aiozc.sendfile_zc(sock, make(content)) as send:
        assert send.sent == len(content)
    sock.close()
    assert_same(await receiver.wait_end(), content)


async def test_memory_that_is_not_one_run_of_bytes_is_sent_as_it_reads(connect: Connect) -> None:
    sock, receiver = connect()
    view = memoryview(pattern(1000))[::3]
    send = await aiozc.sendfile_zc(sock, view)
    assert send.copied is True
    await send.released()
    with pytest.raises(asyncio.SendfileNotAvailableError, match="one run of bytes"):
        await aiozc.sendfile_zc(sock, view, fallback=False)
    sock.close()
    assert_same(await receiver.wait_end(), bytes(view))


async def test_a_mapped_file_is_memory(connect: Connect, make_file: MakeFile) -> None:
    content = pattern(LARGE)
    sock, receiver = connect()
    with mmap.mmap(make_file(content).fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        async with await aiozc.sendfile_zc(sock, mapped, 5):
            pass
    sock.close()
    assert_same(await receiver.wait_end(), content[5:])


@pytest.mark.parametrize("size", [300_007, LARGE])
async def test_a_sequence_of_files_and_bytes_is_sent_in_order_as_one(
    size: int, family: int, connect: Connect, make_file: MakeFile
) -> None:
    header, body, more, last = pattern(100, 1), pattern(size, 2), pattern(70, 3), pattern(9000, 4)
    parts = [header, make_file(body), b"", bytearray(more), make_file(b""), make_file(last)]
    whole = header + body + more + last
    offsets = (0, 1, 50, 99, 100, 101, 100 + size, 150 + size) if size < MIB else (0, 4000)
    for offset, count in itertools.product(offsets, (None, 1, 60, size)):
        chosen = whole[offset:] if count is None else whole[offset : offset + count]
        sock, receiver = connect(family)
        async with await aiozc.sendfile_zc(sock, parts, offset, count) as send:
            assert send.sent == len(chosen)
        sock.close()
        assert_same(await receiver.wait_end(), chosen)


async def test_what_is_no_file_and_no_bytes_is_refused(connect: Connect, tmp_path: Path) -> None:
    sock, _ = connect()
    (tmp_path / "file").write_text("text")
    for wrong in (5, "text", ["text"], None, [b"", 7]):
        with pytest.raises(TypeError):
            await aiozc.sendfile_zc(sock, wrong)
    with (tmp_path / "file").open() as text, pytest.raises(ValueError, match="binary mode"):
        await aiozc.sendfile_zc(sock, text)
    for offset, count, error in ((-1, None, ValueError), (0, 0, ValueError), (0, 1.5, TypeError)):
        with pytest.raises(error):
            await aiozc.sendfile_zc(sock, b"x", offset, count)  # type: ignore[arg-type]
    with (tmp_path / "file").open("wb") as writing, pytest.raises(OSError, match="reading") as told:
        await aiozc.sendfile_zc(sock, writing)
    assert told.value.errno == errno.EBADF
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(ValueError, match="STR"):
        await aiozc.sendfile_zc(datagrams, b"x")


def odd_files(folder: Path) -> Iterator[Any]:
    """Yield files that have no pages, each with the same content."""
    content = pattern(300_000)
    yield io.BytesIO(content)
    with gzip.open(folder / "file.gz", "wb") as packed:
        packed.write(content)
    yield gzip.open(folder / "file.gz")  # noqa: SIM115 - the test closes it


async def test_where_the_kernel_cannot_the_bytes_are_copied_and_free_at_once(
    family: int, connect: Connect, tmp_path: Path, make_file: MakeFile
) -> None:
    content = pattern(300_000)
    files = [*odd_files(tmp_path)]
    if family == socket.AF_UNIX or not lends():
        files += [make_file(content), content]
    for file in files:
        sock, receiver = connect(family)
        send = await aiozc.sendfile_zc(sock, file, 5, 200_000)
        assert (send.sent, send.copied) == (200_000, True)
        with pytest.raises(StopIteration):  # it returns without waiting
            send.released().send(None)
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await aiozc.sendfile_zc(sock, file, fallback=False)
        sock.close()
        assert_same(await receiver.wait_end(), content[5:200_005])
    for file in files[:2]:
        file.close()
    assert aiozc.get_reactor().statistics().zero_copies == 0


async def test_a_sequence_with_an_odd_file_is_copied(connect: Connect) -> None:
    sock, receiver = connect()
    send = await aiozc.sendfile_zc(sock, [b"header ", io.BytesIO(b"body"), b" end"], 0, 13)
    assert (send.sent, send.copied) == (13, True)
    with pytest.raises(ValueError, match="offset of 1 into a sequence"):
        await aiozc.sendfile_zc(sock, [io.BytesIO(b"body"), b"end"], 1)
    sock.close()
    assert await receiver.wait_end() == b"header body e"


async def test_a_tls_socket_gets_everything_copied() -> None:
    tls = Tls()
    tls.proceed.set()
    content = pattern(MIB)
    send = await aiozc.sendfile_zc(tls.sock, [b"header", content])
    assert (send.sent, send.copied) == (MIB + 6, True)
    arrived = await asyncio.to_thread(tls.end)
    assert_same(arrived, b"header", content)


@ring
async def test_a_kernel_without_send_zc_copies(
    connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pattern(LARGE)
    sock, receiver = connect()
    backend = aiozc.get_reactor()._engine._backend
    assert isinstance(backend, Uring)
    monkeypatch.setattr(backend, "lends", False)
    send = await aiozc.sendfile_zc(sock, make_file(content))
    assert (send.sent, send.copied) == (LARGE, True)
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await aiozc.sendfile_zc(sock, make_file(content), fallback=False)
    sock.close()
    assert_same(await receiver.wait_end(), content)


async def test_a_file_that_is_not_cached_arrives_and_the_loop_waits_for_no_disk(
    connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(16 * MIB)
    sock, receiver = connect()
    file = make_file(content)
    write_out(file)
    before = disk_waits()
    async with await aiozc.sendfile_zc(sock, file):
        pass
    assert disk_waits() == before
    sock.close()
    assert_same(await receiver.wait_end(), content)


def disk_waits() -> int:
    """Return how often this thread has waited for a page: looking one up to send it counts too.

    (What a thread has had read says less: it may begin to read ahead, and not wait for that.)
    """
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


async def test_bytes_beyond_4_gib_and_holes_arrive(connect: Connect, tmp_path: Path) -> None:
    content = pattern(3 * MIB + 1)
    start = (4 << 30) - MIB - 5
    sock, receiver = connect()
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.truncate(5 << 30)
        file.seek(start)
        file.write(content)
        file.flush()
        async with await aiozc.sendfile_zc(sock, file, start - 70_000, len(content) + 140_000):
            pass
        end = await aiozc.sendfile_zc(sock, file, (5 << 30) - 3)
        assert end.sent == 3
        await end.released()
    sock.close()
    assert_same(await receiver.wait_end(), bytes(70_000), content, bytes(70_003))


# Pages


@ring
async def test_released_waits_for_the_peer_and_can_be_awaited_again(
    connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(300_000)
    sock, receiver = connect(limit=0, rcvbuf=16 * KIB, sndbuf=MIB)
    send = await aiozc.sendfile_zc(sock, make_file(content))
    assert send.sent == 300_000
    assert "1 to be released" in repr(send)
    waiting = [asyncio.create_task(send.released()) for _ in range(3)]
    await turns(10)
    assert not any(task.done() for task in waiting)
    assert [send.copied] == [None]
    assert pinned() == 1
    waiting.pop().cancel()
    await turns(3)
    receiver.allow(None)
    await asyncio.gather(*waiting)
    await send.released()
    assert send.copied is True
    assert "0 to be released" in repr(send)
    sock.close()
    assert_same(await receiver.wait_end(), content)


async def test_many_sends_are_on_their_way_at_once_and_in_order(
    connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(MIB)
    file = make_file(content)
    sock, receiver = connect(limit=0, rcvbuf=16 * KIB, sndbuf=4 * MIB)
    sends = [
        await aiozc.sendfile_zc(sock, file, place, 32 * KIB) for place in range(0, MIB, 32 * KIB)
    ]
    assert (pinned() > 20) == lends()
    receiver.allow(None)
    for send in reversed(sends):
        await send.released()
    sock.close()
    assert_same(await receiver.wait_end(), content)


async def test_a_second_transfer_into_the_socket_is_refused_until_the_first_has_returned(
    connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(LARGE)
    sock, receiver = connect(limit=0, sndbuf=64 * KIB)
    first = asyncio.create_task(aiozc.sendfile_zc(sock, make_file(content)))
    await turns(5)
    with pytest.raises(RuntimeError, match="is sending already"):
        await aiozc.sendfile_zc(sock, b"x")
    with pytest.raises(RuntimeError, match="is sending already"):
        await aiozc.loop_sendfile(sock, make_file(content))
    receiver.allow(None)
    send = await first
    assert await aiozc.loop_sendfile(sock, make_file(b"behind")) == 6
    await send.released()
    sock.close()
    assert_same(await receiver.wait_end(), content, b"behind")


@ring
async def test_bytes_are_held_until_they_are_released_though_the_send_was_dropped(
    connect: Connect,
) -> None:
    data = bytearray(pattern(300_000))
    sock, receiver = connect(limit=0, rcvbuf=16 * KIB, sndbuf=MIB)
    await aiozc.sendfile_zc(sock, data)
    with pytest.raises(BufferError):
        data.clear()
    receiver.allow(None)
    await until(lambda: pinned() == 0)
    data.clear()
    sock.close()
    assert_same(await receiver.wait_end(), pattern(300_000))


def is_mapped(name: str) -> bool:
    """Return whether a file is mapped."""
    return name in Path("/proc/self/maps").read_text()


async def test_the_connection_ends_when_the_caller_closes_though_pages_are_not_released(
    connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(300_000)
    sock, receiver = connect(limit=0, rcvbuf=16 * KIB, sndbuf=MIB)
    file = make_file(content)
    name = file.name
    send = await aiozc.sendfile_zc(sock, file)
    sock.close()
    file.close()
    assert name not in holdings().descriptors.values()
    assert not is_mapped(name)
    assert pinned() == lends()
    assert_same(await receiver.wait_end(), content)
    await send.released()


# Truncation


async def test_a_file_truncated_under_way_is_an_error_with_the_bytes_sent(
    family: int, connect: Connect, tmp_path: Path
) -> None:
    content = pattern(LARGE)
    for left in (0, 100_000, 3 * MIB + 11):
        path = tmp_path / "truncated"
        path.write_bytes(content)
        sock, receiver = connect(family, limit=0, sndbuf=64 * KIB, rcvbuf=64 * KIB)
        before = fill(sock)
        with path.open("rb") as file:
            sending = asyncio.create_task(aiozc.sendfile_zc(sock, file))
            await turns(10)
            os.truncate(path, left)
            receiver.allow(None)
            error = await outcome_of(sending)
        assert isinstance(error, OSError), error
        assert error.errno == errno.ENODATA, error
        sent = error.transferred  # type: ignore[attr-defined]
        sock.close()
        arrived = await receiver.wait_end()
        assert len(arrived) == before + sent
        whole = min(sent, left)
        assert_same(arrived[before : before + whole], content[:whole])


async def test_a_mapping_whose_file_was_truncated_is_an_error_and_no_signal(
    family: int, connect: Connect, tmp_path: Path
) -> None:
    content = pattern(MIB)
    path = tmp_path / "truncated"
    path.write_bytes(content)
    sock, receiver = connect(family)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    os.truncate(path, 100_000)
    with pytest.raises(OSError, match="a page of the file cannot be read") as caught:
        await aiozc.sendfile_zc(sock, [b"header", mapped])
    sock.close()
    arrived = await receiver.wait_end()
    assert len(arrived) == caught.value.transferred  # type: ignore[attr-defined]
    assert_same(arrived[:100_000], (b"header" + content)[: min(len(arrived), 100_000)])


# Errors


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_what_was_sent_before_an_error_can_be_waited_for_too(
    how: str, family: int, connect: Connect, tmp_path: Path
) -> None:
    content = pattern(LARGE)
    (tmp_path / "file").write_bytes(content)
    sock, receiver = connect(family, limit=0, rcvbuf=64 * KIB, sndbuf=256 * KIB)
    with (tmp_path / "file").open("r+b", 0) as file:
        task = asyncio.create_task(aiozc.sendfile_zc(sock, file))
        await turns(10)
        if how == "cancelled":
            task.cancel()
        else:
            sock.close()
        error: Any = await outcome_of(task)
        assert 0 < error.send.sent == error.transferred < LARGE
        sock.close()
        waiting = asyncio.create_task(error.send.released())
        await turns(3)
        assert waiting.done() == (not lends() or family == socket.AF_UNIX)
        receiver.allow(error.transferred - 20_000)
        await waiting
        os.pwrite(file.fileno(), bytes(LARGE), 0)
    assert_same(await receiver.wait_end(), content[: error.transferred])


@ring
async def test_a_kernel_that_cannot_tell_of_copies_copies(
    connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux 6.0 and 6.1 answer EINVAL to that flag, as this one does to one it does not know."""

    def prepare(*arguments: int) -> Sqe:
        sqe = prep_send_zc(*arguments)
        return (*sqe[:2], sqe[2] | 1 << 15, *sqe[3:])

    monkeypatch.setattr(uring, "prep_send_zc", prepare)
    content = pattern(MIB)
    sock, receiver = connect()
    file = make_file(content)
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await aiozc.sendfile_zc(sock, file, fallback=False)
    send = await aiozc.sendfile_zc(sock, file)
    assert (send.sent, send.copied) == (MIB, True)
    sock.close()
    assert_same(await receiver.wait_end(), content)


@ring
@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENOMEM])
async def test_a_file_that_cannot_be_mapped_is_copied(
    number: int, connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, "no mapping here")

    monkeypatch.setattr(Mapping, "address_of", refuse)
    content = pattern(MIB)
    sock, receiver = connect()
    send = await aiozc.sendfile_zc(sock, [b"header", make_file(content)])
    assert (send.sent, send.copied) == (MIB + 6, True)
    sock.close()
    assert_same(await receiver.wait_end(), b"header", content)


# The window


async def send_to_many(file: Any, content: bytes, *, slow: int, fallback: bool) -> None:
    """Send to peers that do not read, then to one that does, then to the others."""
    loop = asyncio.get_running_loop()
    with FarEnd() as far_end:
        pairs = [socket_pair(sndbuf=4 * MIB, rcvbuf=16 * KIB) for _ in range(slow)]
        receivers = [far_end.receive(far, limit=0) for _, far in pairs]
        sending = [
            loop.create_task(aiozc.sendfile_zc(near, file, fallback=fallback)) for near, _ in pairs
        ]
        await until(lambda: pinned() > 3)
        near, far = socket_pair()
        fast = far_end.receive(far, limit=None)
        last = loop.create_task(aiozc.sendfile_zc(near, file, fallback=fallback))
        if fallback:
            send = await last
        for receiver in receivers:
            receiver.allow(None)
        for (sock, _), receiver, task in zip(
            [*pairs, (near, far)], [*receivers, fast], [*sending, last], strict=True
        ):
            send = await task
            assert send.sent == len(content)
            await send.released()
            sock.close()
            assert_same(await receiver.wait_end(), content)
        assert pinned() == 0


@ring
@pytest.mark.parametrize("fallback", [True, False])
def test_a_user_who_may_lock_little_sends_all_to_many_slow_peers(
    fallback: bool, loop_factory: LoopFactory, make_file: MakeFile
) -> None:
    content = pattern(3 * MIB)
    file = make_file(content)
    few = content[:300_000]
    run_on(loop_factory, send_to_many(make_file(few), few, slow=4, fallback=True))  # imports

    def child() -> None:
        drop_privileges()
        run_on(loop_factory, send_to_many(file, content, slow=8, fallback=fallback))

    Child(child).wait()


@ring
def test_a_user_who_may_lock_next_to_nothing_gets_copies_or_is_told(
    loop_factory: LoopFactory, make_file: MakeFile
) -> None:
    content = pattern(MIB)
    file = make_file(content)

    async def main(*, limited: bool) -> None:
        loop = asyncio.get_running_loop()
        near, far = socket_pair()
        with near, FarEnd() as far_end:
            receiver = far_end.receive(far, limit=None)
            for source in (file, content):
                async with await aiozc.sendfile_zc(near, source, 1) as send:
                    assert send.sent == MIB - 1
            if limited:
                # asyncio has no ring of its own, which would be counted too (uvloop has).
                lent = aiozc.get_reactor().statistics().zero_copies
                assert lent or not isinstance(loop, asyncio.SelectorEventLoop)
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
                with pytest.raises(asyncio.SendfileNotAvailableError):
                    await aiozc.sendfile_zc(near, file, fallback=False)
            near.close()
            assert_same(await receiver.wait_end(), content[1:], content[1:])

    run_on(loop_factory, main(limited=False))  # imports all there is

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * KIB, 64 * KIB))
        drop_privileges()
        run_on(loop_factory, main(limited=True))

    Child(child).wait()
