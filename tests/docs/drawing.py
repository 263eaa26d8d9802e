"""What docs/architecture.md has from the code: `python -m tests.docs.drawing` writes it anew."""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from aiozc._resources import lifecycle
from aiozc._transfers import sendfile, splice, zerocopy
from tests.docs.test_layers import MODULES, imported, room_of

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
ROOMS = (
    *("_kernel", "_transfers", "_runtime", "_resources", "_engines", "_drivers", "_api"),
    *("_install", "lowlevel", "streams", "integrations"),
)


def rooms() -> str:
    """Draw which room imports which, without what follows from the rest."""
    beneath: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module in MODULES:
        if (room := room_of(module)) in beneath:
            for name in imported(module):
                other = name.removeprefix("aiozc.").split(".")[0]
                if name.startswith("aiozc.") and other in beneath and other != room:
                    beneath[room].add(other)

    def reach(room: str) -> set[str]:
        return beneath[room].union(*(reach(other) for other in beneath[room]))

    arrows = [
        f"    {room} --> {other}"
        for room in reversed(ROOMS)
        for other in sorted(beneath[room])
        if not any(other in reach(third) for third in beneath[room] - {other})
    ]
    return "\n".join(["```mermaid", "graph TD", *arrows, "```"])


def transitions(table: Mapping[Enum, Mapping[Enum, str]]) -> str:
    """Write a machine's states, and what may follow each of them."""
    lines = ["| state | what it is | may be followed by |", "| --- | --- | --- |"]
    for state, following in table.items():
        then = "; ".join(
            f"{other.name}: {when}".removesuffix(": ") for other, when in following.items()
        )
        lines.append(f"| {state.name} | {state.value} | {then} |")
    return "\n".join(lines)


def drawn() -> str:
    """Return the page with what it has from the code as that is now."""
    page = PAGE.read_text(encoding="utf-8")
    tables = (sendfile, splice, zerocopy, lifecycle)
    texts = {table.__name__.split(".")[-1]: transitions(table.NEXT) for table in tables}
    for name, text in {"rooms": rooms(), **texts}.items():
        before, _, rest = page.partition(f"<!-- {name} -->\n")
        _, end, behind = rest.partition(f"<!-- /{name} -->")
        page = f"{before}<!-- {name} -->\n{text}\n{end}{behind}"
    return page


if __name__ == "__main__":
    PAGE.write_text(drawn(), encoding="utf-8")
