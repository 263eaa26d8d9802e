"""One step of a chain, and what became of a chain.

A transfer is asked for its next chain: steps that are run in order until one is short or
fails. It is told the results of the steps that ran, in order; the last of them is the one
that ended the chain. A step that `may_be_short` does not end it: a socket takes what it
has room for, so its result is part of the outcome (on a ring such a step is hard-linked).

Engines run chains: as linked SQEs, or as system calls. They know the ends by name only.
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple


class End(enum.IntEnum):
    """What a step reads from or writes to."""

    FILE = 0
    SOCKET = 1
    PIPE = 2


class Splice(NamedTuple):
    """Move up to `length` bytes; `offset` is the file's, where one end is the file.

    The result is the number of bytes moved (0: the file's end), or a negative errno.
    """

    source: End
    target: End
    length: int
    offset: int = 0
    may_be_short: bool = False


class PollOut(NamedTuple):
    """Wait until the socket can take bytes, or has failed. The result is 0, or negative."""


class SendCached(NamedTuple):
    """Send at once what is cached and fits the send buffer, waiting for nothing.

    The result is the number of bytes sent (0: the file's end), or a negative errno: EAGAIN
    where the send buffer is full, ENODATA where the pages would have to be read first.
    """

    offset: int
    length: int


Step = Splice | PollOut | SendCached
Chain = Sequence[Step]
