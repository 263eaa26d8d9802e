"""``python -m bench plot FILE...``: the pictures of runs, each readable without colour."""

import math
import re
import textwrap
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich.console import Console

from bench.console import say
from bench.errors import BadInputError
from bench.samples import SHOWN, Figures, read, show_number, size_in
from bench.units import show_size

_OURS: Final = "aiozc"
_LOOK: Final = SHOWN["look"]
_RC: Final[Any] = mpl.rcParams
_INK, _FAINT, _PAPER = "text.color", "axes.titlecolor", "axes.facecolor"
"""The colours of a look, by what of matplotlib's has them."""
_FONT, _FONTS = "'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif"
"""The font that is measured, and those that a browser may take."""
_FLOOR: Final = 0.01
"""Milliseconds, or percent; what is less is drawn here, where the scale is logarithmic."""


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
    drawn: dict[str, Path] = {}
    for name in SHOWN["pictures"]:
        for suffix, look in (("", _LOOK["light"]), ("-dark", _LOOK["dark"])):
            with plt.rc_context(_LOOK["all"] | look):
                spec = SHOWN["pictures"][name]
                picture = (_sizes if "panels" in spec else _rows)(spec, figures)
                if picture is None:
                    continue
                machine = figures.record.machine
                told = "Linux {kernel}, {cpus} CPUs, {python}, {date:.10}".format(**machine)
                picture.text(0.99, 0.01, told, ha="right", fontsize=7, color=look[_FAINT])
                path = into / f"{name}{suffix}.{kind}"
                metadata = {"Date": None} if kind == "svg" else None
                picture.savefig(path, metadata=metadata, dpi=120)
                plt.close(picture)
                if kind == "svg":
                    path.write_text(path.read_text().replace(_FONT, _FONTS))
                drawn.setdefault(name, path)
    return drawn


def _figure(title: str, label: str, height: float, panels: int) -> tuple[Picture, list[Axes]]:
    picture, axes = plt.subplots(1, panels, figsize=(8, height), sharey=True, squeeze=False)
    lines = textwrap.wrap(title, 88)
    picture.text(0.02, 1 - 0.12 / height, "\n".join(lines), va="top", fontsize=11, weight="bold")
    picture.subplots_adjust(top=1 - (0.3 + 0.22 * len(lines)) / height, bottom=0.62 / height)
    picture.supxlabel(label, fontsize=8, y=0.22 / height, color=_RC[_FAINT])
    return picture, list(axes[0])


# Rows: one for each contender, on one scale.


