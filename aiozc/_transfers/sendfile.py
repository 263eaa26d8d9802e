"""A file into a socket: every transition of the transfer, and no I/O.

The rules:

1. `position` is the number of bytes that the socket took. `taken` is the number that left
   the file; what is between them lies in the pipe. Only what the socket took counts, so
   bytes in a pipe may be thrown away with it and read again: none is sent twice.
2. A chain reads on where `taken` stands and is cut by a short read (K2: a short splice
   severs a soft link), so every later read has the offset that it was made for.
3. Sending may be short: the socket takes what it has room for. What stays in the pipe is
   sent first, in the next chain, before anything else is read.
4. Chunks end on page boundaries: a pipe's slot holds part of one page (K7), so
   that a chunk from an unaligned offset to a boundary never needs a slot more than it has.
5. An unlucky moment (EAGAIN, EINTR, ECANCELED) is no error: the transfer goes on from what
   is known to have moved. It waits for room where the socket had none. Where there was nothing
   to wait for it tries again, later and later, and ends by what began it after MOST_TRIES
   in a row that sent nothing. So do waits that are interrupted, but for the end.
6. A peer is slow when the engine had to interrupt the wait for it. Then the pipe goes, and
   the transfer waits with nothing in hand; when there is room again, what is cached goes at
   once, until the peer takes more in a row than a send buffer's free part.
7. A poll before each send costs the loop's thread a wake-up in the kernel, so it stands only
   in the chain after one whose socket was full.
8. A poll can come true for nothing (K20): on a ring each poll hears of a peer that has ended its
   own stream, as `nc` does, and an error queue makes polls true as well. After two in a row that no
   byte followed comes a pause, of a millisecond first, twice as long while nothing moves.
"""

import enum
import errno
import mmap
from collections.abc import Sequence

from aiozc._transfers.machine import Backoff, Transitions, misfortune
from aiozc._transfers.steps import (
    UNLUCKY,
    Chain,
    End,
    Pause,
    PollOut,
    SendCached,
    Splice,
    Step,
)

AT_ONCE = 256 * 1024
"""The most bytes that one step may send in the loop's own thread: about 25 us."""

FAST = 16
"""Full steps of AT_ONCE in a row that make a peer a fast one.

A slow peer takes up to a send buffer (4 MiB by tcp_wmem) when it is offered after a wait.
"""


class State(enum.Enum):
    """Where the transfer stands."""

    SENDING = "a small rest goes at once"
    FLOWING = "chains go through a pipe"
    WAITING = "it waits for room, with no pipe"
    PAUSING = "it lets a moment pass, with no pipe"
    DONE = "all was sent, the file has ended, or it failed"


NEXT = Transitions(
    {
        State.SENDING: {
            State.FLOWING: "not cached, or a fast peer",
            State.WAITING: "the socket is full, or has taken less than it was offered",
            State.PAUSING: "polls that came true for nothing, or tries that failed",
            State.DONE: "",
        },
        State.FLOWING: {
            State.SENDING: "no pipe can be had",
            State.WAITING: "a slow peer: the wait for it was interrupted",
            State.PAUSING: "polls that came true for nothing, or tries that failed",
            State.DONE: "",
        },
        State.WAITING: {
            State.SENDING: "there is room",
            State.PAUSING: "interrupted again and again",
            State.DONE: "an error of the socket",
        },
        State.PAUSING: {State.SENDING: "the moment is over"},
        State.DONE: {
            State.SENDING: "the file has grown",
            State.FLOWING: "the file has grown",
        },
    }
)


