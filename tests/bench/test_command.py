"""``python -m bench``: its tables, its JSON, and how it refuses."""

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

import aiozc
from bench.cases import Case, Work
from bench.commands import COMMANDS
from bench.measure import AtLeast, AtMost, Metric
from bench.processes import importing_bench
from bench.report import CaseResult, WorkResult, as_json, make_table, show_number
from bench.senders import BASELINE, Sender
from bench.works import WORKS, check_senders

CASE: Case[Sender] = Case(
    "a case",
    [
        Metric("time", "us", "less", AtLeast(4, aim=6)),
        Metric("threads", "", "less", AtMost(24)),
    ],
    run=lambda _: {},
    rounds=2,
    budget=0,
)
CONTENDERS = [replace(BASELINE, name=name) for name in ("base", "first", "second")]
RESULT = WorkResult(
    Work("a-work", "A work", lambda _, __: [], CONTENDERS),
    [
        CaseResult(
            CASE,
            [
                [{"time": 40, "threads": 1}, {"time": 60, "threads": 1}],
                [{"time": 5, "threads": 0}, {"time": 6, "threads": 30}],
                [{"time": 20, "threads": 2}, {"time": 60, "threads": 2}],
            ],
        )
    ],
)


def run_bench(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "bench", *arguments, cwd=cwd, env=env)


