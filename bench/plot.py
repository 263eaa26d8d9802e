"""``python -m bench plot FILE...``: the pictures of runs, each readable without colour."""

import math
import re
import textwrap
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich.console import Console

from bench.console import say
from bench.errors import BadInputError
from bench.figures import Figures, show_number, size_in
from bench.samples import Record, read
from bench.tables import SHOWN
from bench.units import show_size

_STDLIB, _OURS = "sock_sendfile", "aiozc"
_LIGHT: Final = {"ink": "#1f2328", "faint": "#818b98", "rule": "#d8dee4", "paper": "#ffffff"}
_DARK: Final = {"ink": "#f0f6fc", "faint": "#9198a1", "rule": "#3d444d", "paper": "#0d1117"}
_FONT, _FONTS = "'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif"
"""The font that is measured, and those that a browser may take."""
_FLOOR: Final = 0.01
"""Milliseconds, or percent; what is less is drawn here, where the scale is logarithmic."""


class Row(NamedTuple):
    """One contender's place in a picture of rows."""

    name: str
    values: Sequence[float]
    """From left to right: an open dot, ticks, and a filled one; they may be one alone."""
    told: str
    """What is written behind the last."""


def main(options: Namespace, notes: Console) -> int:
    """Draw what there are figures for, each picture in light and dark; give the exit status."""
    drawn = draw(Figures(read(options.files)), options.into, options.format)
    if not drawn:
        raise BadInputError("there are no figures in these files that a picture is made of")
    for path in drawn.values():
        say(notes, str(path))
    return 0


def draw(figures: Figures, into: Path, kind: str = "svg") -> dict[str, Path]:
    """Draw every picture that there are figures for; give the paths of the light ones."""
    look: Any = {"svg.hashsalt": "aiozc", "svg.fonttype": "none", "font.size": 9}
    drawn: dict[str, Path] = {}
    for name, make in PICTURES.items():
        for suffix, colours in (("", _LIGHT), ("-dark", _DARK)):
            with plt.rc_context(look | _colours(colours)):
                picture = make(figures, colours)
                if picture is None:
                    continue
                told = _machine(figures.record)
                picture.text(0.99, 0.01, told, ha="right", fontsize=7, color=colours["faint"])
                path = into / f"{name}{suffix}.{kind}"
                metadata = {"Date": None} if kind == "svg" else None
                picture.savefig(path, metadata=metadata, dpi=120)
                plt.close(picture)
                if kind == "svg":
                    path.write_text(path.read_text().replace(_FONT, _FONTS))
                drawn.setdefault(name, path)
    return drawn


def _colours(colours: dict[str, str]) -> dict[str, Any]:
    ink = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor", "lines.color")
    rule = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    paper = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    keys = ((ink, "ink"), (rule, "rule"), (paper, "paper"))
    return {key: colours[colour] for group, colour in keys for key in group}


def _machine(record: Record) -> str:
    machine = record.machine
    kernel = machine["kernel"].split("-")[0]
    return f"Linux {kernel}, {machine['cpus']} CPUs, {machine['python']}, {machine['date'][:10]}"


def _figure(title: str, height: float, panels: int = 1) -> tuple[Picture, list[Axes]]:
    picture, axes = plt.subplots(1, panels, figsize=(8, height), sharey=True, squeeze=False)
    lines = textwrap.wrap(title, 88)
    picture.text(0.02, 1 - 0.12 / height, "\n".join(lines), va="top", fontsize=11, weight="bold")
    picture.subplots_adjust(top=1 - (0.3 + 0.22 * len(lines)) / height, bottom=0.62 / height)
    for each in axes[0]:
        for side in ("top", "right", "left"):
            each.spines[side].set_visible(False)
        each.tick_params(length=0)
        each.set_axisbelow(True)
    return picture, list(axes[0])


# Rows: one for each contender, on one scale.


def _rows(
    title: str, groups: Sequence[tuple[str, Sequence[Row]]], label: str, colours: dict[str, str]
) -> Picture:
    """Draw a panel for each group; aiozc's rows are bold, and its dots filled."""
    names = list(dict.fromkeys(row.name for _, rows in groups for row in rows))
    picture, panels = _figure(title, 0.24 * len(names) + 1.5, len(groups))
    left = 0.03 + 0.0098 * max(map(len, names))
    picture.subplots_adjust(left=left, right=0.94, wspace=0.12)
    values = [value for _, rows in groups for row in rows for value in row.values]
    for axes, (name, rows) in zip(panels, groups, strict=True):
        axes.set_title(name, fontsize=9, loc="left", color=colours["faint"])
        axes.set_xscale("log")
        axes.set_xlim(max(min(values), _FLOOR) / 1.5, max(values) * (4 if len(groups) < 3 else 9))
        for row in rows:
            place, ours = names.index(row.name), _OURS in row.name
            drawn = [max(value, _FLOOR) for value in row.values]
            axes.plot([drawn[0], drawn[-1]], [place, place], color=colours["faint"], linewidth=1)
            axes.plot(drawn[1:-1], [place] * len(drawn[1:-1]), "|", color=colours["ink"])
            if len(drawn) > 1:
                axes.plot(drawn[0], place, "o", mfc=colours["paper"], mec=colours["ink"], ms=5)
            face = colours["ink"] if ours or len(drawn) > 1 else colours["paper"]
            axes.plot(drawn[-1], place, "o", mfc=face, mec=colours["ink"], ms=6)
            axes.annotate(
                row.told,
                (max(drawn), place),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                weight="bold" if ours else "normal",
            )
        few = max(values) < 100 * max(min(values), _FLOOR)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_number(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="x", linewidth=0.6)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    for tick in panels[0].get_yticklabels():
        if _OURS in tick.get_text():
            tick.set_fontweight("bold")
    picture.supxlabel(label, fontsize=8, y=0.24 / picture.get_figheight(), color=colours["faint"])
    return picture


