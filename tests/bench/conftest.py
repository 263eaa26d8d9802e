"""Fixtures for tests of the benchmark."""

import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from bench.__main__ import main
from bench.console import COMMANDS
from bench.measure import Settings, Work
from bench.processes import importing_bench
from bench.samples import Record, read

CASES: Final = tomllib.loads(Path(__file__).with_name("cases.toml").read_text())
Bench = Callable[..., tuple[int, str, str]]
"""Runs a command in this process; gives its exit status, and what it wrote to both outputs."""
Recorded = Callable[..., tuple[Record, str]]
"""Runs a command that is to succeed; gives what it records and shows."""


def hear_sigint() -> None:
    """Hear it in a child, also where the tests run in a shell's background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start_python(*arguments: str, **how: Any) -> subprocess.Popen[str]:
    """Start a Python that finds this benchmark, whose outputs are read."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    how = {"env": importing_bench(), "preexec_fn": hear_sigint, "text": True, **pipes, **how}
    return subprocess.Popen([sys.executable, *arguments], **how)


def work_of(tmp_path: Path, *contenders: str, kind: str = "sender") -> Work:
    """Make a work of some contenders."""
    parts: dict[str, Any] = {"title": "", "cases": lambda: iter(()), "units": {}, "how": {}}
    parts |= {"settings": Settings(tmp_path, ExitStack(), Record({})), "baseline": contenders[0]}
    return Work(name="a", kind=kind, contenders=contenders, **parts)


@pytest.fixture(autouse=True)
def less_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands do what they do with tiny files, few clients and few contenders."""
    less = tomllib.loads(Path(__file__).with_name("less.toml").read_text())
    for command, works in less.items():
        for work, row in works.items():
            full = COMMANDS[command]["works"][work]
            monkeypatch.setitem(COMMANDS[command]["works"], work, full | row)


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    """Run commands, and put back what they do on SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        return status, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def recorded(bench: Bench, tmp_path: Path) -> Recorded:
    """Run commands that are to succeed; give what they record and show."""

    def run(*arguments: str) -> tuple[Record, str]:
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        file = tmp_path / "found.jsonl"
        quick = ("--quick", "--rounds", "1", "--json", str(file), "--dir", str(scratch))
        status, out, err = bench(*arguments, *quick)
        assert (status, err) == (0, "")
        assert list(scratch.iterdir()) == []
        return read([file]), out

    return run
