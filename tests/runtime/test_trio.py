"""The transfers on trio: what is trio's own. What holds on every loop: `tests/ways`."""

import asyncio
import contextlib
import errno
import io
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pytest
import trio
import trio.testing

import aiozc
from aiozc._runtime.runtime import running_loop
from aiozc._transfers.splice import Splicing
from aiozc._transfers.steps import Chain
from tests.kit.children import Child
from tests.kit.connections import fill, socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.far_ends import Connect, FarEnd
from tests.kit.leaks import check_nothing_left, holdings
from tests.kit.waiting import in_threads

LARGE = 32 * MIB
CONTENT = pattern(LARGE)


@pytest.fixture
def left_nothing() -> Iterator[None]:
    """Check that nothing of a run is left: descriptors, threads, mappings of a ring."""
    before = holdings()
    yield
    check_nothing_left(before)


alone = pytest.mark.usefixtures("left_nothing")


def memory_file() -> BinaryIO:
    """Make a file to receive into."""
    return open(os.memfd_create("upload"), "w+b")


def make_pipe() -> tuple[BinaryIO, BinaryIO]:
    """Make a pipe."""
    reader, writer = os.pipe()
    return open(reader, "rb", 0), open(writer, "wb", 0)


def stream_of(sock: socket.socket) -> trio.SocketStream:
    """Return a stream that owns the socket."""
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def told(future: Any) -> Any:
    """Wait for what the far end's thread will say."""
    return await trio.to_thread.run_sync(future.result)


@alone
def test_streams_and_sockets_of_trio_send_receive_and_are_relayed(
    far_end: FarEnd, make_file: MakeFile
) -> None:
    async def main() -> None:
        near, far = map(stream_of, socket_pair())
        async with near, far, trio.open_nursery() as nursery:
            for size in (0, 1, 4096, 70_001, 64 * MIB):
                content = pattern(size)
                with memory_file() as upload:
                    nursery.start_soon(aiozc.loop_sendfile, near.socket, make_file(content))
                    if size:
                        assert await aiozc.loop_recvfile(far, upload, 0, size) == size
                    upload.seek(0)
                    assert_same(upload.read(), content)
            sent = await aiozc.sendfile_zc(near, make_file(b"some"))
            await sent.released()
            assert await far.receive_some() == b"some"
            assert await aiozc.splice_pipe(make_file(b"more"), near) == 4
            assert await far.receive_some() == b"more"

        (a, at_a), (b, at_b) = ((stream_of(x), y) for x, y in (socket_pair(), socket_pair()))
        first, second = far_end.peer(at_a), far_end.peer(at_b)
        first.send(CONTENT, end=True)
        second.send(CONTENT[: 3 * MIB], end=True)
        async with a, b:
            assert await aiozc.relay(a, b) == (LARGE, 3 * MIB)
        assert_same(await told(second.ended()), CONTENT)
        assert_same(await told(first.ended()), CONTENT[: 3 * MIB])

    trio.run(main)


@alone
def test_a_stream_closed_in_mid_transfer_ends_it_with_ebadf(
    connect: Connect, make_file: MakeFile
) -> None:
    async def main() -> None:
        sock, receiver = connect(limit=100_000)
        stream, file = stream_of(sock), make_file(CONTENT)
        async with trio.open_nursery() as nursery:

            async def close() -> None:
                await told(receiver.arrived(100_000))
                await stream.aclose()

            nursery.start_soon(close)
            with pytest.raises(OSError, match="closed") as caught:
                await aiozc.loop_sendfile(stream, file)
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError, match="Bad file descriptor"):
            await aiozc.loop_sendfile(stream, file)
        receiver.allow(None)
        assert_same(await told(receiver.ended()), CONTENT[: file.tell()])

    trio.run(main)


@alone
def test_in_a_scope_cancelled_before_nothing_is_begun(
    connect: Connect, make_file: MakeFile
) -> None:
    async def main() -> None:
        sock, receiver = connect()
        file = make_file(CONTENT)
        for call, nothing in (
            (lambda: aiozc.loop_sendfile(sock, file), 0),
            (lambda: aiozc.loop_recvfile(sock, file), 0),
            (lambda: aiozc.splice_pipe(file, sock), 0),
            (lambda: aiozc.sendfile_zc(sock, file), 0),
            (lambda: aiozc.relay(sock, sock), (0, 0)),
        ):
            with trio.CancelScope() as scope:
                scope.cancel()
                with pytest.raises(trio.Cancelled) as caught:
                    await call()
                assert caught.value.transferred == caught.value.lost == nothing  # type: ignore[attr-defined]
        sock.close()
        assert await told(receiver.ended()) == b""

    trio.run(main)


