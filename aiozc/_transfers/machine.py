"""What the machines share: transitions as data, and when to pause."""

import abc
from collections.abc import Mapping, Sequence
from enum import Enum
from errno import ECANCELED, EINTR
from typing import TypeVar

from aiozc._transfers.steps import LONGEST_PAUSE, Chain, Pause, PollIn, PollOut

S = TypeVar("S", bound=Enum)

QUICK_TRIES = 2
"""Tries in a row, after one that moved nothing, that no pause goes before."""
MOST_TRIES = 12
"""Tries in a row that may move nothing: with their pauses, half a second."""


class Transitions(dict[S, Mapping[S, str]]):
    """For each state those that may follow it, and when. A state may always follow itself."""

    def check(self, before: S, after: S) -> None:
        """Fail where the one may not follow the other."""
        assert after is before or after in self[before], f"{after} behind {before}"


class Transfer(abc.ABC):
    """What drivers run: a machine that is asked for its next chain, and told what became of it.

    `position` is the number of bytes that the target took, and `error` the positive errno that
    ended the transfer, or 0.
    """

    def __init__(self) -> None:
        self.position = 0
        self.error = 0
        self._taken = 0

    @property
    @abc.abstractmethod
    def done(self) -> bool:
        """Whether nothing is left to do: all was moved, the source ended, or it failed."""

    @property
    def in_pipe(self) -> int:
        """Bytes that left the source and have not reached the target: in the pipe, or in memory."""
        return self._taken - self.position

    @property
    def lost(self) -> int:
        """Bytes that nobody has, should the transfer end now: none where a file has them."""
        return 0

    @property
    @abc.abstractmethod
    def needs_pipe(self) -> bool:
        """Whether the next chain goes through a pipe; where not, the pipe is given up."""

    @property
    @abc.abstractmethod
    def waits(self) -> bool:
        """Whether the next chain does nothing but wait."""

    @property
    def inline_cost(self) -> int:
        """What the next chain costs the loop's own thread, in bytes; 0: it goes elsewhere."""
        return 0

    @abc.abstractmethod
    def next_chain(self, pipe_size: int, most_steps: int) -> Chain:
        """Return the next chain: `most_steps` (8 or more) at the most."""

    def last_chain(self) -> Chain:
        """Return the chain that empties the pipe of what cannot be read again."""
        return ()

    @abc.abstractmethod
    def advance(self, chain: Chain, results: Sequence[int]) -> None:
        """Go on from the results of a chain, one for each step that ran."""


class Backoff:
    """When a transfer pauses, for how long, and when it gives up.

    Each time that nothing moved says why: a wait was interrupted, a poll came true for nothing
    (K20), or a try failed though nobody is there to be waited for. The last of these passes, or
    it does not: where no worker can be had each try ends with ECANCELED (K17). So the number of
    tries in a row is bounded, and the error that began the row ends the transfer.
    """

    __slots__ = ("_began", "_interrupted", "_level", "_ready", "_spurious", "_tried", "_tries")

    def __init__(self) -> None:
        self._tries = self._began = 0
        self._tried = False
        self._spurious = self._interrupted = self._level = 0
        self._ready = False

    @property
    def is_due(self) -> bool:
        """Whether it is time for a pause."""
        often = self._interrupted > QUICK_TRIES or (self._tried and self._tries > QUICK_TRIES)
        return often or self._spurious > 1

    @property
    def was_spurious(self) -> bool:
        """Whether the last wake-up was spurious: what was waited for was not there."""
        return self._spurious > 0

    @property
    def pause(self) -> Pause:
        """The next pause: of a millisecond, and twice as long while nothing moves."""
        return Pause(min(self._level, LONGEST_PAUSE))

    def paused(self) -> None:
        """Note that a pause is over."""
        self._spurious = self._interrupted = 0
        self._ready = self._tried = False
        self._level += 1

    def waited(self, *, interrupted: bool) -> None:
        """Note the end of a wait."""
        self._interrupted = self._interrupted + 1 if interrupted else 0
        self._ready = not interrupted

    def moved(self, *, arrived: bool = True) -> None:
        """Note that bytes have left the source, and whether some reached the target."""
        self._spurious = self._interrupted = self._level = 0
        self._ready = False
        if arrived:
            self._tries = self._began = 0
            self._tried = False

    def moved_nothing(self) -> None:
        """Note that nothing has moved, behind a wait or not."""
        self._spurious += self._ready
        self._interrupted = 0
        self._ready = False

    def fail(self, error: int) -> int:
        """Note a try that failed by that errno; return what to end with if it was the last."""
        self._tries += 1
        self._tried = True
        self._began = self._began or error
        return self._began if self._tries >= MOST_TRIES else 0


def misfortune(chain: Chain, results: Sequence[int]) -> int:
    """Return the errno of the first step that was cut short though it waits for nobody, or 0."""
    for step, result in zip(chain, results, strict=False):
        waits = isinstance(step, PollIn | PollOut | Pause)
        if not waits and result in (-EINTR, -ECANCELED):
            return -result
    return 0
