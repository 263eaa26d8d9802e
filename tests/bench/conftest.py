"""Fixtures for tests of the benchmark."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.samples import Record, read

Bench = Callable[..., tuple[int, str, str]]
"""Runs a command in this process; gives its exit status, and what it wrote to both outputs."""


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
def recorded(bench: Bench, tmp_path: Path) -> Callable[..., tuple[Record, str]]:
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