@alone
def test_the_fallback_keeps_its_promises(connect: Connect) -> None:
    """A cancelled one says how many bytes the socket took, and the object stands behind them."""

    async def main() -> None:
        file = io.BytesIO(CONTENT)
        sock, receiver = connect(limit=300_000)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel() -> None:
                    await told(receiver.arrived(300_000))
                    scope.cancel()

                nursery.start_soon(cancel)
                with pytest.raises(trio.Cancelled) as caught:
                    await aiozc.loop_sendfile(sock, file)
        place = file.tell()
        assert caught.value.transferred == place >= 300_000  # type: ignore[attr-defined]
        receiver.allow(None)
        assert await aiozc.loop_sendfile(sock, file, place) == LARGE - place
        sock.close()
        assert_same(await told(receiver.ended()), CONTENT)

    trio.run(main)


@alone
def test_the_fallback_goes_on_while_all_of_trios_threads_and_many_reads_wait(
    connect: Connect,
) -> None:
    """Its own too: no deadline could end a transfer that waited for one."""

    async def main() -> None:
        limiter = trio.to_thread.current_default_thread_limiter()
        pipes = [make_pipe() for _ in range(50)]
        async with trio.open_nursery() as nursery:
            for _ in range(int(limiter.total_tokens)):
                nursery.start_soon(limiter.acquire_on_behalf_of, object())
            for reader, _ in pipes:
                nursery.start_soon(aiozc.loop_sendfile, connect()[0], reader)
            await trio.testing.wait_all_tasks_blocked()
            assert not limiter.available_tokens
            sock, receiver = connect()
            assert await aiozc.loop_sendfile(sock, io.BytesIO(CONTENT)) == LARGE
            for _, writer in pipes:
                writer.close()
        for reader, _ in pipes:
            reader.close()
        sock.close()
        assert_same(receiver.ended().result(), CONTENT)

    trio.run(main)


@alone
def test_many_small_files_let_other_tasks_run(connect: Connect, make_file: MakeFile) -> None:
    async def main() -> None:
        sock, receiver = connect()
        file = make_file(CONTENT[: 64 * KIB])
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(told, receiver.arrived(20 * MIB))

                async def cancel() -> None:
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()

                sent = 0
                nursery.start_soon(trio.lowlevel.checkpoint)
                while sent < 20 * MIB:
                    sent += await aiozc.loop_sendfile(sock, file)
                nursery.start_soon(cancel)
                while True:
                    await aiozc.loop_sendfile(sock, file)
        sock.close()

    trio.run(main)


@alone
def test_a_run_that_ends_with_transfers_in_flight_leaves_nothing(
    each_backend: str, connect: Connect, make_file: MakeFile
) -> None:
    """Those of system tasks: all others have ended when the run does."""
    outcomes: list[object] = []

    async def main() -> None:
        aiozc.Reactor(backend=each_backend)
        for _ in range(3):
            sock, receiver = connect(limit=100_000)

            async def send(sock: socket.socket = sock) -> None:
                try:
                    await aiozc.loop_sendfile(sock, make_file(CONTENT, again=True))
                except BaseException as error:
                    outcomes.append(type(error))
                    raise

            trio.lowlevel.spawn_system_task(send)
            await told(receiver.arrived(100_000))
        assert aiozc.get_reactor().statistics().in_flight == 3

    # Which of the tasks is cancelled first differs from run to run.
    for _ in range(15):
        trio.run(main)
    assert outcomes == [trio.Cancelled] * 45


@alone
def test_runs_follow_each_other_and_go_on_beside_each_other(make_file: MakeFile) -> None:
    def run() -> None:
        async def main() -> None:
            near, far = map(stream_of, socket_pair())
            async with near, far, trio.open_nursery() as nursery:
                with memory_file() as upload:
                    nursery.start_soon(aiozc.loop_sendfile, near, make_file(CONTENT))
                    assert await aiozc.loop_recvfile(far, upload, 0, LARGE) == LARGE
                    upload.seek(0)
                    assert_same(upload.read(), CONTENT)

        trio.run(main)

    run()
    run()
    in_threads([run, run])


