"""What an adversary found in relays, uploads and splices, each made to happen."""

import asyncio
import errno
import io
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

import aiozc
from tests.kit.content import KIB, assert_same, pattern
from tests.kit.tasks import outcome_of
from tests.kit.waiting import until

pytestmark = pytest.mark.anyio

BEFORE, BEHIND = pattern(1000), pattern(50_000, 1)
OUT_OF_BAND = b"!"
COMM = Path("/proc/self/comm")


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    for sock in (ours, theirs):
        sock.setblocking(False)
    return ours, theirs


def unix_pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
    return pair


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def receive_all(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while piece := await loop.sock_recv(sock, 256 * KIB):
        data += piece
    return data


async def receive(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        data += await loop.sock_recv(sock, count - len(data))
    return data


async def test_bytes_behind_urgent_data_are_relayed(stack: ExitStack) -> None:
    """splice(2) stops at the mark, and says 0 there once the peer has ended its stream."""
    (p, a), (b, q) = (map(stack.enter_context, tcp_pair()) for _ in range(2))
    p.send(BEFORE)
    p.send(OUT_OF_BAND, socket.MSG_OOB)
    p.send(BEHIND)
    p.shutdown(socket.SHUT_WR)
    q.shutdown(socket.SHUT_WR)
    there = len(BEFORE) + len(BEHIND)
    assert await aiozc.relay(a, b) == (there, 0)
    b.close()
    assert_same(await receive_all(q), BEFORE, BEHIND)


async def test_bytes_behind_urgent_data_are_uploaded(stack: ExitStack, tmp_path: Path) -> None:
    p, a = map(stack.enter_context, tcp_pair())
    p.send(BEFORE)
    p.send(OUT_OF_BAND, socket.MSG_OOB)
    p.send(BEHIND)
    with (tmp_path / "upload").open("w+b") as file:
        assert await aiozc.loop_recvfile(a, file, 0, len(BEFORE) + len(BEHIND)) == file.tell()
        file.seek(0)
        assert_same(file.read(), BEFORE, BEHIND)


async def test_an_error_queue_that_keeps_polls_true_spins_no_loop(stack: ExitStack) -> None:
    """MSG_ZEROCOPY's notifications wait there until somebody asks for them."""
    (p, a), (b, q) = (map(stack.enter_context, tcp_pair()) for _ in range(2))
    a.setsockopt(socket.SOL_SOCKET, 60, 1)  # SO_ZEROCOPY
    a.send(BEFORE, 0x4000000)  # MSG_ZEROCOPY
    assert await receive(p, len(BEFORE)) == BEFORE
    task = asyncio.create_task(aiozc.relay(a, b))
    p.send(b"first")
    assert await receive(q, 5) == b"first"
    chains = aiozc.get_reactor().statistics().chains
    beats = 0
    loop = asyncio.get_running_loop()
    ends = loop.time() + 0.3
    while loop.time() < ends:
        beats += 1
        await asyncio.sleep(0.01)
    assert aiozc.get_reactor().statistics().chains - chains < 100
    p.send(b"second")
    assert await receive(q, 6) == b"second"
    task.cancel()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)


async def test_a_unix_relay_gives_a_slow_client_all_of_an_answer(stack: ExitStack) -> None:
    """The server is gone before the client has read: nobody has sent to it since."""
    (p, a), (b, q) = (map(stack.enter_context, unix_pair()) for _ in range(2))
    answer = pattern(300_000)
    task = asyncio.create_task(aiozc.relay(a, b))
    await asyncio.get_running_loop().sock_sendall(q, answer)
    q.close()
    ticks = aiozc.get_reactor().statistics().completions + 3
    await until(lambda: aiozc.get_reactor().statistics().completions >= ticks)
    data = await receive_all(p)
    p.close()
    assert await outcome_of(task) == (0, len(answer))
    assert_same(data, answer)


async def test_a_reset_is_seen_on_a_side_that_nobody_reads(stack: ExitStack) -> None:
    """It has ended its stream before, so that nothing more is read there."""
    (p, a), (b, q) = (map(stack.enter_context, tcp_pair()) for _ in range(2))
    task = asyncio.create_task(aiozc.relay(a, b))
    p.send(b"request")
    p.shutdown(socket.SHUT_WR)
    assert await receive_all(q) == b"request"
    p.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    p.close()
    outcome = await outcome_of(task)
    assert isinstance(outcome, ConnectionResetError)
    assert outcome.transferred == (7, 0)  # type: ignore[attr-defined]
    with pytest.raises(BrokenPipeError):
        q.send(b"response")


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 1, 1 << 64])
async def test_an_offset_that_the_kernel_does_not_know_is_refused(
    offset: int, stack: ExitStack, tmp_path: Path
) -> None:
    p, a = map(stack.enter_context, unix_pair())
    p.send(b"stays")
    with (tmp_path / "file").open("w+b") as file:
        with pytest.raises(ValueError, match="offset"):
            await aiozc.loop_recvfile(a, file, offset)
        with pytest.raises(ValueError, match="offset"):
            await aiozc.splice_pipe(file, a, src_offset=offset)
    assert a.recv(9) == b"stays"


