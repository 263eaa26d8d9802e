"""The life of a record: whether a chain of its transfer is in flight, and who waits for that.

A chain that is under way cannot be left: the kernel, or a thread, may still use what the record
owns. So it is told to stop, and the record is given back when it has ended. Why it was stopped is
not a matter of the phase: a cancellation is in the chain's outcome, and what was found to be wrong
is the record's `fault`, for its coroutine to raise.
"""

import enum

from aiozc._transfers.machine import Transitions


class Phase(enum.Enum):
    """Where a record stands. The loop's thread alone changes it."""

    IDLE = "no chain is in flight"
    RUNNING = "a chain is in flight"
    STOPPING = "a chain is in flight that is to end: a cancellation, a fault, the reactor's end"
    ABANDONED = "a chain is in flight, and no coroutine comes back for it"
    LOST = "nobody tells of the chain's end any more: what it uses is never given back"
    CLOSED = "all was given back"


NEXT = Transitions(
    {
        Phase.IDLE: {
            Phase.RUNNING: "a chain begins",
            Phase.CLOSED: "the transfer, or the reactor, is at its end",
        },
        Phase.RUNNING: {
            Phase.IDLE: "the chain has ended",
            Phase.STOPPING: "it is to end",
            Phase.ABANDONED: "the coroutine was thrown away as the chain began",
        },
        Phase.STOPPING: {
            Phase.IDLE: "the chain has ended",
            Phase.ABANDONED: "the coroutine was thrown away",
            Phase.LOST: "the reactor ended before it did",
        },
        Phase.ABANDONED: {
            Phase.CLOSED: "the chain has ended",
            Phase.LOST: "the reactor ended before it did",
        },
    }
)
"""(A forked child closes its copy of a record whatever the phase: the chain is the parent's.)"""

IN_FLIGHT = frozenset({Phase.RUNNING, Phase.STOPPING, Phase.ABANDONED})
