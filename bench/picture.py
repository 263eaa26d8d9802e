"""The picture of one run: ``python -m bench.picture FOUND.json PICTURE.svg``."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

HATCHES = {"aiozc, asyncio": "", "aiozc, uvloop": "///"}


def bars(found: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Give what has a target and is a ratio: its label, and each contender's ratio."""
    chosen = []
    for work in found["works"]:
        for case in work["cases"]:
            for metric in case["metrics"]:
                if metric["must"] is None or not metric["must"].endswith("x"):
                    continue
                ratios = {
                    name: contender["ratio"]
                    for name, contender in metric["contenders"].items()
                    if name in HATCHES and contender["ratio"] is not None
                }
                label = f"{case['title']}: {metric['name']}"
                if metric["baseline"] != work["baseline"]:
                    label += f", to {metric['baseline']}"
                chosen.append((label, ratios))
    return chosen


def draw(found: dict[str, Any], target: Path) -> None:
    """Draw how many times better than the baseline aiozc is, one bar for each loop."""
    mpl.rcParams["svg.hashsalt"] = "aiozc"
    rows = bars(found)
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(rows) + 1.2), layout="constrained")
    for index, (name, hatch) in enumerate(HATCHES.items()):
        places = [row + 0.4 * index for row in range(len(rows))]
        widths = [ratios.get(name, 1.0) for _, ratios in rows]
        lengths = [width - 1 for width in widths]
        shade = "0.35" if not hatch else "0.85"
        axes.barh(
            places, lengths, 0.38, left=1, color=shade, hatch=hatch, edgecolor="black", label=name
        )
        for place, width in zip(places, widths, strict=True):
            axes.text(max(width, 1) * 1.04, place, f"{width:.2g}x", va="center", fontsize=8)
    axes.set_yticks([row + 0.2 for row in range(len(rows))], [label for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    machine = found["machine"]
    baseline = found["works"][0]["baseline"]
    if hasattr(asyncio.AbstractEventLoop, baseline):
        baseline = f"loop.{baseline}"
    axes.set_xlabel(f"times better than {baseline} in the same run (log scale)")
    axes.set_title(
        f"aiozc beside {baseline}\nLinux {machine['kernel'].split('-')[0]},"
        f" {machine['cpus']} cores, {machine['python']}",
        fontsize=10,
    )
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
