"""Transports to send by, on loops with aiozc installed, and protocols that note what they hear."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.kit.far_ends import FarEnd
from tests.kit.loops import WITH_AIOZC
from tests.kit.transports import Open


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"loop_factory": factory}), id=name)
        for name, factory in WITH_AIOZC.items()
    ]
)
def anyio_backend(request: pytest.FixtureRequest, backend: str) -> object:  # noqa: ARG001
    """Run each asynchronous test on both loops, made by anyio of aiozc's factory."""
    return request.param


@pytest.fixture
async def loop() -> Any:
    """Return the running loop, whose methods are not those that its type has."""
    return asyncio.get_running_loop()


@pytest.fixture
async def open_line(far_end: FarEnd, family: int) -> AsyncIterator[Open]:
    """Make transports with a far end, over TCP and over UNIX sockets."""
    with contextlib.ExitStack() as stack:
        lines = Open(far_end, family, stack)
        yield lines
        await lines.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Listen on a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener
