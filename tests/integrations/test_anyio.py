"""Files and relays on anyio's streams: on asyncio, on uvloop and on trio."""

import errno
import io
import os
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import anyio
import pytest
from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, to_thread
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from aiozc.integrations.anyio import receive_file, relay, send_file
from tests.kit.content import KIB, MIB, MakeFile, assert_same, pattern
from tests.kit.far_ends import FarEnd, Peer

pytestmark = pytest.mark.anyio

T = TypeVar("T")
SIZES = [0, 1, 4097, 65_537, MIB + 1, 64 * MIB]


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest, backend: str) -> object:  # noqa: ARG001
    """Run each test on the three of them."""
    return request.param


class Connected:
    """Makes streams, each with a peer at its far end."""

    def __init__(self, far_end: FarEnd, listeners: dict[str, Any], folder: Path) -> None:
        self._far_end = far_end
        self._listeners = listeners
        self._folder = folder
        self.streams: list[SocketStream] = []

    async def stream(self, kind: str = "tcp", *, limit: int | None = None) -> tuple[Any, Peer]:
        """Return the stream of a connection that was accepted, and its peer."""
        listener = self._listeners[kind]
        if kind == "tcp":
            far = socket.create_connection(listener.extra(anyio.abc.SocketAttribute.local_address))
        else:
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(self._folder / "socket"))
        far.setblocking(False)
        stream = await listener.accept()
        self.streams.append(stream)
        return stream, self._far_end.peer(far, limit=limit)


@pytest.fixture
async def connected(far_end: FarEnd, tmp_path: Path) -> AsyncIterator[Connected]:
    """Listen, and close all streams in the end."""
    tcp = (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners[0]
    unix = await anyio.create_unix_listener(tmp_path / "socket")
    connected = Connected(far_end, {"tcp": tcp, "unix": unix}, tmp_path)
    yield connected
    for closing in (*connected.streams, tcp, unix):
        await closing.aclose()


def memory_file() -> BinaryIO:
    """Make a file to receive into."""
    return open(os.memfd_create("upload"), "w+b")


async def told(future: "Future[T]") -> T:
    """Wait for what the far end's thread will say."""
    return await to_thread.run_sync(future.result)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go round until it is so."""
    while not condition():  # noqa: ASYNC110 - what is waited for sets no event
        await anyio.sleep(0.001)


kinds = pytest.mark.parametrize("kind", ["tcp", "unix"])


@kinds
async def test_files_of_any_size_arrive_between_what_is_sent_before_and_after(
    kind: str, connected: Connected, make_file: MakeFile
) -> None:
    stream, peer = await connected.stream(kind)
    contents = [pattern(size) for size in SIZES]
    for content in contents:
        await stream.send(b"before")
        file = make_file(content)
        assert await send_file(stream, file) == len(content) == file.tell()
        await stream.send(b"after")
    await stream.send_eof()
    arrived = await told(peer.ended())
    assert_same(arrived, *(part for content in contents for part in (b"before", content, b"after")))


async def test_what_a_cancelled_send_has_left_behind_leaves_before_the_file(
    connected: Connected, make_file: MakeFile
) -> None:
    """A transport of asyncio holds it; trio's stream has forgotten it."""
    stream, peer = await connected.stream(limit=0)
    sent = pattern(16 * MIB)
    with anyio.move_on_after(0.05):
        await stream.send(sent)
    content = pattern(300_000, 1)
    async with anyio.create_task_group() as group:
        group.start_soon(send_file, stream, make_file(content))
        peer.allow(None)
    await stream.send_eof()
    arrived = await told(peer.ended())
    assert_same(arrived, sent[: len(arrived) - len(content)], content)


@kinds
async def test_a_part_of_a_file_of_anyio_is_sent(
    kind: str, connected: Connected, make_file: MakeFile
) -> None:
    stream, peer = await connected.stream(kind)
    content = pattern(MIB)
    async with await anyio.open_file(make_file(content).name, "rb") as file:
        assert await send_file(stream, file, 100, 700_000) == 700_000
        assert await file.tell() == 700_100
    await stream.send_eof()
    assert_same(await told(peer.ended()), content[100:700_100])


@kinds
async def test_an_object_without_a_descriptor_is_sent_and_received(
    kind: str, connected: Connected
) -> None:
    stream, peer = await connected.stream(kind)
    content = pattern(MIB + 1)
    peer.send(content, end=True)
    received = io.BytesIO()
    assert await receive_file(stream, received) == len(content) == received.tell()
    assert_same(received.getvalue(), content)
    assert await send_file(stream, received) == len(content)
    await stream.send_eof()
    assert_same(await told(peer.ended()), content)


@kinds
async def test_what_was_read_ahead_arrives_before_what_is_in_the_socket(
    kind: str, connected: Connected, tmp_path: Path
) -> None:
    for number, size in enumerate(SIZES):
        stream, peer = await connected.stream(kind)
        content = pattern(size)
        peer.send(b"header\n" + content, end=True)
        assert await BufferedByteReceiveStream(stream).receive_exactly(0) == b""
        header = b""
        while len(header) < 7:
            header += await stream.receive(7 - len(header))
        await until(lambda: not 0 < peer.sent < min(size + 7, 100 * KIB))  # noqa: B023
        path = tmp_path / f"upload-{number}"
        async with await anyio.open_file(path, "wb") as file:
            assert await receive_file(stream, file) == size
            assert await file.tell() == size
        assert_same(path.read_bytes(), content)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


@kinds
async def test_a_count_leaves_the_rest_to_the_stream(kind: str, connected: Connected) -> None:
    stream, peer = await connected.stream(kind)
    content = pattern(600_000)
    peer.send(content, end=True)
    assert_same(await stream.receive(1), content[:1])
    place = 1
    with memory_file() as file:
        for count in (1, 10, 70_000, 200_000):
            assert await receive_file(stream, file, place, count) == count
            place += count
            assert file.tell() == place
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="count must be"):
                await receive_file(stream, file, 0, wrong)
        file.seek(1)
        assert_same(file.read(), content[1:place])
    rest = b"".join([chunk async for chunk in stream])
    assert_same(rest, content[place:])


