"""What every way does it does on every runtime."""

import pytest


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest, backend: str) -> object:  # noqa: ARG001
    """Run each test on both of asyncio's loops, and on trio."""
    return request.param
