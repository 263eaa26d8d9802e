"""What is measured of a web server."""

from typing import Final

from bench.measure import Metric

METRICS: Final = (
    Metric("requests", "/s", "more"),
    Metric("throughput", "GB/s with headers", "more"),
    Metric("latency p50", "ms", "less"),
    Metric("latency p99", "ms", "less"),
    Metric("CPU", "ms/GB", "less"),
)
