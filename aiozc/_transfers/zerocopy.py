"""Files and memory into a socket without a copy: every transition of the transfer, and no I/O.

The rules:

1. The bytes are those of the pieces, one after the other. `position` is the number that the
   socket's send queue has. A chain goes on from there, and is cut by the first send that was
   short or has failed: what stands behind it never began (a soft link), so every byte is sent
   once, and in order.
2. Chains keep the order on the wire. Of sends that are not linked one may overtake another
   that waits for room.
3. The next chain begins when the results of this one are there, not when its pages are free:
   notifications come when the peer has acknowledged, and any number of them may be due.
4. The kernel answers ENOMEM (ENOBUFS) where a chain would lock more than the user may: it
   charges all sends of a chain when that is submitted (seen on 6.18: the first is cancelled,
   and those that found no room say so). Then the window, the bytes of a chain, is halved, down
   to LEAST; then the transfer waits for pages of its own; where none of its own are on their
   way others have all, and it would wait for their peers: so one piece is copied, and what
   comes next is tried uncopied again. (Who may not copy waits for the others of the same loop,
   and fails where these have none either: nobody knows when more may be locked.) A chain that
   goes through lets the next be twice as long or, once memory was short, longer by CHUNK.
5. A socket that cannot do it (EOPNOTSUPP) gets everything copied.
6. An unlucky moment (EAGAIN, EINTR, ECANCELED) is no error: the transfer goes on from what is
   known to be sent, later and later; after MOST_TRIES in a row that sent nothing it ends by the
   error that began the row.
"""

import enum
import errno
import mmap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from aiozc._transfers.machine import Backoff, Transitions
from aiozc._transfers.steps import (
    UNLUCKY,
    AwaitRoom,
    LoanStep,
    Pause,
    SendCopied,
    SendZeroCopy,
)

CHUNK = 2 << 20
"""The most bytes of one send. Each wakes the loop twice, by its result and its notification: over
loopback, 16 MiB to a peer that reads had 0.85 of the throughput of sock_sendall from memory, with
1 MiB and a FIRST of half the size 0.76 to 0.80."""
FIRST = 4 << 20
"""The bytes of the first chain: a caller who closes the socket or a file is heeded between two."""
LEAST = 16 << 10
"""The fewest bytes that a chain is cut down to. Each send is charged two pages more than its
length (`io_notif_account_mem` in the kernel's io_uring): of a limit of 64 KiB, as kernels before
5.16 have it, 64 KiB would never be granted."""
CHAIN = 16 << 20
"""The most bytes of one chain. A chain uses the loop's thread until the send buffer (4 MiB by
tcp_wmem) is full; its end costs a turn of the loop, in which a fast peer's queue runs dry."""
COPY = 256 << 10
"""The most bytes that are copied at once."""

_FULL = frozenset({errno.ENOMEM, errno.ENOBUFS})
REFUSED = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EAFNOSUPPORT})
"""What is answered where a socket, a file or a kernel cannot do it."""


class Piece(NamedTuple):
    """Bytes to be sent: `length` (1 or more) of the part with that number, from `offset` on."""

    part: int
    offset: int
    length: int


class State(enum.Enum):
    """Where the transfer stands."""

    SENDING = "chains of sends without a copy"
    WAITING = "it waits for pages of its own to be the kernel's no longer"
    COPYING = "one piece is copied"
    PAUSING = "it lets a moment pass"
    DONE = "all was sent, or it failed"


NEXT = Transitions(
    {
        State.SENDING: {
            State.WAITING: "no more memory may be locked",
            State.COPYING: "refused",
            State.PAUSING: "tries that failed",
            State.DONE: "",
        },
        State.WAITING: {
            State.SENDING: "there are some",
            State.COPYING: "it has none",
            State.DONE: "it has none, and may not copy",
        },
        State.COPYING: {
            State.SENDING: "the piece was sent, and nothing is refused",
            State.PAUSING: "tries that failed",
            State.DONE: "",
        },
        State.PAUSING: {
            State.SENDING: "the moment is over",
            State.COPYING: "the moment is over, and it is refused",
        },
    }
)


