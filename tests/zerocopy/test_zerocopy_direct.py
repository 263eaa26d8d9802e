"""`sendfile_zc(direct=True)`: past the page cache, from registered buffers."""

import asyncio
import errno
import io
import mmap
import os
import resource
import socket
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import aiozc
from aiozc._drivers import parts
from aiozc._drivers import zerocopy as engine
from aiozc._engines import uring
from aiozc._kernel.memory import direct_alignment
from aiozc._kernel.pagecache import Probe
from aiozc._kernel.ring import Sqe, prep_read_fixed
from aiozc._resources.buffers import COUNT, SIZE
from tests.kit.backends import lends
from tests.kit.children import Child
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern, write_out
from tests.kit.far_ends import Connect
from tests.kit.faults.privileges import drop_privileges
from tests.kit.loops import LoopFactory, run_on
from tests.kit.tasks import outcome_of
from tests.kit.waiting import until

pytestmark = pytest.mark.anyio
ring = pytest.mark.ring


def direct() -> dict[str, Any]:
    """Ask for it, and for its fallback where there is none."""
    return {"direct": True, "fallback": not lends()}


"""Past the page cache, where that can be."""
SIZES = [1, 4095, 4096, 4097, SIZE - 1, SIZE, SIZE + 1, 5 * MIB + 7, 6 * MIB]