def run_python(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=env or importing_bench(),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def run_bench_with_less(
    command: str, size: int, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run it with streams of so many bytes."""
    work = f"bench.{command}_works"
    program = f"import sys; from bench.__main__ import main; import {work}; {work}.QUICK = {size};"
    return run_python("-c", program + "sys.exit(main(sys.argv[1:]))", command, *arguments)


def rows_of(result: WorkResult) -> list[str]:
    console = Console(width=140, file=io.StringIO())
    console.print(make_table(result))
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_the_table_shows_medians_ratios_targets_and_marks() -> None:
    rows = rows_of(RESULT)

    assert "A work" in rows
    assert "a case time us 50 5.50 9x aim 40 1.50x miss 4x 6x 2" in rows
    assert "threads 1 15 infx miss 2 0.50x pass <= 24" in rows


def test_the_json_holds_every_sample_and_is_strict_json() -> None:
    found = json.loads(json.dumps(as_json([RESULT], {}), allow_nan=False))
    time, threads = found["works"][0]["cases"][0]["metrics"]

    assert time["contenders"]["first"] == {
        "median": 5.5,
        "ratio": 9,
        "verdict": "aim",
        "samples": [5, 6],
    }
    assert time["contenders"]["base"]["verdict"] is None
    assert threads["contenders"]["first"]["ratio"] is None


def test_a_contender_that_gives_no_such_number_has_an_empty_place() -> None:
    partial = CaseResult(CASE, [[{"time": 40, "threads": 1}], [{"time": 5}], [{"time": 20}]])
    result = replace(RESULT, cases=[partial])
    found = as_json([result], {})

    assert list(found["works"][0]["cases"][0]["metrics"][1]["contenders"]) == ["base"]
    assert "threads 1 <= 24" in rows_of(result)


def test_a_target_may_be_against_another_contender_and_is_for_those_judged() -> None:
    rival = replace(BASELINE, name="rival", judged=False)
    metric = Metric("throughput", "GB/s", "more", AtLeast(1, aim=2), against="rival")
    work = Work("a-work", "A work", lambda _, __: [], [*CONTENDERS, rival], {"rival": "a remark"})
    case = replace(CASE, metrics=[metric])
    samples = [[{"throughput": number}] for number in (1, 8, 2, 4)]
    result = WorkResult(work, [CaseResult(case, samples)])
    found = as_json([result], {})["works"][0]

    assert found["remarks"] == {"rival": "a remark"}
    assert found["cases"][0]["metrics"][0]["baseline"] == "rival"
    assert [
        (contender["ratio"], contender["verdict"])
        for contender in found["cases"][0]["metrics"][0]["contenders"].values()
    ] == [(0.25, "miss"), (2, "aim"), (0.5, "miss"), (1, None)]
    assert "a case - to rival 2x aim 0.50x miss 1x 2x 1" in rows_of(result)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.01234, "0.012"),
        (0.5, "0.50"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (500, "500"),
        (math.inf, "inf"),
    ],
)
def test_numbers_have_about_three_digits(value: float, shown: str) -> None:
    assert show_number(value) == shown


@pytest.mark.parametrize("command", WORKS)
def test_the_command_line_names_every_work(command: str) -> None:
    works = import_module(f"bench.{command}_works").WORKS
    assert tuple(work.name for work in works) == WORKS[command]


def test_the_help_and_the_refusal_of_what_is_no_command_name_every_command() -> None:
    told, refused = run_bench("--help"), run_bench("nonsense")

    for name, command in COMMANDS.items():
        assert f"\n  {name} " in told.stdout
        assert command.purpose in told.stdout
        assert f"'{name}'" in refused.stderr


def test_a_command_whose_module_cannot_be_imported_says_so_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('no pictures today')\n")
    env = importing_bench()
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])

    done = run_bench("plot", "file", env=env)

    assert done.returncode == 1
    assert done.stderr == "bench: plot cannot run here: ImportError: no pictures today\n"


def test_the_smallest_work_prints_its_table_writes_json_and_leaves_no_file(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = tmp_path / "found.json"

    done = run_bench(
        *("--quick", "--only", "small", "--rounds", "1"),
        *("--dir", str(scratch), "--json", str(found)),
    )

    assert (done.returncode, done.stderr) == (0, "")
    for text in ("Small cached files", "4 KiB, 1 conn.", "256 KiB, 64 conn.", "ratio", "5x"):
        assert text in done.stdout
    assert "Slow clients" not in done.stdout
    written = json.loads(found.read_text())
    assert [work["name"] for work in written["works"]] == ["small"]
    assert len(written["works"][0]["cases"]) == 9
    assert written["machine"]["python"].endswith(sys.version.split()[0])
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "work", "size", "cases", "texts"),
    [
        (
            "relay",
            "stream",
            32_000_000,
            ["32 MB, 1 conn.", "32 MB, 64 conn."],
            ["streams", "aiozc", "HAProxy: ", "2.5x"],
        ),
        ("recvfile", "tmpfs", 32 << 20, ["32 MiB, tmpfs"], ["recv_into", "aiozc", "1.3x"]),
    ],
)
def test_another_command_prints_its_table_writes_json_and_leaves_no_file(
    command: str, work: str, size: int, cases: list[str], texts: list[str], tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = tmp_path / "found.json"

    done = run_bench_with_less(
        command,
        size,
        *("--quick", "--only", work, "--rounds", "1"),
        *("--dir", str(scratch), "--json", str(found)),
    )

    assert (done.returncode, done.stderr) == (0, "")
    for text in texts:
        assert text in done.stdout
    written = json.loads(found.read_text())
    assert [work["name"] for work in written["works"]] == [work]
    assert [case["title"] for case in written["works"][0]["cases"]] == cases
    for case in written["works"][0]["cases"]:
        metrics = {metric["name"]: metric for metric in case["metrics"]}
        for name in ("throughput", "loop CPU", "process CPU", "lateness p99"):
            samples = metrics[name]["contenders"]["aiozc, uvloop"]["samples"]
            assert len(samples) == 1
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["--quick", "send"],
        ["--only", "no-such-work"],
        ["relay", "--only", "small"],
        ["recvfile", "--awake", "1"],
        ["--rounds", "0"],
        ["--rounds", "x"],
        ["--awake", "-1"],
        ["--dir", "/no/such/directory"],
        ["--json", "/no/such/directory/file"],
        ["--no-such-option"],
    ],
)
def test_bad_arguments_end_with_status_2(arguments: list[str]) -> None:
    done = run_bench(*arguments)

    assert done.returncode == 2
    assert done.stderr.startswith("bench: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("backend", [aiozc.probe().backend, "readiness"])
def test_what_is_said_of_the_backend_is_what_the_senders_go_by(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOZC_BACKEND", backend)
    assert check_senders() == backend


def test_one_sentence_says_why_aiozc_cannot_run(tmp_path: Path) -> None:
    (tmp_path / "aiozc.py").write_text("raise ImportError('no ring today')\n")
    env = importing_bench()
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])

    done = run_bench("--quick", cwd=tmp_path, env=env)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "bench: aiozc cannot run here: ImportError: no ring today\n"
