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
6. Where the next bytes go is decided by `route.py`, whenever a chain has ended that another way
   may follow on.
7. A peer is slow when it did not take all that it was offered, or when the engine had to interrupt
   the wait for it. Then the pipe goes: what is cached is offered whenever there is room, with
   nothing in hand, until the peer takes more in a row than its buffers hold.
8. A poll before each send costs the loop's thread a wake-up in the kernel, so it stands only
   in the chain after one whose socket was full.
9. A poll can come true for nothing (K20): on a ring each poll hears of a peer that has ended its
   own stream, as `nc` does, and an error queue makes polls true as well. After two in a row that no
   byte followed comes a pause, of a millisecond first, twice as long while nothing moves.
"""

import enum
import errno
import mmap
from collections.abc import Callable, Sequence

from aiozc._transfers.machine import Backoff, Transfer, Transitions, misfortune
from aiozc._transfers.route import SHARE, Peer, Way, next_way
from aiozc._transfers.steps import (
    UNLUCKY,
    Chain,
    End,
    Offer,
    Pause,
    PollOut,
    SendCached,
    Splice,
    Step,
)


class State(enum.Enum):
    """Where the transfer stands."""

    SENDING = "what there is room for goes in the loop's thread"
    FLOWING = "chains go through a pipe"
    WAITING = "the same, once there is room"
    PAUSING = "it lets a moment pass, with no pipe"
    DONE = "all was sent, the file has ended, or it failed"


NEXT = Transitions(
    {
        State.SENDING: {
            State.FLOWING: "not cached, or much is left for a fast peer",
            State.WAITING: "the socket is full, or the wait for it was interrupted",
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
            State.FLOWING: "not cached, or a fast peer after all",
            State.PAUSING: "polls that came true for nothing, or interrupted again and again",
            State.DONE: "",
        },
        State.PAUSING: {State.SENDING: "the moment is over"},
        State.DONE: {
            State.SENDING: "the file has grown",
            State.FLOWING: "the file has grown",
        },
    }
)


class Sendfile(Transfer):
    """The bytes of a file from `offset` on, `length` of them or fewer if the file ends.

    `inline` is the result of a SendCached from `offset` that was tried before, None where
    none was. `crowded` tells whether as many chains of cached files as pay are under way.
    """

    def __init__(
        self,
        offset: int,
        length: int,
        inline: int | None = None,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.offset = offset
        self.length = length
        self.ended = False
        self._crowded = crowded
        self._cached = True
        self._peer = Peer.NEW
        self._full = False
        self._none_sent = 0
        self._backoff = Backoff()
        self._state = self._next_state()
        if inline is not None:
            self._sent_inline(length, inline)

    def _next_state(self) -> State:
        left = self.length - self.position
        way = next_way(left, self._cached, self._peer, self._crowded())
        return State.FLOWING if way is Way.CHAIN else State.SENDING

    @property
    def state(self) -> State:
        """The present state."""
        return State.DONE if self.done else self._state

    @property
    def done(self) -> bool:
        """Whether nothing is left to do: all was sent, the file ended, or it failed."""
        return self.error != 0 or self.position >= self.length or self.ended

    @property
    def needs_pipe(self) -> bool:
        """Whether the next chain goes through a pipe; where not, the pipe is given up."""
        return self._state is State.FLOWING

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
        return SendCached(self.offset + self.position, min(self.length - self.position, SHARE))

    def next_chain(self, pipe_size: int, most_steps: int) -> Chain:
        """Return the next chain: `most_steps` (3 or more) at the most."""
        if self._state is State.FLOWING:
            return self._flow(pipe_size, most_steps)
        # The pipe is gone, and what was in it is read again (rule 1).
        self._taken = self.position
        if self._state is State.PAUSING:
            return (self._backoff.pause,)
        left, full = self.length - self.position, self._state is State.WAITING
        return (Offer(self.offset + self.position, left, full),)

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
        """Go on from the results of a chain, one for each step that ran.

        (For an Offer two, where something stood in its way.)
        """
        state, before = self.state, self.position
        self._none_sent = 0
        if isinstance(chain[0], Offer) and results:
            self._offered(*results)
        for step, result in zip(chain, results, strict=False):
            if isinstance(step, PollOut):
                self._waited(result)
            elif isinstance(step, Pause):
                self._backoff.paused()
                self._state = State.SENDING
            elif isinstance(step, SendCached):
                self._sent_inline(step.length, result)
            elif isinstance(step, Splice) and step.target is End.PIPE:
                self._read(result)
            elif isinstance(step, Splice):
                self._sent(result)
        error = misfortune(chain, results) or self._none_sent
        if error and self.position == before:
            self.error = self.error or self._backoff.fail(error)
        if self._backoff.is_due:
            self._peer = Peer.SLOW
            self._state = State.PAUSING
        NEXT.check(state, self.state)

    def _offered(self, sent: int, way: int | None = None) -> None:
        """Note what an Offer sent, and what stood in its way."""
        if sent:
            self.position += sent
            self._taken = self.position
            self._backoff.moved()
        if way is None:
            self._peer = Peer.FAST
            self._state = self._next_state()
        elif way == -errno.ECANCELED:
            self._waited(way)
        elif way == -errno.EAGAIN:
            self._peer = Peer.SLOW
            self._state = State.PAUSING
        elif way == -errno.EINTR:
            self._none_sent = errno.EINTR
        else:
            self._sent_inline(0, way)

    def _waited(self, result: int) -> None:
        interrupted = result in (-errno.ECANCELED, -errno.EINTR)
        self._backoff.waited(interrupted=interrupted)
        if interrupted:
            self._peer, self._cached = Peer.SLOW, True
            self._state = State.WAITING
        elif result < 0:
            self.error = -result
        elif self._state is State.WAITING:
            self._state = State.SENDING

    def _moved(self, result: int) -> None:
        """Note whether a poll that came true was worth it."""
        if result > 0:
            self._backoff.moved()
        elif result == -errno.EAGAIN:
            self._backoff.moved_nothing()

    def _sent_inline(self, asked: int, result: int) -> None:
        """Go on from the result of a send of what was thought to be cached."""
        if result == -errno.ENODATA:
            self._cached = False
            self._state = State.FLOWING
        elif result == 0:
            self.ended = True
        elif result > 0:
            self.position += result
            self._taken = self.position
            self._peer = Peer.SLOW if result < asked else self._peer
            self._state = State.WAITING if result < asked else self._next_state()
        elif -result in UNLUCKY:
            self._peer = Peer.SLOW
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
