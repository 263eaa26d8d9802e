"""What a turn takes in the process that does it: CPU time, and how late a timer is on the loop."""

import asyncio
import gc
import math
import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final


def percentile(values: Sequence[float], percent: float) -> float:
    """Give the smallest value that at least ``percent`` percent of the values do not exceed."""
    ordered = sorted(values)
    rank = math.ceil(len(ordered) * percent / 100)
    return ordered[max(rank, 1) - 1]


def ranks(name: str, values: Sequence[float], scale: float = 1e3) -> dict[str, float]:
    """Give the median, the 99th percentile and the largest of times, in ms, as metrics."""
    told = {f"{name} p{rank}": percentile(values, rank) * scale for rank in (50, 99)}
    return told | {f"{name} max": max(values) * scale}


def in_units(
    turn: Mapping[str, Any], units: Mapping[str, str], moved: int, files: int = 1
) -> dict[str, Any]:
    """Give what a turn took, as a `Meter` tells it, in the units of its metrics.

    CPU times are for each GB that it moved, or for each of its files.
    """
    factors = {"ms/GB": 1e12 / moved, "us": 1e6 / files}
    told = {"time": turn["elapsed"] * 1e6 / files, "throughput": moved / turn["elapsed"] / 1e9}
    cpu = {name for name in turn if name.endswith(" CPU")} & units.keys()
    return {**turn, **told, **{name: turn[name] * factors[units[name]] for name in cpu}}


_USED: Final = {
    "user CPU": "ru_utime",
    "system CPU": "ru_stime",
    "voluntary": "ru_nvcsw",
    "involuntary": "ru_nivcsw",
    "minor faults": "ru_minflt",
    "major faults": "ru_majflt",
}


class Meter:
    """Measures a turn, from the thread whose CPU time is the loop's, and with a timer on it.

    io_uring's workers are threads of the process and count: 2 GB read by a worker (IOSQE_ASYNC)
    added 0.208 s to ``time.process_time`` and 0.004 s to ``time.thread_time`` (Linux 6.18).
    Meanwhile garbage is not collected.
    """

    def __init__(self, *, timer: bool = False, period: float = 0.001) -> None:
        gc.collect()
        gc.disable()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
        self._timer = LatenessTimer(period) if timer else None
        self._usage = resource.getrusage(resource.RUSAGE_SELF)
        self._process, self._thread = time.process_time(), time.thread_time()
        self.began = time.monotonic()

    def stop(self) -> dict[str, float]:
        """Give what was used since: seconds, % of a core, MiB, counts, and how late timers were."""
        elapsed = time.monotonic() - self.began
        thread, process = time.thread_time(), time.process_time()
        late = ranks("lateness", self._timer.stop()) if self._timer is not None else {}
        gc.enable()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        return {
            "elapsed": elapsed,
            "loop CPU": thread - self._thread,
            "process CPU": process - self._process,
            "CPU": (process - self._process) / elapsed * 100,
            "memory": peak / 1024,
            **{name: getattr(usage, of) - getattr(self._usage, of) for name, of in _USED.items()},
            **late,
        }


class LatenessTimer:
    """A timer on the running loop, which notes how late it fires each time.

    Each time is set anew from the moment the last one fired, so a loop that stands still for a
    second adds one sample of a second, not a thousand: the percentiles are kind to a loop that
    stalls; the maximum is exact. Loops count timers in whole milliseconds: a loop that has
    nothing else to do is up to 1 ms late (or early, which counts as 0).
    """

    def __init__(self, period: float = 0.001) -> None:
        self._period = period
        self._lateness: list[float] = []
        self._set()

    def stop(self) -> list[float]:
        """End, and give all lateness in seconds, also that of a time that is due already."""
        self._handle.cancel()
        late = time.monotonic() - self._due
        if late > 0 or not self._lateness:
            self._lateness.append(max(late, 0.0))
        return self._lateness

    def _set(self) -> None:
        # Not loop.time(): uvloop's is cached, and counts whole milliseconds.
        self._due = time.monotonic() + self._period
        self._handle = asyncio.get_running_loop().call_later(self._period, self._fire)

    def _fire(self) -> None:
        self._lateness.append(max(time.monotonic() - self._due, 0.0))
        self._set()
