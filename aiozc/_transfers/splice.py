"""Any source into any target: every transition of the transfer, and no I/O.

The rules:

1. `position` is the number of bytes that the target took, `taken` the number that left the
   source; what is between them lies in the pipe of ours or, of a message, in memory, never in
   both. Where one end is a pipe itself the transfer is direct: one step moves both, and nothing
   is ever between.
2. Bytes that left a stream cannot be read again: what lies between goes out before
   anything else, also where the source has failed meanwhile. Its error comes after them.
3. Offsets are numbers of this machine's own; a file's position is shared with others, so no
   step relies on it. A step whose offset depends on the one before it being complete is cut
   off by a soft link where that one is short.
4. Into a file: each round waits for the stream, takes what it has (short or not) and writes
   it; a write that is shorter than planned ends the chain. So a chain ends with an empty
   pipe, but for a full disk.
5. From stream to stream no offset matters and no step cuts the chain. Nothing waits in it
   either: a chain that waited for the source with bytes in its pipe would keep them from a
   target that has room again.
6. Between sockets a source is waited for by handing on its messages through memory, which
   costs two system calls each, and never a pipe. A source that is ahead in FAST reads in a row
   is one for chains, until half of a chain's reads find nothing. One whose target was full goes
   on inline, in the loop's own thread, which costs less than a trip to a worker. (On 2 CPUs
   that its source and sink share, in GB/s and ms of loop CPU per GB: inline 3.0 to 3.7 and 107
   to 131, chains 2.5 to 4.9 and 43 to 52, steps of 1 MiB; chains of 64 KiB steps 1.2 and 230.)
7. splice(2) stops at the mark of TCP's urgent data (K21): it says 0 or EAGAIN there, and a poll
   says that there is something to read. So the end of a socket is believed when recv(2) says so
   too (between sockets the next message tells), and a poll that came true for nothing is
   followed by a byte of recv(2); where that has none either, by a pause. A TCP socket with a
   small send buffer says that it can be written to when a splice has no room: pauses start
   with a millisecond, and double while nothing moves.
8. A file that cannot be spliced into says so before anything has left a stream for it.
9. A source with nothing is waited for without a pipe, a target without room with no more
   than what is in it.
10. What was cut short though nobody was there to be waited for (EINTR, ECANCELED, a file that
   says EAGAIN) is tried again, later and later; after MOST_TRIES in a row that the target took
   nothing of, the error that began the row ends the transfer. Waits that are interrupted are
   begun anew, and in the end now and then.
11. What waits in the midst of a write (the master of a terminal that blocks) is written to in
   steps of PACE, each behind a poll: it has room for so much then.
"""

import enum
import errno
import mmap
from collections.abc import Sequence

from aiozc._transfers.machine import Backoff, Transfer, Transitions, misfortune
from aiozc._transfers.steps import (
    UNLUCKY,
    Chain,
    End,
    Give,
    Pass,
    Pause,
    PollIn,
    PollOut,
    Receive,
    Splice,
    Step,
    TakeByte,
)

ROUND = 256 * 1024
"""The most bytes that a round moves in the loop's own thread: about 50 us."""
COST = 4 * ROUND
"""What a round costs the loop's thread, in bytes that it might send from a file instead."""
EAGER = 64 * 1024
"""A read of this many bytes shows a source that is not slow."""
FAST = 2
"""Rounds in a row of a source that is not slow, after which chains pay."""
MESSAGE = 256 * 1024
"""The most bytes that are received into memory at once."""
MOST_ROUNDS = 16
"""Rounds of one chain; what is planned and cut off costs the loop's thread 2 us a step."""
PACE = 1 << 10
"""The most bytes of one write into a terminal.

One that blocks waits in the midst of a write for whoever reads it, whatever splice(2) is told.
Where poll(2) says that there is room, there is for so many (drivers/tty: pty_write_room() is true
while a buffer of TTY_BUFFER_PAGE bytes, 1792, may be had; a serial port has its 4 KiB but 256).
"""
DIRECT = 1 << 20
"""The most bytes of one direct step: what the largest pipe can hold."""


class State(enum.Enum):
    """Where the transfer stands."""

    PASSING = "messages between sockets go through memory"
    INLINE = "a round between sockets goes in the loop's thread"
    FLOWING = "chains go by a worker"
    WAITING = "it waits for what is missing: bytes, or room"
    PROBING = "an empty pipe is spliced into a file, to see whether that can be"
    MARKED = "one byte goes by recv(2)"
    PAUSING = "it lets a moment pass"
    DONE = "all was moved, the source has ended, or it failed"