class ZeroCopy:
    """The pieces, one after the other. `error` is the positive errno that ended it, or 0.

    `chunk` is the most bytes of one send. `may_copy`: what cannot go uncopied is copied.
    `must_copy`: nothing can. `copied`: some of it was. `alignment`: at multiples of it sends
    end, but for the last of a piece.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        *,
        may_copy: bool = True,
        must_copy: bool = False,
        chunk: int = CHUNK,
    ) -> None:
        self.pieces = pieces
        self.length = sum(piece.length for piece in pieces)
        self.position = 0
        self._next = 0
        self._before = 0
        self.error = 0
        self.copied = False
        self.may_copy = may_copy
        self.alignment = mmap.PAGESIZE
        self._refused = must_copy
        self._window = FIRST
        self._chunk = chunk
        self._full = False
        self._backoff = Backoff()
        self._state = State.COPYING if must_copy else State.SENDING

    @property
    def state(self) -> State:
        """The present state."""
        return State.DONE if self.done else self._state

    @property
    def refused(self) -> bool:
        """Whether nothing can go uncopied any more."""
        return self._refused

    @property
    def done(self) -> bool:
        """Whether nothing is left to do: all was sent, or it failed."""
        return self.error != 0 or self.position >= self.length

    @property
    def reached(self) -> tuple[int, int]:
        """The number of the first piece that is not sent to its end, and what was sent of it."""
        pieces = self.pieces
        while self._next < len(pieces):
            length = pieces[self._next].length
            if self.position < self._before + length:
                break
            self._before += length
            self._next += 1
        return self._next, self.position - self._before

    def next_chain(self, most_steps: int) -> Sequence[LoanStep]:
        """Return the next chain: `most_steps` (1 or more) at the most."""
        if self._state is State.WAITING:
            return (AwaitRoom(),)
        if self._state is State.PAUSING:
            return (self._backoff.pause,)
        if self._state is State.COPYING:
            part, offset, length = next(self._rest())
            return (SendCopied(part, offset, min(length, COPY)),)
        return self._sends(most_steps)

    def _rest(self) -> Iterator[Piece]:
        first, sent = self.reached
        for number in range(first, len(self.pieces)):
            part, offset, length = self.pieces[number]
            yield Piece(part, offset + sent, length - sent)
            sent = 0

    def _sends(self, most_steps: int) -> list[LoanStep]:
        chain: list[LoanStep] = []
        left = self._window
        for part, start, length in self._rest():
            if left <= 0 or len(chain) >= most_steps:
                break
            offset, end = start, start + length
            while offset < end and left > 0 and len(chain) < most_steps:
                # Up to a boundary of a page: the next one then counts none twice.
                size = min(self._chunk - offset % self.alignment, end - offset, left)
                chain.append(SendZeroCopy(part, offset, size))
                offset += size
                left -= size
        return chain

    def advance(self, chain: Sequence[LoanStep], results: Sequence[int]) -> None:
        """Go on from the results of a chain, one for each step, or none where none is known."""
        if not results:
            return
        first, state, before = chain[0], self.state, self.position
        if isinstance(first, Pause):
            self._backoff.paused()
            self._state = State.COPYING if self._refused else State.SENDING
        elif isinstance(first, AwaitRoom):
            self._waited(results[0])
        elif isinstance(first, SendCopied):
            self._sent_copied(results[0])
        elif self._count([step for step in chain if isinstance(step, SendZeroCopy)], results):
            self._grow()
        else:
            self._judge(results)
        if self.position > before:
            self._backoff.moved()
        NEXT.check(state, self.state)

    def _count(self, sends: Sequence[SendZeroCopy], results: Sequence[int]) -> bool:
        """Count what was sent, and say whether it was all."""
        for step, result in zip(sends, results, strict=False):
            self.position += max(0, result)
            if result != step.length:
                return False
        return True

    def _judge(self, results: Sequence[int]) -> None:
        """Find out why a chain was cut. Where one is refused, those before it are cancelled."""
        errors = [-result for result in results if result < 0 and -result not in UNLUCKY]
        if 0 in results:
            self.error = errno.EIO  # a send of bytes that sends none
        elif not _FULL.isdisjoint(errors):
            self._shrink()
        elif self.may_copy and not REFUSED.isdisjoint(errors):
            self._refused = True
            self._state = State.COPYING
        elif errors:
            self.error = errors[0]
        elif all(result < 0 for result in results):
            self._try_again(-results[0])

    def _try_again(self, error: int) -> None:
        self.error = self._backoff.fail(error)
        if self._backoff.is_due:
            self._state = State.PAUSING

    def _shrink(self) -> None:
        self._full = True
        if self._window > LEAST:
            self._window //= 2
        else:
            self._state = State.WAITING

    def _grow(self) -> None:
        more = min(self._window, CHUNK) if self._full else self._window
        self._window = min(self._window + more, CHAIN)

    def _waited(self, result: int) -> None:
        if result:
            self._state = State.SENDING
        elif self.may_copy:
            self._state = State.COPYING
        else:
            self.error = errno.ENOMEM

    def _sent_copied(self, result: int) -> None:
        if result > 0:
            self.position += result
            self.copied = True
        elif result == 0:
            self.error = errno.EFAULT  # as mapped, it ends before its end
        elif -result not in UNLUCKY:
            self.error = -result
        if not self._refused:
            self._state = State.SENDING
        if -result in UNLUCKY:
            self._try_again(-result)
