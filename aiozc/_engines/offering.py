"""Files offered to sockets from the loop's own thread, whenever there is room.

A slow peer's wake-up is one question (is it cached?) and one sendfile(2) for as much as the socket
takes: no chain, no pipe, no coroutine that is resumed. What stands in the way (pages that are not
cached, the file's end, an error) ends the step Offer, and the machine sees to it. At each wake-up
the kernel is asked whether the callers' numbers are of the same open files still (1 us for both).
"""

import errno
from collections.abc import Callable

from aiozc._engines.backend import Port, Run
from aiozc._engines.waits import awaited, watch_for
from aiozc._resources.polls import is_ready
from aiozc._resources.records import Record
from aiozc._transfers.route import KEEPS_UP, OFFER, SHARE
from aiozc._transfers.steps import Chain, Offer, PollOut


class Offering(Run):
    """A chain that is an Offer: one file that goes to one socket."""

    __slots__ = (
        *("_begins_full", "_in_a_row", "_spurious", "_left", "_offer", "_offset", "_room_in"),
        "_sent",
    )

    def __init__(
        self, engine: Port, number: int, record: Record, chain: Chain, room_in: Callable[[int], int]
    ) -> None:
        super().__init__(engine, number, record, chain)
        wanted = chain[0]
        assert isinstance(wanted, Offer)
        self._room_in = room_in
        self._begins_full = wanted.full
        self._offset = wanted.offset
        self._left = wanted.length
        self._offer = SHARE
        self._sent = 0
        self._in_a_row = 0
        self._spurious = 0

    def begin(self) -> None:
        """Offer, or wait for room first."""
        if self._begins_full and not is_ready(*awaited(self.record, PollOut())):
            self._wait()
        else:
            self._go_on()

    def _woken(self) -> None:
        """There is room again."""
        if self._place is None:
            self._choose_offer()
            self._go_on()

    def _granted(self) -> None:
        """The loop's turn has a share for it."""
        self._place = None
        self._go_on(granted=True)

    def _go_on(self, *, granted: bool = False) -> None:
        """There may be room: offer while the loop's turn has a share for it.

        The record tells of an error: nobody else is there to be told.
        """
        inline, going = self._engine.inline, True
        try:
            while going:
                size = min(self._offer, self._left)
                if not granted and not inline.may_spend(self._loop, size):
                    self._place = inline.queue(self._loop, size, self._granted)
                    return
                granted = False
                going = self._send(size)
        except Exception as error:
            self.record.fault = error
            if not self.ended:
                self._end(self._sent)

    def _send(self, size: int) -> bool:
        """Send what there is room for; return whether to offer more at once."""
        record, inline = self.record, self._engine.inline
        if not record.is_open():
            inline.give_back(size)
            self._end(self._sent, -errno.ECANCELED)
            return False
        result = inline.send(record.target.fd, record.source.fd, self._offset, size)
        self._engine.counters.submissions += 1
        self._engine.counters.completions += 1
        if result > 0:
            return self._took(size, result)
        if result != -errno.EAGAIN:
            self._end(self._sent, result)
            return False
        record.check_nonblocking()
        self._spurious += 1
        if self._spurious > 1:
            self._end(self._sent, -errno.EAGAIN)
        else:
            self._wait()
        return False

    def _took(self, size: int, taken: int) -> bool:
        """Note what the socket took; return whether to offer more at once."""
        self._offset += taken
        self._left -= taken
        self._sent += taken
        self._spurious = 0
        self._in_a_row = self._in_a_row + taken if taken == size else 0
        if not self._left or self._in_a_row >= KEEPS_UP:
            self._end(self._sent)
            return False
        if taken == size:
            self._choose_offer()
            return True
        # The socket is full, and an edge tells of room; at a file's end the watchdog does.
        self._engine.counters.short_writes += 1
        self._engine.counters.short_write_bytes += taken
        self._wait()
        return False

    def _choose_offer(self) -> None:
        """Offer what there is room for, to who had none before."""
        room = 0 if self._watch is None else self._room_in(self.record.target.fd)
        self._offer = min(room + OFFER, SHARE) if room else SHARE

    def _wait(self) -> None:
        watch = self._watch
        if watch is None or watch.gone:
            try:
                watch = watch_for(self._engine.polls, self.record, PollOut())
            except OSError as error:
                self._end(self._sent, -(error.errno or errno.EIO))
                return
            self._watch = watch
            watch.call = self._woken
        watch.pending = False

    def interrupt(self) -> None:
        """Offer no more."""
        if not self.ended:
            self._end(self._sent, -errno.ECANCELED)