def cached_pages(file: BinaryIO) -> int:
    """Return how many of a file's pages are in the cache."""
    probe = Probe()
    probe.is_cached(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return probe._stat[0]


def free_buffers() -> int:
    """Return how many registered buffers are free."""
    return len(aiozc.get_reactor()._engine.buffers()._free)


@pytest.mark.parametrize("size", SIZES)
async def test_a_file_of_any_size_arrives_and_is_not_cached_by_it(
    size: int, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(size)
    file = make_file(content)
    write_out(file)
    sock, receiver = connect()
    async with await aiozc.sendfile_zc(sock, file, **direct()) as send:
        assert send.sent == file.tell() == size
    assert send.copied is True  # over loopback
    if lends():
        assert cached_pages(file) == 0
        assert free_buffers() == COUNT
    sock.close()
    assert_same(await receiver.wait_end(), content)


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, SIZE - 5, MIB + 1])
async def test_an_offset_and_a_count_choose_what_arrives(
    offset: int, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(3 * MIB + 11)
    file = make_file(content)
    write_out(file)
    for count in (None, 1, 4096, SIZE, MIB + 3):
        chosen = content[offset:] if count is None else content[offset : offset + count]
        sock, receiver = connect()
        async with await aiozc.sendfile_zc(sock, file, offset, count, **direct()):
            pass
        sock.close()
        assert_same(await receiver.wait_end(), chosen)
    assert cached_pages(file) == 0 or not lends()


@ring
async def test_a_file_system_of_larger_blocks_is_read_in_these(
    connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert direct_alignment(make_file(b"x").fileno()) % mmap.PAGESIZE == 0
    content = pattern(3 * MIB + 11)
    file = make_file(content)
    write_out(file)
    read = []

    def prepare(fd: int, offset: int, address: int, length: int, *rest: int) -> Sqe:
        read.append((offset % (64 * KIB), length % (64 * KIB)))
        return prep_read_fixed(fd, offset, address, length, *rest)

    monkeypatch.setattr(parts, "direct_alignment", lambda _: 64 * KIB)
    monkeypatch.setattr(uring, "prep_read_fixed", prepare)
    sock, receiver = connect()
    parted = [b"header", file, make_file(content[:70_000])]
    async with await aiozc.sendfile_zc(sock, parted, 5000, **direct()):
        pass
    assert set(read) == {(0, 0)}
    sock.close()
    assert_same(await receiver.wait_end(), content[4994:], content[:70_000])
    monkeypatch.setattr(parts, "direct_alignment", lambda _: 0)
    sock, _ = connect()
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await aiozc.sendfile_zc(sock, file, **direct())


@ring
async def test_a_read_that_is_short_for_no_reason_is_not_repeated_for_ever(
    connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the one of a file's last bytes is, where that is not known."""
    monkeypatch.setattr(parts.Parts, "is_whole", lambda *_: True)
    content = pattern(MIB + 11)
    sock, receiver = connect()
    async with await aiozc.sendfile_zc(sock, make_file(content), direct=True):
        pass
    sock.close()
    assert_same(await receiver.wait_end(), content)


@ring
async def test_who_waits_for_a_buffer_goes_on_as_soon_as_one_is_free(
    connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TICK_S", 3600.0)
    content = pattern(MIB)
    file = make_file(content)
    ends = [connect() for _ in range(20)]
    for send in await asyncio.gather(
        *(aiozc.sendfile_zc(sock, file, **direct()) for sock, _ in ends)
    ):
        await send.released()
    for sock, receiver in ends:
        sock.close()
        assert_same(await receiver.wait_end(), content)


async def test_files_and_bytes_of_a_sequence_stay_in_order(
    connect: Connect, make_file: MakeFile
) -> None:
    bodies = [pattern(700_000, seed) for seed in range(3)]
    parts = [b"first ", make_file(bodies[0]), make_file(bodies[1]), b" middle ", b"and ",
             make_file(bodies[2]), b" last"]  # fmt: skip
    sock, receiver = connect()
    async with await aiozc.sendfile_zc(sock, parts, **direct()):
        pass
    sock.close()
    expected = [b"first ", bodies[0], bodies[1], b" middle and ", bodies[2], b" last"]
    assert_same(await receiver.wait_end(), *expected)


async def test_what_cannot_be_read_so_is_read_through_the_cache(
    connect: Connect, family: int, monkeypatch: pytest.MonkeyPatch, make_file: MakeFile
) -> None:
    content = pattern(MIB + 1)
    with io.FileIO("/proc/self/stat") as odd:
        sock, _ = connect(family)
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await aiozc.sendfile_zc(sock, odd, direct=True, fallback=False)
    file = make_file(content)

    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "no direct access here")

    sock, receiver = connect(family)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        async with await aiozc.sendfile_zc(sock, file, direct=True) as send:
            assert send.sent == MIB + 1
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await aiozc.sendfile_zc(sock, file, direct=True, fallback=False)
    sock.close()
    assert_same(await receiver.wait_end(), content)


@ring
async def test_slow_peers_with_all_buffers_keep_nobody_waiting(
    connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(3 * MIB)
    file = make_file(content)
    slow = [connect(limit=0, sndbuf=64 * KIB, rcvbuf=16 * KIB) for _ in range(4)]
    tasks = [
        asyncio.create_task(aiozc.sendfile_zc(sock, file, direct=True, fallback=number > 1))
        for number, (sock, _) in enumerate(slow)
    ]
    await until(lambda: free_buffers() == 0)
    sock, receiver = connect()
    send = await aiozc.sendfile_zc(sock, file, direct=True)
    await send.released()
    sock.close()
    assert_same(await receiver.wait_end(), content)
    for _, receiver in slow:
        receiver.allow(None)
    for (sock, receiver), task in zip(slow, tasks, strict=True):
        await (await task).released()
        sock.close()
        assert_same(await receiver.wait_end(), content)
    assert free_buffers() == COUNT


@ring
@pytest.mark.parametrize("how", ["cancelled", "reset", "truncated", "closed"])
async def test_one_that_ends_early_says_what_was_sent_and_gives_its_buffers_back(
    how: str, connect: Connect, tmp_path: Path
) -> None:
    content = pattern(6 * MIB)
    path = tmp_path / "file"
    path.write_bytes(content)
    sock, receiver = connect(limit=0, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    with io.FileIO(path) as file:
        task = asyncio.create_task(aiozc.sendfile_zc(sock, file, direct=True, fallback=False))
        await until(lambda: free_buffers() < COUNT)
        if how == "cancelled":
            task.cancel()
        elif how == "reset":
            receiver.reset()
        elif how == "truncated":
            os.truncate(path, 3 * MIB + 5)
            receiver.allow(None)
        else:
            sock.close()
        error = await outcome_of(task)
    assert isinstance(error, (OSError, asyncio.CancelledError)), error
    sent = error.transferred  # type: ignore[union-attr]
    sock.close()
    arrived = await receiver.wait_end()
    if how != "reset":
        assert len(arrived) == sent
    assert_same(arrived, content[: len(arrived)])
    await until(lambda: free_buffers() == COUNT)


@ring
def test_a_loop_that_ends_with_buffers_under_way_leaves_nothing(
    loop_factory: LoopFactory, make_file: MakeFile, connect: Connect
) -> None:
    content = pattern(200_000)
    file = make_file(content)
    sock, receiver = connect(socket.AF_INET, limit=0, sndbuf=MIB, rcvbuf=16 * KIB)

    async def main() -> None:
        await aiozc.sendfile_zc(sock, file, direct=True, fallback=False)

    run_on(loop_factory, main())
    sock.close()

    async def receive() -> None:
        assert_same(await receiver.wait_end(), content)

    run_on(loop_factory, receive())


@ring
def test_an_unprivileged_user_whose_limit_is_small_sends_through_the_cache(
    loop_factory: LoopFactory, make_file: MakeFile
) -> None:
    content = pattern(MIB)
    file = make_file(content)

    async def send(*, refused: bool) -> None:
        loop = asyncio.get_running_loop()
        near, far = socket_pair()
        with near, far:
            sending = loop.create_task(aiozc.sendfile_zc(near, file, direct=True))
            arrived = b""
            while len(arrived) < MIB:
                arrived += await loop.sock_recv(far, MIB)
            await (await sending).released()
            assert_same(arrived, content)
            if refused:
                with pytest.raises(OSError, match="registering"):
                    await aiozc.sendfile_zc(near, file, direct=True, fallback=False)

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (MIB, MIB))
        drop_privileges()
        run_on(loop_factory, send(refused=True))

    run_on(loop_factory, send(refused=False))  # imports all there is
    Child(child).wait()
