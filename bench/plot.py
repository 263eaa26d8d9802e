"""``python -m bench plot FILE``: the pictures of a run, each readable without colour."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from rich.console import Console

from bench import findings
from bench.console import Parser, run_command
from bench.errors import BadInputError
from bench.findings import number, sweep_named
from bench.found import Point, load
from bench.report import show_number
from bench.units import show_size

_LINES: Final = (
    "read+write",
    "sendfile",
    "splice",
    "io_uring linked",
    "sock_sendfile",
    "to_thread(sendfile)",
    "streams",
    "aiozc",
    "aiozc readiness",
)
"""Who is drawn over the size of the file: more lines than these cannot be told apart."""
_STYLES: Final = {
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
    "aiozc readiness": ("x", "-"),
}
"""A marker for each, and a line for each family: system calls, rings, asyncio, aiozc."""
_LINE_STYLES: Final = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
"""What tells a few lines apart, be they of one family."""
_LATENESS_FLOOR: Final = 0.01
"""Milliseconds; what is less late is drawn here."""


def main(arguments: Sequence[str]) -> int:
    """Draw what a file has; give the exit status."""
    return run_command(lambda notes: _main(arguments, notes))


def _main(arguments: Sequence[str], notes: Console) -> int:
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
        pictures["throughput"] = lambda: _throughput(sizes)
        pictures["cpu"] = lambda: _cpu(sizes)
        pictures["time"] = lambda: _time(sizes)
        if any(result["lateness"] for result in sizes[-1]["senders"].values()):
            pictures["lateness"] = lambda: _lateness(sizes[-1])
    if buffers := sweep_named(found, "buffers"):
        pictures["buffers"] = lambda: _buffers(buffers)
    if linked := sweep_named(found, "linked"):
        pictures["linked"] = lambda: _linked(linked)
    if http := sweep_named(found, "http"):
        pictures["http"] = lambda: _http(http)
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
    """Give the points of a sweep over anything that are over the size alone."""
    rest = [(point["connections"], point["buffer"]) for point in points]
    return [point for point, other in zip(points, rest, strict=True) if other == rest[0]]


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    kernel = machine["kernel"].split("-")[0]
    return f"Linux {kernel}, {machine['cpus']} CPUs, {machine['python']}, {machine['date'][:10]}"


# Lines over a size.


def _throughput(points: Sequence[Point]) -> Figure:
    figure, axes = _figure(findings.throughput_title(points))
    _lines(axes, points, "size", "throughput", _LINES)
    axes.set_ylabel("throughput, GB/s")
    axes.set_xlabel("size of the file")
    return figure


def _cpu(points: Sequence[Point]) -> Figure:
    figure, axes = _figure(findings.cpu_title(points))
    axes.set_yscale("log")
    _lines(axes, points, "size", "CPU", _LINES)
    axes.set_ylabel("CPU time of the process, ms/GB")
    axes.set_xlabel("size of the file")
    return figure


def _time(points: Sequence[Point]) -> Figure:
    figure, axes = _figure(findings.time_title(points))
    axes.set_yscale("log")
    _lines(axes, points, "size", "time", _LINES, label_first=True)
    axes.set_ylabel("time for one file, us")
    axes.set_xlabel("size of the file")
    return figure


def _buffers(points: Sequence[Point]) -> Figure:
    figure, axes = _figure(findings.buffers_title(points))
    _lines(axes, points, "buffer", "CPU", list(points[0]["senders"]))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("CPU time of the process, ms/GB")
    axes.set_xlabel("bytes that one call moves")
    return figure


def _linked(points: Sequence[Point]) -> Figure:
    figure, axes = _figure(findings.linked_title(points))
    _lines(axes, points, "buffer", "throughput", list(points[0]["senders"]))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("throughput, GB/s")
    axes.set_xlabel("bytes that one SQE moves")
    return figure


def _figure(title: str, height: float = 4.6) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(8, height))
    figure.subplots_adjust(left=0.1, right=0.76, top=0.9, bottom=0.14)
    figure.suptitle(textwrap.fill(title, 92), fontsize=10, fontweight="bold", x=0.02, ha="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


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
        line: str | tuple[int, tuple[int, ...]]
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
    names = list(dict.fromkeys(name for point in points for name in point["senders"]))
    height = 0.2 * len(points) * len(names) + 1.6
    figure, axes = _figure(findings.http_title(points), height=height)
    figure.subplots_adjust(left=0.24, right=0.97, top=1 - 0.5 / height, bottom=0.8 / height)
    ticks, labels = [], []
    row = 0.0
    for point in points:
        axes.text(
            -0.3, row - 0.1, f"{show_size(point['size'])}", fontweight="bold", fontsize=9,
            transform=axes.get_yaxis_transform(), va="center",
        )  # fmt: skip
        row += 1
        for name in names:
            speed = number(point, name, "throughput")
            if speed is None:
                continue
            ours = "aiozc" in name
            axes.barh(
                row, speed, 0.8, color="0.25" if ours else "white", edgecolor="black",
                hatch="" if ours else "////" if name == "nginx" else "",
            )  # fmt: skip
            axes.text(speed, row, f" {show_number(speed)}", va="center", fontsize=7)
            ticks.append(row)
            labels.append(name)
            row += 1
        row += 0.4
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(row, -0.8)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="0.9")
    axes.set_xlabel("throughput, GB/s (with aiozc: filled)")
    return figure