def _of_rows(name: str, figures: Figures, colours: dict[str, str]) -> Picture | None:
    """Draw a picture of rows, as tables.toml has it."""
    spec = SHOWN["pictures"][name]
    cases = figures.cases(spec["command"], spec["case"])
    cases = [case for case in cases if size_in(case) <= spec.get("most", math.inf)]
    cases = cases[:: max(1, len(cases) // 2)][:3] if "most" in spec and len(cases) > 3 else cases
    groups = []
    for case in cases:
        rows = []
        for contender in figures.contenders(spec["command"], case):
            whose = (spec["command"], case, contender)
            found = [figures.get(*whose, metric) for metric in spec["metrics"]]
            if values := [figure.median for figure in found if figure is not None]:
                ends = dict.fromkeys([show_number(values[0]), show_number(values[-1])])
                rows.append(Row(contender, values, " to ".join(ends)))
        groups.append((_called(case), rows))
    if not groups:
        return None
    if len(spec["metrics"]) == 1:
        groups[0][1].sort(key=lambda row: row.values[0])
    title = _finding(
        spec, figures, next((case for case in cases if spec.get("of", "") in case), cases[0])
    )
    return _rows(title, groups, spec["label"], colours)


def _called(case: str) -> str:
    """Name a panel: by the size of the file alone, where it is about one."""
    size = size_in(case)
    return show_size(size) if size and "cold" not in case else case.partition(": ")[2]


def _finding(spec: dict[str, Any], figures: Figures, case: str) -> str:
    """Fill in the title of a picture."""

    def value(found: re.Match[str]) -> str:
        if found[1] == "case":
            return _called(case)
        figure = figures.get(spec["command"], case, *found[1].split("/"))
        return "?" if figure is None else show_number(figure.median)

    return re.sub(r"\{(.*?)\}", value, spec["title"])


# Lines over the size of the file.


def _sizes(figures: Figures, colours: dict[str, str]) -> Picture | None:
    """Draw how many times better than the standard library aiozc is, over the size."""
    points = sorted(_ratios(figures), key=lambda point: point[2])
    if not points:
        return None
    panels = {"time": "time", "loop CPU": "CPU of the loop", "process CPU": "CPU of the process"}
    ours = [
        (size, better) for metric, who, size, better in points if (metric, who) == ("time", _OURS)
    ]
    (small, best), (worst_at, worst) = ours[0], min(ours, key=lambda each: each[1])
    title = (
        f"Of the time of {_STDLIB} aiozc takes {show_number(1 / best)}x for a cached file of "
        f"{show_size(small)}, and {show_number(1 / worst)}x at the worst, for {show_size(worst_at)}"
    )
    picture, axes = _figure(title, 3.6, len(panels))
    picture.subplots_adjust(left=0.07, right=0.86, wspace=0.22)
    ends: dict[str, tuple[int, float]] = {}
    styles = {_OURS: "-", "aiozc readiness": ":", "aiozc uvloop": "--"}
    for each, (metric, name) in zip(axes, panels.items(), strict=True):
        each.set_title(name, fontsize=9, loc="left", color=colours["faint"])
        each.set_xscale("log", base=2)
        each.set_yscale("log", base=2)
        each.axhline(1, color=colours["ink"], linewidth=0.8)
        for who, style in styles.items():
            line = [(size, better) for m, w, size, better in points if (m, w) == (metric, who)]
            if line:
                each.plot(*zip(*line, strict=True), style, color=colours["ink"], linewidth=1.4)
                if each is axes[-1]:
                    ends[who] = line[-1]
        sizes = sorted({size for m, _, size, _ in points if m == metric})
        shown = sizes[:: max(3, len(sizes) // 3)]
        each.set_xticks(shown, [show_size(size) for size in shown])
        each.xaxis.set_minor_locator(NullLocator())
        each.grid(axis="y", linewidth=0.6)
    for place, (who, end) in enumerate(sorted(ends.items(), key=lambda item: -item[1][1])):
        _name_end(axes[-1], who, end, place)
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    label = f"times better than {_STDLIB}, above the line; cached, 1 connection, peer discards"
    picture.supxlabel(label, fontsize=8, y=0.2 / 3.6, color=colours["faint"])
    return picture


def _name_end(axes: Axes, who: str, end: tuple[float, float], place: int) -> None:
    axes.annotate(
        who,
        end,
        xytext=(1.05, 0.62 - 0.12 * place),
        textcoords="axes fraction",
        va="center",
        fontsize=8,
        annotation_clip=False,
        arrowprops={"arrowstyle": "-", "color": axes.spines["bottom"].get_edgecolor()},
    )


def _ratios(figures: Figures) -> Iterator[tuple[str, str, int, float]]:
    """Give metric, contender, size and ratio, small files first."""
    parts = (("sendfile", "small: *[46] KiB, 1 conn."), ("middle", "discards: *, 1 conn."))
    seen: set[tuple[str, str, int]] = set()
    for command, pattern in parts:
        for case in figures.cases(command, pattern):
            for figure in figures.of(command, case):
                key = (figure.metric, figure.contender, size_in(case))
                if figure.has_ratio and key not in seen and not math.isinf(figure.ratio):
                    seen.add(key)
                    yield (*key, figure.ratio)


Make = Callable[[Figures, dict[str, str]], Picture | None]
PICTURES: Final[dict[str, Make]] = {
    "sizes": _sizes,
    **{name: partial(_of_rows, name) for name in SHOWN["pictures"]},
}
