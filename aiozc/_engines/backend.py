"""The seam between the engine and its two backends.

A backend takes a chain and reports its end; the engine keeps the records, cancels, looks at
the callers' objects, and ends with its loop. Both backends have one descriptor, which the loop
watches as readable.
"""

from dataclasses import dataclass
from typing import Protocol

from aiozc._engines.inline import Inline, Place
from aiozc._resources.lifecycle import Phase
from aiozc._resources.loans import Loans
from aiozc._resources.polls import Polls, Watch
from aiozc._resources.records import Record
from aiozc._runtime.runtime import running_loop
from aiozc._runtime.waiting import Loop, Timer, Waited
from aiozc._transfers.steps import Chain, Splice, Step

TICK_S = 0.1
"""Seconds between two looks at the callers' objects."""
RETRY_S = 0.005
"""Seconds until a cancellation that has not ended its chain is asked for again."""


@dataclass(slots=True)
class Counters:
    """What is counted; see `Statistics`."""

    transfers: int = 0
    bytes: int = 0
    short_reads: int = 0
    short_read_bytes: int = 0
    short_writes: int = 0
    short_write_bytes: int = 0
    chains: int = 0
    submissions: int = 0
    completions: int = 0
    wakeups: int = 0
    polls: int = 0
    fallbacks: int = 0


class Run(Waited):
    """One chain in flight: its results so far, and who waits for its end.

    Of those that the loop's own thread runs, from callbacks, some have a `_place` in the queue for
    the loop's turn, a `_watch` of a peer, or a `_timer`.
    """

    __slots__ = (
        *("_engine", "_loop", "_place", "_timer", "_watch", "age", "chain", "number", "record"),
        "results",
    )

    in_kernel = False
    """Whether the kernel has it in flight."""

    def __init__(self, engine: "Port", number: int, record: Record, chain: Chain) -> None:
        super().__init__()
        self._engine = engine
        self._loop: Loop = running_loop()
        self._place: Place | None = None
        self._watch: Watch | None = None
        self._timer: Timer | None = None
        self.number = number
        self.record = record
        self.chain = chain
        self.results: list[int] = []
        self.age = 0
        """Ticks that it has kept a pipe for."""

    def begin(self) -> None:
        """Begin it. What waits for nothing is done, and told, when this returns.

        Raises OSError where nothing of it was begun.
        """
        raise NotImplementedError

    def interrupt(self) -> None:
        """Have its wait for a peer end with ECANCELED, and all of it if it is `stopping`.

        It may miss (K13): who wants the chain to end asks again until it has.
        """
        raise NotImplementedError

    @property
    def ended(self) -> bool:
        """Whether it has ended: its record has no chain in flight, or another one."""
        return self.record.in_flight is not self

    @property
    def stopping(self) -> bool:
        """Whether it was told to end."""
        return self.record.phase in (Phase.STOPPING, Phase.ABANDONED)

    def _stop_waiting(self) -> None:
        place, watch, timer = self._place, self._watch, self._timer
        self._place = self._watch = self._timer = None
        if place is not None:
            self._engine.inline.leave(place)
        if watch is not None:
            watch.call = None
        if timer is not None:
            timer.cancel()

    def _end(self, *results: int) -> None:
        """End the chain with these results of its steps."""
        self._stop_waiting()
        self.results[:] = results
        self._engine.retire(self)

    def fail(self) -> None:
        """Give up on the chain: nothing is known to have moved, and its record is lost."""
        self.results.clear()
        self.record.lose()


def may_be_short(step: Step) -> bool:
    """Return whether the chain goes on behind this step when it is short."""
    return isinstance(step, Splice) and step.may_be_short


class Port(Protocol):
    """What a backend knows of its engine."""

    inline: Inline
    counters: Counters
    loans: Loans
    polls: Polls
    runs: dict[int, Run]
    """The chains in flight, by their numbers."""

    def running_loop(self) -> Loop | None:
        """Return the loop, or None where it is closed or gone."""

    def retire(self, run: Run) -> None:
        """Note that a chain has ended."""

    def tick(self) -> None:
        """Look at the callers' objects: TICK_S seconds after `Backend.tick_later`."""

    @property
    def has_workers(self) -> bool:
        """Whether chains go by the backend that was chosen: see `lose_workers`."""

    def lose_workers(self) -> None:
        """Have chains go by another backend: this one has no threads for them."""

    def regain_workers(self) -> None:
        """Have chains go by this backend again."""

    def break_down(self) -> None:
        """End at the loop's next turn: what the kernel has in flight is not known any more."""


class Backend(Protocol):
    """What runs the chains of one engine."""

    name: str
    longest_chain: int
    lends: bool
    """Whether it runs chains of sends that lend memory (Linux 6.0)."""

    @property
    def fd(self) -> int:
        """The descriptor for the loop to watch; -1 when it is closed."""

    def make(self, number: int, record: Record, chain: Chain) -> Run:
        """Return a chain that is to be begun."""

    def drain(self) -> None:
        """Process what has happened: the descriptor is readable."""

    def tick_later(self) -> None:
        """Have the engine's `tick` called in TICK_S seconds. Raises OSError where it cannot be."""

    def at_tick(self) -> None:
        """Look at the workers, at each tick: what needs no disk is not to wait for one."""

    def end_all(self, deadline: float) -> None:
        """End what is in flight, without a loop, by the time `deadline` (time.monotonic)."""

    def close(self) -> None:
        """Close what the backend has open."""

    def forget(self) -> None:
        """In a forked child: close the child's copies; what is in flight is the parent's."""
