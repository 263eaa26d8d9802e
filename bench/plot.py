"""``python -m bench plot FILE...``: the pictures of runs, each readable without colour."""

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, NullLocator
from rich.console import Console

from bench.console import Parser, folder, say
from bench.errors import BadInputError
from bench.figures import Figures, show_number, size_in
from bench.samples import Record, read
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


def main(arguments: Sequence[str], notes: Console) -> int:
    """Draw what there are figures for; give the exit status."""
    parser = Parser(
        prog="python -m bench plot",
        description="Draw what commands have written with --json, each picture in light and dark.",
    )
    parser.add_argument("files", metavar="FILE.jsonl", nargs="+", type=Path)
    where = "where pictures go (default: .)"
    parser.add_argument("--into", metavar="DIR", type=folder, default=Path(), help=where)
    parser.add_argument("--format", choices=["svg", "png"], default="svg")
    options = parser.parse_args(arguments)
    drawn = draw(Figures(read(options.files)), options.into, options.format)
    if not drawn:
        raise BadInputError("there are no figures in these files that a picture is made of")
    for path in drawn.values():
        say(notes, str(path))
    return 0


def draw(figures: Figures, into: Path, kind: str = "svg") -> dict[str, Path]:
    """Draw every picture that there are figures for; give the paths of the light ones."""
    look: Any = {
        "svg.hashsalt": "aiozc",
        "svg.fonttype": "none",
        "font.size": 9,
    }
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
            place, ours = names.index(row.name), row.name.startswith(_OURS)
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
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_number(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="x", linewidth=0.6)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    for tick in panels[0].get_yticklabels():
        if tick.get_text().startswith(_OURS):
            tick.set_fontweight("bold")
    picture.supxlabel(label, fontsize=8, y=0.24 / picture.get_figheight(), color=colours["faint"])
    return picture


def _spans(figures: Figures, command: str, case: str, metrics: Sequence[str]) -> list[Row]:
    """Make a row for each contender of a case, from its metrics, which grow."""
    rows = []
    for contender in figures.contenders(command, case):
        found = [figures.get(command, case, contender, metric) for metric in metrics]
        values = [figure.median for figure in found if figure is not None]
        if values:
            told = " to ".join(
                show_number(value) for value in dict.fromkeys(values[:: len(values) - 1 or 1])
            )
            rows.append(Row(contender, values, told))
    return rows


def _told(rows: Sequence[Row], name: str, place: int = -1) -> str:
    """Give what the row of a contender has at a place."""
    return next((show_number(row.values[place]) for row in rows if row.name == name), "?")


def _time(figures: Figures, colours: dict[str, str]) -> Picture | None:
    """Draw the time of one file, by every sender."""
    cases = [case for case in figures.cases("send", "sizes: *") if size_in(case) <= 1 << 20]
    cases = cases[:: max(1, len(cases) // 2)][:3] if len(cases) > 3 else cases
    if not cases:
        return None
    groups = [(show_size(size_in(case)), _spans(figures, "send", case, ["time"])) for case in cases]
    rows = groups[0][1]
    rows.sort(key=lambda row: row.values[0])
    title = (
        f"A cached file of {groups[0][0]} takes aiozc {_told(rows, _OURS)} us, "
        f"{_STDLIB} {_told(rows, _STDLIB)}, blocking read and write {_told(rows, 'read+write')}"
    )
    return _rows(title, groups, "us for one file, one after another over a connection", colours)


def _late(figures: Figures, colours: dict[str, str]) -> Picture | None:
    """Draw how late a timer is while cold files are read."""
    for case in figures.cases("sendfile", "cold: *"):
        metrics = ("lateness p50", "lateness p99", "lateness max")
        rows = _spans(figures, "sendfile", case, metrics)
        title = (
            f"While {case.partition(': ')[2]} are read from the disk, a 1 ms timer is up to "
            f"{_told(rows, _OURS)} ms late with aiozc, {_told(rows, _STDLIB)} with {_STDLIB}"
        )
        label = "ms late: ○ the median, | the 99th percentile, ● the latest"
        return _rows(title, [("", rows)], label, colours)
    return None


def _pace(figures: Figures, colours: dict[str, str]) -> Picture | None:
    """Draw what slow clients cost."""
    cases = figures.cases("pace", "default: *")
    if not cases:
        return None
    groups = []
    for case in cases:
        rows = _spans(figures, "pace", case, ["steady CPU", "filling CPU"])
        groups.append((case.partition(": ")[2], rows))
    rows = groups[0][1]
    title = (
        f"{groups[0][0]} take aiozc {_told(rows, _OURS, 0)} % of a core, by readiness "
        f"{_told(rows, 'aiozc readiness', 0)} %, {_STDLIB} {_told(rows, _STDLIB, 0)} %"
    )
    label = "% of a core: ○ steady, ● while their buffers fill"
    return _rows(title, groups, label, colours)


def _mixed(figures: Figures, colours: dict[str, str]) -> Picture | None:
    """Draw what small requests wait beside everything."""
    for case in figures.cases("mixed"):
        rows = _spans(figures, "mixed", case, ["wait p50", "wait p99", "wait max"])
        title = (
            "Beside streams, slow clients and cold files one of 100 small requests waits "
            f"{_told(rows, _OURS, 1)} ms with aiozc or more, {_told(rows, _STDLIB, 1)} "
            f"with {_STDLIB}"
        )
        label = "ms: ○ the median, | the 99th percentile, ● the longest wait"
        return _rows(title, [("", rows)], label, colours)
    return None


def _web(figures: Figures, colours: dict[str, str]) -> Picture | None:
    """Draw the requests that web servers answer."""
    cases = figures.cases("http", "files: *")
    if not cases:
        return None
    groups = [
        (show_size(size_in(case)), _spans(figures, "http", case, ["requests"])) for case in cases
    ]
    case, rows = cases[-1], groups[-1][1]
    title = (
        f"Of {show_size(size_in(case))} files uvicorn serves {_told(rows, 'uvicorn')} a second, "
        "and "
        f"{_told(rows, 'uvicorn+aiozc')} with aiozc; nginx {_told(rows, 'nginx')}"
    )
    return _rows(title, groups, "requests in a second", colours)


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
    "time": _time,
    "late": _late,
    "pace": _pace,
    "mixed": _mixed,
    "web": _web,
}
