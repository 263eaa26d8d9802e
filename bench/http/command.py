"""The command line of ``python -m bench http``, and its run: servers take turns under wrk."""

import argparse
import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import aiozc
from bench.console import (
    Parser,
    check_places,
    console_for_tables,
    make_progress,
    positive,
    sizes,
)
from bench.errors import BenchError
from bench.found import by_metric, ratio_of, show_median
from bench.http.metrics import METRICS
from bench.http.servers import BASELINE, NOT_APPLICABLE, SERVERS, Running, server_names
from bench.http.started import start, url_of
from bench.http.wrk import check_installed, drive, write_script
from bench.measure import Sample, take_turns
from bench.report import describe_machine, show_number
from bench.scratch import scratch_directory
from bench.units import KIB, MIB, show_size

_SIZES: Final = (4 * KIB, 64 * KIB, MIB, 100 * MIB)
_QUICK_SIZES: Final = (4 * KIB, MIB, 100 * MIB)
_LARGE: Final = 16 * MIB
"""From this size on fewer connections take part: each moves enough."""


def main(arguments: Sequence[str], notes: Console) -> int:
    """Run the servers that are installed; give the exit status."""
    options = _parse(arguments)
    check_installed()
    missing = {server.name: server.missing() for server in SERVERS}
    found: dict[str, Any] = {
        "kind": "http",
        "machine": describe_machine(aiozc.probe().backend),
        "command": shlex.join(["python", "-m", "bench", "http", *arguments]),
        "baseline": BASELINE,
        "rounds": options.rounds,
        "missing": {**{name: why for name, why in missing.items() if why}, **NOT_APPLICABLE},
        "failed": {},
        "sweeps": [],
    }
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory(options.dir))
        run = _Run(options, scratch, found, stack)
        run.begin()
        run.measure(notes)
    _tell(found, options, notes)
    return 1 if found["failed"] else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m bench http",
        description="Let wrk ask web servers for files: nginx, aiohttp, uvicorn and granian with "
        "Starlette, those that are installed, stock and with aiozc, taking turns.",
    )
    parser.add_argument("--quick", action="store_true", help="less of all: about a minute")
    names = [server.name for server in SERVERS]
    parser.add_argument(
        "--servers",
        metavar="NAME,NAME",
        type=server_names,
        default=names,
        help="let these alone take turns",
    )
    parser.add_argument("--size", metavar="SIZES", type=sizes, help="as 4K,1M")
    parser.add_argument("--connections", metavar="N", type=positive, default=16)
    parser.add_argument("--seconds", metavar="N", type=positive, help="for each turn of wrk")
    parser.add_argument("--rounds", metavar="N", type=positive)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all samples to FILE")
    parser.add_argument("--dir", metavar="DIR", type=Path, help="make files below DIR")
    options = parser.parse_args(arguments)
    options.size = options.size or (_QUICK_SIZES if options.quick else _SIZES)
    options.rounds = options.rounds or (2 if options.quick else 3)
    options.seconds = options.seconds or (1 if options.quick else 3)
    check_places(options)
    return options


class _Run:
    """Servers on one directory, each on a port of its own."""

    def __init__(
        self, options: argparse.Namespace, scratch: Path, found: dict[str, Any], stack: ExitStack
    ) -> None:
        self._options, self._scratch, self._found, self._stack = options, scratch, found, stack
        self._running: dict[str, Running] = {}
        self._script = write_script(scratch)

    def begin(self) -> None:
        """Make the files, start the servers, and check what each sends."""
        names = [name for name in self._options.servers if name not in self._found["missing"]]
        self._running = start(
            names, self._options.size, self._scratch, self._stack, self._found["failed"]
        )

    def measure(self, notes: Console) -> None:
        """Let wrk drive one after another, round by round, for each size."""
        out = console_for_tables()
        points: list[dict[str, Any]] = []
        self._found["sweeps"].append(
            {"name": "http", "title": "Files over HTTP, under wrk", "points": points}
        )
        with make_progress(notes) as progress:
            total = len(self._running) * self._options.rounds * len(self._options.size)
            task = progress.add_task("wrk", total=total)

            def run(name: str) -> Sample:
                progress.refresh()
                sample = self._turn(name, size, connections)
                progress.advance(task)
                return sample

            for size in self._options.size:
                connections = self._options.connections
                if size >= _LARGE:
                    connections = min(connections, 4)
                progress.update(task, description=f"wrk: {show_size(size)}")
                names = list(self._running)
                samples = take_turns(names, run, rounds=self._options.rounds)
                points.append(
                    {
                        "size": size,
                        "connections": connections,
                        "senders": {
                            name: {"samples": by_metric(of_one)}
                            for name, of_one in zip(names, samples, strict=True)
                            if name not in self._found["failed"]
                        },
                    }
                )
                out.print(_table(points[-1]))

    def _turn(self, name: str, size: int, connections: int) -> Sample:
        if name in self._found["failed"]:
            return {}
        running = self._running[name]
        try:
            running.check()
            before = running.cpu()
            driven = drive(url_of(running, size), self._script, connections, self._options.seconds)
            cpu = running.cpu() - before
        except BenchError as error:
            self._found["failed"][name] = f"{name}: {error}"
            return {}
        sample = {
            "requests": driven.requests / driven.seconds,
            "throughput": driven.bytes / driven.seconds / 1e9,
        }
        if driven.bytes:
            sample["CPU"] = cpu * 1e3 / (driven.bytes / 1e9)
        if driven.requests:
            sample |= {"latency p50": driven.p50 * 1e3, "latency p99": driven.p99 * 1e3}
        return sample


def _table(point: dict[str, Any]) -> Table:
    title = f"{show_size(point['size'])} over HTTP, {point['connections']} connections"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("server", no_wrap=True)
    for metric in METRICS:
        table.add_column(f"{metric.name} {metric.unit}", justify="right")
        if metric.name == "throughput":
            table.add_column("ratio", justify="right")
    for name, found in point["senders"].items():
        row = [escape(name)]
        for metric in METRICS:
            row.append(show_median(found["samples"], metric.name))
            if metric.name == "throughput":
                ratio = ratio_of(point, name, BASELINE, metric)
                row.append("" if ratio is None else f"{show_number(ratio)}x")
        table.add_row(*row)
    return table


def _tell(found: dict[str, Any], options: argparse.Namespace, notes: Console) -> None:
    out = console_for_tables()
    out.print(
        f"Medians over the rounds; ratios of throughput to {BASELINE}. CPU: all processes of the "
        "server. Every file was fetched once from each server and checked by its hash.",
        highlight=False,
    )
    for name, reason in found["missing"].items():
        if name in options.servers or name in NOT_APPLICABLE:
            out.print(f"{name}: not measured: {reason}", markup=False, highlight=False)
    for reason in found["failed"].values():
        notes.print(f"bench: {reason}", markup=False, highlight=False)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
