"""What a turn takes in the process that does it: CPU time, and how late a timer is on the loop."""

import asyncio
import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


def percentile(values: Sequence[float], percent: float) -> float:
    """Give the smallest value that at least ``percent`` percent of the values do not exceed."""
    ordered = sorted(values)
    rank = math.ceil(len(ordered) * percent / 100)
    return ordered[max(rank, 1) - 1]


def late_values(lateness: Sequence[float]) -> dict[str, float]:
    """Give how late a timer was, in ms, as metrics."""
    told = {f"lateness p{rank}": percentile(lateness, rank) * 1e3 for rank in (50, 99)}
    return told | {"lateness max": max(lateness) * 1e3}


LATE_UNITS = {"lateness p50": "ms", "lateness p99": "ms", "lateness max": "ms"}
CPU_UNITS = {"loop CPU": "ms/GB", "process CPU": "ms/GB"}


@dataclass(slots=True)
class Spent:
    """Seconds that a turn took: of the clock, of the loop's thread, of the whole process.

    io_uring's workers are threads of the process and count: 2 GB read by a worker (IOSQE_ASYNC)
    added 0.208 s to ``time.process_time`` and 0.004 s to ``time.thread_time`` (Linux 6.18).
    """

    elapsed: float
    loop_cpu: float
    process_cpu: float


def per_gigabyte(size: int, turn: Mapping[str, float]) -> dict[str, float]:
    """Give what a turn took, as `Spent` has it, for the bytes that it moved."""
    return {
        "throughput": size / turn["elapsed"] / 1e9,
        "loop CPU": turn["loop_cpu"] * 1e3 / (size / 1e9),
        "process CPU": turn["process_cpu"] * 1e3 / (size / 1e9),
    }


class Meter:
    """Measures from the thread whose CPU time is the loop's."""

    def __init__(self) -> None:
        self._process, self._thread = time.process_time(), time.thread_time()
        self.began = time.monotonic()

    def stop(self) -> Spent:
        """Give what was spent since it was made."""
        elapsed = time.monotonic() - self.began
        thread, process = time.thread_time(), time.process_time()
        return Spent(elapsed, thread - self._thread, process - self._process)


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
    """A timer on the running loop, which notes how late it fires each time.

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
