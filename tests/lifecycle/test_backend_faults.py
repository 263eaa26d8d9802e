"""What goes wrong within a backend: each made to happen."""

import asyncio
import errno
import os
import socket
import threading
import tty
from collections.abc import Iterator

import pytest

import aiozc
from aiozc._engines.inline import Inline
from aiozc._engines.registry import current_engine
from aiozc._engines.uring import Uring
from aiozc._kernel.ring import BrokenRingError, Completion, Ring, Sqe
from aiozc._resources.lifecycle import Phase
from aiozc._resources.records import Original, Record, outlet
from aiozc._runtime import threads
from aiozc._runtime.threads import Pool
from aiozc._transfers.steps import End, Splice
from tests.kit.children import Child
from tests.kit.connections import fill, socket_pair
from tests.kit.content import MIB, MakeFile, assert_same, pattern
from tests.kit.ends import Ends, content_of
from tests.kit.far_ends import Connect, FarEnd
from tests.kit.waiting import until

CONTENT = pattern(4 * MIB)
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000  # linux/socket.h


@pytest.mark.anyio
async def test_where_no_thread_can_be_started_files_are_written_in_the_loops_thread(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads._warn_of_refusal.cache_clear()
    monkeypatch.setattr(threads, "FILES", Pool(2, 3, may_be_inline=True))
    source, file = ends.source("tcp", CONTENT[:50_000]), ends.file(b"", "wb")
    async with aiozc.Reactor(backend="readiness"):
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert await aiozc.splice_pipe(source.end, file) == 50_000
    file.close()
    assert_same(content_of(file), CONTENT[:50_000])
    assert [record.message for record in caplog.records if record.name == "aiozc"] == [
        "can't start new thread: files are read by the threads there are, or in the loop's thread"
    ]


@pytest.mark.anyio
async def test_where_no_thread_can_be_started_what_writes_into_a_terminal_waits_for_one(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader may never come: the loop's thread would wait for that."""
    tried = []

    def refuse(_: threading.Thread) -> None:
        tried.append(1)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "FILES", Pool(2, 3, may_be_inline=True))
    master, program = os.openpty()
    tty.setraw(program)
    source = ends.source("tcp", CONTENT[:500])
    with os.fdopen(master, "wb", buffering=0) as terminal, os.fdopen(program, "rb") as reader:
        async with aiozc.Reactor(backend="readiness"):
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refuse)
                moving = asyncio.create_task(aiozc.splice_pipe(source.end, terminal, 500))
                await until(lambda: len(tried) > 1)
            assert await moving == 500
        assert reader.read(500) == CONTENT[:500]


@pytest.mark.anyio
async def test_a_fault_in_a_thread_is_the_records_and_no_cancellation(
    connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, _ = connect()
    fault = OSError(errno.EINVAL, "found by a thread")
    threads_of_faults = []

    def find(_: Record) -> None:
        threads_of_faults.append(threading.get_ident())
        raise fault

    async with aiozc.Reactor(backend="readiness"):
        engine = current_engine()
        record = engine.open(Original(make_file(CONTENT)), outlet(sock))
        record.take_pipe()
        chain = (Splice(End.SOURCE, End.PIPE, 4096, 0), Splice(End.PIPE, End.TARGET, 4096))
        with monkeypatch.context() as patch:
            patch.setattr(Inline, "is_cached", lambda *_: False)
            patch.setattr(Record, "check_nonblocking", find)
            outcome = await engine.run(record, chain)
        assert outcome == ([], None)
        assert record.fault is fault
        assert record.is_idle
        assert threads_of_faults[0] != threading.get_ident()
        engine.release(record)
        assert record.phase is Phase.CLOSED


@pytest.mark.anyio
@pytest.mark.parametrize("why", ["half-closed", "error queue"])
async def test_a_poll_that_comes_true_for_nothing_does_not_spin(
    why: str, far_end: FarEnd, make_file: MakeFile
) -> None:
    sock, far = socket_pair()
    before = b""
    if why == "half-closed":
        far.shutdown(socket.SHUT_WR)
    else:
        sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        before = b"x" * sock.send(b"x", MSG_ZEROCOPY)
    receiver = far_end.receive(far, limit=0)
    sending = asyncio.create_task(aiozc.loop_sendfile(sock, make_file(CONTENT * 4)))
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0.1)  # the buffers are full
    chains = aiozc.get_reactor().statistics().chains
    ends = loop.time() + 0.3
    await until(lambda: loop.time() >= ends)
    assert aiozc.get_reactor().statistics().chains - chains < 100
    receiver.allow(None)
    assert await sending == len(CONTENT) * 4
    sock.close()
    assert_same(await receiver.wait_end(), before, CONTENT * 4)