@pytest.mark.parametrize("read_ahead", [False, True], ids=["nothing read", "some read ahead"])
@kinds
async def test_a_relay_copies_both_ways_with_half_closes(
    read_ahead: bool, kind: str, connected: Connected
) -> None:
    a, at_a = await connected.stream("tcp")
    b, at_b = await connected.stream(kind)
    there, back = pattern(3 * MIB, 1), pattern(2 * MIB + 5, 2)
    first = b""
    if read_ahead:
        at_a.send(there, end=True)
        at_b.send(back, end=True)
        first = await a.receive(1)
    async with anyio.create_task_group() as group:

        async def run() -> None:
            assert await relay(a, b) == (len(there) - len(first), len(back))
            group.cancel_scope.cancel()

        group.start_soon(run)
        if not read_ahead:
            at_a.send(there, end=True)
            await told(at_b.arrived(len(there)))
            at_b.send(back, end=True)
        arrived = await told(at_b.ended())
        assert_same(first + arrived, there)
        assert_same(await told(at_a.ended()), back)
        await anyio.sleep_forever()


@pytest.mark.parametrize("read_ahead", [False, True], ids=["nothing read", "some read ahead"])
async def test_a_relay_whose_peer_resets_ends_as_broken_and_tells_what_it_moved(
    read_ahead: bool, connected: Connected
) -> None:
    a, at_a = await connected.stream()
    b, at_b = await connected.stream()
    at_a.send(b"some")
    if read_ahead:
        assert await a.receive(1) == b"s"

    async def reset() -> None:
        await told(at_b.arrived(3))
        at_b.reset()
        at_a.send(b"and more")

    async with anyio.create_task_group() as group:
        group.start_soon(reset)
        with pytest.raises(BrokenResourceError) as caught:
            await relay(a, b)
    assert caught.value.transferred[0] >= 4 - read_ahead  # type: ignore[attr-defined]
    await a.aclose()
    await told(at_a.ended())


@kinds
async def test_a_relay_hears_of_a_reset_while_it_stands_still_and_passes_it_on(
    kind: str, connected: Connected
) -> None:
    a, at_a = await connected.stream()
    b, at_b = await connected.stream(kind, limit=0)
    at_a.send(pattern(32 * MIB))
    assert len(await a.receive(1)) == 1  # more of it is read ahead

    async def reset() -> None:
        before, seen = -1, 0
        while seen < 10:
            seen = seen + 1 if before == at_a.sent else 0
            before = at_a.sent
            await anyio.sleep(0.001)
        at_a.reset()

    async with anyio.create_task_group() as group:
        group.start_soon(reset)
        with pytest.raises(BrokenResourceError):
            await relay(a, b)
    at_b.allow(None)
    await told(at_b.ended())


async def test_a_peer_that_resets_is_a_broken_resource(
    connected: Connected, make_file: MakeFile
) -> None:
    stream, peer = await connected.stream(limit=100_000)

    async def reset() -> None:
        await told(peer.arrived(100_000))
        peer.reset()

    async with anyio.create_task_group() as group:
        group.start_soon(reset)
        with pytest.raises(BrokenResourceError) as caught:
            await send_file(stream, make_file(pattern(32 * MIB)))
    assert isinstance(caught.value.__cause__, OSError)


@kinds
async def test_a_stream_closed_meanwhile_is_a_closed_resource(
    kind: str, connected: Connected, make_file: MakeFile
) -> None:
    for receiving in (False, True):
        stream, peer = await connected.stream(kind, limit=1)
        file: Any = make_file(pattern(32 * MIB))
        with memory_file() as target:
            async with anyio.create_task_group() as group:

                async def close() -> None:
                    await anyio.sleep(0.01)
                    await stream.aclose()  # noqa: B023

                group.start_soon(close)
                with pytest.raises(ClosedResourceError):
                    await (receive_file(stream, target) if receiving else send_file(stream, file))
            with pytest.raises(ClosedResourceError):
                await (receive_file(stream, target) if receiving else send_file(stream, file))
        peer.close()


