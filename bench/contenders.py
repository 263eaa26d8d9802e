"""Who takes turns, by kind and name, as contenders.toml has them."""

import fnmatch
import importlib.util
import shutil
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

import aiozc


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do something: by a function, on a loop as a rule, or by a program."""

    name: str
    do: str = ""
    """The function, as "module:name"; what it takes is its kind's affair."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What else it takes."""
    loop: str = "asyncio"
    backend: str | None = None
    """The backend of aiozc, where it is aiozc that does it."""
    blocking: bool = False
    """Whether it takes a socket that blocks; then the loop stands still meanwhile."""
    buffered: bool = False
    """Whether the size of a buffer is anything to it."""
    own_calls: bool = False
    """Whether the loop makes calls that cannot be seen from Python."""
    needs: Sequence[str] = ()
    """Programs (as ``/nginx``) and modules, without which it is only listed."""
    command: str = ""
    """What starts a program, with names in braces."""
    configuration: str = ""
    """Its file in this package, with names in braces too."""
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
    """Give the names of those of a kind that are like some patterns, in the order of these."""
    names = (name for pattern in patterns for name in fnmatch.filter(CONTENDERS[kind], pattern))
    return list(dict.fromkeys(names))
