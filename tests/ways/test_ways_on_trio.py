"""The transfers' own tests, on trio."""

import pytest

from tests.kit import far_ends, on_trio, waiting, ways
from tests.ways import test_ways
from tests.ways.test_ways import *  # noqa: F403

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Run them on trio alone."""
    return "trio"


@pytest.fixture(autouse=True)
def bodies_on_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the bodies written for asyncio's loops use trio."""
    for module in (far_ends, waiting, ways, test_ways):
        monkeypatch.setattr(module, "asyncio", on_trio)
