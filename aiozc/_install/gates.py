"""Gates: what is written to a transport while its socket is held for a transfer is refused.

Written bytes would land in the middle of a file. asyncio's transports look in each `write`
whether a future waits for their buffer to be empty, `_empty_waiter`, and tell it when that is
so: it is how the loop's own `_sendfile_native` shuts them, in each Python from 3.7 on. What is
put there here is the gate itself, since a future that has its result already cannot take the
exception that a transport gives it when the connection is lost later.
"""

import asyncio
import contextlib
import selectors
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol

from aiozc._api.transports import TransportSocket
from aiozc._errors import connection_lost, tells_of_lost_connection

IN_PROGRESS = "sendfile is in progress"


class Gate(Protocol):
    """A transport's gate."""

    def check_open(self) -> None:
        """Raise RuntimeError where it is shut already."""

    def check_not_ended(self) -> None:
        """Raise RuntimeError where the stream was ended by `write_eof`."""

    def number(self) -> int:
        """Return the number of the transport's socket."""

    def is_watched(self) -> bool:
        """Return whether the loop waits for bytes from the peer."""

    def shut(self) -> None:
        """Refuse what is written from here on."""

    def defer_reading(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Have these called in place of the transport's own."""

    def open(self) -> None:
        """Let everything be as it was."""

    async def wait_empty(self) -> None:
        """Wait until the write buffer is empty; ConnectionError where the connection is lost."""


@contextlib.contextmanager
def shut(transport: asyncio.Transport, gate: Gate, *, deferring: bool = False) -> Iterator[None]:
    """Refuse what is written, and read nothing.

    With `deferring`, who resumes reading meanwhile does so at the end: somebody else reads.
    """
    loop = asyncio.get_running_loop()
    reads, pause_reading, resume_reading = False, transport.pause_reading, transport.resume_reading

    def pause() -> None:
        nonlocal reads
        if gate.is_watched():
            pause_reading()
            reads = True

    def set_reads(value: bool) -> None:
        nonlocal reads
        reads = value

    pause()
    # Of a connection that is being made the loop watches the socket behind `connection_made`,
    # where an eager task may be. (asyncio's loop has not read from it when this is called;
    # uvloop's may have read once.)
    later = None if reads else loop.call_soon(pause)
    gate.shut()
    if deferring:
        gate.defer_reading(lambda: set_reads(False), lambda: set_reads(True))
    try:
        yield
    finally:
        if later is not None:
            later.cancel()
        gate.open()
        if reads and not loop.is_closed():
            resume_reading()


def lost_beneath(transport: Any, sock: TransportSocket, error: OSError) -> ConnectionError | None:
    """Return what to raise where a transfer failed since the connection is lost, and tell of it.

    The protocol hears of it from the transport.
    """
    closing = transport.is_closing()
    if not tells_of_lost_connection(error, closing=closing):
        return None
    # A file on a network, or in another process, fails with the same numbers.
    if not closing and sock.is_connected():
        return None
    lost = connection_lost(error)
    for name in ("transferred", "lost", "send"):
        if hasattr(error, name):
            setattr(lost, name, getattr(error, name))
    if not closing:
        transport._force_close(lost)
    return lost


class SelectorGate:
    """The gate of a transport of asyncio's selector loop."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._empty: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._put: dict[str, tuple[Any, Any]] = {}

    def check_open(self) -> None:
        """Raise RuntimeError where it is shut already."""
        if self._transport._empty_waiter is not None:
            raise RuntimeError(f"unable to send; {IN_PROGRESS}")

    def check_not_ended(self) -> None:
        """Raise RuntimeError where the stream was ended by `write_eof`."""
        if self._transport._eof:
            raise RuntimeError("Cannot call sendfile() after write_eof()")

    def number(self) -> int:
        """Return the number of the transport's socket; -1 where that was closed beneath it."""
        number: int = self._transport._sock.fileno()
        return number

    def is_watched(self) -> bool:
        """Return whether the loop waits for bytes from the peer.

        A transport whose protocol stayed open at the end of the stream says that it reads, and
        does not. If it were to resume, the protocol would be told of the end once more.
        """
        if not self._transport.is_reading():
            return False
        watched = self._transport._loop._selector.get_map().get(self._transport._sock_fd)
        return watched is not None and bool(watched.events & selectors.EVENT_READ)

    def shut(self) -> None:
        """Refuse what is written from here on, and its end."""
        self._transport._empty_waiter = self
        self._put_method("write_eof", refuse_eof)

    def defer_reading(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Have these called in place of the transport's own."""
        self._put_method("pause_reading", pause)
        self._put_method("resume_reading", resume)

    def _put_method(self, name: str, method: Any) -> None:
        methods = vars(self._transport)
        self._put[name] = method, methods.get(name)
        methods[name] = method

    def open(self) -> None:
        """Let everything be as it was."""
        self._transport._empty_waiter = None
        # What somebody has set, before or meanwhile, is theirs.
        methods = vars(self._transport)
        for name, (method, before) in self._put.items():
            if methods.get(name) is method:
                del methods[name]
                if before is not None:
                    methods[name] = before

    async def wait_empty(self) -> None:
        """Wait until the write buffer is empty; ConnectionError where the connection is lost."""
        if self._transport.get_write_buffer_size():
            self._empty = asyncio.get_running_loop().create_future()
            await self._empty
        if self._transport.is_closing():
            raise connection_lost(self._error)

    # What the transport calls of a future.

    def set_result(self, _: None) -> None:
        """Note that the buffer is empty."""
        if self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def set_exception(self, error: BaseException) -> None:
        """Note that the connection is lost."""
        self._error = self._error or error
        self.set_result(None)


def refuse_write(_: object) -> NoReturn:
    """Stand for `write`."""
    raise RuntimeError(f"unable to write; {IN_PROGRESS}")


def refuse_lines(_: object) -> NoReturn:
    """Stand for `writelines`."""
    raise RuntimeError(f"unable to writelines; {IN_PROGRESS}")


def refuse_eof() -> NoReturn:
    """Stand for `write_eof`."""
    raise RuntimeError(f"unable to write_eof; {IN_PROGRESS}")
