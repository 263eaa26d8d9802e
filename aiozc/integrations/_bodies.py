"""A request's body into a file: what a server offers, by an ASGI extension of its own.

`docs/receivefile.md` describes it for other servers and frameworks. An application that finds

    offer = scope.get("extensions", {}).get("http.request.receivefile")

may call `await offer["receive_file"](receive, file)` before its first `await receive()`: the body
is written into the file, what has come already and then what is in the socket, and the number of
bytes is returned. Behind it `receive` goes on as ever: with what is left of the body, its end, or
`http.disconnect`. So whatever the server cannot do is done by those who read on.

A `receive` that is not the server's own counts or changes what comes, and nothing is done for it.

The socket is read for the file while the transport's reading is paused, and nothing else resumes
it. uvicorn's parser is told afterwards how many bytes it will never see.
"""

import asyncio
import errno
from typing import Any

from aiozc import loop_recvfile
from aiozc._api.arguments import plain_file
from aiozc._api.transports import Hold, Reading
from aiozc._drivers.fallback import write_whole
from aiozc._errors import annotate_behind

RECEIVEFILE = "http.request.receivefile"
_MOST_DIGITS = 20
"""Those of 2**64 - 1."""


def length_of_body(headers: Any) -> int:
    """Return the bytes that frame a body, as Content-Length says; 0 where that says nothing.

    A parser takes zeros in front without an end; Python makes no number of thousands of digits.
    """
    length = 0
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and len(value) <= _MOST_DIGITS:
            length = int(value)
        elif name in (b"transfer-encoding", b"upgrade"):
            return 0
    return length


class Body:
    """The body of a request, framed by Content-Length, on a connection without TLS."""

    _receiving = False
    _readers = 0

    def __init__(self, protocol: Any, cycle: Any, length: int) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._length = length
        self._untouched = cycle.body
        """uvicorn's `receive` puts another object in its place when it returns what it holds."""

    async def run(self, application: Any, scope: Any, send: Any, extensions: dict[str, Any]) -> Any:
        """Call an application to which it is offered."""
        offer = {"length": self._length, "receive_file": self.receive_file}
        extensions[RECEIVEFILE] = offer
        try:
            return await application(scope, self.receive, send)
        finally:
            extensions.pop(RECEIVEFILE, None)  # it leads to the scope: a circle

    async def receive(self) -> Any:
        """Return the next message: ASGI's `receive`."""
        if self._receiving:
            raise RuntimeError("the body of this request is being received into a file")
        self._readers += 1
        try:
            return await self._cycle.receive()
        finally:
            self._readers -= 1

    async def receive_file(self, receive: Any, file: Any) -> int:
        """Write the body at the file's position, which follows; return the bytes written.

        Fewer than all, 0 perhaps, where the connection is lost, the response is complete, or
        somebody has read of the body before: `receive` tells. Raises RuntimeError where another
        task does either just now, and what `aiozc.loop_recvfile` does.
        """
        if self._receiving or self._readers:
            raise RuntimeError("another task is reading the body of this request")
        if receive != self.receive or not self._can_receive():
            return 0
        flow = self._cycle.flow
        self._receiving = True
        flow.pause_reading()
        flow.resume_reading = _nothing
        try:
            # An eager task runs while that is parsed which has been read.
            await asyncio.sleep(0)
            return await self._receive(plain_file(file)) if self._can_receive() else 0
        finally:
            self._receiving = False
            del flow.resume_reading
            if not self._protocol.transport.is_closing():
                flow.resume_reading()

    def _can_receive(self) -> bool:
        cycle, protocol = self._cycle, self._protocol
        rest = self._length - len(cycle.body)
        return (
            cycle.body is self._untouched
            and cycle.more_body
            and not (cycle.disconnected or cycle.response_complete)
            and not protocol.transport.is_closing()
            and protocol.expects_of_body(rest)
        )

    async def _receive(self, file: Any) -> int:
        cycle = self._cycle
        if cycle.waiting_for_100_continue:
            cycle.waiting_for_100_continue = False
            self._protocol.answer_continue()
        ahead, cycle.body = cycle.body, bytearray()
        cycle.message_event.clear()
        if ahead:
            await write_whole(file, ahead)
            if cycle.response_complete or cycle.disconnected:  # nobody would end what follows
                return len(ahead)
        try:
            return len(ahead) + await self._receive_rest(file, self._length - len(ahead))
        except BaseException as error:
            annotate_behind(error, len(ahead))
            raise

    async def _receive_rest(self, file: Any, rest: int) -> int:
        """Write what is still in the socket; have the parser, and `receive`, know of it."""
        cycle, protocol = self._cycle, self._protocol
        hold = Hold(protocol.transport, protocol.gate, Reading.GOES_ON)
        offset = file.tell() if not hasattr(file, "seekable") or file.seekable() else 0
        event = cycle.message_event
        written = gone = 0
        try:
            async with asyncio.timeout(None) as scope:
                cycle.message_event = told = _Ends(scope)
                try:
                    written = gone = await loop_recvfile(hold.sock, file, offset, rest)
                except BaseException as error:
                    written = getattr(error, "transferred", 0)
                    gone = written + getattr(error, "lost", 0)
                    raise
                finally:
                    cycle.message_event = event
            cycle.disconnected |= gone < rest
        except OSError as error:
            if told.ends or hold.lost_by(error):
                cycle.disconnected |= not cycle.response_complete
            elif error.errno != errno.EINVAL or gone:  # opened for appending
                raise
        finally:
            if told.ends or cycle.disconnected:
                event.set()
            if gone and not (cycle.disconnected or protocol.transport.is_closing()):
                protocol.skip_body(gone, rest - gone)
        return written


class _Ends:
    """In the place of a request's event: it is set where its connection or its response ends."""

    ends = False

    def __init__(self, scope: asyncio.Timeout) -> None:
        self._scope = scope

    def set(self) -> None:
        """End what is received in that scope."""
        if not self.ends:
            self.ends = True
            self._scope.reschedule(0)


def _nothing() -> None:
    pass
