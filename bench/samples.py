"""What every command writes with --json, and what compare, plot and results read.

A file is lines of JSON. The first is the header, an object: the machine, the command lines, what
each work is and which contender its ratios are to, and who was not measured and why. Each other
line is one sample, an array in the order of `Sample`:

    ["sendfile", "small: 4 KiB, 1 conn.", "aiozc", 0, "time", "us", 8.24]

The part of a case before the colon is the name of its work.
"""

import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiozc
from bench.errors import BadInputError

SCHEMA: Final = "aiozc-bench/1"
_DIGITS: Final = 4


class Sample(NamedTuple):
    """One number that one turn gave."""

    command: str
    case: str
    contender: str
    round: int
    metric: str
    unit: str
    value: float

    @property
    def work(self) -> str:
        """The command and the work that it is of: "sendfile/small"."""
        return work_of(self.command, self.case)


def work_of(command: str, case: str) -> str:
    """Name the work that a case is of, as a record's ``works`` do."""
    return f"{command}/{case.partition(':')[0]}"


@dataclass(slots=True)
class Record:
    """What one run has found, or several together."""

    machine: dict[str, Any]
    commands: list[str] = field(default_factory=list)
    works: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each its ``title``, and its ``baseline``, whom ratios are to."""
    missing: dict[str, str] = field(default_factory=dict)
    """Who cannot run here, and why."""
    failed: dict[str, str] = field(default_factory=dict)
    """What was wrong with those that did run, and with works that were not done."""
    samples: list[Sample] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the file."""
        header = {"schema": SCHEMA, "columns": Sample._fields} | asdict(self)
        del header["samples"]
        lines = [header, *((*sample[:-1], _short(sample.value)) for sample in self.samples)]
        text = "\n".join(json.dumps(line, allow_nan=False) for line in lines)
        path.write_text(text + "\n", encoding="utf-8")


def _short(value: float) -> float:
    return value if value == int(value) else float(f"{value:.{_DIGITS}g}")


def read(paths: Sequence[Path]) -> Record:
    """Read the records in files, as one; raise BadInputError where one is something else."""
    records = [_read_one(path) for path in paths]
    whole = records[0]
    for record in records[1:]:
        for part in fields(Record)[1:]:
            mine, theirs = getattr(whole, part.name), getattr(record, part.name)
            setattr(whole, part.name, mine + theirs if isinstance(mine, list) else mine | theirs)
    return whole


def _read_one(path: Path) -> Record:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise BadInputError(f"{path} is not lines of JSON") from None
    try:
        header, *rest = lines
        if header["schema"] != SCHEMA:
            raise ValueError(header["schema"])
        parts = {part.name: header[part.name] for part in fields(Record)[:-1]}
        return Record(**parts, samples=[Sample(*line) for line in rest])
    except (TypeError, ValueError, KeyError):
        raise BadInputError(
            f"{path} is not what a command of python -m bench writes with --json"
        ) from None


def describe_machine() -> dict[str, Any]:
    """Say what the numbers were measured on, without naming the machine."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": model[1] if model is not None else None,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "uvloop": _version("uvloop"),
        "aiozc": _version("aiozc"),
        "liburing": _version("liburing"),
        "backend": aiozc.probe().backend,
    }


def tell_machine(machine: dict[str, Any]) -> str:
    """Say it in one line."""
    return (
        "{python}, uvloop {uvloop}, aiozc {aiozc} ({backend}); Linux {kernel}, {cpus} CPUs, "
        "{date}".format(**machine)
    )


def _version(package: str) -> str | None:
    return next((found.version for found in distributions(name=package)), None)