def read_name() -> bytes:
    return COMM.read_bytes()


def write_name(name: bytes) -> None:
    COMM.write_bytes(name)


async def test_a_file_that_cannot_be_spliced_into_is_written_by_a_thread(
    stack: ExitStack,
) -> None:
    """Procfs's files have no splice_write: that is known before a byte leaves the socket."""
    p, a = map(stack.enter_context, unix_pair())
    name = read_name()
    try:
        with io.FileIO(COMM, "r+") as comm:
            p.send(b"adversary")
            with pytest.raises(asyncio.SendfileNotAvailableError):
                await aiozc.loop_recvfile(a, comm, 0, 9, fallback=False)
            with pytest.raises(OSError, match="Invalid argument") as caught:
                await aiozc.splice_pipe(a, comm, dst_offset=0)
            assert caught.value.lost == 0  # type: ignore[attr-defined]
            assert await aiozc.loop_recvfile(a, comm, 0, 9) == 9
        assert read_name() == b"adversary\n"
    finally:
        write_name(name)


async def test_a_file_into_its_own_end_ends(tmp_path: Path) -> None:
    content = pattern(100_000)
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("r+b") as file:
        assert await aiozc.splice_pipe(file, file, dst_offset=len(content)) == len(content)
    assert_same(path.read_bytes(), content, content)


async def test_a_fifo_opened_for_appending_is_no_file_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with (
        io.FileIO(reading) as out,
        path.open("ab", buffering=0) as into,
        (tmp_path / "file").open("w+b") as file,
    ):
        file.write(b"abc")
        assert await aiozc.splice_pipe(file, into, src_offset=0) == 3
        assert out.read() == b"abc"


async def test_a_socket_made_blocking_meanwhile_is_not_waited_for(stack: ExitStack) -> None:
    """The flag is the open file's: a child process that has inherited it may clear it."""
    (p, a), (b, q) = (map(stack.enter_context, unix_pair()) for _ in range(2))
    task = asyncio.create_task(aiozc.relay(a, b))
    p.send(b"x")
    assert await receive(q, 1) == b"x"
    with a.dup() as shared:
        shared.setblocking(True)
        p.send(b"y")
        outcome = await outcome_of(task)
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.EINVAL


async def test_an_idle_relay_lives_through_a_moment_without_descriptors(
    stack: ExitStack,
) -> None:
    (p, a), (b, q) = (map(stack.enter_context, unix_pair()) for _ in range(2))
    task = asyncio.create_task(aiozc.relay(a, b))
    other = stack.enter_context(open("/dev/null", "rb"))  # noqa: SIM115, ASYNC230
    await until(lambda: aiozc.get_reactor().statistics().in_flight == 2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (other.fileno(), limits[1]))
    try:
        p.send(b"late")
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert await receive(q, 4) == b"late"
    task.cancel()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)


async def test_a_full_disk_by_the_fallback_is_told_in_right_numbers(
    stack: ExitStack, tmp_path: Path
) -> None:
    """A buffered file would try to write its buffer out again and again."""
    p, a = map(stack.enter_context, unix_pair())
    a.setblocking(True)  # which goes by the fallback
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "upload"
    content = pattern(60_000)
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(p, content))
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with path.open("wb") as file:
            with pytest.raises(OSError, match="too large") as caught:
                await aiozc.loop_recvfile(a, file)
            assert file.tell() == 50_000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await sending
    assert caught.value.transferred == 50_000  # type: ignore[attr-defined]
    left = a.recv(60_000, socket.MSG_DONTWAIT) if caught.value.lost < 10_000 else b""  # type: ignore[attr-defined]
    assert caught.value.lost + len(left) == 10_000  # type: ignore[attr-defined]
    assert_same(path.read_bytes(), content[:50_000])


async def test_a_relay_that_is_thrown_away_gives_its_sockets_free(stack: ExitStack) -> None:
    (p, a), (b, _) = (map(stack.enter_context, unix_pair()) for _ in range(2))
    coroutine = aiozc.relay(a, b)
    coroutine.send(None)
    await asyncio.sleep(0)
    coroutine.close()
    await until(lambda: aiozc.get_reactor().statistics().in_flight == 0)
    p.send(b"stays")
    assert a.recv(9) == b"stays"
    with io.FileIO(os.memfd_create("empty")) as empty:
        assert await aiozc.splice_pipe(empty, b) == 0
