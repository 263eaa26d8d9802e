"""What was found: as tables for people, and as JSON with a description of the machine."""

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from bench.cases import Case, Work
from bench.measure import (
    AtLeast,
    AtMost,
    Contender,
    Metric,
    Sample,
    Standing,
    Verdict,
    compare,
)

_STYLES = {Verdict.AIM: "bold green", Verdict.PASS: "green", Verdict.MISS: "red"}


@dataclass(frozen=True, slots=True)
class CaseResult:
    """A case with the samples of each contender, the baseline's first."""

    case: Case[Any]
    samples: Sequence[Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class WorkResult:
    """A work with what its cases gave; ``error`` says why the rest is missing."""

    work: Work[Any]
    cases: Sequence[CaseResult]
    error: str | None = None

    @property
    def contenders(self) -> list[str]:
        """The names of the contenders, the baseline's first."""
        return [contender.name for contender in self.work.contenders]

    def standings(self, found: CaseResult, metric: Metric) -> list[Standing | None]:
        """Set every contender against the baseline, the baseline itself included.

        None stands for a contender that does not give this metric.
        """
        base = 0 if metric.against is None else self.contenders.index(metric.against)
        standings: list[Standing | None] = []
        for i, contender in enumerate(self.work.contenders):
            if any(metric.name not in sample for sample in found.samples[i]):
                standings.append(None)
                continue
            standing = compare(metric, found.samples[base], found.samples[i])
            judged = contender.judged and i != base
            standings.append(standing if judged else replace(standing, verdict=None))
        return standings


def make_table(result: WorkResult) -> Table:
    """Lay out a work's medians, ratios to the baseline and targets."""
    contenders = result.work.contenders
    table = Table(
        title=result.work.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("case", overflow="fold")
    table.add_column("metric", overflow="fold")
    table.add_column(escape(contenders[0].name), justify="right")
    for contender in contenders[1:]:
        table.add_column(escape(contender.name), justify="right")
        table.add_column("ratio", justify="right")
        if contender.judged:
            table.add_column("", min_width=4)
    table.add_column("must", justify="right")
    table.add_column("aim", justify="right")
    table.add_column("rounds", justify="right")
    for found in result.cases:
        title, rounds = found.case.title, str(len(found.samples[0]))
        for metric in found.case.metrics:
            baseline, *others = result.standings(found, metric)
            row = [title, _label(metric), _show_median(metric, baseline)]
            for contender, standing in zip(contenders[1:], others, strict=True):
                row += [_show_median(metric, standing), _show_ratio(metric, contender, standing)]
                if contender.judged:
                    row.append(_show_verdict(standing))
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


def _label(metric: Metric) -> str:
    # A metric against another contender stands below the one of the same name.
    if metric.against is not None:
        return f"- to {escape(metric.against)}"
    return f"{metric.name} {metric.unit}".strip()


def _show_median(metric: Metric, standing: Standing | None) -> str:
    # A metric against another contender is there for its ratio; its medians stand above already.
    return "" if standing is None or metric.against else show_number(standing.median)


def _show_ratio(metric: Metric, contender: Contender, standing: Standing | None) -> str:
    if standing is None or metric.better == "neither":
        return ""
    if metric.against and not contender.judged:
        return ""
    return show_number(standing.ratio) + "x"


def _show_verdict(standing: Standing | None) -> str:
    if standing is None or standing.verdict is None:
        return ""
    return f"[{_STYLES[standing.verdict]}]{standing.verdict.value}[/]"


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
                "remarks": dict(result.work.remarks),
                "error": result.error,
                "cases": [
                    {
                        "title": found.case.title,
                        "metrics": [
                            _metric_as_json(result, found, metric) for metric in found.case.metrics
                        ],
                    }
                    for found in result.cases
                ],
            }
            for result in results
        ],
    }


def _metric_as_json(result: WorkResult, found: CaseResult, metric: Metric) -> dict[str, Any]:
    must, aim = _show_target(metric)
    standings = zip(result.contenders, result.standings(found, metric), found.samples, strict=True)
    return {
        "name": metric.name,
        "unit": metric.unit,
        "better": metric.better,
        "baseline": metric.against or result.contenders[0],
        "must": must or None,
        "aim": aim or None,
        "contenders": {
            contender: {
                "median": standing.median,
                "ratio": standing.ratio if math.isfinite(standing.ratio) else None,
                "verdict": standing.verdict.value if standing.verdict else None,
                "samples": [sample[metric.name] for sample in samples],
            }
            for contender, standing, samples in standings
            if standing is not None
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
