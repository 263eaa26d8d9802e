"""``python -m bench plot FILE``: the pictures of a run, each readable without colour."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from rich.console import Console

from bench import findings
from bench.console import Parser
from bench.errors import BadInputError
from bench.findings import number, sweep_named
from bench.found import Point, load
from bench.report import show_number
from bench.units import show_size

_Line = str | tuple[int, tuple[float, ...]]
_STYLES: Final[dict[str, tuple[str, _Line]]] = {
    "read+write": ("o", ":"),
    "mmap+write": ("X", ":"),
    "splice": ("s", ":"),
    "sendfile": ("^", ":"),
    "io_uring": ("D", "--"),
    "io_uring linked": ("d", "--"),
    "io_uring splice": ("P", "--"),
    "io_uring splice linked": ("p", "--"),
    "sock_sendfile": ("v", "-."),
    "sock_sendall": ("<", "-."),
    "to_thread(sendfile)": (">", "-."),
    "streams": ("h", "-."),
    "aiozc": ("*", "-"),
    "aiozc readiness": ("x", (0, (7, 1.5))),
}
"""A marker for each, and a line for each family: system calls, rings, asyncio, aiozc."""
_LINE_STYLES: Final[tuple[_Line, ...]] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
"""What tells a few lines apart, be they of one family."""
_LATENESS_FLOOR: Final = 0.01
"""Milliseconds; what is less late is drawn here."""


_METRICS: Final = {
    "throughput": "throughput, GB/s",
    "CPU": "CPU time of the process, ms/GB",
    "time": "time for one file, us",
}
_SIZE: Final = ("size", "size of the file")


@dataclass(frozen=True, slots=True)
class _Picture:
    """Lines of a metric, one for each sender."""

    title: Callable[[Sequence[Point]], str]
    over: tuple[str, str]
    """What changes from point to point, and how the axis calls it."""
    metric: str
    log: bool = False
    label_first: bool = False
    """Whether the lines are told apart better at the first point than at the last."""


_OVER_SIZES: Final = {
    "throughput": _Picture(findings.throughput_title, _SIZE, "throughput"),
    "cpu": _Picture(findings.cpu_title, _SIZE, "CPU", log=True),
    "time": _Picture(findings.time_title, _SIZE, "time", log=True, label_first=True),
}
_OVER_BUFFERS: Final = {
    "buffers": _Picture(findings.buffers_title, ("buffer", "bytes that one call moves"), "CPU"),
    "linked": _Picture(findings.linked_title, ("buffer", "bytes that one SQE moves"), "throughput"),
}
"""The pictures of the sweeps that have these names."""


def main(arguments: Sequence[str], notes: Console) -> int:
    """Draw what a file has; give the exit status."""
    parser = Parser(
        prog="python -m bench plot",
        description="Draw what python -m bench send or http has written with --json.",
    )
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument(
        "--into", metavar="DIR", type=Path, default=Path(), help="where pictures go (default: .)"
    )
    parser.add_argument("--format", choices=["svg", "png"], default="svg")
    options = parser.parse_args(arguments)
    found = load(options.file, "send", "http")
    if not options.into.is_dir():
        raise BadInputError(f"--into: {options.into} is not a directory")
    for path in draw(found, options.into, options.format):
        notes.print(f"bench: {path}", markup=False, highlight=False)
    return 0


def draw(found: dict[str, Any], into: Path, kind: str = "svg") -> list[Path]:
    """Draw every picture that there are figures for; give their paths."""
    mpl.rcParams["svg.hashsalt"] = "aiozc"
    pictures: dict[str, Callable[[], Figure]] = {}
    sizes = sweep_named(found, "sizes") or _over_size(sweep_named(found, "own"))
    if sizes:
        for name, picture in _OVER_SIZES.items():
            pictures[name] = partial(_over, sizes, picture)
        if any(result["lateness"] for result in sizes[-1]["senders"].values()):
            pictures["lateness"] = partial(_lateness, sizes[-1])
    for name, picture in _OVER_BUFFERS.items():
        if points := sweep_named(found, name):
            pictures[name] = partial(_over, points, picture)
    if http := sweep_named(found, "http"):
        pictures["http"] = partial(_http, http)
    paths = []
    for name, make in pictures.items():
        figure = make()
        figure.text(0.995, 0.005, _machine(found), ha="right", va="bottom", fontsize=7, color="0.3")
        paths.append(into / f"{name}.{kind}")
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(paths[-1], metadata=metadata, dpi=150)
        plt.close(figure)
    return paths


def _over_size(points: Sequence[Point]) -> list[Point]:
    """Give the points of a sweep over anything that are over the size alone, in its order."""
    rest = [(point["connections"], point["buffer"]) for point in points]
    alone = {p["size"]: p for p, other in zip(points, rest, strict=True) if other == rest[0]}
    return [alone[size] for size in sorted(alone)]


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    kernel = machine["kernel"].split("-")[0]
    return f"Linux {kernel}, {machine['cpus']} CPUs, {machine['python']}, {machine['date'][:10]}"


# Lines over a size.


def _over(points: Sequence[Point], picture: _Picture) -> Figure:
    figure, axes = _figure(picture.title(points))
    if picture.log:
        axes.set_yscale("log")
    over, label = picture.over
    senders = findings.DRAWN if over == "size" else list(points[0]["senders"])
    _lines(axes, points, over, picture.metric, senders, label_first=picture.label_first)
    if not picture.log:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(_METRICS[picture.metric])
    axes.set_xlabel(label)
    return figure


def _figure(title: str, height: float = 4.6) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(8, height))
    figure.subplots_adjust(left=0.1, right=0.76, top=0.9, bottom=0.14)
    _title(figure, title)
    _plain(axes, "y")
    return figure, axes


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(textwrap.fill(title, 92), fontsize=10, fontweight="bold", x=0.02, ha="left")


def _plain(axes: Axes, grid: Literal["x", "y"]) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color="0.9")
    axes.set_axisbelow(True)


def _lines(
    axes: Axes,
    points: Sequence[Point],
    over: str,
    metric: str,
    senders: Sequence[str],
    *,
    label_first: bool = False,
) -> None:
    """Draw a line for each sender, with its name beside its last point, or its first."""
    axes.set_xscale("log", base=2)
    axes.set_xticks([point[over] for point in points], [show_size(p[over]) for p in points])
    axes.xaxis.set_minor_locator(NullLocator())
    ends = []
    for sender in senders:
        drawn = [(p[over], y) for p in points if (y := number(p, sender, metric)) is not None]
        if not drawn:
            continue
        marker, line = _STYLES.get(sender, (".", "-"))
        if len(senders) <= len(_LINE_STYLES):
            line = _LINE_STYLES[senders.index(sender)]
        ours = sender.startswith("aiozc")
        axes.plot(
            *zip(*drawn, strict=True),
            marker=marker,
            linestyle=line,
            color="black" if ours else "0.4",
            linewidth=2 if ours else 1.2,
            markersize=9 if marker == "*" else 6,
        )
        x, y = drawn[0 if label_first else -1]
        ends.append((x, y, f"{sender} {show_number(y)}", ours))
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show_number(value)))
    if label_first:
        axes.figure.subplots_adjust(left=0.24, right=0.87)
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
        axes.spines["right"].set_visible(True)
        axes.spines["left"].set_visible(False)
    _label(axes, ends, left=label_first)


def _label(
    axes: Axes, ends: Sequence[tuple[float, float, str, bool]], *, left: bool = False
) -> None:
    """Write names beside the ends of lines, moved apart where they would touch."""
    axes.figure.canvas.draw()
    to_axes = axes.transData + axes.transAxes.inverted()
    places = sorted((to_axes.transform((x, y))[1], name, x, y, ours) for x, y, name, ours in ends)
    step = 0.052
    heights: list[float] = []
    for wanted, *_ in places:
        heights.append(max(wanted, heights[-1] + step) if heights else wanted)
    # What was pushed beyond the top comes down again, and pushes others down.
    ceiling = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - step
    for height, (_, name, x, y, ours) in zip(heights, places, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(-0.02 if left else 1.04, height),
            textcoords="axes fraction",
            ha="right" if left else "left",
            va="center",
            fontsize=8,
            fontweight="bold" if ours else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": "0.7",
                "linewidth": 0.7,
                "shrinkB": 4,
                "relpos": (1 if left else 0, 0.5),
            },
        )


# How late a timer is.


def _lateness(point: Point) -> Figure:
    rows = [(name, r["lateness"]) for name, r in point["senders"].items() if r["lateness"]]
    figure, axes = _figure(findings.lateness_title(point), height=0.42 * len(rows) + 1.6)
    figure.subplots_adjust(left=0.24, right=0.97, bottom=0.2 if len(rows) < 6 else 0.13)
    for row, (name, lateness) in enumerate(rows):
        late = sorted(max(value, _LATENESS_FLOOR) for value in lateness)
        axes.plot(late, [row] * len(late), "|", color="0.6", markersize=9)
        quarter, middle, third = (late[int(part * (len(late) - 1))] for part in (0.25, 0.5, 0.75))
        axes.plot([quarter, third], [row, row], color="black", linewidth=4, solid_capstyle="butt")
        axes.plot(middle, row, "o", color="black", markerfacecolor="white", markersize=7)
        axes.plot(late[-1], row, "D", color="black", markersize=5)
        axes.annotate(
            f"{show_number(late[-1])} ms",
            (late[-1], row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            fontweight="bold" if name.startswith("aiozc") else "normal",
        )
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_number(value)))
    axes.grid(axis="x", color="0.9")
    axes.set_xlabel("ms late: each |, half of them within the bar, ○ the median, ◆ the latest")
    return figure


# Web servers.


def _http(points: Sequence[Point]) -> Figure:
    rows = [len(point["senders"]) for point in points]
    height = 0.2 * sum(rows) + 0.5 * len(points) + 1.1
    figure, panels = plt.subplots(
        len(points), figsize=(8, height), height_ratios=[max(row, 1) for row in rows], squeeze=False
    )
    figure.subplots_adjust(
        left=0.24, right=0.84, top=1 - 0.75 / height, bottom=0.7 / height, hspace=0.35
    )
    _title(figure, findings.http_title(points))
    for axes, point in zip(panels[:, 0], points, strict=True):
        _bars(axes, point)
    panels[-1, 0].set_xlabel("throughput, GB/s (with aiozc: filled); each size on its own scale")
    return figure


def _bars(axes: Axes, point: Point) -> None:
    """Draw the throughput of each server with files of one size."""
    axes.set_title(show_size(point["size"]), fontsize=9, fontweight="bold", loc="left")
    names = list(point["senders"])
    for row, name in enumerate(names):
        speed, requests = number(point, name, "throughput"), number(point, name, "requests")
        if speed is None or requests is None:
            continue
        axes.barh(
            row, speed, 0.8, color="0.25" if "aiozc" in name else "white", edgecolor="black",
            hatch="////" if name == "nginx" else "",
        )  # fmt: skip
        told = f" {show_number(speed)} GB/s, {show_number(requests)}/s"
        axes.text(speed, row, told, va="center", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=7)
    _plain(axes, "x")
