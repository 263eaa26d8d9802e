"""``python -m bench``: aiozc beside what there was before it."""

import sys
from collections.abc import Sequence
from importlib import import_module

from rich.console import Console

from bench.commands import COMMANDS, DEFAULT
from bench.console import run_command
from bench.errors import BenchError, describe


def main(arguments: Sequence[str]) -> int:
    """Do what was asked for; give the exit status."""
    return run_command(lambda notes: _main(arguments, notes))


def _main(arguments: Sequence[str], notes: Console) -> int:
    name = arguments[0] if arguments and arguments[0] in COMMANDS else DEFAULT
    module = COMMANDS[name].module
    if module != COMMANDS[DEFAULT].module:
        arguments = arguments[1:]  # the others share a parser, which takes the name too
    try:
        command = import_module(module)
    except ImportError as error:
        raise BenchError(f"{name} cannot run here: {describe(error)}") from error
    status: int = command.main(arguments, notes)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # while it was still importing, or already leaving
        sys.exit(130)
