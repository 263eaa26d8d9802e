"""Far ends of connections, which behave on command.

Nothing here knows a transfer, so that the same bodies can test another one.
"""

import contextlib
import os
import queue
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Protocol, Self, TypeVar

from tests.kit import tasks
from tests.kit.connections import Descriptor
from tests.kit.content import KIB

T = TypeVar("T")


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
        await tasks.result_of(self.arrived(count))

    def ended(self) -> Future[bytes]:
        """Return a future: all that arrived until the end of the stream, or an error."""
        return self._end

    async def wait_end(self) -> bytes:
        """Read on to the end of the stream, or an error; return all that arrived."""
        if self._limit is not None:
            self.allow(None)
        return await tasks.result_of(self._end)

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


class Connect(Protocol):
    """Make a connection; see `connect`."""

    def __call__(
        self,
        family: int = ...,
        *,
        limit: int | None = ...,
        sndbuf: int | None = ...,
        rcvbuf: int | None = ...,
    ) -> tuple[socket.socket, Receiver]: ...
