"""The architecture page tells of the code as it is."""

import re

from tests.docs.drawing import PAGE, drawn
from tests.docs.test_layers import PACKAGE


def test_its_picture_and_its_tables_are_those_of_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == drawn(), "run python -m tests.docs.drawing"


def test_each_module_that_it_names_is_there() -> None:
    named = re.findall(r"`(_\w+/\w+\.py)`", PAGE.read_text(encoding="utf-8"))
    assert len(set(named)) > 20
    assert [name for name in named if not (PACKAGE / name).is_file()] == []
