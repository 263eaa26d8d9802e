"""What the tests share: content, connections, far ends that behave on command, children.

Nothing here knows a transfer, so that the same bodies can test another one.
"""

import asyncio
import contextlib
import faulthandler
import functools
import gc
import hashlib
import io
import itertools
import mmap
import os
import queue
import resource
import selectors
import socket
import ssl
import struct
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

from aiozc._kernel.pagecache import Probe

T = TypeVar("T")

Descriptor = socket.socket | io.RawIOBase

KIB = 1024
MIB = 1024 * KIB
CERTIFICATE = Path(__file__).with_name("certificate.pem")


# Content


@functools.lru_cache(maxsize=32)
def pattern(size: int, seed: int = 0) -> bytes:
    """Return `size` bytes in which eight in a row stand nowhere else: they tell their position."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


def digest(content: bytes) -> str:
    """Return a short name for the content."""
    return hashlib.sha256(content).hexdigest()


def assert_same(arrived: bytes, *expected: bytes) -> None:
    """Compare; where they differ, say which place of `expected` stands there instead."""
    if stands(arrived, expected):
        return
    wanted = b"".join(expected)
    same, differing = 0, min(len(arrived), len(wanted)) + 1
    while differing - same > 1:
        middle = (same + differing) // 2
        if arrived[:middle] == wanted[:middle]:
            same = middle
        else:
            differing = middle
    window = arrived[same : same + 8]
    place = wanted.find(window) if window else -1
    raise AssertionError(
        f"{len(arrived)} bytes arrived, {len(wanted)} were due; the first {same} are right, "
        + (f"then comes byte {place}" if place >= 0 else "then comes something else")
    )


def stands(arrived: bytes, expected: Sequence[bytes]) -> bool:
    """Say whether it is made of these and of nothing else, and copy none."""
    ends = list(itertools.accumulate(map(len, expected)))
    places = zip(expected, [0, *ends], strict=False)
    return len(arrived) == sum(map(len, expected)) and all(
        arrived.startswith(part, place) for part, place in places
    )


@contextlib.contextmanager
def case(**values: object) -> Iterator[None]:
    """Have what is raised tell with which values it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"with {values}")
        raise


def write_out(file: BinaryIO) -> None:
    """Take the file's pages out of the cache, so that the next read asks the disk.

    Again and again: those that another processor has just used stay at the first time.
    """
    fd, probe = file.fileno(), Probe()
    os.fsync(fd)
    places = range(0, os.fstat(fd).st_size, mmap.PAGESIZE)
    for _ in range(100):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if not any(probe.is_cached(fd, place, 1) for place in places):
            return
        time.sleep(0.001)


# Connections


def socket_pair(
    family: int = socket.AF_INET, *, sndbuf: int | None = None, rcvbuf: int | None = None
) -> tuple[socket.socket, socket.socket]:
    """Return two ends of a stream connection, the near one and the far one, both non-blocking."""
    if family == socket.AF_UNIX:
        near, far = socket.socketpair(socket.AF_UNIX)
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            if rcvbuf is not None:  # the window is agreed on while connecting
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
    if sndbuf is not None:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    near.setblocking(False)
    far.setblocking(False)
    return near, far


