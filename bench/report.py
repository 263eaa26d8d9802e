"""What was found: as tables for people, and as JSON with a description of the machine."""

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from bench.measure import AtLeast, AtMost, Metric, Sample, Standing, Verdict, compare
from bench.works import Case, Work

_STYLES = {Verdict.AIM: "bold green", Verdict.PASS: "green", Verdict.MISS: "red"}


@dataclass(frozen=True, slots=True)
class CaseResult:
    """A case with the samples of each contender, the baseline's first."""

    case: Case
    samples: Sequence[Sequence[Sample]]

    def standings(self, metric: Metric) -> list[Standing]:
        """Set every contender against the baseline, the baseline itself included."""
        return [compare(metric, self.samples[0], samples) for samples in self.samples]


@dataclass(frozen=True, slots=True)
class WorkResult:
    """A work with what its cases gave; ``error`` says why the rest is missing."""

    work: Work
    cases: Sequence[CaseResult]
    error: str | None = None

    @property
    def contenders(self) -> list[str]:
        """The names of the senders, the baseline's first."""
        return [sender.name for sender in self.work.senders]


def make_table(result: WorkResult) -> Table:
    """Lay out a work's medians, ratios to the baseline and targets."""
    contenders = result.contenders
    table = Table(
        title=result.work.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("case", overflow="fold")
    table.add_column("metric", overflow="fold")
    table.add_column(escape(contenders[0]), justify="right")
    for contender in contenders[1:]:
        table.add_column(escape(contender), justify="right")
        table.add_column("ratio", justify="right")
        table.add_column("", min_width=4)
    table.add_column("must", justify="right")
    table.add_column("aim", justify="right")
    table.add_column("rounds", justify="right")
    for found in result.cases:
        title, rounds = found.case.title, str(len(found.samples[0]))
        for metric in found.case.metrics:
            baseline, *others = found.standings(metric)
            row = [title, f"{metric.name} {metric.unit}".strip(), show_number(baseline.median)]
            for standing in others:
                row += [
                    show_number(standing.median),
                    show_number(standing.ratio) + "x",
                    _show_verdict(standing.verdict),
                ]
            table.add_row(*row, *_show_target(metric), rounds)
            title = rounds = ""
    return table


NOTE = (
    "Each number is a median over the rounds. A ratio is the median of the rounds' ratios to {}: "
    "how many times better (less time, more throughput). GB is 10^9 bytes."
)


def show_number(value: float) -> str:
    """Write a number with about three digits."""
    if not math.isfinite(value):
        return "inf" if value > 0 else "nan"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def _show_verdict(verdict: Verdict | None) -> str:
    return "" if verdict is None else f"[{_STYLES[verdict]}]{verdict.value}[/]"


def _show_target(metric: Metric) -> tuple[str, str]:
    match metric.target:
        case AtLeast(must, aim):
            return f"{must:g}x", "" if aim is None else f"{aim:g}x"
        case AtMost(must):
            return f"<= {must:g}", ""
        case _:
            return "", ""


def as_json(results: Sequence[WorkResult], machine: dict[str, Any]) -> dict[str, Any]:
    """Give everything that was measured, every sample included."""
    return {
        "machine": machine,
        "works": [
            {
                "name": result.work.name,
                "title": result.work.title,
                "baseline": result.contenders[0],
                "error": result.error,
                "cases": [
                    {
                        "title": found.case.title,
                        "metrics": [
                            _metric_as_json(found, metric, result.contenders)
                            for metric in found.case.metrics
                        ],
                    }
                    for found in result.cases
                ],
            }
            for result in results
        ],
    }


def _metric_as_json(found: CaseResult, metric: Metric, contenders: Sequence[str]) -> dict[str, Any]:
    must, aim = _show_target(metric)
    standings = found.standings(metric)
    return {
        "name": metric.name,
        "unit": metric.unit,
        "better": metric.better,
        "must": must or None,
        "aim": aim or None,
        "contenders": {
            contender: {
                "median": standing.median,
                "ratio": standing.ratio if math.isfinite(standing.ratio) else None,
                "verdict": standing.verdict.value if standing.verdict and i else None,
                "samples": [sample[metric.name] for sample in found.samples[i]],
            }
            for i, (contender, standing) in enumerate(zip(contenders, standings, strict=True))
        },
    }


def describe_machine(backend: str) -> dict[str, Any]:
    """Say what the numbers were measured on, without naming the machine."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "uvloop": _version("uvloop"),
        "aiozc": _version("aiozc"),
        "liburing": _version("liburing"),
        "backend": backend,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None
    )
