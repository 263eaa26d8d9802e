"""What goes wrong between two lines: each made to happen."""

import asyncio
import errno
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Generator
from typing import Any, BinaryIO

import pytest

import aiozc
from aiozc._engines.engine import Engine
from aiozc._engines.offering import Offering
from aiozc._engines.registry import current_engine, latest_engine
from aiozc._engines.uring import _TICKER, Uring
from aiozc._engines.workers import INDEX_BITS
from aiozc._kernel.ring import Completion
from aiozc._resources.records import Original, Record, outlet
from aiozc._transfers.sendfile import Sendfile
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.far_ends import Connect
from tests.kit.loops import run_on
from tests.kit.waiting import threads_at_rest, turns, until


@pytest.mark.ring
@pytest.mark.anyio
async def test_a_tick_among_completions_does_not_let_newer_ones_overtake(
    connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short write drained with the tick counts, though the chain's end comes meanwhile."""
    sock, _ = connect()
    engine = current_engine()
    record = Record(engine._pipes, Original(make_file(b"x")), outlet(sock))
    chain = Sendfile(0, 4 * MIB).next_chain(MIB, 6)
    backend = engine._backend
    assert isinstance(backend, Uring)
    run, busy = (backend.make(number, record, chain) for number in (901, 902))
    engine.runs |= {901: run, 902: busy}
    record.begin(run)
    batches = [
        [Completion(_TICKER, -errno.ETIME), Completion(901 << INDEX_BITS | 1, 300_000)],
        [Completion(901 << INDEX_BITS | len(chain) - 1, -errno.EAGAIN)],
    ]
    with monkeypatch.context() as patch:
        patch.setattr(backend._ring, "drain", lambda: batches.pop(0) if batches else [])
        patch.setattr(engine._watchdog, "_check", lambda _: backend.drain())
        backend.drain()
    del engine.runs[902]
    record.close()
    assert run.ended
    assert run.results[1] == 300_000


@pytest.mark.anyio
async def test_another_threads_reactor_is_never_taken_for_ones_own() -> None:
    """Each has the short way to its own, whoever was the last to ask."""
    loop, own = asyncio.get_running_loop(), current_engine()
    assert latest_engine(loop) is own

    async def ask() -> Engine | None:
        assert latest_engine(loop) is None
        async with aiozc.Reactor(entries=8):
            return latest_engine(asyncio.get_running_loop())

    assert await asyncio.to_thread(run_on, asyncio.new_event_loop, ask()) not in (None, own)
    assert latest_engine(loop) is own


class ClosedAtItsFirstWakeUp:
    """Drive a coroutine to its first wait, and throw it away when that has ended."""

    def __init__(self, coroutine: Any) -> None:
        self.coroutine = coroutine

    def __await__(self) -> Generator[Any, None, None]:
        future = self.coroutine.send(None)
        future._asyncio_future_blocking = True
        try:
            yield future
        finally:
            self.coroutine.close()


async def await_it(awaitable: Awaitable[Any]) -> None:
    await awaitable


@pytest.mark.anyio
async def test_a_transfer_thrown_away_as_its_chain_ends_leaves_no_byte_to_the_next(
    connect: Connect, make_file: MakeFile
) -> None:
    first, far = connect(socket.AF_UNIX, limit=0, sndbuf=64 * KIB)
    thrown_away = aiozc.loop_sendfile(first, make_file(b"A" * MIB))
    throwing = asyncio.create_task(await_it(ClosedAtItsFirstWakeUp(thrown_away)))
    await turns(5)
    far.allow(None)
    await throwing
    content = pattern(2 * MIB)
    sock, receiver = connect(socket.AF_UNIX)
    assert await aiozc.loop_sendfile(sock, make_file(content)) == len(content)
    sock.close()
    assert_same(await receiver.wait_end(), content)


class FullDisk:
    """A file whose position cannot be set, as when a buffer must be written out first."""

    def __init__(self, file: BinaryIO) -> None:
        self.fileno = file.fileno

    def seek(self, _: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.anyio
async def test_a_position_that_cannot_be_set_leaves_the_socket_free(
    connect: Connect, make_file: MakeFile
) -> None:
    content = pattern(2 * MIB)
    sock, receiver = connect()
    file = make_file(content)
    with pytest.raises(OSError, match="No space left"):
        await aiozc.loop_sendfile(sock, FullDisk(file))
    assert aiozc.get_reactor().statistics().in_flight == 0
    assert await aiozc.loop_sendfile(sock, file) == len(content)
    sock.close()
    assert_same(await receiver.wait_end(), content * 2)


@pytest.mark.anyio
async def test_an_aclose_that_is_cancelled_leaves_a_reactor_that_works(
    connect: Connect, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, receiver = connect(limit=0, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    sending = asyncio.create_task(aiozc.loop_sendfile(sock, make_file(pattern(4 * MIB))))
    reactor = aiozc.get_reactor()
    runs = reactor._engine.runs
    await until(
        lambda: any(isinstance(run, Offering) for run in runs.values())
    )  # it waits for room
    with monkeypatch.context() as patch:
        patch.setattr(reactor._engine, "_stop", lambda _: None)
        closing = asyncio.create_task(reactor.aclose())
        await turns(2)
        closing.cancel()
        await asyncio.wait([closing])
    assert not reactor.closed
    receiver.allow(None)
    assert await sending == 4 * MIB


@pytest.mark.anyio
async def test_a_blocking_tls_socket_is_refused(make_file: MakeFile) -> None:
    ours, theirs = socket.socketpair()
    context = ssl.create_default_context()
    with ours, theirs:
        tls = context.wrap_socket(ours, do_handshake_on_connect=False, server_hostname="somewhere")
        with tls, pytest.raises(ValueError, match="must be non-blocking"):
            await aiozc.loop_sendfile(tls, make_file(b"abc"))


@pytest.mark.anyio
async def test_what_is_no_socket_is_refused_and_costs_no_descriptor(make_file: MakeFile) -> None:
    file = make_file(b"abc")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(TypeError, match="is no socket"):
            await aiozc.loop_sendfile(file, file)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.anyio
async def test_reading_a_silent_pipe_can_be_cancelled(connect: Connect) -> None:
    sock, _ = connect()
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as source:
        sending = asyncio.create_task(aiozc.loop_sendfile(sock, source))
        await turns(10)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        os.close(writing)  # lets the thread end
        await threads_at_rest()


UNWINDING = """
import asyncio, os, socket, sys, tempfile, uvloop, aiozc

async def main():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs, tempfile.TemporaryFile() as file:
        file.truncate(4 << 20)
        sending = asyncio.create_task(aiozc.loop_sendfile(ours, file))
        while not aiozc.get_reactor().statistics().in_flight:
            await asyncio.sleep(0)
        child = os.fork()
        if child == 0:
            sys.exit(7)  # asyncio.run cancels the child's copy of the transfer, and awaits it
        # No thread may wake this loop any more: asyncio's child closed its loop, and with it
        # took the parent's wake-up pipe out of the epoll that both have.
        _, status = os.waitpid(child, 0)
        theirs.setblocking(False)
        received = 0
        while received < 4 << 20:
            received += len(await asyncio.get_running_loop().sock_recv(theirs, 1 << 20))
        print(os.waitstatus_to_exitcode(status), await sending, received, file.tell())

factory = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[sys.argv[1]]
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_forked_child_that_unwinds_comes_to_its_end(loop: str) -> None:
    """The parent's transfer goes on, and its file's position is its own."""
    done = subprocess.run(
        [sys.executable, "-c", UNWINDING, loop],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"7 {4 * MIB} {4 * MIB} {4 * MIB}\n"), done.stderr
