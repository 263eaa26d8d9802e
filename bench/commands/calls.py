"""``calls``: what a single call of a small cached file costs, measured by pyperf.

pyperf calibrates the number of calls of a sample and lets each contender run in several processes.
Run as a module, this is the script that pyperf runs in each of them.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyperf  # type: ignore[import-untyped]

from bench.commands.send import fleet_of
from bench.contenders import CONTENDERS, loop_factory
from bench.ends import SinkProcess, check_answer, connect
from bench.errors import BenchError
from bench.measure import Case, Values, Work
from bench.processes import importing_bench
from bench.scratch import make_file, warm
from bench.senders.lanes import Lane
from bench.units import parse_size, show_size

_JOB: Final = "AIOZC_BENCH_CALL"


def calls(work: Work, *, sizes: Sequence[str], amount: str) -> Iterator[Case]:
    """Give the cases, of which pyperf does so much; their figure is the mean of its values."""
    fleet, sink = fleet_of(work), work.enter(SinkProcess(discard=True))
    names, found = fleet.present(work), work.scratch / "pyperf.json"
    script = ["bench.commands.calls", "-o", str(found), "--quiet", *amount.split()]
    command = [sys.executable, "-m", *script, "--inherit-environ", f"PYTHONPATH,{_JOB}"]

    def turn(file: Path, name: str) -> Values:
        found.unlink(missing_ok=True)
        job = json.dumps({"name": name, "address": sink.ready, "file": str(file)})
        env = {**importing_bench(), _JOB: job}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"pyperf failed: {done.stderr.strip().rpartition(chr(10))[2]}")
        return {"time": pyperf.BenchmarkSuite.load(str(found)).get_benchmark(name).mean() * 1e6}

    for size in map(parse_size, sizes):
        file = warm(make_file(work.scratch / f"call-{size}", size))
        checks = fleet.checks(sink.ready, sink.check)
        yield work.case(show_size(size), names, partial(turn, file), **checks)


# What follows runs in pyperf's processes.


def _calls(job: dict[str, Any], loops: int) -> float:
    """Send the file so often, one call after another; give the seconds."""
    sender = CONTENDERS["sender"][job["name"]]
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=loop_factory(sender.loop)))
        sock = stack.enter_context(connect(job["address"]))
        sock.setblocking(False)
        file = stack.enter_context(Path(job["file"]).open("rb"))
        size = os.fstat(file.fileno()).st_size

        async def main() -> float:
            send = await sender.function()(Lane(sock, stack))
            await send(file, size)
            began = time.perf_counter()
            for _ in range(loops):
                await send(file, size)
            return time.perf_counter() - began

        seconds = runner.run(main())
        sock.shutdown(socket.SHUT_WR)
        sock.setblocking(True)
        check_answer(json.loads(sock.makefile().readline()), (loops + 1) * size)
    return seconds


if __name__ == "__main__":
    _job = json.loads(os.environ[_JOB])
    if (_backend := CONTENDERS["sender"][_job["name"]].backend) is not None:
        os.environ["AIOZC_BACKEND"] = _backend
    pyperf.Runner().bench_time_func(_job["name"], partial(_calls, _job))