def _rows(spec: Mapping[str, Any], figures: Figures) -> Picture | None:
    """Draw a panel for each case, and in it a row for each contender: aiozc's are bold."""
    found = figures.select(spec["command"], spec["case"])
    found = found[found["metric"].isin(spec["metrics"])]
    found = found[found["case"].map(size_in) <= spec.get("most", math.inf)]
    cases = list(found["case"].unique())
    if "most" in spec and len(cases) > 3:
        cases = cases[:: len(cases) // 2][:3]
    if not cases:
        return None
    names, values = list(found["contender"].unique()), found["median"]
    if len(spec["metrics"]) == 1:
        names = list(found[found["case"] == cases[0]].sort_values("median")["contender"])
    label, title = spec["label"], _finding(spec, found, cases)
    picture, panels = _figure(title, label, 0.24 * len(names) + 1.5, len(cases))
    left = 0.03 + 0.0098 * max(map(len, names))
    picture.subplots_adjust(left=left, right=0.94, wspace=0.12)
    values = found[found["case"].isin(cases)]["median"]
    for axes, case in zip(panels, cases, strict=True):
        axes.set_title(_called(case))
        axes.set_xscale("log")
        axes.set_xlim(max(values.min(), _FLOOR) / 1.5, values.max() * (4 if len(cases) < 3 else 9))
        for contender, rows in found[found["case"] == case].groupby("contender"):
            ordered = rows.set_index("metric")["median"].reindex(spec["metrics"]).dropna()
            _row(axes, names.index(contender), contender, list(ordered))
        few = values.max() < 100 * max(values.min(), _FLOOR)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_number(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="x")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    for tick in panels[0].get_yticklabels():
        if _OURS in tick.get_text():
            tick.set_fontweight("bold")
    return picture


def _row(axes: Axes, place: int, name: str, values: Sequence[float]) -> None:
    """Draw an open dot, ticks, and a filled one, or one dot alone, and write the ends behind."""
    ours, paper = _OURS in name, _RC[_PAPER]
    first, *ticks, last = [max(value, _FLOOR) for value in [values[0], *values[1:-1], values[-1]]]
    axes.plot([first, last], [place] * 2, color=_RC[_FAINT], linewidth=1)
    axes.plot(ticks, [place] * len(ticks), "|")
    if len(values) > 1:
        axes.plot(first, place, "o", mfc=paper, ms=5)
    axes.plot(last, place, "o", mfc=None if ours or len(values) > 1 else paper, ms=6)
    ends = dict.fromkeys([show_number(values[0]), show_number(values[-1])])
    axes.annotate(
        " to ".join(ends),
        (max(first, last), place),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        weight="bold" if ours else "normal",
    )


def _called(case: str) -> str:
    """Name a panel: by the size of the file alone, where it is about one."""
    size = size_in(case)
    return show_size(size) if size and "cold" not in case else case.partition(": ")[2]


def _finding(spec: Mapping[str, Any], found: pd.DataFrame, cases: Sequence[str]) -> str:
    """Fill in the title of a picture."""
    case = next((case for case in cases if spec.get("of", "") in case), cases[0])
    told = found[found["case"] == case].set_index(["contender", "metric"])["median"].to_dict()

    def value(part: re.Match[str]) -> str:
        who, _, metric = part[1].partition("/")
        return show_number(told[who, metric]) if (who, metric) in told else "?"

    return re.sub(r"\{(.*?)\}", value, spec["title"].replace("{case}", _called(case)))


# Lines over the size of the file.


def _sizes(spec: Mapping[str, Any], figures: Figures) -> Picture | None:
    """Draw how many times better than the standard library aiozc is, over the size."""
    small = figures.select("sendfile", "small: *[46] KiB, 1 conn.")
    points = pd.concat([small, figures.select("middle", "discards: *, 1 conn.")])
    points = points[points["contender"].isin(spec["styles"]) & points["ratio"].lt(math.inf)]
    points = points.assign(size=points["case"].map(size_in)).sort_values("size")
    points = points.drop_duplicates(["metric", "contender", "size"])
    ours = points[(points["metric"] == "time") & (points["contender"] == _OURS)]
    if ours.empty:
        return None
    first, worst = ours.iloc[0], ours.loc[ours["ratio"].idxmin()]
    told = {"best": show_number(1 / first["ratio"]), "small": show_size(first["size"])}
    told |= {"worst": show_number(1 / worst["ratio"]), "large": show_size(worst["size"])}
    title, panels, styles = spec["title"].format(**told), spec["panels"], spec["styles"]
    picture, axes = _figure(title, spec["label"], 3.6, len(panels))
    picture.subplots_adjust(left=0.07, right=0.86, wspace=0.22)
    for each, (metric, name) in zip(axes, panels.items(), strict=True):
        each.set_title(name)
        each.set_xscale("log", base=2)
        each.set_yscale("log", base=2)
        each.axhline(1, color=_RC[_INK], linewidth=0.8)
        lines = points[points["metric"] == metric]
        for who, line in lines.groupby("contender"):
            each.plot(line["size"], line["ratio"], styles[who])
        sizes = list(lines["size"].unique())
        shown = sizes[:: max(3, len(sizes) // 3)]
        each.set_xticks(shown, [show_size(size) for size in shown])
        each.xaxis.set_minor_locator(NullLocator())
        each.grid(axis="y")
    ends = lines.drop_duplicates("contender", keep="last").sort_values("ratio", ascending=False)
    for place, end in enumerate(ends.itertuples()):
        axes[-1].annotate(
            end.contender,
            (end.size, end.ratio),
            xytext=(1.05, 0.62 - 0.12 * place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": _RC["axes.edgecolor"]},
        )
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    return picture
