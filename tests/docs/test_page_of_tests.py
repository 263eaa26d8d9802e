"""The page about the tests says what each folder and each part of the kit is about."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
KIT = TESTS / "kit"


def named_below(heading: str) -> list[str]:
    """Return the names that the tables of a section begin their rows with."""
    _, section = (TESTS / "README.md").read_text().split(f"\n## {heading}\n")
    return re.findall(r"^\| `(\w+)` \|", section.split("\n## ")[0], re.MULTILINE)


def test_the_page_names_every_folder() -> None:
    folders = {path.parent.name for path in TESTS.glob("*/test_*.py") if path.parent != KIT}
    assert named_below("What is where") == sorted(folders)


def test_the_page_names_every_module_of_the_kit() -> None:
    named = named_below("The kit")
    for folder in (KIT, KIT / "faults"):
        modules = sorted(path.stem for path in folder.glob("[!_]*.py"))
        modules = [name for name in modules if not name.startswith("test_")]
        assert named[: len(modules)] == modules
        del named[: len(modules)]
    assert not named
