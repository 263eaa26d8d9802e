"""Works and their cases: what all kinds of benchmark share."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from bench.measure import AtLeast, Contender, Metric, Sample, Turn, percentile
from bench.receivers import Mode, Receiver

C = TypeVar("C", bound=Contender)


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is to be done, and where files may lie."""

    quick: bool
    rounds: int | None
    scratch: Path
    """A directory for files, which someone else removes."""
    awake: float | None = None
    """Seconds that receivers look for more before they sleep, in place of each work's own."""

    def choose_rounds(self, quick: int, full: int) -> int:
        """Give the rounds asked for on the command line, or else one of these."""
        if self.rounds is not None:
            return self.rounds
        return quick if self.quick else full

    def receive(self, mode: Mode, awake: float = 0) -> Receiver:
        """Start a receiver."""
        return Receiver(mode, awake=awake if self.awake is None else self.awake)

    def choose_budget(self, quick: float) -> float:
        """Give the seconds after which no further round begins."""
        return quick if self.quick and self.rounds is None else float("inf")


@dataclass(frozen=True, slots=True)
class Case(Generic[C]):
    """One thing that all contenders do, in turns."""

    title: str
    metrics: Sequence[Metric]
    run: Callable[[C], Sample]
    rounds: int
    budget: float


@dataclass(frozen=True, slots=True)
class Work(Generic[C]):
    """A family of cases, which share one table."""

    name: str
    title: str
    prepare: Callable[[Settings, ExitStack], list[Case[C]]]
    """Makes files and starts receivers; what it leaves open goes to the stack."""
    contenders: Sequence[C]
    """Who takes turns, the baseline first."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """What is to be said of a contender, and why one is not here."""


def throughput(size: int, turn: Turn) -> Sample:
    """Give the throughput of a turn that moved so many bytes."""
    return {"throughput": size / turn.elapsed / 1e9}


def cpu_per_gigabyte(size: int, turn: Turn) -> Sample:
    """Give the CPU time of a turn that moved so many bytes."""
    return {
        "loop CPU": turn.loop_cpu * 1e3 / (size / 1e9),
        "process CPU": turn.process_cpu * 1e3 / (size / 1e9),
    }


def lateness(turn: Turn) -> Sample:
    """Give how late the timer of a turn was."""
    return {
        "lateness p50": percentile(turn.lateness, 50) * 1e3,
        "lateness p99": percentile(turn.lateness, 99) * 1e3,
        "lateness max": max(turn.lateness) * 1e3,
    }


def throughput_metric(target: AtLeast | None = None, against: str | None = None) -> Metric:
    """Make the metric that ``throughput`` gives."""
    return Metric("throughput", "GB/s", "more", target, against)


def cpu_metrics(loop_target: AtLeast | None = None) -> list[Metric]:
    """Make the metrics that ``cpu_per_gigabyte`` gives."""
    return [
        Metric("loop CPU", "ms/GB", "less", loop_target),
        Metric("process CPU", "ms/GB", "less"),
    ]


def lateness_metrics(max_target: AtLeast | None = None) -> list[Metric]:
    """Make the metrics that ``lateness`` gives."""
    return [
        Metric("lateness p50", "ms", "less"),
        Metric("lateness p99", "ms", "less"),
        Metric("lateness max", "ms", "less", max_target),
    ]
