"""The one runner: contenders take turns, round by round (A B C A B C ...).

So a machine that becomes slower or faster meanwhile does so for all of them.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiozc
from bench.errors import BenchError
from bench.samples import Sample

Values = Mapping[str, float]
"""What one turn gave: a number for each metric's name, but for those a contender cannot give."""


@dataclass(slots=True)
class Case:
    """One thing that contenders do, each in a process of its own."""

    name: str
    """That of its work, a colon, and what tables call it."""
    units: Mapping[str, str]
    """The unit of each metric."""
    contenders: Sequence[str]
    turn: Callable[[str], Values]
    """Lets a contender do it, and counts at the far end what came of it."""
    check: Callable[[str], None] = lambda _: None
    """Lets a contender do something once whose bytes are compared by their hash."""
    check_peers: Callable[[], object] = lambda: None
    """Raises BenchError where a contender may have failed because its peer has."""
    rounds: tuple[int, int] = (1, 1)
    """How many there are at most: with --quick, and without."""
    budget: float = math.inf
    """Seconds, with --quick, after which no further round begins."""


@dataclass(slots=True)
class Settings:
    """How much is to be done, where files may lie, and what the command line asked for."""

    options: Any
    scratch: Path
    """A directory for files, which someone else removes."""
    stack: ExitStack
    """Ends processes that works share, when all is done."""
    shared: dict[str, Any] = field(default_factory=dict)
    """What works leave for those after them."""
    missing: dict[str, str] = field(default_factory=dict)
    """Who cannot run here, and why."""
    failed: dict[str, str] = field(default_factory=dict)
    """Who takes no turns any more, and why."""
    remarks: dict[str, str] = field(default_factory=dict)
    """What is to be said of a contender."""

    @property
    def quick(self) -> bool:
        """Whether less of all is to be done."""
        return bool(self.options.quick)


@dataclass(frozen=True, slots=True)
class Work:
    """A family of cases, which share a table and a baseline."""

    name: str
    title: str
    baseline: str
    prepare: Callable[[Settings, ExitStack], Iterator[Case]]
    """Gives the cases; makes files and starts processes, which end with the stack."""
    by_contender: bool = False
    """Whether its tables have a row for each contender, not for each metric of each case."""
    brief: Sequence[str] = ()
    """The metrics that a narrow terminal shows of such a table; none: all."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do something on a loop."""

    name: str
    loop: str
    do: Callable[..., Any]
    backend: str | None = None
    """The backend of aiozc, where it is aiozc that does it."""
    blocking: bool = False
    """Whether it takes a socket that blocks; then the loop stands still meanwhile."""


def present(settings: Settings, contenders: Mapping[str, Any]) -> list[str]:
    """Give those of some contenders that can run here; those that lack a ring are noted."""
    probe = aiozc.probe()
    if not probe.io_uring:
        rings = [n for n, each in contenders.items() if getattr(each, "backend", "") == "io_uring"]
        settings.missing.update(dict.fromkeys(rings, probe.refused or probe.reason))
    return [name for name in contenders if name not in settings.missing]


def measure(
    command: str,
    case: Case,
    contenders: Sequence[str],
    rounds: int,
    *,
    failed: dict[str, str],
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
        for contender in contenders:
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
