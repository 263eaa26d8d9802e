"""Turns, medians, ratios, and the clock that shows how late a loop is.

Contenders take turns, round by round (A B C A B C ...), so that a machine that becomes slower or
faster meanwhile does so for all of them. What is compared is always a pair from one round; the
ratio that is shown is the median of the pairs' ratios.
"""

import asyncio
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol, TypeVar

T = TypeVar("T")

Sample = Mapping[str, float]
"""What one turn gave: a number for each metric's name, but for those a contender cannot give."""


class Verdict(Enum):
    """How a contender stands to a target."""

    AIM = "aim"
    PASS = "pass"
    MISS = "miss"


@dataclass(frozen=True, slots=True)
class AtLeast:
    """A target for the ratio to the baseline, where more is better."""

    must: float
    aim: float | None = None

    def verdict(self, worst: float, ratio: float) -> Verdict:  # noqa: ARG002
        """Judge one contender by its ratio."""
        if ratio < self.must:
            return Verdict.MISS
        return Verdict.AIM if self.aim is not None and ratio >= self.aim else Verdict.PASS


@dataclass(frozen=True, slots=True)
class AtMost:
    """A target for the measured value itself, in the metric's unit, in every round."""

    must: float

    def verdict(self, worst: float, ratio: float) -> Verdict:  # noqa: ARG002
        """Judge one contender by the largest value it had."""
        return Verdict.PASS if worst <= self.must else Verdict.MISS


class Contender(Protocol):
    """Whoever takes turns."""

    @property
    def name(self) -> str:
        """What it is called in tables; no two of a work have one name."""

    @property
    def judged(self) -> bool:
        """Whether targets are for it; else it only stands beside."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that a turn gives, and which way is better; a count has no ratio."""

    name: str
    unit: str
    better: Literal["less", "more", "neither"]
    target: AtLeast | AtMost | None = None
    against: str | None = None
    """The contender that ratios are to, where that is not the work's baseline."""

    def ratio(self, baseline: float, value: float) -> float:
        """How many times better than the baseline a value is; 1 is as good, 0.5 half as good."""
        worse, good = (baseline, value) if self.better == "less" else (value, baseline)
        if good == 0:
            return 1.0 if worse == 0 else math.inf
        return worse / good


@dataclass(frozen=True, slots=True)
class Standing:
    """One contender's result in one metric."""

    median: float
    ratio: float
    verdict: Verdict | None


def compare(metric: Metric, baseline: Sequence[Sample], samples: Sequence[Sample]) -> Standing:
    """Set a contender's samples against the baseline's of the same rounds."""
    values = [sample[metric.name] for sample in samples]
    pairs = zip((sample[metric.name] for sample in baseline), values, strict=True)
    median = statistics.median(values)
    ratio = statistics.median(metric.ratio(base, value) for base, value in pairs)
    verdict = metric.target.verdict(max(values), ratio) if metric.target is not None else None
    return Standing(median, ratio, verdict)


def take_turns(
    contenders: Sequence[T],
    run: Callable[[T], Sample],
    *,
    rounds: int,
    budget: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> list[list[Sample]]:
    """Let each contender run once a round; give the samples of each, in the contenders' order.

    There is always one round. Another is begun only while fewer than ``rounds`` are done, and if
    one like the last still fits into ``budget`` seconds.
    """
    samples: list[list[Sample]] = [[] for _ in contenders]
    began = clock()
    for _ in range(rounds):
        round_began = clock()
        for mine, contender in zip(samples, contenders, strict=True):
            mine.append(run(contender))
        now = clock()
        if now - began + (now - round_began) > budget:
            break
    return samples


def percentile(values: Sequence[float], percent: float) -> float:
    """Give the smallest value that at least ``percent`` percent of the values do not exceed."""
    ordered = sorted(values)
    rank = math.ceil(len(ordered) * percent / 100)
    return ordered[max(rank, 1) - 1]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn took, in seconds."""

    elapsed: float
    """From before the first transfer until the receiver had the last byte."""
    loop_cpu: float
    """CPU time of the loop's thread."""
    process_cpu: float
    """CPU time of the whole process.

    io_uring's workers are threads of it and count: 2 GB read by a worker (IOSQE_ASYNC) added
    0.208 s to ``time.process_time`` and 0.004 s to ``time.thread_time`` (Linux 6.18).
    """
    lateness: Sequence[float] = field(default=())


class Meter:
    """Measures a turn from the thread whose CPU time is the loop's."""

    def __init__(self, *, timer: bool) -> None:
        """Begin; with a timer, call it on the loop."""
        self._timer = LatenessTimer() if timer else None
        if self._timer is not None:
            self._timer.start()
        self._process_cpu, self._loop_cpu = time.process_time(), time.thread_time()
        self.started = time.monotonic()

    def stop(self) -> Turn:
        """End, and give what was measured."""
        elapsed = time.monotonic() - self.started
        loop_cpu = time.thread_time() - self._loop_cpu
        process_cpu = time.process_time() - self._process_cpu
        lateness = self._timer.stop() if self._timer is not None else ()
        return Turn(elapsed, loop_cpu, process_cpu, lateness)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect now, and not again before the end of the block."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class LatenessTimer:
    """A timer of 1 ms on the running loop, which notes how late it fires each time.

    Each time is set anew from the moment the last one fired, so a loop that stands still for a
    second adds one sample of a second, not a thousand: the percentiles are kind to a loop that
    stalls; the maximum is exact. Loops count timers in whole milliseconds: a loop that has
    nothing else to do is up to 1 ms late (or early, which counts as 0).
    """

    def __init__(self, period: float = 0.001) -> None:
        self.period = period
        self.lateness: list[float] = []
        self._due = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; call it on the loop."""
        self._set()

    def stop(self) -> list[float]:
        """End, and give all lateness in seconds, also that of a time that is due already."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
            late = time.monotonic() - self._due
            if late > 0 or not self.lateness:
                self.lateness.append(max(late, 0.0))
        return self.lateness

    def _set(self) -> None:
        # Not loop.time(): uvloop's is cached, and counts whole milliseconds.
        self._due = time.monotonic() + self.period
        self._handle = asyncio.get_running_loop().call_later(self.period, self._fire)

    def _fire(self) -> None:
        self.lateness.append(max(time.monotonic() - self._due, 0.0))
        self._set()
