"""Sends whose loop or process ends before their pages are released; what thousands leave."""

import asyncio
import errno
import gc
import os
import resource
import socket
from pathlib import Path

import pytest

import aiozc
from aiozc._drivers import zerocopy
from aiozc._engines.backend import TICK_S
from aiozc._kernel.sockets import send_nowait
from tests.kit.backends import lends
from tests.kit.children import Child
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.far_ends import Connect, FarEnd
from tests.kit.faults.privileges import drop_privileges
from tests.kit.leaks import holdings
from tests.kit.loops import LoopFactory, run_on

CONTENT = pattern(300_000)
SENDS = 10_000

ring = pytest.mark.ring


def counted(name: str) -> int:
    """Return a number that the kernel has for this process: VmPin, VmLck, ... in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(name)


async def send_thousands(path: str, header: bytearray, count: int) -> None:
    """Send a header and a file again and again; wait for some, cancel some, drop the others."""
    loop = asyncio.get_running_loop()
    near, far = socket_pair()
    with near, FarEnd() as far_end, open(path, "rb") as file:  # noqa: ASYNC230
        receiver = far_end.receive(far, limit=None)
        sent = 0
        for number in range(count):
            if number % 10:
                send = await aiozc.sendfile_zc(near, [header, file], 0, 5000)
                sent += send.sent
                if number % 3 == 0:
                    await send.released()
            else:
                task = loop.create_task(aiozc.sendfile_zc(near, [header, file], 0, 5000))
                await asyncio.sleep(0)
                task.cancel()
                try:
                    sent += (await task).sent
                except asyncio.CancelledError as error:
                    sent += getattr(error, "transferred", 0)
        last = await aiozc.sendfile_zc(near, b"end")
        await last.released()
        near.close()
        assert len(await receiver.wait_end()) == sent + 3
    statistics = aiozc.get_reactor().statistics()
    assert statistics.zero_copies == statistics.notifications >= count * lends()
    assert statistics.in_flight == 0


def test_ten_thousand_sends_leave_nothing(loop_factory: LoopFactory, make_file: MakeFile) -> None:
    path = make_file(CONTENT).name
    header = bytearray(b"header")

    async def main() -> None:
        await send_thousands(path, header, 100)
        gc.collect()
        before, mappings = holdings(), holdings().mappings
        locked, pinned = counted("VmLck"), counted("VmPin")
        size = counted("VmSize")
        await send_thousands(path, header, SENDS)
        gc.collect()
        assert holdings().since(before)[0] == set()
        assert holdings().mappings <= mappings + 4  # the allocator's own
        assert (counted("VmLck"), counted("VmPin")) == (locked, pinned)
        assert counted("VmSize") < size + 64 * KIB

    run_on(loop_factory, main())
    header.clear()  # nobody holds it


@ring
def test_what_an_unprivileged_user_had_locked_can_be_locked_again(
    loop_factory: LoopFactory, make_file: MakeFile
) -> None:
    """Far more than may be locked at a time was sent, and none of it is charged any more."""
    file = make_file(pattern(MIB))
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]

    async def main() -> None:
        near, far = socket_pair()
        with near, FarEnd() as far_end:
            far_end.receive(far, limit=None)
            for _ in range(3 * limit // MIB):
                async with await aiozc.sendfile_zc(near, file, fallback=False) as send:
                    assert send.sent == MIB
        assert aiozc.get_reactor().statistics().zero_copies >= 3 * limit // MIB

    def child() -> None:
        drop_privileges()
        run_on(loop_factory, main())

    run_on(loop_factory, main())  # imports all there is
    Child(child).wait()


# Ends


@ring
def test_a_loop_that_ends_before_the_pages_are_released_ends_at_once(
    loop_factory: LoopFactory, make_file: MakeFile
) -> None:
    """What was in the send queue arrives; who waits then is told that nobody will know."""
    file = make_file(CONTENT)
    data = bytearray(CONTENT)
    ends = socket_pair(sndbuf=MIB, rcvbuf=16 * KIB)
    before = holdings()

    async def main() -> list[aiozc.ZeroCopySend]:
        return [await aiozc.sendfile_zc(ends[0], part) for part in (file, data)]

    sends = run_on(loop_factory, main())
    assert holdings().since(before)[:2] == (set(), 0)
    with pytest.raises(OSError, match="the reactor ended") as caught:
        run_on(loop_factory, sends[0].released())
    assert caught.value.errno == errno.ECANCELED
    assert [send.copied for send in sends] == [None, None]
    del sends
    with pytest.raises(BufferError):  # it is still being sent
        data.clear()
    ends[0].close()

    async def receive() -> None:
        with FarEnd() as far_end:
            assert_same(await far_end.receive(ends[1]).wait_end(), CONTENT, CONTENT)

    run_on(loop_factory, receive())


@ring
def test_another_loop_than_the_one_that_sent_is_told_that_it_would_hear_of_nothing(
    loop_factory: LoopFactory,
) -> None:
    near, far = socket_pair(sndbuf=MIB, rcvbuf=16 * KIB)
    loop = loop_factory()
    with near, FarEnd() as far_end:
        send = loop.run_until_complete(aiozc.sendfile_zc(near, CONTENT))
        with pytest.raises(RuntimeError, match="another loop"):
            run_on(loop_factory, send.released())
        far_end.receive(far, limit=None)
        loop.run_until_complete(send.released())
        run_on(loop_factory, send.released())
    loop.close()


@ring
@pytest.mark.anyio
async def test_a_reactor_that_is_closed_wakes_who_waits_for_pages(
    connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect(limit=0, sndbuf=MIB, rcvbuf=16 * KIB)
    send = await aiozc.sendfile_zc(sock, make_file(CONTENT))
    waiting = asyncio.create_task(send.released())
    await asyncio.sleep(0)
    await aiozc.get_reactor().aclose()
    with pytest.raises(OSError, match="the reactor ended"):
        await waiting
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


@pytest.mark.anyio
@pytest.mark.parametrize("family", ["tcp", "unix"])
async def test_a_reactor_that_is_closed_ends_sends_under_way(
    family: str, connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(9 * MIB)
    sock, receiver = connect(*([1] if family == "unix" else []), limit=0, sndbuf=64 * KIB)
    task = asyncio.create_task(aiozc.sendfile_zc(sock, make_file(content)))
    await asyncio.sleep(0.01)
    await aiozc.get_reactor().aclose()
    with pytest.raises(OSError, match=r"reactor was closed|[Cc]ancel") as caught:
        await task
    sent = caught.value.transferred  # type: ignore[attr-defined]
    sock.close()
    assert_same(await receiver.wait_end(), content[:sent])


@ring
@pytest.mark.anyio
async def test_a_forked_child_knows_nothing_of_its_parents_pages(
    connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect(limit=0, sndbuf=MIB, rcvbuf=16 * KIB)
    send = await aiozc.sendfile_zc(sock, make_file(CONTENT))

    def child() -> None:
        with pytest.raises(OSError, match="the reactor ended"):
            send.released().send(None)
        os.close(sock.fileno())

    Child(child).wait()
    receiver.allow(None)
    await send.released()
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


@pytest.mark.anyio
async def test_who_waits_for_room_is_left_alone(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a socket that takes copies only (UNIX): thousands of these cost a core else."""
    tries = 0

    def count(fd: int, data: memoryview) -> int:
        nonlocal tries
        tries += 1
        return send_nowait(fd, data)

    monkeypatch.setattr(zerocopy, "send_nowait", count)
    near, far = socket_pair(socket.AF_UNIX)
    with near, far:
        sending = asyncio.create_task(aiozc.sendfile_zc(near, make_file(CONTENT * 10)))
        await asyncio.sleep(2 * TICK_S)
        before = tries
        await asyncio.sleep(3 * TICK_S)
        assert tries == before > 0
        near.close()
        with pytest.raises(OSError, match="was closed during the transfer"):
            await sending