@pytest.mark.anyio
@pytest.mark.parametrize("old", [False, True], ids=["this kernel", "an older kernel"])
@pytest.mark.parametrize("size", [1000, 100_000])
async def test_a_socket_that_somebody_has_made_blocking_does_not_stop_the_loop(
    size: int, old: bool, connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its object says that it is non-blocking: the flag is the open file's, and others have it."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if old:
        monkeypatch.setattr(os, "pwritev", refuse)
    aiozc.get_reactor()
    sock, receiver = connect(socket.AF_UNIX, limit=0)
    filled = fill(sock)
    Child(lambda: os.set_blocking(sock.fileno(), True)).wait()
    assert sock.gettimeout() == 0
    file = make_file(CONTENT[:size])
    with pytest.raises(OSError, match="blocking") as caught:
        await aiozc.loop_sendfile(sock, file)
    assert caught.value.errno == errno.EINVAL
    assert file.tell() == 0
    sock.close()
    assert_same(await receiver.wait_end(), bytes(filled))


@pytest.mark.ring
@pytest.mark.anyio
@pytest.mark.parametrize("refusals", [0, 1], ids=["at once", "at the second try"])
async def test_a_chain_that_the_kernel_cuts_ends_the_ring_and_the_next_transfer_has_a_new_one(
    refusals: int, connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, _ = connect()
    reactor = aiozc.get_reactor()
    real = Ring.submit
    outcomes = [OSError(errno.EBUSY, "busy")] * refusals + [BrokenRingError("taken in part")]

    def submit(ring: Ring, chain: "list[Sqe]") -> None:
        if len(chain) > 1 and isinstance(outcomes[0], BrokenRingError):
            real(ring, chain)
        if len(chain) > 1:
            raise outcomes.pop(0)
        real(ring, chain)

    file = make_file(CONTENT)
    with monkeypatch.context() as patch:
        patch.setattr(Ring, "submit", submit)
        with pytest.raises(BrokenRingError):
            await aiozc.loop_sendfile(broken, file)
    await until(lambda: reactor.closed)
    assert not outcomes
    sock, receiver = connect()
    assert await aiozc.loop_sendfile(sock, file) == len(CONTENT)
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


@pytest.mark.ring
@pytest.mark.anyio
async def test_a_splice_that_is_to_be_begun_anew_is(
    far_end: FarEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own numbers for that say that nothing moved, as EAGAIN does here.

    A few in a row, as one cancellation may bring: each is tried again, but not for ever.
    """
    anew: list[int] = []
    told: list[int] = []
    real = Ring.drain

    def drain(ring: Ring) -> Iterator[Completion]:
        for completion in real(ring):
            if completion.result == -errno.EAGAIN:
                told.append(completion.result)
                if len(told) % 4:
                    anew.append(512 + len(anew) % 5)
                    completion = completion._replace(result=-anew[-1])
            yield completion

    content = pattern(64 * MIB)
    near, far = socket_pair()
    with (
        near,
        os.fdopen(os.memfd_create("upload"), "w+b") as upload,
        monkeypatch.context() as patch,
    ):
        patch.setattr(Ring, "drain", drain)
        far_end.peer(far).send(content, end=True)
        assert await aiozc.loop_recvfile(near, upload) == len(content)
        assert anew
        upload.seek(0)
        assert_same(upload.read(), content)


@pytest.mark.ring
@pytest.mark.anyio
async def test_an_exception_behind_a_submission_does_not_free_what_the_kernel_uses(
    connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a handler of a signal raises it, in whatever line the loop's thread is."""

    def interrupt(_: Uring) -> None:
        raise KeyboardInterrupt

    sock, receiver = connect(limit=0, sndbuf=64 * 1024)
    reactor = aiozc.get_reactor()
    sending = aiozc.loop_sendfile(sock, make_file(CONTENT))
    with monkeypatch.context() as patch:
        patch.setattr(Uring, "drain", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sending.send(None)
        held = reactor.statistics()
        assert held.in_flight == 1
    receiver.reset()
    await until(lambda: not reactor.statistics().in_flight)