class Sendfile:
    """The bytes of a file from `offset` on, `length` of them or fewer if the file ends.

    `at_once` is the result of a SendCached from `offset` that was tried before, None where
    none was. `error` is the positive errno that ended the transfer, or 0.
    """

    def __init__(self, offset: int, length: int, at_once: int | None = None) -> None:
        self.offset = offset
        self.length = length
        self.position = 0
        self.error = 0
        self.ended = False
        self._taken = 0
        self._in_full = 0
        self._full = False
        self._none_sent = 0
        self._backoff = Backoff()
        self._state = State.SENDING if 0 < length <= AT_ONCE else State.FLOWING
        if at_once is not None:
            self._sent_at_once(length, at_once)

    @property
    def state(self) -> State:
        """The present state."""
        return State.DONE if self.done else self._state

    @property
    def done(self) -> bool:
        """Whether nothing is left to do: all was sent, the file ended, or it failed."""
        return self.error != 0 or self.position >= self.length or self.ended

    @property
    def in_pipe(self) -> int:
        """Bytes that left the file and have not reached the socket."""
        return self._taken - self.position

    @property
    def lost(self) -> int:
        """Bytes that nobody has, should the transfer end now: none, the file has them."""
        return 0

    def last_chain(self) -> Chain:
        """Return the chain that empties the pipe: none, what is in it is read again."""
        return ()

    @property
    def needs_pipe(self) -> bool:
        """Whether the next chain goes through a pipe; where not, the pipe is given up."""
        return self._state is State.FLOWING

    @property
    def at_once(self) -> int:
        """What the next chain costs the loop's own thread, in bytes; 0: it goes elsewhere."""
        return self._rest() if self._state is State.SENDING else 0

    def _rest(self) -> int:
        return min(self.length - self.position, AT_ONCE)

    def extend(self, length: int) -> None:
        """Go on to a new end: the file has grown while it was sent."""
        self.length = length
        self.ended = False
        if self._state is not State.FLOWING:
            self._state = State.SENDING
        NEXT.check(State.DONE, self.state)

    @property
    def waits(self) -> bool:
        """Whether the next chain does nothing but wait."""
        return self._state in (State.WAITING, State.PAUSING)

    def lose_pipe(self) -> None:
        """Have no pipe any more: what was in it is read again (rule 1)."""
        self._taken = self.position

    def step_without_pipe(self) -> SendCached:
        """Return the next step where there can be no pipe."""
        self.lose_pipe()
        NEXT.check(self._state, State.SENDING)
        self._state = State.SENDING
        return SendCached(self.offset + self.position, self._rest())

    def next_chain(self, pipe_size: int, most_steps: int) -> Chain:
        """Return the next chain: `most_steps` (3 or more) at the most."""
        if self._state is State.WAITING:
            # The pipe is gone, and what was in it is read again (rule 1).
            self._taken = self.position
            return (PollOut(),)
        if self._state is State.PAUSING:
            self._taken = self.position
            return (self._backoff.pause,)
        if self._state is State.SENDING:
            return (SendCached(self.offset + self.position, self._rest()),)
        return self._flow(pipe_size, most_steps)

    def _flow(self, pipe_size: int, most_steps: int) -> Chain:
        chain: list[Step] = []
        if left := self.in_pipe:
            self._full = True
            chain += (PollOut(), Splice(End.PIPE, End.TARGET, left, may_be_short=True))
        taken = self._taken
        out = Splice(End.PIPE, End.TARGET, pipe_size, may_be_short=True)
        send = (PollOut(), out) if self._full else (out,)
        while taken < self.length and len(chain) + 3 <= most_steps:
            start = self.offset + taken
            size = min(pipe_size - start % mmap.PAGESIZE, self.length - taken)
            chain.append(Splice(End.SOURCE, End.PIPE, size, start))
            chain += send if size == pipe_size else (*send[:-1], out._replace(length=size))
            taken += size
        self._full = False
        return chain

    def advance(self, chain: Chain, results: Sequence[int]) -> None:
        """Take in what became of a chain: a result for each step that ran."""
        state, before = self.state, self.position
        self._none_sent = 0
        for step, result in zip(chain, results, strict=False):
            if isinstance(step, PollOut):
                self._waited(result)
            elif isinstance(step, Pause):
                self._backoff.paused()
                self._state = State.SENDING
            elif isinstance(step, SendCached):
                self._sent_at_once(step.length, result)
            elif isinstance(step, Splice) and step.target is End.PIPE:
                self._read(result)
            else:
                self._sent(result)
        error = misfortune(chain, results) or self._none_sent
        if error and self.position == before:
            self.error = self.error or self._backoff.fail(error)
        if self._backoff.is_due:
            self._in_full = 0
            self._state = State.PAUSING
        NEXT.check(state, self.state)

    def _waited(self, result: int) -> None:
        interrupted = result in (-errno.ECANCELED, -errno.EINTR)
        self._backoff.waited(interrupted=interrupted)
        if interrupted:
            self._in_full = 0
            self._state = State.WAITING
        elif result < 0:
            self.error = -result
        elif self._state is State.WAITING:
            self._state = State.SENDING

    def _moved(self, result: int) -> None:
        """Take in whether a poll that came true was worth it."""
        if result > 0:
            self._backoff.moved()
        elif result == -errno.EAGAIN:
            self._backoff.moved_nothing()

    def _sent_at_once(self, asked: int, result: int) -> None:
        if result == -errno.ENODATA:
            self._state = State.FLOWING
        elif result == 0:
            self.ended = True
        elif result > 0:
            self.position += result
            self._taken = self.position
            self._in_full = self._in_full + 1 if result == asked else 0
            if result < asked:
                self._state = State.WAITING
            else:
                fast = self._in_full >= FAST and self.length - self.position > AT_ONCE
                self._state = State.FLOWING if fast else State.SENDING
        elif -result in UNLUCKY:
            self._state = State.WAITING
        else:
            self.error = -result
        self._moved(result)

    def _read(self, result: int) -> None:
        if result > 0:
            self._taken += result
        elif result == 0:
            # The file ends here; what lies in the pipe is still to be sent.
            self.length = self._taken
            self.ended = self.in_pipe == 0
        elif -result not in UNLUCKY or (result == -errno.EAGAIN and not self.in_pipe):
            # EAGAIN says that the pipe is full; of an empty one it is the file that says so.
            self.error = -result

    def _sent(self, result: int) -> None:
        if result > 0:
            self.position += result
        elif result == 0:
            self._none_sent = errno.EIO  # of a pipe with bytes in it
        elif -result not in UNLUCKY:
            self.error = -result
        self._moved(result)
