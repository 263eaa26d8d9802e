"""Driving a server with wrk, whose figures a script prints as JSON."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.http.servers import program

_SCRIPT: Final = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format(
    '{"microseconds": %d, "requests": %d, "bytes": %.0f, "p50": %.1f, "p99": %.1f, '
      .. '"errors": %d}\\n',
    summary.duration, summary.requests, summary.bytes, latency:percentile(50),
    latency:percentile(99), e.connect + e.read + e.write + e.status))
end
"""


@dataclass(frozen=True, slots=True)
class Driven:
    """What wrk has seen."""

    seconds: float
    requests: int
    bytes: int
    p50: float
    """Seconds, as p99."""
    p99: float


def check_installed() -> None:
    """Raise BenchError where there is no wrk."""
    if program("wrk") is None:
        raise BenchError("wrk is not installed (Debian package wrk)")


def write_script(directory: Path) -> Path:
    """Write the script that prints figures."""
    path = directory / "figures.lua"
    path.write_text(_SCRIPT)
    return path


def drive(url: str, script: Path, connections: int, seconds: int) -> Driven:
    """Ask for one file again and again, over so many connections, for so long."""
    limit = ["--timeout", "60s", "-d", f"{seconds}s", "-s", str(script)]
    command = [program("wrk") or "wrk", "-t", "1", "-c", str(connections), *limit, url]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _, said = process.communicate(timeout=seconds + 60)
        except BaseException:
            process.kill()
            raise
    try:
        found = json.loads(said)
    except ValueError:
        raise BenchError(f"wrk failed: {said.strip() or process.returncode}") from None
    if found["errors"]:
        raise BenchError(f"wrk saw {found['errors']} errors")
    return Driven(
        found["microseconds"] / 1e6,
        found["requests"],
        found["bytes"],
        found["p50"] / 1e6,
        found["p99"] / 1e6,
    )
