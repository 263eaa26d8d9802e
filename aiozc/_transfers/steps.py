"""One step of a chain, and what became of a chain.

A transfer is asked for its next chain: steps that are run in order until one is short or
fails. It is told the results of the steps that ran, in order; the last of them is the one
that ended the chain. A step that `may_be_short` does not end it: a socket takes what it
has room for, so its result is part of the outcome (on a ring such a step is hard-linked).

Engines run chains: as linked SQEs, or as system calls. They know the ends by name only.
"""

import enum
import errno
from collections.abc import Sequence
from typing import NamedTuple


class End(enum.IntEnum):
    """What a step reads from or writes to."""

    SOURCE = 0
    TARGET = 1
    PIPE = 2


class Splice(NamedTuple):
    """Move up to `length` bytes; the offset is that of an end which is a file.

    The result is the number of bytes moved (0: the source's end), or a negative errno.
    """

    source: End
    target: End
    length: int
    source_offset: int | None = None
    target_offset: int | None = None
    may_be_short: bool = False


class PollIn(NamedTuple):
    """Wait until the source has bytes, an end or an error. The result is 0, or negative."""


class PollOut(NamedTuple):
    """Wait until the target can take bytes, or has failed. The result is 0, or negative."""


class SendCached(NamedTuple):
    """Send at once what is cached and fits the send buffer, waiting for nothing.

    The result is the number of bytes sent (0: the file's end), or a negative errno: EAGAIN
    where the send buffer is full, ENODATA where the pages would have to be read first.
    """

    offset: int
    length: int


class Offer(NamedTuple):
    """Send what is cached of a range whenever the socket has room, by as few calls as can be.

    It begins with a wait for room where the socket is `full`. The result is the number of bytes
    sent. Unless all were, or the peer took so many in a row that another way may pay, a second
    result tells what stood in the way: ENODATA where pages would have to be read, 0 at the file's
    end, EAGAIN where polls come true for nothing, ECANCELED where the wait was ended.
    """

    offset: int
    length: int
    full: bool


class TakeByte(NamedTuple):
    """Move one byte by recv(2): past the mark of TCP's urgent data, where splice(2) stops.

    The result is 1, 0 at the stream's end, or a negative errno: EAGAIN where there is none.
    """

    target: End


class Pass(NamedTuple):
    """Hand on what the source sends, by memory, until something stands in the way.

    `length` bytes at the most, if that is not None. Something is in the way where the target takes
    less than was received, the source has ended or failed, or is so fast that a pipe pays: then
    the steps Receive and Give behind this one tell of the last message. The result is the number
    of bytes that were handed on before it.
    """

    length: int | None


class Receive(NamedTuple):
    """Receive up to `length` bytes into memory.

    The result is the number of bytes (0: the stream's end), or a negative errno.
    """

    length: int


class Give(NamedTuple):
    """Send `length` bytes, all that lie in memory.

    The result is the number of bytes sent, or a negative errno.
    """

    length: int


class Pause(NamedTuple):
    """Let `1 << level` milliseconds pass. The result is 0."""

    level: int


LONGEST_PAUSE = 7
"""The highest level: 128 ms."""


class SendZeroCopy(NamedTuple):
    """Send `length` bytes of a part, a file or memory, from its byte `offset` on, uncopied.

    The result is the number of bytes sent, fewer than `length` where it was interrupted or has
    failed half-way, or a negative errno: ENOMEM or ENOBUFS where as much memory as may be
    locked is on its way already, EFAULT where the file ends before.
    """

    part: int
    offset: int
    length: int


class SendMemory(NamedTuple):
    """What an engine makes of a SendZeroCopy: `length` bytes of memory from `address` on.

    `cold`: it is a file's, and its pages may have to be read first. Where it is not `lent` the
    kernel makes a copy, and is done with it when the result is there.
    """

    address: int
    length: int
    cold: bool = False
    lent: bool = True


class ReadFixed(NamedTuple):
    """Read `length` bytes of a file, past the page cache, into a registered buffer.

    `fd` is a number of our own; offset and length are multiples of a page. The result is the
    number of bytes read, fewer at the file's end, or a negative errno.
    """

    fd: int
    offset: int
    slot: int
    length: int


class SendFixed(NamedTuple):
    """Send `length` bytes of a registered buffer, from its byte `start` on, uncopied."""

    slot: int
    start: int
    length: int


class SendCopied(NamedTuple):
    """Read up to `length` bytes of a part into memory of our own, and send that.

    The result is the number of bytes sent (0: the file's end), or a negative errno.
    """

    part: int
    offset: int
    length: int


class AwaitRoom(NamedTuple):
    """Wait until some memory of this transfer is the kernel's no longer, or for a while.

    (Of another one of this loop too, where it may not copy.) The result is 1 where some was
    the kernel's, 0 where none was: others have the memory that may be locked.
    """


Lending = SendMemory | ReadFixed | SendFixed
Moving = Splice | TakeByte | SendCached | Offer | Pass | Receive | Give
Step = PollIn | PollOut | Pause | Moving | Lending
Chain = Sequence[Step]
LoanStep = SendZeroCopy | SendCopied | AwaitRoom | Pause

UNLUCKY = frozenset({errno.EAGAIN, errno.EINTR, errno.ECANCELED})
"""Errors that say that this was not the moment, and nothing else (but see `Backoff`)."""