def fill(sock: socket.socket) -> int:
    """Send zeros until the send buffer takes no more; return how many it took.

    What the kernel moves on to the receiver's buffer a moment later makes room once more.
    """
    sent, before = 0, -1
    while sent != before:
        before = sent
        for size in (64 * KIB, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += sock.send(bytes(size))
        time.sleep(0.002)
    return sent


class FarEnd:
    """The other ends of connections, served by one thread outside of the loop under test."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._receivers: list[Receiver] = []
        self._selector.register(self._wake, selectors.EVENT_READ, self._run_calls)
        self._running = True
        self._thread = threading.Thread(target=self._run, name="far end", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_all()
        self.call(self._stop)
        self._thread.join()
        self._selector.close()
        os.close(self._wake)

    def receive(self, sock: Descriptor, *, limit: int | None = None) -> "Receiver":
        """Take the socket or pipe over and receive by it, `limit` bytes if one is given."""
        receiver = Receiver(self, self._selector, sock)
        self._receivers.append(receiver)
        if limit != 0:
            receiver.allow(limit)
        return receiver

    def peer(self, sock: Descriptor, *, limit: int | None = None) -> "Peer":
        """Take the socket or pipe over; receive by it as above, and send by it."""
        peer = Peer(self, self._selector, sock)
        self._receivers.append(peer)
        if limit != 0:
            peer.allow(limit)
        return peer

    def close_all(self) -> None:
        """Close what was taken over."""
        self.call(self._close_all)

    def forget(self, receiver: "Receiver") -> None:
        """In the thread: keep no more of what has closed by itself, nor what it received."""
        with contextlib.suppress(ValueError):  # it has closed before
            self._receivers.remove(receiver)

    def call(self, function: Callable[[], T]) -> T:
        """Run it in the thread and return what it returns, or raise what it raises."""
        outcome: Future[T] = Future()

        def run() -> None:
            try:
                outcome.set_result(function())
            except BaseException as error:
                outcome.set_exception(error)

        self._calls.put(run)
        os.eventfd_write(self._wake, 1)
        return outcome.result()

    def _run(self) -> None:
        while self._running:
            for key, _ in self._selector.select():
                key.data()

    def _run_calls(self) -> None:
        os.eventfd_read(self._wake)
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()()

    def _close_all(self) -> None:
        for receiver in self._receivers:
            receiver.drop()
        self._receivers.clear()

    def _stop(self) -> None:
        self._running = False


class Receiver:
    """One far end: keeps what arrives, and reads, stops or resets when told to."""

    def __init__(self, far_end: FarEnd, selector: selectors.BaseSelector, sock: Descriptor) -> None:
        self._far_end = far_end
        self._selector = selector
        self._sock = sock
        self._chunks: list[bytes] = []
        self._count = 0
        self._limit: int | None = 0
        self._events = 0
        self._error: OSError | None = None
        self._waiting: list[tuple[int, Future[None]]] = []
        self._end: Future[bytes] = Future()

    @property
    def count(self) -> int:
        """How many bytes have arrived."""
        return self._count

    @property
    def error(self) -> OSError | None:
        """The error that ended the stream, if one did."""
        return self._error

    def allow(self, limit: int | None) -> None:
        """Read until `limit` bytes have arrived in all (None: all that comes), and no further."""

        def allow() -> None:
            self._limit = limit
            self._listen()

        self._far_end.call(allow)

    def reset(self) -> None:
        """Answer with a reset (TCP), or close over what was not read (UNIX)."""

        def reset() -> None:
            sock = self._sock
            if isinstance(sock, socket.socket) and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._finish()

        self._far_end.call(reset)

    def close(self) -> None:
        """Close the socket as it is."""
        self._far_end.call(self._finish)

    def arrived(self, count: int) -> Future[None]:
        """Return a future: that many bytes have arrived, or no more will."""
        future: Future[None] = Future()

        def wait() -> None:
            self._waiting.append((count, future))
            self._report()

        self._far_end.call(wait)
        return future

    async def wait_arrived(self, count: int) -> None:
        """Wait until that many bytes have arrived, or no more will."""
        await asyncio.wrap_future(self.arrived(count))

    def ended(self) -> Future[bytes]:
        """Return a future: all that arrived until the end of the stream, or an error."""
        return self._end

    async def wait_end(self) -> bytes:
        """Read on to the end of the stream, or an error; return all that arrived."""
        if self._limit is not None:
            self.allow(None)
        return await asyncio.wrap_future(self._end)

    def _wanted(self) -> int:
        more = self._limit is None or self.count < self._limit
        return selectors.EVENT_READ if more and not self._end.done() else 0

    def _serve(self) -> None:
        # It may have stopped since the selector answered.
        if not self._events or not self._wanted() & selectors.EVENT_READ:
            return
        room = 256 * KIB if self._limit is None else min(256 * KIB, self._limit - self.count)
        try:
            chunk = os.read(self._sock.fileno(), room)
        except BlockingIOError:
            return
        except OSError as error:
            self._error = self._error or error
            self._finish()
            return
        if chunk:
            self._chunks.append(chunk)
            self._count += len(chunk)
            self._listen()
            self._report()
        else:
            self._stream_ended()

    def _stream_ended(self) -> None:
        self._finish()

    def _listen(self) -> None:
        events = self._wanted()
        if events and not self._events:
            self._selector.register(self._sock, events, self._serve)
        elif self._events and not events:
            self._selector.unregister(self._sock)
        elif events != self._events:
            self._selector.modify(self._sock, events, self._serve)
        self._events = events

    def drop(self) -> None:
        """In the far end's thread: close the socket, and tell nobody."""
        if self._events:
            self._selector.unregister(self._sock)
            self._events = 0
        self._sock.close()

    def _finish(self) -> None:
        self.drop()
        self._far_end.forget(self)
        self._set_end()

    def _set_end(self) -> None:
        with contextlib.suppress(InvalidStateError):  # it has ended before, or was given up
            self._end.set_result(b"".join(self._chunks))
        self._report()

    def _report(self) -> None:
        due = [entry for entry in self._waiting if entry[0] <= self.count or self._end.done()]
        for entry in due:
            self._waiting.remove(entry)
            with contextlib.suppress(InvalidStateError):  # its waiter was cancelled
                entry[1].set_result(None)


class Peer(Receiver):
    """A far end that sends too, and half-closes when told to.

    It stays open until both directions have ended, or one of them by an error.
    """

    def __init__(self, far_end: FarEnd, selector: selectors.BaseSelector, sock: Descriptor) -> None:
        super().__init__(far_end, selector, sock)
        self._content = memoryview(b"")
        self._sent = 0
        self._sending_limit: int | None = None
        self._piece = 256 * KIB
        self._finishing = False
        self._half_closed = False

    @property
    def sent(self) -> int:
        """How many bytes the kernel has taken."""
        return self._sent

    def send(
        self,
        content: bytes,
        *,
        limit: int | None = None,
        end: bool = False,
        piece: int = 256 * KIB,
    ) -> None:
        """Send, no more than `limit` bytes in all and `piece` at once; `end`: then half-close."""

        def send() -> None:
            before = bytes(self._content)
            self._content = memoryview(before + content if before else content)
            self._sending_limit = limit
            self._finishing = end
            self._piece = piece
            self._listen()

        self._far_end.call(send)

    def allow_sending(self, limit: int | None) -> None:
        """Send on until `limit` bytes have been sent in all (None: all), and no further."""

        def allow() -> None:
            self._sending_limit = limit
            self._listen()

        self._far_end.call(allow)

    def finish(self) -> int:
        """Half-close now, whatever has not been sent; return how many bytes have been."""

        def finish() -> int:
            self._content = self._content[: self._sent]
            self._half_close()
            return self._sent

        return self._far_end.call(finish)

    def _sends(self) -> bool:
        limit = self._sending_limit
        return self._sent < len(self._content) and (limit is None or self._sent < limit)

    def _ends(self) -> bool:
        return self._finishing and self._sent == len(self._content)

    def _wanted(self) -> int:
        writable = not self._half_closed and self._sock.fileno() >= 0
        writes = writable and (self._sends() or self._ends())
        return super()._wanted() | (selectors.EVENT_WRITE if writes else 0)

    def _serve(self) -> None:
        if self._events and self._wanted() & selectors.EVENT_WRITE:
            self._send_some()
        super()._serve()

    def _send_some(self) -> None:
        until = self._sent + self._piece
        if self._sending_limit is not None:
            until = min(until, self._sending_limit)
        try:
            if self._sends():
                self._sent += os.write(self._sock.fileno(), self._content[self._sent : until])
        except BlockingIOError:
            return
        except OSError as error:
            # The other direction may have bytes left to be read.
            self._error = self._error or error
            self._half_close()
            return
        if self._ends():
            self._half_close()
        else:
            self._listen()

    def _half_close(self) -> None:
        if self._half_closed:
            return
        self._half_closed = True
        if self._end.done() or not isinstance(self._sock, socket.socket):
            self._finish()
            return
        with contextlib.suppress(OSError):  # it was reset
            self._sock.shutdown(socket.SHUT_WR)
        self._listen()

    def _stream_ended(self) -> None:
        self._set_end()
        if self._half_closed:
            self._finish()
        else:
            self._listen()


class Tls:
    """A TLS connection: a non-blocking socket, and a thread that sends `content` and receives.

    It does so when told to proceed, and sends no more when the socket is closed.
    """

    def __init__(self, content: bytes = b"") -> None:
        near, far = socket_pair(sndbuf=64 * KIB, rcvbuf=64 * KIB)
        near.setblocking(True)
        far.setblocking(True)
        self._far = far
        self._content = content
        self.proceed = threading.Event()
        self._received = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        self.sock = context.wrap_socket(near, server_side=True)
        self.sock.setblocking(False)

    def _serve(self) -> None:
        context = ssl.create_default_context(cafile=CERTIFICATE)
        with context.wrap_socket(self._far, server_hostname="localhost") as sock:
            self.proceed.wait()
            if self._content:
                with contextlib.suppress(OSError):  # it was closed over what it did not read
                    sock.sendall(self._content)
                    sock.unwrap()
                return
            while chunk := sock.recv(64 * KIB):
                self._received += chunk

    def end(self) -> bytes:
        """Close, and return what arrived."""
        self.sock.close()
        self.proceed.set()
        self._thread.join()
        return self._received


# Loops


async def turns(count: int) -> None:
    """Let the loop go round `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go round until it is so; the test's time limit is the only one."""
    while not condition():  # noqa: ASYNC110 - what is waited for sets no event
        await asyncio.sleep(0.001)


async def outcome_of(task: "asyncio.Task[T]") -> T | BaseException:
    """Return what the task returned or raised, its cancellation too."""
    await asyncio.wait([task])
    try:
        return task.result()
    except BaseException as error:
        return error


# What a process holds


@dataclass(frozen=True)
class Holdings:
    """What this process holds of the kernel; a quick look counts descriptors and threads."""

    descriptors: dict[int, str]
    threads: frozenset[str]
    quick: bool
    ring_workers: int = 0
    mappings: int = 0
    rings: int = 0  # mappings of them

    def since(self, before: "Holdings") -> tuple[set[tuple[int, str]], int, frozenset[str]]:
        """Return what is held now that was not held before: descriptors, rings, threads."""
        return (
            self.descriptors.items() - before.descriptors.items(),
            max(0, self.rings - before.rings),
            self.threads - before.threads,
        )


def holdings(*, quick: bool = False) -> Holdings:
    """Count the descriptors, the threads, the rings' workers, and the mappings.

    A `quick` look leaves out the last two: the kernel takes 0.6 ms to list the mappings.
    """
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            descriptors[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    # trio keeps its threads for ten seconds, and we ours for five; anyio does not wait for the
    # ends of its own.
    names = (thread.name for thread in threading.enumerate())
    others = ("Trio thread", "AnyIO worker thread", "aiozc thread at rest")
    threads = frozenset(name for name in names if not name.startswith(others))
    if quick:
        return Holdings(descriptors, threads, quick)
    maps = Path("/proc/self/maps").read_bytes()
    mappings, rings = maps.count(b"\n"), maps.count(b"[io_uring]")
    return Holdings(descriptors, threads, quick, count_ring_workers(), mappings, rings)


@contextlib.contextmanager
def open_files(number: int) -> Iterator[None]:
    """Let this process have that many open files for a while, or as many as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(number, hard)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def check_nothing_left(before: Holdings) -> None:
    """Check that no more is held than before, but for the kernel's workers."""
    for thread in threading.enumerate():
        if thread.name == "AnyIO worker thread":
            thread.join(10)  # its loop has told it to end
    # One that has told a loop of its result has a few lines to go yet.
    given_up = time.monotonic() + 10
    wait_until(lambda: are_threads_at_rest() or time.monotonic() > given_up)
    nothing = before.since(before)
    left = holdings(quick=before.quick).since(before)
    if left != nothing:
        gc.collect()  # slow
        left = holdings(quick=before.quick).since(before)
    assert left == nothing, left


def count_ring_workers() -> int:
    """Count the kernel's workers (`iou-wrk-*`) among this process's threads."""
    count = 0
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            count += Path(f"/proc/self/task/{task}/comm").read_text().startswith("iou-wrk")
    return count


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again; the test's time limit is the only one."""
    while not condition():
        time.sleep(0.001)


async def threads_at_rest() -> None:
    """Wait until none of aiozc's threads is at work any more."""
    await until(are_threads_at_rest)


def are_threads_at_rest() -> bool:
    """Say whether none of aiozc's threads is at work."""
    return "aiozc thread at work" not in [thread.name for thread in threading.enumerate()]


def in_threads(functions: Sequence[Callable[[], T]]) -> list[T]:
    """Run each in a thread of its own, all at once; the threads have ended when this returns."""
    with ThreadPoolExecutor(len(functions)) as pool:
        outcomes = [pool.submit(function) for function in functions]
    return [outcome.result() for outcome in outcomes]


def in_a_thread(function: Callable[[], T]) -> T:
    """Run it in a thread of its own that has ended when this returns."""
    return in_threads([function])[0]


# Children


class Child:
    """A fork of this process that runs one function, and tells how it ended."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._report, writing = os.pipe()
        with warnings.catch_warnings():
            # The far end's thread makes this a fork of several threads; the child uses
            # nothing that the thread may have locked.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            self._become(function, writing)
        os.close(writing)

    def _become(self, function: Callable[[], object], writing: int) -> None:
        status = 1
        try:
            faulthandler.dump_traceback_later(60, exit=True)
            function()
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-4096:])
        finally:
            os._exit(status)

    def wait(self) -> None:
        """Wait for its end; raise AssertionError with its traceback if it failed."""
        with open(self._report, "rb") as report:
            told = report.read().decode()
        _, status = os.waitpid(self._pid, 0)
        assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}\n{told}"


def run_on(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, T]
) -> T:
    """Run it on a new loop of that make."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main)
