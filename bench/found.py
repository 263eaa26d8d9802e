"""Results that were written as JSON: reading them, and the numbers that are made of samples."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BadInputError
from bench.measure import Metric, Sample
from bench.report import show_number

Point = dict[str, Any]
Samples = Mapping[str, Sequence[float | None]]


def load(path: Path, *kinds: str) -> dict[str, Any]:
    """Read the results in a file; raise BadInputError if it has none of these kinds."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise BadInputError(f"{path} is not JSON") from None
    if (
        not isinstance(found, dict)
        or found.get("kind") not in kinds
        or not {"machine", "sweeps"} <= found.keys()
    ):
        commands = " or ".join(f"python -m bench {kind}" for kind in kinds)
        raise BadInputError(f"{path} is not what {commands} writes with --json")
    return found


def values(samples: Samples, metric: str) -> list[float]:
    """Give what the rounds gave of a metric."""
    return [value for value in samples.get(metric, ()) if value is not None]


def median(samples: Samples, metric: str) -> float | None:
    """Give the median of the rounds; None where no round gave it."""
    found = values(samples, metric)
    return statistics.median(found) if found else None


def spread(samples: Samples, metric: str) -> float:
    """Give half of what lies between the smallest and the largest of the rounds."""
    found = values(samples, metric)
    return (max(found) - min(found)) / 2 if found else 0.0


def show_median(samples: Samples, metric: str) -> str:
    """Write a median, or nothing."""
    found = median(samples, metric)
    return "" if found is None else show_number(found)


def show_count(samples: Samples, metric: str) -> str:
    """Write a median, or nothing; of short reads and writes also the mean of what they moved."""
    shown = show_median(samples, metric)
    mean = show_median(samples, f"mean {metric.removesuffix('s')}")
    return f"{shown} of {mean}" if mean and shown != "0" else shown


def show_with_spread(samples: Samples, metric: str) -> str:
    """Write a median and the spread about it in percent, or nothing."""
    found = median(samples, metric)
    if found is None:
        return ""
    percent = spread(samples, metric) / found * 100 if found else 0
    return f"{show_number(found)} ±{percent:.0f} %"


def ratio_of(point: Point, sender: str, baseline: str, metric: Metric) -> float | None:
    """Give the median, over the rounds, of how many times better a sender is than the baseline.

    None where one of them has no such figure.
    """
    senders = point["senders"]
    if sender not in senders or baseline not in senders:
        return None
    pairs = zip(
        senders[baseline]["samples"].get(metric.name, ()),
        senders[sender]["samples"].get(metric.name, ()),
        strict=False,
    )
    ratios = [metric.ratio(base, mine) for base, mine in pairs if base is not None is not mine]
    return statistics.median(ratios) if ratios else None


def by_metric(samples: Sequence[Sample]) -> dict[str, list[float | None]]:
    """Give a list for each metric, with None for a round that did not give it."""
    names = list(dict.fromkeys(name for sample in samples for name in sample))
    return {name: [sample.get(name) for sample in samples] for name in names}
