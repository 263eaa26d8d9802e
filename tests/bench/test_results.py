"""What is made of figures: medians, ratios, changes, findings, pictures and RESULTS.md."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench import findings
from bench.__main__ import main
from bench.compare import changes
from bench.found import median, ratio_of, show_count, show_with_spread, spread
from bench.send.metrics import metric_named, shortness_unknown
from bench.units import parse_size, show_size
from tests.bench.test_command import run_bench

MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "kernel": "6.18.0-test",
    "architecture": "x86_64",
    "cpu": "a CPU",
    "cpus": 2,
    "memory_gib": 4,
    "python": "CPython 3.11.7",
    "uvloop": "0.22",
    "aiozc": "0.1.0",
    "liburing": "2.9",
}


def samples(time: list[float], cpu: list[float], late: list[float] | None = None) -> dict[str, Any]:
    found: dict[str, list[float]] = {
        "time": time,
        "throughput": [100 / one for one in time],
        "CPU": cpu,
        "calls": [10.0] * len(time),
    }
    if late:
        found |= {"lateness max": late, "loop CPU": cpu}
    return {"samples": found, "lateness": late or []}


def point(size: int, buffer: int, **senders: dict[str, Any]) -> dict[str, Any]:
    names = {"read_write": "read+write", "io_uring_linked": "io_uring linked"}
    return {
        "size": size,
        "times": 1,
        "connections": 1,
        "buffer": buffer,
        "senders": {names.get(name, name): found for name, found in senders.items()},
    }


def a_run() -> dict[str, Any]:
    sizes = [
        point(
            size,
            65536,
            read_write=samples([40, 50, 60], [200, 210, 190]),
            sock_sendfile=samples([50, 60, 70], [150, 160, 170], [3, 4, 9]),
            aiozc=samples([10, 11, 12], [90, 100, 110], [1, 1, 2]),
        )
        for size in (4096, 1 << 20)
    ]
    buffers = [
        point(
            1 << 20,
            2048 << i,
            read_write=samples([40, 50, 60], [200, 210, 190]),
            sendfile=samples([40, 50, 60], [cpu - 1, cpu, cpu + 1]),
        )
        for i, cpu in enumerate([40, 250])
    ]
    linked = [
        point(
            1 << 20,
            4096,
            io_uring=samples([50, 50, 50], [9, 9, 9]),
            io_uring_linked=samples([20, 20, 20], [9, 9, 9]),
        )
    ]
    return {
        "kind": "send",
        "machine": MACHINE,
        "command": "python -m bench send --json send.json",
        "receiver": "own",
        "baseline": "read+write",
        "rounds": 3,
        "cold": False,
        "missing": {"sendfile_zc": "no io_uring"},
        "failed": {},
        "unchecked": [],
        "sweeps": [
            {"name": "sizes", "title": "sizes", "points": sizes},
            {"name": "buffers", "title": "buffers", "points": buffers},
            {"name": "linked", "title": "linked", "points": linked},
        ],
    }


def a_web_run() -> dict[str, Any]:
    def served(*speeds: float) -> dict[str, Any]:
        return {"samples": {"requests": [1.0] * len(speeds), "throughput": list(speeds)}}

    servers = {"nginx": served(5, 5), "uvicorn": served(1, 1), "uvicorn+aiozc": served(3, 3)}
    points = [{"size": 1 << 20, "connections": 16, "senders": servers}]
    return {
        "kind": "http",
        "machine": MACHINE,
        "command": "python -m bench http",
        "baseline": "nginx",
        "rounds": 2,
        "missing": {"granian": "the module granian is not installed"},
        "failed": {},
        "sweeps": [{"name": "http", "title": "http", "points": points}],
    }


def test_medians_and_spreads_leave_out_rounds_that_gave_nothing() -> None:
    found = {"time": [5.0, None, 1.0, 3.0]}

    assert median(found, "time") == 3
    assert spread(found, "time") == 2
    assert show_with_spread(found, "time") == "3 ±67 %"
    assert median(found, "CPU") is None
    assert show_with_spread(found, "CPU") == ""


def test_a_ratio_is_the_median_of_pairs_of_one_round() -> None:
    found = point(1, 1, a=samples([10, 100, 12], [1, 1, 1]), b=samples([5, 50, 60], [1, 1, 1]))

    assert ratio_of(found, "b", "a", metric_named("time")) == 2
    assert ratio_of(found, "b", "nobody", metric_named("time")) is None


def test_only_what_changed_by_more_than_both_spreads_is_a_change() -> None:
    before, after = a_run(), copy.deepcopy(a_run())
    place = after["sweeps"][0]["points"][0]["senders"]
    place["aiozc"]["samples"]["time"] = [21, 22, 23]
    place["read+write"]["samples"]["time"] = [55, 60, 65]  # within the spread of both

    found = list(changes(before, after))

    assert [(change.who, change.metric.name, change.factor) for change in found] == [
        ("aiozc", "time", 0.5)
    ]
    assert list(changes(before, before)) == []


def test_findings_say_otherwise_where_the_figures_do() -> None:
    run = a_run()
    buffers = "\n".join(findings.buffers(findings.sweep_named(run, "buffers")))
    linked = "\n".join(findings.linked(findings.sweep_named(run, "linked")))

    assert "`sendfile` takes less at 2 KiB; this kernel says otherwise at 4 KiB" in buffers
    assert "- 2 KiB: 40 ms/GB against 200, a factor of 0.20" in buffers
    assert "linked ones are faster at 4 KiB" in linked
    assert findings.buffers_title(findings.sweep_named(run, "buffers")) == (
        "sendfile takes 0.20 to 1.25 times the CPU of read+write"
    )


def test_titles_say_who_is_ahead_and_whether_by_more_than_the_spread() -> None:
    run, web = a_run(), a_web_run()["sweeps"][0]["points"]
    sizes = findings.sweep_named(run, "sizes")
    last = sizes[-1]["senders"]
    last["nobody draws this one"] = samples([1, 1, 1], [1, 1, 1])

    assert findings.throughput_title(sizes) == (
        "aiozc is fastest with 1 MiB files, at 9.09 GB/s (sock_sendfile 1.67)"
    )
    last["splice"] = samples([10, 12, 14], [90, 100, 110])
    assert "at 9.09 GB/s, within the spread of splice (" in findings.throughput_title(sizes)
    assert findings.time_title(sizes) == (
        "aiozc takes 11 us for one 4 KiB file, sock_sendfile 60, read+write 50"
    )
    assert findings.linked_title(findings.sweep_named(run, "linked")) == (
        "Linking makes a READ and a SEND 2.50 times as fast"
    )
    assert findings.http_title(web) == (
        "With aiozc, uvicorn sends 1 MiB files at 3 GB/s in place of 1"
    )
    web[0]["senders"]["uvicorn"]["samples"]["throughput"] = [1, 5]
    assert findings.http_title(web).endswith("aiozc makes no difference beyond the spread")


def test_short_calls_are_told_with_the_mean_of_what_they_moved_where_there_were_some() -> None:
    found: dict[str, list[float | None]] = {
        "short writes": [2, 4, 3],
        "mean short write": [None, 1600.0, 1800.0],
        "calls": [9],
    }

    assert show_count(found, "short writes") == "3 of 1700"
    assert show_count({**found, "short writes": [0, 4, 0]}, "short writes") == "0"
    assert show_count(found, "calls") == "9"
    assert show_count(found, "short reads") == ""


def test_whose_short_calls_nobody_knows_is_said() -> None:
    told = {"samples": {"calls": [5], "short writes": [0]}}
    points = [{"senders": {"a": told, "b": {"samples": {"calls": [5]}}, "c": {"samples": {}}}}]

    found = shortness_unknown([{"points": points}])

    assert found is not None
    assert found.startswith("Which calls of b were short is not known")
    assert shortness_unknown([{"points": [{"senders": {"a": told}}]}]) is None


def test_a_run_over_many_things_is_drawn_over_the_size_alone(tmp_path: Path) -> None:
    run = a_run()
    one = run["sweeps"][0]["points"]
    others = [{**point, "times": 7} for point in one] + [{**one[0], "connections": 16}]
    run["sweeps"] = [{"name": "own", "title": "own", "points": [*others, *reversed(one)]}]

    file = tmp_path / "found.json"
    file.write_text(json.dumps(run))

    done = run_bench("plot", str(file), "--into", str(tmp_path))

    assert done.returncode == 0
    drawn = {path.stem: path.read_text() for path in tmp_path.glob("*.svg")}
    assert drawn.keys() == {"throughput", "cpu", "time", "lateness"}
    for size in ("4 KiB", "1 MiB"):
        assert drawn["time"].count(f"<!-- {size} -->") == 1
    assert "for one 4 KiB file" in drawn["time"]


def test_results_and_pictures_are_written_from_the_files_of_runs(tmp_path: Path) -> None:
    send, http = tmp_path / "send.json", tmp_path / "http.json"
    send.write_text(json.dumps(a_run()))
    http.write_text(json.dumps(a_web_run()))

    done = run_bench("results", str(send), str(http), "--into", str(tmp_path))

    assert done.returncode == 0
    text = (tmp_path / "RESULTS.md").read_text()
    for part in (
        "installed with the extra `bench-http`",
        "python -m bench send --json send.json",
        "| aiozc | 11 ±9 % |",
        "`sendfile_zc` was not measured: no io_uring.",
        "1 MiB, uvicorn: 3 GB/s with aiozc, 1 without (3x)",
        "| uvicorn+aiozc | 1 ±0 % | 3 ±0 % | 0.60x |",
    ):
        assert part in text
    pictures = {path.stem: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert pictures.keys() == {
        *("throughput", "cpu", "time", "lateness", "buffers", "linked", "http")
    }
    for name in pictures:
        assert f"(results/{name}.svg)" in text


@pytest.mark.usefixtures("keeps_signals")
def test_files_of_another_kind_are_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("send.json", "other.json", "broken.json", "part.json")
    send, other, broken, part = (tmp_path / name for name in names)
    send.write_text(json.dumps(a_run()))
    other.write_text(json.dumps({"works": []}))
    broken.write_text("{")
    part.write_text('{"kind": "send"}')
    cases = [
        ("plot", str(other)),
        ("plot", str(broken)),
        ("plot", str(tmp_path / "nothing")),
        ("compare", str(send), str(other)),
        ("compare", str(part), str(part)),
        ("results", str(send), str(send)),
    ]
    for arguments in cases:
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("bench: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("4K", 4096), ("4 KiB", 4096), ("1m", 1 << 20), ("2GB", 2 << 30), (" 64k ", 65536)],
)
def test_sizes_are_read_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(show_size(size)) == size


@pytest.mark.parametrize("text", ["", "0", "x", "-1", "1.5K", "4KK", "1e3", "4T"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)
