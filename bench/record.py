"""``python -m bench record``: every run behind RESULTS.md and the README's tables."""

import subprocess
import sys
from argparse import Namespace
from typing import Final

from rich.console import Console

from bench.console import parse, say
from bench.errors import BenchError
from bench.processes import importing_bench
from bench.results import HERE
from bench.results import main as write_results

RUNS: Final = (
    *("sendfile", "middle", "pace --rounds 1", "mixed", "calls --rounds 2", "relay", "recvfile"),
    *("zc", "send --only sizes --rounds 3", "http --rounds 2 --seconds 2", "web --rounds 2"),
    "flood --rounds 2 --seconds 3",
)


def main(options: Namespace, notes: Console) -> int:
    """Do the runs, one after another, and write their results; give the exit status."""
    into = options.into or HERE / "results"
    wrong = []
    for run in RUNS:
        name = run.partition(" ")[0]
        if options.only and name not in options.only:
            continue
        say(notes, f"python -m bench {run}")
        more = ["--json", str(into / f"{name}.jsonl"), *(["--quick"] * options.quick)]
        more += ["--dir", str(options.dir)] if options.dir else []
        command = [sys.executable, "-m", "bench", *run.split(), *more]
        if subprocess.run(command, env=importing_bench(), check=False).returncode:
            wrong.append(name)
    if wrong:
        raise BenchError(f"something was wrong with {', '.join(wrong)}")
    return 0 if options.into else write_results(parse("results", []), notes)
