"""``python -m bench``: aiozc beside what there was before it."""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from rich.console import Console

from bench.console import COMMANDS, DEFAULT, parse, run_command
from bench.errors import BadInputError, BenchError, describe


def main(arguments: Sequence[str]) -> int:
    """Do what was asked for; give the exit status."""
    return run_command(partial(_main, list(arguments)))


def _main(arguments: list[str], notes: Console) -> int:
    """Call the ``main`` of the command's module, or measure the works that it gives."""
    name = DEFAULT
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        if name not in COMMANDS:
            raise BadInputError(f"there is no command {name!r}; there are {', '.join(COMMANDS)}")
    elif any(part.startswith(("--only", "--awake")) for part in arguments):
        name = "sendfile"  # whose options these are
    try:
        module = import_module(COMMANDS[name]["module"])
        run = None if hasattr(module, "main") else import_module("bench.run").run
    except Exception as error:  # whatever it is, nothing can be measured
        raise BenchError(f"{name} cannot run here: {describe(error)}") from error
    options = parse(name, arguments, measures=run is not None)
    if run is None:
        return int(module.main(options, notes))
    return int(run(name, module, options, arguments, notes))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # while it was still importing, or already leaving
        sys.exit(130)
