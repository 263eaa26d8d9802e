"""The one runner: contenders take turns, round by round (A B C A B C ...).

So a machine that becomes slower or faster meanwhile does so for all of them.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bench.contenders import CONTENDERS
from bench.errors import BenchError
from bench.samples import Record, Sample

Entered = TypeVar("Entered")
Values = Mapping[str, float]
"""What one turn gave: a number for each metric's name, but for those a contender cannot give."""
Turn = Callable[[str], Values]
"""Lets a contender do what a case is about, and counts at the far end what came of it."""


@dataclass(slots=True)
class Case:
    """One thing that contenders do, each in a process of its own."""

    name: str
    """That of its work, a colon, and what tables call it."""
    units: Mapping[str, str]
    """The unit of each metric."""
    contenders: Sequence[str]
    turn: Turn
    check: Callable[[str], None] = lambda _: None
    """Lets a contender do something once whose bytes are compared by their hash."""
    check_peers: Callable[[], object] = lambda: None
    """Raises BenchError where a contender may have failed because its peer has."""


@dataclass(slots=True)
class Settings:
    """Where files may lie, what works share, and who could not take part."""

    scratch: Path
    """A directory for files, which someone else removes."""
    stack: ExitStack
    """Ends processes that works share, when all is done."""
    record: Record
    """What the run has found, and who takes no turns, or no more."""
    shared: dict[str, Any] = field(default_factory=dict)
    """What works leave for those after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A family of cases, which share a table: a row of commands.toml, where its parts are told.

    ``how`` is all that ``cases`` takes beside the work itself; the ``stack`` ends processes, and
    removes files, when the work is done.
    """

    name: str
    title: str
    cases: Callable[..., Iterator[Case]]
    how: Mapping[str, Any]
    kind: str
    contenders: Sequence[str]
    baseline: str
    units: Mapping[str, str]
    rounds: Sequence[int] = (1, 1)
    budget: float = math.inf
    by_contender: bool = False
    brief: Sequence[str] = ()
    settings: Settings
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def scratch(self) -> Path:
        """A directory for files."""
        return self.settings.scratch

    def present(self) -> list[str]:
        """Give the contenders that can run here; the others are noted."""
        missing = self.settings.record.missing
        for name in self.contenders:
            if reason := CONTENDERS[self.kind][name].missing():
                missing[name] = reason
        return [name for name in self.contenders if name not in missing]

    def enter(self, started: AbstractContextManager[Entered]) -> Entered:
        """Have something until the work is done."""
        return self.stack.enter_context(started)

    def case(self, name: str, contenders: Sequence[str], turn: Turn, **rest: Any) -> Case:
        """Make one of its cases."""
        return Case(f"{self.name}: {name}", self.units, contenders, turn, **rest)


def measure(
    command: str,
    case: Case,
    rounds: int,
    failed: dict[str, str],
    *,
    budget: float = math.inf,
    done: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Sample]:
    """Let contenders take turns at a case, each checked before its first; yield the samples.

    One that fails has its reason in ``failed`` and no turn any more; where its peer has failed
    that is raised. There is always one round; another is begun only while fewer than ``rounds`` are
    done, and if one like the last still fits into ``budget`` seconds.
    """
    began = clock()
    for number in range(rounds):
        round_began = clock()
        for contender in case.contenders:
            if contender not in failed:
                try:
                    if not number:
                        case.check(contender)
                    values = case.turn(contender)
                except BenchError as error:
                    case.check_peers()
                    failed[contender] = str(error)
                else:
                    for metric, unit in case.units.items():
                        if metric in values:
                            row = (command, case.name, contender, number, metric, unit)
                            yield Sample(*row, values[metric])
            done()
        now = clock()
        if now - began + (now - round_began) > budget:
            break