@kinds
async def test_a_stream_closed_before_is_a_closed_resource(
    kind: str, connected: Connected, make_file: MakeFile
) -> None:
    stream, _ = await connected.stream(kind)
    other, _ = await connected.stream(kind)
    await stream.aclose()
    with memory_file() as target:
        for use in (
            lambda: send_file(stream, make_file(b"x")),
            lambda: receive_file(stream, target),
            lambda: relay(stream, other),
            lambda: relay(other, stream),
        ):
            with pytest.raises(ClosedResourceError):
                await use()


@kinds
async def test_a_relay_in_a_scope_cancelled_before_tells_that_nothing_was_moved(
    kind: str, connected: Connected
) -> None:
    (a, at_a), (b, _) = await connected.stream(kind), await connected.stream(kind)
    at_a.send(b"some")
    with anyio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(anyio.get_cancelled_exc_class()) as caught:
            await relay(a, b)
        assert caught.value.transferred == caught.value.lost == (0, 0)  # type: ignore[attr-defined]
        raise caught.value
    assert await a.receive() == b"some"


@kinds
async def test_cancelled_its_position_is_right_and_the_stream_goes_on(
    kind: str, connected: Connected, make_file: MakeFile
) -> None:
    content = pattern(32 * MIB)
    stream, peer = await connected.stream(kind, limit=200_000)
    file = make_file(content)
    async with anyio.create_task_group() as group:
        group.start_soon(send_file, stream, file)
        await told(peer.arrived(200_000))
        group.cancel_scope.cancel()
    place = file.tell()
    assert 200_000 <= place < len(content)
    peer.allow(None)
    assert await send_file(stream, file, place) == len(content) - place
    await stream.send_eof()
    assert_same(await told(peer.ended()), content)


async def test_a_cancelled_fallback_tells_what_it_has_moved(connected: Connected) -> None:
    content = pattern(32 * MIB)
    stream, peer = await connected.stream(limit=200_000)
    file = io.BytesIO(content)
    async with anyio.create_task_group() as group:

        async def send() -> None:
            with pytest.raises(anyio.get_cancelled_exc_class()) as caught:
                await send_file(stream, file)
            assert caught.value.transferred == file.tell() >= 200_000  # type: ignore[attr-defined]
            raise caught.value

        group.start_soon(send)
        await told(peer.arrived(200_000))
        group.cancel_scope.cancel()
    peer.allow(None)
    assert await send_file(stream, file, file.tell()) > 0
    await stream.send_eof()
    assert_same(await told(peer.ended()), content)


@kinds
async def test_a_second_sender_and_a_second_receiver_are_refused(
    kind: str, connected: Connected, make_file: MakeFile
) -> None:
    stream, peer = await connected.stream(kind, limit=1)
    with memory_file() as target:
        async with anyio.create_task_group() as group:
            group.start_soon(send_file, stream, make_file(pattern(32 * MIB)))
            group.start_soon(receive_file, stream, target)
            await told(peer.arrived(1))
            for use in (
                lambda: stream.send(b"x"),
                stream.receive,
                lambda: send_file(stream, make_file(b"x")),
                lambda: receive_file(stream, target),
                lambda: relay(stream, stream),
            ):
                with pytest.raises(BusyResourceError):
                    await use()
            group.cancel_scope.cancel()


@kinds
async def test_a_file_is_sent_while_another_is_received_which_goes_on_behind_it(
    kind: str, connected: Connected, make_file: MakeFile
) -> None:
    stream, peer = await connected.stream(kind, limit=1)
    there, back = pattern(32 * MIB), pattern(300_000, 1)
    with memory_file() as target:
        async with anyio.create_task_group() as group:
            group.start_soon(receive_file, stream, target)
            peer.send(back[:100_000])
            group.start_soon(send_file, stream, make_file(there))
            await told(peer.arrived(1))
            await until(lambda: target.seek(0, os.SEEK_END) == 100_000)
            peer.allow(None)
            await told(peer.arrived(len(there)))
            peer.send(back[100_000:], end=True)
        target.seek(0)
        assert_same(target.read(), back)
    await stream.send_eof()
    assert_same(await told(peer.ended()), there)


async def test_what_is_no_plain_socket_is_refused(make_file: MakeFile) -> None:
    """A TLS stream shows the socket beneath it, which would send the file as it is."""
    stream: Any = object()
    for call in (send_file(stream, make_file(b"x")), receive_file(stream, make_file(b"x"))):
        with pytest.raises(TypeError, match="only plain sockets"):
            await call
    with pytest.raises(TypeError, match="only plain sockets"):
        await relay(stream, stream)


async def test_errors_of_the_file_stay_what_they_are(
    connected: Connected, make_file: MakeFile
) -> None:
    stream, peer = await connected.stream()
    peer.send(b"some")
    with pytest.raises(OSError, match="not open for writing") as caught:
        await receive_file(stream, make_file(b"x"))
    assert caught.value.errno == errno.EBADF
    assert await stream.receive() == b"some"
