"""``python -m aiozc info``: what aiozc can do here, and what would lift what it cannot."""

import argparse
import contextlib
import json
import os
import platform
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from aiozc import Advice, Capabilities, Part, __version__, probe

_WIDTH = 96
_LABEL = 11
_KIB = 1024
_SECCOMP = ("off", "strict", "a filter")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what was asked for; return the exit status: 0 where transfers work."""
    options = _parse(arguments)
    try:
        facts = probe()
    except OSError as error:
        print(f"aiozc: a ring cannot be tried: {error}", file=sys.stderr)
        return 1
    _show(_as_json(facts) if options.json else "\n".join(_as_text(facts)))
    return 0 if facts.backend else 1


def _show(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text)
    _write_out()


def _write_out() -> None:
    """Write out what was printed, if anybody reads it: the exit status says the same."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # At its end the interpreter would write out what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aiozc", description=__doc__)
    parser.add_argument("--version", action="version", version=f"aiozc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser(
        "info",
        help="tell which engine is used here, and why",
        description="Tell which engine is used here, and why; what the kernel and liburing can"
        " do; and what would lift what is missing. The exit status is 0 where transfers work,"
        " by whichever engine, and 1 where they do not.",
    )
    info.add_argument("--json", action="store_true", help="as one JSON object")
    try:
        return parser.parse_args(arguments)
    finally:
        _write_out()


def _as_json(facts: Capabilities) -> str:
    versions = {"aiozc": __version__, "python": platform.python_version()}
    return json.dumps(versions | asdict(facts), indent=2)


def _as_text(facts: Capabilities) -> Iterator[str]:
    yield f"aiozc {__version__} on {platform.python_implementation()} {platform.python_version()}"
    yield ""
    yield from _row("engine", facts.backend or "none: transfers do not work")
    yield from _row("", facts.reason)
    yield from _row("kernel", f"{facts.platform.capitalize()} {facts.kernel}")
    if facts.platform == "linux":
        yield from _on_linux(facts)
    for advice in facts.advice:
        yield from _as_advised(advice)


def _on_linux(facts: Capabilities) -> Iterator[str]:
    yield from _row("io_uring", "refused, see below" if facts.refused else "allowed")
    yield from _row("", _who_was_asked(facts))
    fault = "cannot be used, see below" if facts.liburing_fault else ""
    yield from _row("liburing", f"{facts.liburing_version} {fault}".strip())
    yield from _row("", facts.liburing)
    yield from _parts("opcodes", facts.opcodes)
    yield from _parts("features", facts.features)
    yield from _row("cachestat", "yes" if facts.cachestat else "no")
    yield from _row("pipes", f"largest: {_size(facts.pipe_max_size)}")
    yield from _row("", _pages("soft", facts.pipe_user_pages_soft, facts.page_size))
    yield from _row("", _pages("hard", facts.pipe_user_pages_hard, facts.page_size))
    yield from _row("memlock", _size(facts.memlock))
    yield from _row("optmem_max", _size(facts.optmem_max))


def _who_was_asked(facts: Capabilities) -> str:
    disabled, group = facts.io_uring_disabled, facts.io_uring_group
    sysctl = "absent" if disabled is None else f"{disabled} (io_uring_group {group})"
    mode = "unknown" if facts.seccomp is None else _SECCOMP[facts.seccomp]
    return f"kernel.io_uring_disabled: {sysctl}; seccomp: {mode}"


def _parts(label: str, parts: Sequence[Part]) -> Iterator[str]:
    for kind, needed in (("needed", True), ("optional", False)):
        if those := [part for part in parts if part.needed is needed]:
            known = "" if those[0].present is not None else ", not to be asked here"
            yield from _row(label, f"{kind}{known}: {', '.join(map(_part, those))}")
            label = ""


def _part(part: Part) -> str:
    return f"{part.name} (missing)" if part.present is False else part.name


def _pages(limit: str, pages: int | None, page_size: int | None) -> str:
    if pages is None or page_size is None:
        return f"{limit} limit of a user's pipes: unknown"
    size = f"{pages} pages ({_size(pages * page_size)})" if pages else "none"
    return f"{limit} limit of a user's pipes: {size}"


def _size(size: int | None) -> str:
    """Write a number of bytes with the largest unit that divides it."""
    if size is None:
        return "unknown"
    if size < 0:
        return "no limit"
    for unit in ("B", "KiB", "MiB"):
        if size % _KIB or not size:
            return f"{size} {unit}"
        size //= _KIB
    return f"{size} GiB"


def _as_advised(advice: Advice) -> Iterator[str]:
    yield ""
    yield from _wrapped(advice.missing, "! ", "  ")
    yield from _wrapped(advice.remedy, "  -> ", "     ")
    yield from (f"     {line}" for line in advice.lines)


def _row(label: str, value: str) -> Iterator[str]:
    if value:
        yield from _wrapped(value, f"{label:<{_LABEL}}", " " * _LABEL)


def _wrapped(text: str, first: str, then: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    sys.exit(main())
