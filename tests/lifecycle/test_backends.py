"""What moves the bytes, who chooses it, and what is said about it."""

import asyncio
import errno
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiozc
from aiozc._engines import engine
from aiozc._kernel import liburing
from tests.kit.children import Child
from tests.kit.connections import socket_pair
from tests.kit.content import MIB, MakeFile, assert_same, pattern
from tests.kit.ends import Ends, content_of
from tests.kit.far_ends import Connect
from tests.kit.leaks import holdings
from tests.kit.loops import LoopFactory, run_on

VARIABLE = "AIOZC_BACKEND"
CONTENT = pattern(3 * MIB + 1)


@pytest.fixture(autouse=True)
def nothing_asked_for(backend: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # noqa: ARG001
    """Let each test choose."""
    monkeypatch.delenv(VARIABLE, raising=False)
    engine._log_once.cache_clear()
    yield
    engine._log_once.cache_clear()


@pytest.fixture
def no_liburing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the library look for liburing where there is none."""
    liburing.load.cache_clear()
    monkeypatch.setenv("AIOZC_LIBURING", "/nowhere/liburing.so")
    yield
    liburing.load.cache_clear()


@pytest.mark.anyio
@pytest.mark.usefixtures("no_liburing")
async def test_without_liburing_everything_arrives_by_readiness(
    family: int, connect: Connect, make_file: MakeFile, ends: Ends
) -> None:
    assert aiozc.backend() == "readiness"
    sock, receiver = connect(family)
    assert await aiozc.loop_sendfile(sock, make_file(CONTENT), 5) == len(CONTENT) - 5
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT[5:])
    source, file = ends.source("tcp", CONTENT), ends.file(b"", "wb")
    assert await aiozc.loop_recvfile(source.end, file, fallback=False) == len(CONTENT)
    file.close()
    assert_same(content_of(file), CONTENT)
    piped, target = ends.source("pipe", CONTENT), ends.target("tcp")
    assert await aiozc.splice_pipe(piped.end, target.end) == len(CONTENT)
    await target.check(CONTENT)


@pytest.mark.usefixtures("no_liburing")
def test_the_cause_is_told_once_and_what_would_lift_it(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiozc")

    async def main() -> str:
        aiozc.get_reactor()
        return aiozc.backend()

    assert [run_on(loop_factory, main()) for _ in range(3)] == ["readiness"] * 3
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("aiozc", logging.INFO)
    told = record.getMessage()
    assert "\n" not in told
    assert "no usable liburing: /nowhere/liburing.so does not load" in told
    assert "AIOZC_LIBURING" in told


@pytest.mark.anyio
async def test_what_is_asked_for_in_the_environment_is_what_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiozc")
    monkeypatch.setenv(VARIABLE, "readiness")
    assert aiozc.backend() == aiozc.get_reactor().backend == "readiness"
    assert caplog.records == []


@pytest.mark.anyio
async def test_a_reactor_made_by_hand_has_the_backend_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch, connect: Connect, make_file: MakeFile
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "io_uring")
        await _send_by_readiness(connect, make_file)


async def _send_by_readiness(connect: Connect, make_file: MakeFile) -> None:
    async with aiozc.Reactor(backend="readiness") as reactor:
        assert aiozc.get_reactor() is reactor
        assert aiozc.backend() == "readiness"
        sock, receiver = connect()
        assert await aiozc.loop_sendfile(sock, make_file(CONTENT)) == len(CONTENT)
        assert reactor.statistics().bytes == len(CONTENT)
        sock.close()
        assert_same(await receiver.wait_end(), CONTENT)


@pytest.mark.anyio
async def test_a_name_that_is_no_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend is 'epoll': it can be io_uring or readiness"):
        aiozc.Reactor(backend="epoll")
    monkeypatch.setenv(VARIABLE, "uring")
    with pytest.raises(ValueError, match="AIOZC_BACKEND is 'uring'"):
        aiozc.get_reactor()
    monkeypatch.delenv(VARIABLE)
    assert aiozc.backend() in {"io_uring", "readiness"}


@pytest.mark.anyio
@pytest.mark.usefixtures("no_liburing")
async def test_where_the_ring_is_asked_for_and_cannot_be_had_nothing_moves(
    monkeypatch: pytest.MonkeyPatch, ends: Ends
) -> None:
    monkeypatch.setenv(VARIABLE, "io_uring")
    source, target = ends.source("tcp", CONTENT[:5000]), ends.target("tcp")
    refused = pytest.raises(aiozc.RingUnavailableError, match=r"/nowhere/liburing\.so")
    file = ends.file(b"abc", "r+b")
    with refused:
        await aiozc.loop_sendfile(target.end, file)
    with refused:
        await aiozc.loop_recvfile(source.end, file)
    with refused:
        await aiozc.splice_pipe(source.end, target.end)
    with refused:
        await aiozc.relay(source.end, target.end)
    with refused:
        aiozc.backend()
    assert_same(await source.rest(), CONTENT[:5000])
    await target.check()
    # Nobody asks for it any more.
    monkeypatch.delenv(VARIABLE)
    assert aiozc.backend() == "readiness"


def test_any_other_error_is_raised_and_nothing_is_left(
    loop_factory: LoopFactory, tmp_path: Path
) -> None:
    """Here: no descriptor is left. It is no reason to go another way for a loop's life."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)

    async def main() -> None:
        near, far = socket_pair()
        with near, far, path.open("rb") as file:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            taken = holdings().descriptors
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
            filled = []
            while True:
                try:
                    filled.append(os.dup(0))
                except OSError:
                    break
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)) as caught:
                aiozc.get_reactor()
            assert caught.value.errno == errno.EMFILE
            assert not isinstance(caught.value, aiozc.RingUnavailableError)
            for fd in filled:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            sending = asyncio.create_task(aiozc.loop_sendfile(near, file))
            received = b""
            while len(received) < len(CONTENT):
                received += await asyncio.get_running_loop().sock_recv(far, MIB)
            assert await sending == len(CONTENT)
            assert_same(received, CONTENT)

    Child(lambda: run_on(loop_factory, main())).wait()
