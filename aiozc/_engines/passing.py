"""Messages handed on from socket to socket, one by one, in the loop's own thread.

A message costs a recv(2) and a send(2), through memory that all relays of a loop share: no chain,
no pipe, no task that is woken. What stands in its way (a target without room, an end, an error, a
source that is fast) ends the step Pass, and the machine sees to it. At each wake-up the callers'
objects are asked whether they have moved, and at some the kernel whether their numbers are of the
same files still (2.8 us in place of 0.2); whatever else is looked at before a chain is looked at in
the tick, as of all that waits. Neither call waits, whatever the sockets' flags say.

The watch on the source tells of edges (`polls.py`), so each wake-up receives until nothing is left
or the source has had its share of the loop's turn. A recv(2) that gives less than was asked for
says that nothing is left where the socket is TCP's, and neither its end nor urgent data, at which a
recv stops, was told: that saves a call in five. A UNIX socket's also stops where the sender's
credentials change, so it is asked until it has nothing.
"""

import errno

from aiozc._engines.backend import Port, Run
from aiozc._engines.inline import CALL, STREAMED
from aiozc._engines.waits import watch_for
from aiozc._kernel.sockets import Messenger, is_tcp
from aiozc._resources.records import Record
from aiozc._transfers.splice import EAGER
from aiozc._transfers.steps import Chain, Pass, PollIn, Receive

SHARE = 4
"""Messages that one source may have handed on in a turn of the loop."""
CHECK_EVERY = 4
"""Wake-ups, and shares of the loop's turn, of which one begins with the thorough look."""
MESSAGE = 4 << 10
"""What is asked for of the loop's turn before a wake-up; the rest is charged behind it."""
CALLS = 2 * CALL
"""What a message costs beside its bytes."""


class Passing(Run):
    """A chain that begins with Pass: one way that messages take."""

    __slots__ = (
        *("_fast", "_left", "_messenger", "_most", "_passed", "_short_is_last", "_wakeups"),
    )

    def __init__(
        self, engine: Port, number: int, record: Record, chain: Chain, messenger: Messenger
    ) -> None:
        super().__init__(engine, number, record, chain)
        wanted, receive = chain[0], chain[1]
        assert isinstance(wanted, Pass)
        assert isinstance(receive, Receive)
        self._messenger = messenger
        self._left = wanted.length
        self._most = receive.length
        self._passed = 0
        self._fast = False
        self._wakeups = 0
        self._short_is_last = False

    def begin(self) -> None:
        """Hand on what is there, or comes: a wake-up calls this as well."""
        if self._place is not None:
            return
        if self._engine.inline.may_spend(self._loop, MESSAGE):
            self._receive_and_send()
        else:
            self._queue()

    def _queue(self) -> None:
        inline = self._engine.inline
        self._place = inline.queue(self._loop, MESSAGE, self._receive_and_send)

    def _receive_and_send(self) -> None:
        self._place = None
        self._wakeups += 1
        record = self.record
        if (record.has_moved() or self._wakeups % CHECK_EVERY == 0) and not record.is_open():
            self._end(self._passed)
            return
        before, share = self._passed, SHARE
        while share and self._hand_on_one():
            share -= 1
        if not share:
            self._queue()
        cost = STREAMED * (self._passed - before) + CALLS * (SHARE - share + 1)
        self._engine.inline.charge(self._loop, cost)

    def _hand_on_one(self) -> bool:
        """Hand on a message; return whether there may be another one, and nothing is in its way."""
        messenger, record = self._messenger, self.record
        got = messenger.receive(record.source.fd, self._most)
        if got == -errno.EAGAIN:
            self._fast = False
            self._wait()
            return False
        if got <= 0:
            self._end(self._passed, got)
            return False
        given = messenger.send(record.target.fd, got)
        if given != got:
            record.held = messenger.rest(max(given, 0), got)
        # Two in a row that are not small: a source for the pipe.
        if given != got or (self._fast and got >= EAGER):
            self._end(self._passed, got, given)
            return False
        self._fast = got >= EAGER
        self._passed += got
        asked = self._most
        if self._left is not None:
            self._left -= got
            self._most = min(self._most, self._left)
            if not self._left:
                self._end(self._passed)
                return False
        return got == asked or not self._is_dry_when_short()

    def _is_dry_when_short(self) -> bool:
        """Return whether a short recv(2) is sure to have left nothing in the socket."""
        watch = self._watch
        return self._short_is_last and watch is not None and not (watch.more or watch.gone)

    def _wait(self) -> None:
        if self._watch is not None and not self._watch.gone:
            return  # it calls this passage still
        try:
            self._watch = watch = watch_for(self._engine.polls, self.record, PollIn())
        except OSError as error:
            self._end(self._passed, -(error.errno or errno.EIO))
            return
        watch.pending = False
        watch.call = self.begin
        self._short_is_last = is_tcp(self.record.source.fd)

    def interrupt(self) -> None:
        """Hand on no more, with nothing in hand."""
        if not self.ended:
            self._end(self._passed)
