"""How a transfer ends when the peer, the socket or the file goes away or changes under it."""

import asyncio
import errno
import io
import os
import socket
from dataclasses import dataclass
from typing import BinaryIO

import pytest

import aiozc
from tests.kit.connections import fill, socket_pair
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.far_ends import Connect, FarEnd, Receiver
from tests.kit.tasks import outcome_of
from tests.kit.waiting import turns
from tests.kit.ways import SENDS, Send

pytestmark = pytest.mark.anyio

SIZE = 6 * MIB
CONTENT = pattern(SIZE)
OTHER = pattern(SIZE, 1)
SEEN = 200_000  # bytes that the reader takes before something happens


@dataclass
class Sending:
    """A function that sends files, and a file, or for the fallback something else."""

    send: Send
    file: BinaryIO


@pytest.fixture(
    params=[*((name, "file") for name in SENDS), ("loop_sendfile", "memory")], ids="-".join
)
def sending(request: pytest.FixtureRequest, make_file: MakeFile) -> Sending:
    """Give the content as a file and, for the fallback, as something else."""
    name, kind = request.param
    file = make_file(CONTENT, again=True) if kind == "file" else io.BytesIO(CONTENT)
    return Sending(SENDS[name], file)


async def start(
    send: Send,
    connect: Connect,
    file: BinaryIO,
    family: int = socket.AF_INET,
    count: int | None = None,
) -> tuple[socket.socket, Receiver, "asyncio.Task[int]"]:
    """Start a transfer that is far from its end and cannot go on."""
    sock, receiver = connect(family, limit=SEEN, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    task = asyncio.create_task(send(sock, file, 0, count))
    await receiver.wait_arrived(SEEN)
    assert not task.done()
    return sock, receiver, task


def append(file: BinaryIO, content: bytes) -> None:
    """Let it grow."""
    with open(file.name, "ab") as writing:
        writing.write(content)


# The peer


@pytest.mark.parametrize("reading", [True, False], ids=["reading", "stopped"])
async def test_a_peer_that_resets_ends_it_with_a_connection_error(
    reading: bool, family: int, connect: Connect, sending: Sending
) -> None:
    _, receiver, task = await start(sending.send, connect, sending.file, family)
    if reading:
        receiver.allow(SIZE // 2)  # and not to the end before it resets
        await receiver.wait_arrived(SEEN + 1)
    receiver.reset()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await task
    assert receiver.count <= sending.file.tell() <= SIZE


async def test_a_peer_that_closes_ends_it_with_a_connection_error(
    family: int, connect: Connect, sending: Sending
) -> None:
    _, receiver, task = await start(sending.send, connect, sending.file, family)
    receiver.close()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await task
    assert receiver.count <= sending.file.tell() <= SIZE


async def test_a_peer_that_was_gone_before_ends_it_with_a_connection_error(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    for size in (4096, 2 * MIB):
        sock, receiver = connect(family)
        file = make_file(CONTENT[:size])
        receiver.reset()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await send(sock, file)
        assert file.tell() == 0


async def test_a_socket_that_was_never_connected_is_refused(
    send: Send, make_file: MakeFile
) -> None:
    file = make_file(CONTENT, again=True)
    with socket.socket() as sock:
        sock.setblocking(False)
        task = asyncio.create_task(send(sock, file))
        assert isinstance(await outcome_of(task), OSError)
    assert file.tell() == 0


# The socket


async def test_a_socket_shut_for_writing_in_mid_transfer_ends_it_with_a_broken_pipe(
    family: int, connect: Connect, sending: Sending
) -> None:
    sock, receiver, task = await start(sending.send, connect, sending.file, family)
    sock.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        await task
    assert_same(await receiver.wait_end(), CONTENT[: sending.file.tell()])


@pytest.mark.parametrize("reading", [True, False], ids=["reading", "stopped"])
async def test_a_socket_closed_in_mid_transfer_ends_it_with_an_oserror(
    reading: bool, family: int, connect: Connect, sending: Sending
) -> None:
    """And the peer gets the end of the stream, behind what the file position says."""
    sock, receiver, task = await start(sending.send, connect, sending.file, family)
    if reading:
        receiver.allow(SIZE - 1)
    sock.close()
    assert isinstance(await outcome_of(task), OSError)
    assert_same(await receiver.wait_end(), CONTENT[: sending.file.tell()])


async def test_a_socket_closed_before_ends_it_with_an_oserror(
    send: Send, connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect()
    file = make_file(CONTENT, again=True)
    sock.close()
    task = asyncio.create_task(send(sock, file))
    assert isinstance(await outcome_of(task), OSError)
    assert file.tell() == 0
    assert await receiver.wait_end() == b""


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_a_transport_closed_in_mid_transfer_ends_it_with_an_oserror(
    send: Send, ending: str, far_end: FarEnd, make_file: MakeFile
) -> None:
    file = make_file(CONTENT, again=True)
    near, far = socket_pair(sndbuf=64 * KIB, rcvbuf=64 * KIB)
    receiver = far_end.receive(far, limit=SEEN)
    _, writer = await asyncio.open_connection(sock=near)
    async with aiozc.lowlevel.exclusive(writer.transport) as sock:
        task = asyncio.create_task(send(sock, file))
        await receiver.wait_arrived(SEEN)
        if ending == "close":
            writer.close()
        else:
            writer.transport.abort()
        assert isinstance(await outcome_of(task), OSError)
    arrived = await receiver.wait_end()
    assert_same(arrived, CONTENT[: file.tell()])


@pytest.mark.parametrize("closing", [True, False], ids=["closed before", "closed by dup2"])
@pytest.mark.parametrize("reading", [True, False], ids=["reading", "stopped"])
async def test_another_socket_that_takes_the_number_gets_nothing(
    send: Send, reading: bool, closing: bool, family: int, connect: Connect, make_file: MakeFile
) -> None:
    file = make_file(CONTENT, again=True)
    sock, receiver, task = await start(send, connect, file, family)
    stranger, stranger_receiver = connect(family)
    if reading:
        receiver.allow(SIZE - 1)
    number = sock.fileno()
    if closing:
        sock.close()
    os.dup2(stranger.fileno(), number)
    assert isinstance(await outcome_of(task), OSError)
    assert_same(await receiver.wait_end(), CONTENT[: file.tell()])
    sock.detach()
    os.close(number)
    stranger.close()
    assert await stranger_receiver.wait_end() == b""


async def test_a_connection_accepted_on_the_number_of_a_closed_one_gets_nothing(
    send: Send, connect: Connect, far_end: FarEnd, make_file: MakeFile
) -> None:
    file = make_file(CONTENT)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(20)]
        sock, receiver, task = await start(send, connect, file)
        number = sock.fileno()
        sock.close()
        strangers: list[socket.socket] = []
        while not strangers or strangers[-1].fileno() != number:
            strangers.append(listener.accept()[0])
        assert isinstance(await outcome_of(task), OSError)
    assert_same(await receiver.wait_end(), CONTENT[: file.tell()])
    for stranger in strangers:
        stranger.close()
    for client in clients:
        client.setblocking(False)
        assert await far_end.receive(client).wait_end() == b""


async def test_a_second_send_on_a_sending_socket_is_refused_and_the_first_unharmed(
    sending: Sending, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """By the same object, and by another one of the same connection."""
    sock, receiver, task = await start(sending.send, connect, sending.file, family)
    small, large = make_file(OTHER[:4096]), make_file(OTHER, again=True)
    with sock.dup() as duplicate:
        for other in (small, large, io.BytesIO(OTHER)):
            for again in (sock, duplicate):
                with pytest.raises(RuntimeError):
                    await aiozc.loop_sendfile(again, other)
                assert other.tell() == 0
    receiver.allow(None)
    assert await task == SIZE
    assert await sending.send(sock, small) == 4096
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT, OTHER[:4096])


@pytest.mark.parametrize("first", ["small file", "file", "memory"])
async def test_of_two_sends_started_in_one_turn_the_second_is_refused(
    first: str, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """The send buffer is full, so that neither can end before the other starts."""

    def source(kind: str, content: bytes) -> BinaryIO:
        content = content[:100_000] if kind == "small file" else content
        return io.BytesIO(content) if kind == "memory" else make_file(content, again=True)

    for second in ("small file", "file", "memory"):
        sock, receiver = connect(family, limit=0)
        before = fill(sock)
        one, two = source(first, CONTENT), source(second, OTHER)
        sending = asyncio.create_task(aiozc.loop_sendfile(sock, one))
        refused = asyncio.create_task(aiozc.loop_sendfile(sock, two))
        await asyncio.wait([sending, refused], return_when=asyncio.FIRST_COMPLETED)
        receiver.allow(None)
        assert isinstance(await outcome_of(refused), RuntimeError), second
        sent = await sending
        sock.close()
        assert_same(await receiver.wait_end(), bytes(before), CONTENT[:sent])


async def test_a_default_timeout_of_sockets_neither_ends_nor_blocks_a_transfer(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """`socket.setdefaulttimeout` is for sockets that a program uses by themselves."""
    file = make_file(CONTENT, again=True)
    sock, receiver = connect(family, limit=SEEN, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    closed, _ = connect(family, limit=SEEN, sndbuf=64 * KIB, rcvbuf=64 * KIB)
    socket.setdefaulttimeout(0.01)
    try:
        task = asyncio.create_task(send(sock, file))
        ending = asyncio.create_task(send(closed, make_file(CONTENT, again=True)))
        await receiver.wait_arrived(SEEN)
        closed.close()
        assert isinstance(await outcome_of(ending), OSError)  # each has been looked at
        assert not task.done()
        receiver.allow(None)
        assert await task == SIZE
    finally:
        socket.setdefaulttimeout(None)
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


# Small files that wait for their share of a turn


async def start_many(
    connect: Connect, files: list[BinaryIO]
) -> list[tuple[socket.socket, Receiver, BinaryIO, "asyncio.Task[int]"]]:
    """Start a hundred transfers in one turn; return those that it did not send."""
    connections = [connect(socket.AF_UNIX, sndbuf=MIB) for _ in range(100)]
    for file in files:
        # What the system has evicted meanwhile would go to the ring at once.
        os.pread(file.fileno(), 200_000, 0)
    started = []
    for number, (sock, receiver) in enumerate(connections):
        file = files[number % len(files)]
        task = asyncio.create_task(aiozc.loop_sendfile(sock, file, 0, 200_000))
        started.append((sock, receiver, file, task))
    await turns(1)
    assert started[0][-1].done()
    waiting = [one for one in started if not one[-1].done()]
    assert waiting, "one turn of the loop sent 20 MB"
    for sock, _, _, task in started:
        if task.done():
            assert task.result() == 200_000
            sock.close()
    return waiting


async def test_small_files_that_wait_for_another_turn_arrive(
    connect: Connect, make_file: MakeFile
) -> None:
    for sock, receiver, _, task in await start_many(connect, [make_file(CONTENT, again=True)]):
        assert await task == 200_000
        sock.close()
        assert_same(await receiver.wait_end(), CONTENT[:200_000])


async def test_a_stranger_that_takes_a_waiting_sockets_number_gets_nothing(
    connect: Connect, make_file: MakeFile
) -> None:
    waiting = await start_many(connect, [make_file(CONTENT, again=True)])
    strangers = [connect(socket.AF_UNIX) for _ in waiting]
    for (sock, *_), (stranger, _) in zip(waiting, strangers, strict=True):
        os.dup2(stranger.fileno(), sock.fileno())
        stranger.close()
    for (sock, receiver, _, task), (_, stranger_receiver) in zip(waiting, strangers, strict=True):
        assert isinstance(await outcome_of(task), OSError)
        sock.close()
        assert await receiver.wait_end() == await stranger_receiver.wait_end() == b""


async def test_a_stranger_that_takes_a_waiting_files_number_is_not_sent(
    connect: Connect, make_file: MakeFile
) -> None:
    other = make_file(OTHER, again=True)
    waiting = await start_many(connect, [make_file(CONTENT[:SEEN]) for _ in range(100)])
    for _, _, file, _ in waiting:
        os.dup2(other.fileno(), file.fileno())
    for sock, receiver, _, task in waiting:
        assert isinstance(await outcome_of(task), OSError)
        sock.close()
        assert await receiver.wait_end() == b""
    assert os.lseek(other.fileno(), 0, os.SEEK_CUR) == 0


@pytest.mark.parametrize("closed", ["socket", "file"])
async def test_closing_what_waits_for_another_turn_ends_it_with_ebadf(
    closed: str, connect: Connect, make_file: MakeFile
) -> None:
    waiting = await start_many(connect, [make_file(CONTENT[:SEEN]) for _ in range(100)])
    for sock, _, file, _ in waiting:
        (sock if closed == "socket" else file).close()
    for sock, receiver, _, task in waiting:
        outcome = await outcome_of(task)
        assert isinstance(outcome, OSError)
        assert outcome.errno == errno.EBADF
        sock.close()
        assert await receiver.wait_end() == b""


async def test_a_second_send_while_the_first_waits_for_another_turn_is_refused(
    connect: Connect, make_file: MakeFile
) -> None:
    other = make_file(OTHER[:1])
    waiting = await start_many(connect, [make_file(CONTENT, again=True)])
    for sock, *_ in waiting:
        # Driven by hand: a task of its own would run after some of the first are done.
        second = aiozc.loop_sendfile(sock, other)
        with pytest.raises(RuntimeError, match="is sending already"):
            second.send(None)
    for sock, receiver, _, task in waiting:
        assert await task == 200_000
        sock.close()
        assert_same(await receiver.wait_end(), CONTENT[:200_000])


async def test_cancelling_what_waits_for_another_turn_sends_nothing(
    connect: Connect, make_file: MakeFile
) -> None:
    waiting = await start_many(connect, [make_file(CONTENT)])
    # sendfile(2) may be short for any signal: such a transfer has begun, and is on the ring.
    begun = aiozc.get_reactor().statistics().in_flight
    for *_, task in waiting:
        task.cancel()
    arrived = []
    for sock, receiver, _, task in waiting:
        assert isinstance(await outcome_of(task), asyncio.CancelledError)
        sock.close()
        arrived.append(await receiver.wait_end())
        assert_same(arrived[-1], CONTENT[: len(arrived[-1])])
    assert sum(map(bool, arrived)) <= begun < len(waiting)


# The file

# `sendfile_zc` sends what the file has when it is called, and tells an error where that is less.
OF_TO_THE_END = pytest.mark.parametrize("send", ["loop_sendfile", "splice_pipe"], indirect=True)


async def test_a_file_closed_in_mid_transfer_ends_it_with_ebadf(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    file = make_file(CONTENT, again=True)
    sock, receiver, task = await start(send, connect, file, family)
    file.close()
    receiver.allow(None)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        await task
    assert caught.value.errno == errno.EBADF
    sock.close()
    arrived = await receiver.wait_end()
    assert len(arrived) < SIZE
    assert_same(arrived, CONTENT[: len(arrived)])


async def test_another_file_that_takes_the_number_of_a_closed_one_is_neither_sent_nor_moved(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    file, other = make_file(CONTENT, again=True), make_file(OTHER, again=True)
    sock, receiver, task = await start(send, connect, file, family)
    number = file.fileno()
    file.close()
    os.dup2(other.fileno(), number)
    receiver.allow(None)
    assert isinstance(await outcome_of(task), OSError)
    assert os.lseek(number, 0, os.SEEK_CUR) == 0
    os.close(number)
    sock.close()
    arrived = await receiver.wait_end()
    assert_same(arrived, CONTENT[: len(arrived)])


async def test_another_file_put_in_place_of_an_open_one_is_not_sent(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    file, other = make_file(CONTENT, again=True), make_file(OTHER, again=True)
    sock, receiver, task = await start(send, connect, file, family)
    os.dup2(other.fileno(), file.fileno())
    receiver.allow(None)
    assert isinstance(await outcome_of(task), OSError)
    assert os.lseek(other.fileno(), 0, os.SEEK_CUR) == 0
    sock.close()
    arrived = await receiver.wait_end()
    assert_same(arrived, CONTENT[: len(arrived)])


@OF_TO_THE_END
@pytest.mark.parametrize("count", [None, SIZE])
async def test_a_file_emptied_in_mid_transfer_ends_it_early(
    send: Send, count: int | None, family: int, connect: Connect, make_file: MakeFile
) -> None:
    """It returns what was sent: what was under way already still arrives."""
    file = make_file(CONTENT)
    sock, receiver, task = await start(send, connect, file, family, count)
    os.truncate(file.name, 0)
    receiver.allow(None)
    sent = await task
    assert SEEN <= sent < SIZE
    assert file.tell() == sent
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT[:sent])


@OF_TO_THE_END
@pytest.mark.parametrize("count", [None, SIZE])
async def test_a_file_truncated_in_mid_transfer_ends_it_at_its_new_end(
    send: Send, count: int | None, family: int, connect: Connect, make_file: MakeFile
) -> None:
    for end in (3 * MIB - 1, 3 * MIB, 3 * MIB + 4097):
        file = make_file(CONTENT)
        sock, receiver, task = await start(send, connect, file, family, count)
        os.truncate(file.name, end)
        receiver.allow(None)
        assert await task == end
        assert file.tell() == end
        sock.close()
        assert_same(await receiver.wait_end(), CONTENT[:end])


@OF_TO_THE_END
async def test_a_file_grown_in_mid_transfer_is_sent_to_its_new_end(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    file, content = make_file(CONTENT), [CONTENT]
    for more in (1, 4096, MIB + 5):
        sock, receiver, task = await start(send, connect, file, family)
        append(file, OTHER[:more])
        content.append(OTHER[:more])
        receiver.allow(None)
        assert await task == sum(map(len, content)) == file.tell()
        sock.close()
        assert_same(await receiver.wait_end(), *content)


@OF_TO_THE_END
async def test_a_file_grown_in_mid_transfer_is_sent_to_the_count(
    send: Send, connect: Connect, make_file: MakeFile
) -> None:
    file = make_file(CONTENT)
    sock, receiver, task = await start(send, connect, file, count=SIZE + 1000)
    append(file, OTHER[:5000])
    receiver.allow(None)
    assert await task == SIZE + 1000
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT, OTHER[:1000])


async def test_a_file_deleted_in_mid_transfer_makes_no_difference(
    send: Send, family: int, connect: Connect, make_file: MakeFile
) -> None:
    file = make_file(CONTENT)
    sock, receiver, task = await start(send, connect, file, family)
    os.unlink(file.name)
    receiver.allow(None)
    assert await task == SIZE
    assert file.tell() == SIZE
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


async def test_others_go_on_when_one_fails(
    send: Send, connect: Connect, make_file: MakeFile
) -> None:
    file = make_file(CONTENT, again=True)
    started = [await start(send, connect, file) for _ in range(6)]
    started[0][1].reset()
    started[1][0].close()
    started[2][2].cancel()
    await turns(3)
    for _, receiver, _ in started[3:]:
        receiver.allow(None)
    outcomes = await asyncio.gather(*(task for *_, task in started), return_exceptions=True)
    assert isinstance(outcomes[0], ConnectionError)
    assert isinstance(outcomes[1], OSError)
    assert isinstance(outcomes[2], asyncio.CancelledError)
    assert outcomes[3:] == [SIZE] * 3
    for sock, receiver, _ in started[3:]:
        sock.close()
        assert_same(await receiver.wait_end(), CONTENT)
