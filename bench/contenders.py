"""Who takes turns, by kind and name, as contenders.toml has them, and how programs are run."""

import fnmatch
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final, Self

import aiozc
from bench.ends import HOST, listen
from bench.errors import BadInputError, BenchError
from bench.processes import cpu_time, end_with_parent, importing_bench

_HERE: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do something: a row of contenders.toml, where its parts are told."""

    name: str
    do: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    loop: str = "asyncio"
    backend: str | None = None
    blocking: bool = False
    buffered: bool = False
    own_calls: bool = False
    needs: Sequence[str] = ()
    command: str = ""
    configuration: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def function(self) -> Callable[..., Any]:
        """Find what does it."""
        return partial(resolve_name(self.do), **self.arguments)

    def missing(self) -> str | None:
        """Say why it cannot run here, if so."""
        if self.backend == "io_uring" and not (probe := aiozc.probe()).io_uring:
            return str(probe.refused or probe.reason)
        for need in [*self.needs, *([self.loop] if self.do else [])]:
            if need.startswith("/") and program(need[1:]) is None:
                return f"{need[1:]} is not installed"
            if not need.startswith("/") and not has_module(need):
                return f"the module {need} is not installed"
        return None


def loop_factory(name: str) -> Callable[..., Any]:
    """Find what makes a loop: only now, for that uvloop is missing is the affair of its users."""
    made_by = {"asyncio": "asyncio:SelectorEventLoop", "uvloop": "uvloop:new_event_loop"}
    factory: Callable[..., Any] = resolve_name(made_by[name])
    return factory


def program(name: str) -> str | None:
    """Find a program, also where Debian has what only root's PATH looks at."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def has_module(name: str) -> bool:
    """Whether a module can be imported."""
    with suppress(ModuleNotFoundError):  # a package above it
        return importlib.util.find_spec(name) is not None
    return False


CONTENDERS: Final = {
    kind: {name: Contender(name, **told) for name, told in several.items()}
    for kind, several in tomllib.loads(Path(__file__).with_suffix(".toml").read_text()).items()
}


def like(kind: str, patterns: Iterable[str]) -> list[str]:
    """Give the names of those of a kind that are like some patterns, in the order of these.

    Of patterns with a bar between them the first counts that is of one who can run here.
    """
    names, known = list[str](), CONTENDERS[kind]
    for pattern in patterns:
        several = [fnmatch.filter(known, part) for part in pattern.split("|")]
        here = (found for found in several if any(known[name].missing() is None for name in found))
        names += next(here, several[0])
    return list(dict.fromkeys(names))


class Running:
    """A program's process, and those that it starts; a context manager.

    What stands in braces in its command and its configuration are its arguments and the ``site``,
    {port}, {scratch} for its files, {python}, {ours} for this package, and programs by their names.
    """

    def __init__(self, contender: Contender, scratch: Path, **site: Any) -> None:
        scratch = Path(tempfile.mkdtemp(dir=scratch))
        self.name, self._port = contender.name, _free_port()
        self._said = (scratch / "said").open("w+b")
        user = "user root;" if os.geteuid() == 0 else ""  # nobody cannot read a temporary directory
        told = {**site, **contender.arguments, "scratch": scratch, "port": self._port, "user": user}
        told |= {"python": sys.executable, "ours": _HERE}
        told |= {need[1:]: program(need[1:]) for need in contender.needs if need.startswith("/")}
        if contender.configuration:
            template = _HERE / contender.configuration
            (scratch / template.name).write_text(template.read_text().format(**told))
        files = {"BENCH_DIRECTORY": str(site.get("directory"))}
        self._process = subprocess.Popen(
            [word.format(**told) for word in contender.command.split()],
            env={**importing_bench(), **files, **contender.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        self.pid = self._process.pid

    @cached_property
    def ready(self) -> tuple[str, int]:
        """Where it takes connections, waited for; raises BenchError if it ends."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            self.check()
            with suppress(OSError):
                socket.create_connection((HOST, self._port), timeout=1).close()
                return HOST, self._port
            time.sleep(0.02)
        raise BenchError(f"{self.name} takes no connections")

    def check(self, _: float = 0) -> None:
        """Raise BenchError if it has ended."""
        if self._process.poll() is not None:
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().rpartition("\n")[2]
            status = self._process.returncode
            raise BenchError(f"{self.name} ended with status {status}: {said}")

    def cpu(self) -> float:
        """Give the CPU time of its processes, in seconds."""
        return sum(cpu_time(pid) for pid in self.processes())

    def processes(self) -> list[int]:
        """Find its processes."""
        import psutil  # type: ignore[import-untyped]  # only now: those on a loop need it not

        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.pid)
            return [first.pid, *(child.pid for child in first.children(recursive=True))]
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):  # it ended with another
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._said.close()


def _free_port() -> int:
    """Find a port that nobody listens on, below those that connections are given."""
    for port in random.sample(range(10_000, 32_000), 100):
        with suppress(BadInputError), listen(port=port):
            return port
    raise BenchError("there is no free port")
