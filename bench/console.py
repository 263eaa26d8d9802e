"""What the commands share: how they end, what they say when they cannot, and the bar they show."""

import argparse
import signal
import tomllib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.errors import BadInputError, BenchError, describe
from bench.units import parse_size

_MOST = 1_000_000
_TOLD: Final = tomllib.loads(Path(__file__).with_name("commands.toml").read_text())
COMMANDS: Final[dict[str, dict[str, Any]]] = _TOLD["commands"]
DEFAULT: Final = "overview"


class Parser(argparse.ArgumentParser):
    """A parser that says in one sentence what it cannot take."""

    def error(self, message: str) -> NoReturn:
        """Raise BadInputError."""
        raise BadInputError(message)


def parse(name: str, arguments: Sequence[str], *, measures: bool = False) -> argparse.Namespace:
    """Read what a command was told; raise BadInputError where it cannot take that."""
    default, purpose = name == DEFAULT, COMMANDS[name]["purpose"]
    told = [f"{purpose[0].upper()}{purpose[1:]}."]
    if measures:
        told += ["The contenders take turns, each in a process of its own."]
    if default:
        several = [f"  {key:10}{each['purpose']}" for key, each in COMMANDS.items()]
        told += ["", "commands:", *several]
    parser = Parser(
        prog="python -m bench" if default else f"python -m bench {name}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="\n".join(told),
        epilog="Each command has a --help of its own." if default else None,
    )
    shared = _TOLD["measuring"] if measures else {}
    for option, how in {**shared, **COMMANDS[name].get("options", {})}.items():
        kind = {"type": partial(_read, _TYPES[how["type"]])} if "type" in how else {}
        parser.add_argument(option, **{**how, **kind})
    return parser.parse_intermixed_args(list(arguments))


def run_command(action: Callable[[Console], int]) -> int:
    """Call ``action`` with a console for notes; give the exit status.

    It is 2 for what was asked for wrongly, 1 for what cannot be measured, and after a signal
    what a shell expects; one sentence on standard error says which.
    """
    notes = Console(stderr=True, soft_wrap=True)
    status = 130

    def stop(*_: object) -> None:
        nonlocal status
        status = 143
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # which loops know how to take

    signal.signal(signal.SIGTERM, stop)  # so that files and processes go with this one
    try:
        return action(notes)
    except KeyboardInterrupt:
        say(notes, "stopped")
        return status
    except BadInputError as error:
        say(notes, str(error))
        return 2
    except (BenchError, OSError) as error:
        say(notes, describe(error))
        return 1


def say(notes: Console, text: str) -> None:
    """Say something beside the results."""
    notes.print(f"bench: {text}", markup=False, highlight=False)


def console_for_tables(most: int = 1000) -> Console:
    """Make the console on standard output: as wide as its tables where it is no terminal."""
    out = Console()
    return Console(width=min(out.width if out.is_terminal else 190, most))


def make_progress(notes: Console) -> Progress:
    """Make a progress bar, for a terminal alone.

    It has no refreshing thread, which would take the CPU, and the GIL, from what is measured:
    refresh it between turns.
    """
    shown = notes.is_terminal
    what = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*what, console=notes, auto_refresh=False, transient=True, disable=not shown)


# Types of arguments.


def _read(kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except BadInputError as error:  # so that argparse says of which option
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """Read a whole number of 1 or more, and less than makes sense to nobody."""
    if not text.isdecimal() or not 1 <= int(text[:9]) <= _MOST or len(text) > 9:
        raise BadInputError(f"{text!r} is no whole number from 1 to {_MOST}")
    return int(text)


def sizes(text: str) -> list[str]:
    """Read sizes, with commas between them; give them as they are written."""
    parts = text.split(",")
    return [part for part in parts if parse_size(part)]


def numbers(text: str) -> list[int]:
    """Read whole numbers, with commas between them."""
    return [positive(part) for part in text.split(",")]


def microseconds(text: str) -> float:
    """Read a time of up to a second, in us; give it in seconds."""
    if not 0 <= (number := float(text)) <= 1e6:
        raise BadInputError(f"{text!r} is no time from 0 to 1000000 us")
    return number / 1e6


def folder(text: str) -> Path:
    """Read the path of a directory that is there."""
    if not Path(text).is_dir():
        raise BadInputError(f"{text} is not a directory")
    return Path(text)


def new_file(text: str) -> Path:
    """Read the path of a file that can be written."""
    path = Path(text)
    if path.is_dir():
        raise BadInputError(f"{text} is a directory")
    if not path.absolute().parent.is_dir():
        raise BadInputError(f"{path.parent} is not a directory")
    return path


_TYPES: Final[dict[str, Callable[[str], Any]]] = {
    **{each.__name__: each for each in (positive, sizes, numbers, microseconds, folder, new_file)},
    "size": parse_size,
    "int": int,
    "path": Path,
}
"""What a type of commands.toml is."""
