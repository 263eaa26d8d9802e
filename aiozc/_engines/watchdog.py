"""What nobody tells a chain that waits, looked for in ticks.

Closing a number wakes nobody who waits on a duplicate of it: every `TICK_S` seconds, while chains
are in flight, the callers' objects are asked whether they were closed (`liveness.py`): all of them,
or as many as 0.4 ms are enough for (4,000 transfers), and the others in the next tick. What costs
more to find out (a number that was closed behind its object's back, a UNIX socket that was shut for
writing while it was full, a reset of a relay's side that stands still) is looked for in
CHECKS_PER_TICK chains in a tick, and more within 0.2 ms: of 10,000 in each once in 20 to 60 s.
So is room that no edge has told of: a send is short at a file's end as well, in a socket with room.

The same tick interrupts chains that have kept a pipe through two ticks: no slow peer keeps one.
(What waits in a chain of one step keeps no more than what is in its pipe.)
"""

import time
from collections.abc import Callable

from aiozc._engines.backend import Run
from aiozc._resources.liveness import Liveness
from aiozc._resources.records import Record
from aiozc._runtime.waiting import Loop
from aiozc._transfers.steps import Offer, PollIn, PollOut

CHAINS_PER_TICK = 128
"""Chains whose pipes are looked at in one tick, and closed ones found in one turn, at the most."""
CHECKS_PER_TICK = 16
"""Chains that are checked thoroughly in one tick, if there are so many; each takes 3 to 7 us."""
CHECKS_S = 0.0002
"""Seconds that a tick goes on with that."""
PIPE_TICKS = 1
"""Ticks after the first one that a chain keeps a pipe for, when it has it in hand."""


class _RoundRobin:
    """Yields the chains in flight, some at a time, and begins anew when all had their turn."""

    def __init__(self, runs: dict[int, Run]) -> None:
        self._runs = runs
        self._left: list[Run] = []

    def next(self, most: int) -> list[Run]:
        """Return the next, `most` at the most."""
        self._left = self._left or list(self._runs.values())
        some = self._left[-most:]
        del self._left[-most:]
        return some


class Watchdog:
    """Looks at an engine's chains in flight: `stop` ends one."""

    def __init__(self, runs: dict[int, Run], stop: Callable[[Run], None]) -> None:
        self._runs = runs
        self._stop = stop
        self._liveness = Liveness()
        self._to_check = _RoundRobin(runs)
        self._with_pipes = _RoundRobin(runs)

    def add(self, record: Record) -> None:
        """Have a record's ends asked whether they were closed."""
        self._liveness.add(record)

    def discard(self, record: Record) -> None:
        """Ask them no more."""
        self._liveness.discard(record)

    def clear(self) -> None:
        """Look at nothing any more."""
        self._liveness.clear()

    def look(self, loop: Loop) -> None:
        """Do what is due in a tick."""
        self._look_for_closed(loop)
        for run in self._with_pipes.next(CHAINS_PER_TICK):
            self._look_at_pipe(run)
        self._look_for_faults()

    def _look_for_closed(self, loop: Loop) -> None:
        """Ask the callers' objects; where many were closed, some in each turn of the loop."""
        found = self._liveness.find_closed(CHAINS_PER_TICK)
        if not found:
            return
        for run in [run for run in self._runs.values() if run.record in found]:
            self._check(run)
        if len(found) == CHAINS_PER_TICK:
            loop.call_soon(self._look_for_closed, loop)

    def _look_for_faults(self) -> None:
        end, left = time.monotonic() + CHECKS_S, len(self._runs)
        while left > 0 and (some := self._to_check.next(CHECKS_PER_TICK)):
            for run in some:
                self._check(run)
            left = left - len(some) if time.monotonic() < end else 0

    def _check(self, run: Run) -> None:
        if not run.ended and not run.stopping:
            writes = any(isinstance(step, PollOut | Offer) for step in run.chain)
            if run.record.find_fault(writes=writes):
                self._stop(run)
            elif isinstance(run.chain[0], Offer):
                run.record.notify_of_room()

    def _look_at_pipe(self, run: Run) -> None:
        if run.ended or run.stopping:
            return
        record = run.record
        if record.pipe is not None and run.age >= PIPE_TICKS:
            if len(run.chain) > 1:
                run.interrupt()
            elif isinstance(run.chain[0], PollIn | PollOut):
                # Not while a step uses it: it holds the pipe's lock for as long as a disk takes.
                record.shrink_pipe()
        run.age += 1
