"""Fixtures for tests of the benchmark."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def keeps_signals() -> Iterator[None]:
    """Put back what a command does on SIGTERM when it is called in this process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