@alone
def test_an_interrupt_ends_a_transfer_at_a_byte_that_is_known(
    connect: Connect, make_file: MakeFile
) -> None:
    for function in ("loop_sendfile", "relay"):
        sock, receiver = connect(limit=200_000)
        file = make_file(CONTENT)
        near, far = socket_pair()
        feeder = threading.Thread(target=lambda: feed(far))  # noqa: B023
        caught: list[KeyboardInterrupt] = []

        async def main() -> None:
            async def interrupt() -> None:
                await told(receiver.arrived(200_000))  # noqa: B023
                # From a thread: it comes while trio waits, as from a person.
                await trio.to_thread.run_sync(os.kill, os.getpid(), signal.SIGINT)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(interrupt)
                try:
                    if function == "relay":  # noqa: B023
                        await aiozc.relay(near, sock)  # noqa: B023
                    else:
                        await aiozc.loop_sendfile(sock, file)  # noqa: B023
                except KeyboardInterrupt as error:
                    caught.append(error)  # noqa: B023

        feeder.start()
        trio.run(main)
        near.close()
        feeder.join()
        sock.close()
        receiver.allow(None)
        arrived = receiver.ended().result()
        assert len(caught) == 1
        if function == "relay":
            assert caught[0].transferred[0] == len(arrived)  # type: ignore[attr-defined]
        else:
            assert_same(arrived, CONTENT[: file.tell()])


@alone
def test_an_interrupt_between_two_lines_of_a_relay_waits_until_it_knows_where_it_is(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, receiver = connect()
    near, far = socket_pair()
    real, signals = Splicing.advance, [signal.SIGINT]

    def advance(transfer: Splicing, chain: Chain, results: Sequence[int]) -> None:
        if sum(results) > 0 and signals:
            signal.raise_signal(signals.pop())
        real(transfer, chain, results)

    async def main() -> None:
        await aiozc.relay(near, sock)

    with near, far, monkeypatch.context() as patch:
        patch.setattr(Splicing, "advance", advance)
        far.send(pattern(150_000))
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(KeyboardInterrupt) as caught:
            trio.run(main)
    sock.close()
    arrived = receiver.ended().result()
    assert caught.value.transferred[0] == len(arrived) > 0  # type: ignore[attr-defined]


def feed(sock: socket.socket) -> None:
    """Send for as long as somebody listens."""
    sock.setblocking(True)
    with sock:
        try:
            sock.sendall(CONTENT)
        except OSError:
            return


@alone
def test_as_a_guest_of_asyncio_each_has_its_own(make_file: MakeFile) -> None:
    """Trio's tasks run in callbacks of asyncio's loop, and aiozc tells the two apart."""

    async def move() -> aiozc.Reactor:
        near, far = socket_pair()
        with near, far, memory_file() as upload:
            file = make_file(CONTENT)
            for place in range(0, LARGE, 50_000):
                count = min(50_000, LARGE - place)
                assert await aiozc.loop_sendfile(near, file, place, count) == count
                assert await aiozc.loop_recvfile(far, upload, place, count) == count
            upload.seek(0)
            assert_same(upload.read(), CONTENT)
        return aiozc.get_reactor()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            move,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=ended.set_result,
        )
        host = await move()
        guest = (await ended).unwrap()
        assert host is not guest
        assert guest.closed
        assert not host.closed

    asyncio.run(main())


@alone
def test_a_fork_in_a_run_takes_nothing_from_it(connect: Connect, make_file: MakeFile) -> None:
    """The child, of a thread beside the run, has a run of its own."""

    def in_child() -> None:
        async def main() -> None:
            near, far = map(stream_of, socket_pair())
            async with near, far:
                assert await aiozc.loop_sendfile(near, make_file(b"of the child")) == 12
                with memory_file() as upload:
                    assert await aiozc.loop_recvfile(far, upload, 0, 12) == 12

        signal.set_wakeup_fd(-1)  # the parent's run has set its own
        trio.run(main)

    async def main() -> None:
        sock, receiver = connect(limit=0)
        filler = fill(sock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(aiozc.loop_sendfile, sock, make_file(CONTENT))
            await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(lambda: Child(in_child).wait())
            receiver.allow(None)
        sock.close()
        assert_same(await told(receiver.ended()), bytes(filler), CONTENT)

    trio.run(main)


def test_a_loop_that_asyncio_was_taught_to_find_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As trio-asyncio does, whoever is imported first."""
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        monkeypatch.setattr(asyncio.events, "_get_running_loop", lambda: loop)
        assert running_loop() is loop


def test_outside_of_a_run_there_is_no_loop(make_file: MakeFile) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        aiozc.get_reactor()
    with socket.socket() as sock, pytest.raises(RuntimeError, match="no running event loop"):
        aiozc.loop_sendfile(sock, make_file(b"x")).send(None)
