"""``python -m bench``: aiozc beside what there was before it."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Final, NamedTuple

from rich.console import Console

from bench.console import run_command
from bench.errors import BadInputError, BenchError, describe


class Command(NamedTuple):
    """A command, and the module that does it.

    A module has either ``main(arguments, notes)``, which gives the exit status, or a function of
    the command's own name, which gives its works, and may have one that adds ``..._options``.
    """

    module: str
    purpose: str


DEFAULT: Final = "overview"
COMMANDS: Final = {
    DEFAULT: Command("bench.commands.overview", "best and worst in one table; the default"),
    "sendfile": Command("bench.commands.sendfile", "loop_sendfile beside loop.sock_sendfile"),
    "middle": Command("bench.commands.sendfile", "cached files of 128 KiB to 8 MiB"),
    "pace": Command("bench.commands.crowds", "many slow clients, over time"),
    "mixed": Command("bench.commands.crowds", "small requests beside streams and cold files"),
    "calls": Command("bench.commands.calls", "single calls for small files, by pyperf"),
    "relay": Command("bench.commands.relay", "a proxy by relay beside streams and HAProxy"),
    "recvfile": Command("bench.commands.recvfile", "uploads by loop_recvfile and others"),
    "zc": Command("bench.commands.sendfile", "sendfile_zc beside sock_sendall, MSG_ZEROCOPY"),
    "send": Command("bench.commands.send", "every way to send a file, side by side"),
    "sink": Command("bench.sink", "the receiver of send, for another machine"),
    "http": Command("bench.web.commands", "web servers, stock and with aiozc, under wrk"),
    "web": Command("bench.web.commands", "ranges, StaticFiles and uploads of web servers"),
    "flood": Command("bench.web.commands", "a small request beside slow readers and a flood"),
    "record": Command("bench.record", "every run behind RESULTS.md and the README"),
    "results": Command("bench.results", "RESULTS.md, its pictures and the README's tables"),
    "plot": Command("bench.plot", "the pictures that runs have figures for"),
    "compare": Command("bench.compare", "what changed between two runs by more than the spread"),
}


def main(arguments: Sequence[str]) -> int:
    """Do what was asked for; give the exit status."""
    return run_command(partial(_main, list(arguments)))


def _main(arguments: list[str], notes: Console) -> int:
    name = DEFAULT
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        if name not in COMMANDS:
            raise BadInputError(f"there is no command {name!r}; there are {', '.join(COMMANDS)}")
    elif any(part.startswith(("--only", "--awake")) for part in arguments):
        name = "sendfile"  # whose options these are
    try:
        module = import_module(COMMANDS[name].module)
        action: Callable[[Sequence[str], Console], int]
        if hasattr(module, "main"):
            action = module.main
        else:
            works, add = getattr(module, name), getattr(module, f"{name}_options", None)
            action = partial(import_module("bench.run").run, name, works, add)
    except Exception as error:  # whatever it is, nothing can be measured
        raise BenchError(f"{name} cannot run here: {describe(error)}") from error
    return action(arguments, notes)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # while it was still importing, or already leaving
        sys.exit(130)
