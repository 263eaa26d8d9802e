"""``python -m bench record``: every run behind RESULTS.md and the README's tables."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from rich.console import Console

from bench.console import Parser, folder, say
from bench.errors import BenchError
from bench.processes import importing_bench
from bench.results import HERE
from bench.results import main as write_results

RUNS: Final = (
    *("sendfile", "middle", "pace --rounds 1", "mixed", "calls --rounds 2", "relay", "recvfile"),
    *("zc", "send --only sizes --rounds 3", "http --rounds 2 --seconds 2", "web --rounds 2"),
    "flood --rounds 2 --seconds 3",
)


def main(arguments: Sequence[str], notes: Console) -> int:
    """Do the runs, one after another, and write their results; give the exit status."""
    parser = Parser(
        prog="python -m bench record",
        description="Do every run, write the samples, and then RESULTS.md and what belongs to it.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="less of all, to see that it works")
    add("--only", metavar="COMMAND", action="append", help="do this run alone, or these")
    where = HERE / "results"
    add("--into", metavar="DIR", type=folder, default=where, help="where samples go")
    add("--dir", metavar="DIR", type=folder, help="make files below DIR; it should be on a disk")
    options = parser.parse_args(arguments)
    wrong = []
    for run in RUNS:
        name = run.partition(" ")[0]
        if options.only and name not in options.only:
            continue
        say(notes, f"python -m bench {run}")
        more = ["--json", str(options.into / f"{name}.jsonl"), *(["--quick"] * options.quick)]
        more += ["--dir", str(options.dir)] if options.dir else []
        command = [sys.executable, "-m", "bench", *run.split(), *more]
        if subprocess.run(command, env=importing_bench(), check=False).returncode:
            wrong.append(name)
    if wrong:
        raise BenchError(f"something was wrong with {', '.join(wrong)}")
    if options.into == where:
        return write_results([], notes)
    return 0
