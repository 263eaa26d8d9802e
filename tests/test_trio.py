"""The transfers on trio."""

import pytest

from . import on_trio, support, test_ways, ways
from .test_ways import *

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.fixture(autouse=True)
def bodies_on_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (support, ways, test_ways):
        monkeypatch.setattr(module, "asyncio", on_trio)