_PAUSING = {State.PAUSING: "waits and tries that came to nothing"}
NEXT = Transitions(
    {
        State.PASSING: {
            State.FLOWING: "a source that is fast",
            State.WAITING: "the target is full",
            State.DONE: "",
            **_PAUSING,
        },
        State.INLINE: {
            State.PASSING: "the source has nothing more",
            State.WAITING: "the target is full",
            State.FLOWING: "a source that is fast",
            State.DONE: "",
            **_PAUSING,
        },
        State.FLOWING: {
            State.PASSING: "sockets, and half of the reads found nothing",
            State.WAITING: "an end has nothing, or no room",
            State.MARKED: "a socket says that it has bytes, and splice(2) finds none",
            State.DONE: "",
            **_PAUSING,
        },
        State.WAITING: {
            State.INLINE: "sockets that are ready",
            State.FLOWING: "other ends that are ready",
            State.PROBING: "a stream that has bytes for a file, which is still to be tried",
            State.DONE: "an error of one end",
            **_PAUSING,
        },
        State.PROBING: {
            State.FLOWING: "the file can be spliced into",
            State.DONE: "it cannot, and every byte is still in the source",
            **_PAUSING,
        },
        State.MARKED: {
            State.FLOWING: "the byte has moved",
            State.PAUSING: "there is none either",
            State.DONE: "",
        },
        State.PAUSING: {
            State.WAITING: "the moment is over",
            State.FLOWING: "the same, between two files",
            State.DONE: "ended early, when the target took what lay between",
        },
        State.DONE: {
            State.PASSING: "another stream follows, between sockets",
            State.FLOWING: "another stream follows",
            State.PROBING: "another stream follows, and the file is still to be tried",
        },
    }
)


