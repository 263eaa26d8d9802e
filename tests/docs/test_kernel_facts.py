"""The page of kernel facts: cited by their numbers, and shown by the programs in it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kernel.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (K\d+) .*\n((?:(?!^## ).*\n)*)", PAGE, re.MULTILINE))
PROGRAMS = [
    pytest.param(program, id=number)
    for number, text in SECTIONS.items()
    for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
]


def cited() -> set[str]:
    sources = (ROOT / "aiozc").rglob("*.py")
    return {
        number
        for source in sources
        for number in re.findall(r"\bK\d+\b", source.read_text(encoding="utf-8"))
    }


def test_each_number_that_the_code_cites_is_on_the_page_and_each_one_there_is_cited() -> None:
    assert cited() == set(SECTIONS)


def test_the_facts_are_numbered_in_order() -> None:
    assert list(SECTIONS) == [f"K{number}" for number in range(1, len(SECTIONS) + 1)]


@pytest.mark.ring
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_kernel_does_what_the_page_says(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=ROOT)
