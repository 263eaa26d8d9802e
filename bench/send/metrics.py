"""What is shown of a turn's figures."""

from typing import Final

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
    Metric("short reads", "", "neither"),
    Metric("mean short read", "B", "neither"),
    Metric("short writes", "", "neither"),
    Metric("mean short write", "B", "neither"),
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
that of the process, io_uring's workers included; how it divides into user and system is known to
a clock tick alone (4 ms on most kernels), so that short turns tell little of it.
"""


def metric_named(name: str) -> Metric:
    """Find a metric by its name."""
    return next(metric for metric in METRICS if metric.name == name)