class Splicing(Transfer):
    """`count` bytes, or all until the source's end, from a source to a target.

    An offset is where a file is read or written; None says that the end is a stream. An end
    may be `direct`: a pipe, so that none is needed between. `socket` says that the source is
    one, `between_sockets` that both ends are: they never wait for a disk, nor for who holds the
    lock of a pipe. `paced`: the target may wait in the midst of a write. `source_failed`: it is
    the source whose error ended the transfer.
    """

    def __init__(
        self,
        count: int | None,
        *,
        source_offset: int | None = None,
        target_offset: int | None = None,
        direct: bool = False,
        socket: bool = False,
        between_sockets: bool = False,
        paced: bool = False,
    ) -> None:
        super().__init__()
        self.count = count
        self.source_failed = False
        self._source_offset = source_offset
        self._target_offset = target_offset
        self._direct = direct
        self._socket = socket or between_sockets
        self._backoff = Backoff()
        self._at_mark = False
        self._between_sockets = between_sockets
        self._paced = paced
        self._ended = False
        self._source_error = 0
        self._large_rounds = 0
        self._rounds = 1
        self._waits_first = False
        self._in_memory = False
        self._ahead = False
        self._probes = source_offset is None and target_offset is not None and not direct
        self._state = self._moving

    @property
    def _moving(self) -> State:
        if self._probes:
            return State.PROBING
        return State.PASSING if self._between_sockets else State.FLOWING

    @property
    def state(self) -> State:
        """The present state."""
        return State.DONE if self.done else self._state

    @property
    def done(self) -> bool:
        """Whether nothing is left to do: all was moved, the source ended, or it failed."""
        if self.error:
            return True
        return not self.in_pipe and (self._ended or self.position == self.count)

    @property
    def lost(self) -> int:
        """Bytes that nobody has, should the transfer end now."""
        return self.in_pipe if self._source_offset is None else 0

    @property
    def needs_pipe(self) -> bool:
        """Whether the next chain goes through a pipe; where not, the pipe is given up."""
        waits = self._state in (State.PASSING, State.WAITING, State.PAUSING)
        return not (self._direct or self._in_memory) and (self.in_pipe > 0 or not waits)

    @property
    def waits(self) -> bool:
        """Whether the next chain does nothing but wait."""
        return self._state in (State.WAITING, State.PAUSING)

    @property
    def inline_cost(self) -> int:
        """What the next chain costs the loop's own thread, in bytes; 0: it goes elsewhere."""
        return COST if self._state in (State.INLINE, State.MARKED) else 0

    def go_on(self) -> None:
        """Go on from another stream, where the one before has ended and all of it has arrived."""
        self._ended = False
        self._state = self._moving
        NEXT.check(State.DONE, self.state)

    def next_chain(self, pipe_size: int, most_steps: int) -> Chain:
        """Return the next chain: `most_steps` (8 or more) at the most."""
        if self._state is State.PASSING:
            left = None if self.count is None else self.count - self.position
            most = MESSAGE if left is None else min(MESSAGE, left)
            return (Pass(left), Receive(most), Give(most))
        if self._state is State.WAITING:
            return self._polls()
        if self._state is State.PAUSING:
            return (self._backoff.pause,)
        if self._state is State.MARKED:
            return (TakeByte(End.TARGET if self._direct else End.PIPE),)
        if self._state is State.PROBING:
            return (self._write(0, 1),)
        rest = self.last_chain()
        if self._state is State.INLINE:
            return rest or self._round(min(ROUND, pipe_size or ROUND), self._taken)
        chain = [*rest]
        taken = self._taken
        for _ in range(1 if self._waits_first else self._rounds):
            if not self._may_read(taken) or len(chain) + 3 + self._paced > most_steps:
                break
            planned = self._round(pipe_size or DIRECT, taken)
            taken += planned[-1].length  # type: ignore[union-attr, operator]
            chain += planned
        return chain

    def last_chain(self) -> Chain:
        """Return the chain that gives the target what lies between; nothing where nothing does."""
        if self._in_memory:
            return (Give(self.in_pipe),)
        if not self.in_pipe:
            return ()
        return *self._poll_for_write(), self._write(self.position, self.in_pipe)

    def _may_read(self, taken: int) -> bool:
        over = self._ended or self._source_error
        return not over and (self.count is None or taken < self.count)

    def _polls(self) -> Chain:
        chain: list[Step] = []
        if self._source_offset is None and not self.in_pipe:
            chain.append(PollIn())
        if self._target_offset is None and (self._direct or self.in_pipe):
            chain.append(PollOut())
        return chain

    def _round(self, size: int, taken: int) -> list[Step]:
        """Return the steps that move the next bytes, when `taken` have been before them."""
        start = None
        if self._source_offset is not None:
            start = self._source_offset + taken
            # A pipe's slot holds part of one page (K7).
            size -= start % mmap.PAGESIZE
        if self.count is not None:
            size = min(size, self.count - taken)
        if self._paced:
            size = min(size, PACE)
        waits = [] if self._between_sockets or self._waits_first else self._polls()
        if self._direct:
            waits = waits or self._poll_for_write()
            end = None if self._target_offset is None else self._target_offset + taken
            return [*waits, Splice(End.SOURCE, End.TARGET, size, start, end)]
        in_any_case = self._source_offset is None
        read = Splice(End.SOURCE, End.PIPE, size, start, None, in_any_case)
        before = waits if in_any_case else ()
        return [*before, read, *self._poll_for_write(), self._write(taken, size)]

    def _poll_for_write(self) -> list[Step]:
        return [PollOut()] if self._paced else []

    def _write(self, position: int, size: int) -> Splice:
        if self._target_offset is None:
            return Splice(End.PIPE, End.TARGET, size, None, None, self._between_sockets)
        return Splice(End.PIPE, End.TARGET, size, None, self._target_offset + position)

    def advance(self, chain: Chain, results: Sequence[int]) -> None:
        """Go on from the results of a chain, one for each step that ran."""
        reads: list[int] = []
        state, taken, position = self.state, self._taken, self.position
        interrupted = self._at_mark = False
        error = misfortune(chain, results)
        for step, result in zip(chain, results, strict=False):
            if isinstance(step, PollIn | PollOut):
                interrupted = interrupted or result < 0
                if result < 0 and -result not in UNLUCKY:
                    self.error = -result
            elif isinstance(step, TakeByte):
                self._take_byte(result)
            elif isinstance(step, Pass):
                self._taken += result
                self.position += result
                interrupted = len(results) == 1
            elif isinstance(step, Receive):
                reads.append(result)
                self._receive(result)
            elif isinstance(step, Give):
                self._written(result)
            elif isinstance(step, Pause):
                self._backoff.paused()
            elif not isinstance(step, Splice):
                raise TypeError(f"{step!r} is no step of a splicing")
            elif step.source is End.PIPE:
                self._written(result)
                if self.in_pipe and not error:
                    error = self._not_written(result)
            else:
                reads.append(result)
                self._read(result)
                if step.target is End.TARGET:
                    self._written(max(result, 0))
        by_memory = self._in_memory or isinstance(chain[-1], Give)
        self._in_memory = by_memory and self.in_pipe > 0
        self._fail_when_empty()
        arrived = self.position > position
        if moved := arrived or self._taken > taken:
            self._backoff.moved(arrived=arrived)
        elif self._state is not State.WAITING:
            self._backoff.moved_nothing()
        if interrupted or self._state is State.WAITING:
            self._backoff.waited(interrupted=interrupted)
        self._probes = self._probes and (bool(error) or self._state is not State.PROBING)
        if self._state is State.MARKED and not moved:
            self._state = State.PAUSING
        else:
            self._state = self._next_state(chain, reads, interrupted)
        if error and not arrived:
            self.error = self.error or self._backoff.fail(error)
        if self._backoff.is_due:
            self._state = State.PAUSING
        NEXT.check(state, self.state)

    def _read(self, result: int) -> None:
        if result > 0:
            self._taken += result
        elif result == 0:
            self._at_mark = self._socket
            self._ended = not self._socket
        elif -result not in UNLUCKY:
            self._source_error = -result
        elif result == -errno.EAGAIN and not self._can_wait:
            # Nothing can be waited for: a file says so, whatever it means by it.
            self._source_error = -result

    def _receive(self, result: int) -> None:
        """Go by what recv(2) says: other than splice(2), it knows a stream's end."""
        if result == 0:
            self._ended = True
        else:
            self._read(result)

    def _take_byte(self, result: int) -> None:
        self._receive(result)
        if self._direct:
            self._written(max(result, 0))

    @property
    def _can_wait(self) -> bool:
        waits_for_target = self._direct and self._target_offset is None
        return self.in_pipe > 0 or self._source_offset is None or waits_for_target

    def _written(self, result: int) -> None:
        if result > 0:
            self.position += result
        elif result < 0 and -result not in UNLUCKY:
            # An empty pipe says EAGAIN.
            self.error = -result

    def _not_written(self, result: int) -> int:
        """Return what is wrong where of a pipe with bytes nothing was taken, and none waits."""
        if result == -errno.EAGAIN and self._target_offset is not None:
            return errno.EAGAIN
        return errno.EIO if result == 0 else 0

    def _fail_when_empty(self) -> None:
        if self._source_error and not self.in_pipe and not self.error:
            self.error = self._source_error
            self.source_failed = not self._direct

    def _next_state(self, chain: Chain, reads: Sequence[int], interrupted: bool) -> State:
        if self._state is State.WAITING:
            if interrupted:
                return State.WAITING
            return State.INLINE if self._between_sockets else self._moving
        if self._state is State.PAUSING:
            return State.WAITING if self._polls() else self._moving
        if self._backoff.is_due:
            return State.PAUSING
        if self._state in (State.PROBING, State.MARKED):
            return self._moving
        if self._between_sockets:
            return self._next_between_sockets(chain, reads)
        if self._socket and not self.in_pipe and (self._at_mark or self._backoff.was_spurious):
            return State.MARKED
        largest = max(reads, default=0)
        self._waits_first = interrupted or (
            self._waits_first and largest < (PACE if self._paced else EAGER)
        )
        if interrupted:
            return State.WAITING
        self._plan(chain, reads)
        if self.in_pipe:
            # A stream that has no room is waited for; a file is written on.
            return State.WAITING if self._target_offset is None else State.FLOWING
        dry = bool(reads) and reads[-1] == -errno.EAGAIN
        waits = self._waits_first or (dry and self._can_wait)
        # Between a file and a pipe that is empty there is nothing to wait for.
        return State.WAITING if waits and self._polls() else State.FLOWING

    def _next_between_sockets(self, chain: Chain, reads: Sequence[int]) -> State:
        if self._state is State.FLOWING:
            self._plan(chain, reads)
        largest = max(reads, default=0)
        if self.in_pipe:
            self._large_rounds = 0
            self._ahead = largest >= EAGER or (self._ahead and not reads)
            return State.WAITING
        if self._state is State.FLOWING:
            self._large_rounds = 0
            found = sum(read > 0 for read in reads)
            return State.PASSING if found * 2 < len(reads) or self._at_mark else State.FLOWING
        if self._state is State.PASSING:
            return State.FLOWING if largest >= EAGER else State.PASSING
        if not reads:
            return State.INLINE if self._ahead else State.PASSING
        self._large_rounds = self._large_rounds + 1 if largest >= EAGER else 0
        if not self._large_rounds:
            return State.PASSING
        return State.INLINE if self._large_rounds < FAST else State.FLOWING

    def _plan(self, chain: Chain, reads: Sequence[int]) -> None:
        """Plan as many rounds as were of use, or twice as many where all were."""
        planned = sum(isinstance(step, Splice) and step.source is End.SOURCE for step in chain)
        useful = sum(read > 0 for read in reads)
        if planned:
            self._rounds = max(1, useful if useful < planned else min(2 * planned, MOST_ROUNDS))
