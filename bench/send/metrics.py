"""What is shown of a turn's figures."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.measure import Metric

METRICS: Final = (
    Metric("time", "us/file", "less"),
    Metric("throughput", "GB/s", "more"),
    Metric("CPU", "ms/GB", "less"),
    Metric("loop CPU", "ms/GB", "less"),
    Metric("user CPU", "ms/GB", "less"),
    Metric("system CPU", "ms/GB", "less"),
    Metric("calls", "", "less"),
    Metric("bytes per call", "B", "more"),
    Metric("short reads", "of B", "neither"),
    Metric("short writes", "of B", "neither"),
    Metric("voluntary", "", "less"),
    Metric("involuntary", "", "less"),
    Metric("minor faults", "", "less"),
    Metric("major faults", "", "less"),
    Metric("memory", "MiB", "less"),
    Metric("lateness p50", "ms", "less"),
    Metric("lateness p99", "ms", "less"),
    Metric("lateness max", "ms", "less"),
)
"""All but the counts of files and bytes, which are everybody's.

Context switches, page faults, calls and what was short are those of a whole turn. CPU time is
that of the process, io_uring's workers included, to the nanosecond.
"""
SPLIT: Final = (
    "How CPU time divides into user and system is what the kernel saw at its clock ticks, 1 to 10 "
    "ms apart: of a turn of a few ms it tells little."
)
"""With all tools: CONFIG_VIRT_CPU_ACCOUNTING_GEN is not set on most kernels. The sum is exact."""


def metric_named(name: str) -> Metric:
    """Find a metric by its name."""
    return next(metric for metric in METRICS if metric.name == name)


def shortness_unknown(sweeps: Sequence[Mapping[str, Any]]) -> str | None:
    """Say of whom nobody knows which calls were short, if there is somebody."""
    names = [
        name
        for sweep in sweeps
        for point in sweep["points"]
        for name, result in point["senders"].items()
        if "calls" in result["samples"] and "short writes" not in result["samples"]
    ]
    if not names:
        return None
    return (
        f"Which calls of {names[0]} were short is not known: the loop makes them itself, and the "
        "kernel's count of them (/proc/PID/io) does not say what each moved."
    )
