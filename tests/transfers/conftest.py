"""Hypothesis without deadlines: how long an example takes is the machine's affair."""

import pytest
from hypothesis import settings

settings.register_profile("aiozc", deadline=None)
settings.load_profile("aiozc")


@pytest.fixture
def chains_pay_early() -> None:
    """Have the figures as they are: the machines' tests say what they mean by them."""
