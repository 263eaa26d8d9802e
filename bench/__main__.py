"""``python -m bench``: aiozc beside what there was before it."""

import sys
from collections.abc import Sequence
from functools import partial
from pkgutil import resolve_name

from rich.console import Console

from bench.console import COMMANDS, DEFAULT, parse, run_command
from bench.errors import BadInputError, BenchError, describe


def main(arguments: Sequence[str]) -> int:
    """Do what was asked for; give the exit status."""
    return run_command(partial(_main, list(arguments)))


def _main(arguments: list[str], notes: Console) -> int:
    """Call the function of a command, or measure its works."""
    name = DEFAULT
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        if name not in COMMANDS:
            raise BadInputError(f"there is no command {name!r}; there are {', '.join(COMMANDS)}")
    elif any(part.startswith(("--only", "--awake")) for part in arguments):
        name = "sendfile"  # whose options these are
    try:
        does = resolve_name(COMMANDS[name].get("main", "bench.run:run"))
        works = COMMANDS[name].get("works", {}).values()
        for part in [COMMANDS[name].get("each", {}), *works]:
            resolve_name(part.get("cases", "bench.run"))
    except Exception as error:  # whatever it is, nothing can be measured
        raise BenchError(f"{name} cannot run here: {describe(error)}") from error
    options = parse(name, arguments, measures=bool(works))
    return int(does(name, options, arguments, notes) if works else does(options, notes))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # while it was still importing, or already leaving
        sys.exit(130)
