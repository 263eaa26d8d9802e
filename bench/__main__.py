"""``python -m bench``: aiozc beside what there was before it."""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "send": "bench.send.command",
    "sink": "bench.sink",
    "http": "bench.http.command",
    "plot": "bench.plot",
    "compare": "bench.compare",
    "results": "bench.results",
}
"""Commands with arguments of their own, and where each is; the others are works (`bench.works`)."""


def main(arguments: Sequence[str]) -> int:
    """Do what was asked for; give the exit status."""
    module = "bench.works"
    if arguments and arguments[0] in COMMANDS:
        module, arguments = COMMANDS[arguments[0]], arguments[1:]
    status: int = import_module(module).main(arguments)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # while it was still importing, or already leaving
        sys.exit(130)
