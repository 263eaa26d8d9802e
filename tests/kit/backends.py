"""Which backend moves a test's bytes: the one that the library chooses here, or either."""

import contextlib
import os
from collections.abc import Iterator

import pytest

import aiozc
from tests.kit.folding import is_unfolded

VARIABLE = "AIOZC_BACKEND"
CHOSEN = aiozc.probe().backend
"""What is used where a test asks for nothing else."""
BACKENDS = ["io_uring", "readiness"] if CHOSEN == "io_uring" else [CHOSEN]
"""What can be used here."""


def lends() -> bool:
    """Say whether `sendfile_zc` sends without a copy; where not it copies, and promises as much."""
    return os.environ.get(VARIABLE, CHOSEN) == "io_uring"


@contextlib.contextmanager
def use(backend: str) -> Iterator[None]:
    """Have this backend used for a while, here and by the processes that are started."""
    with pytest.MonkeyPatch.context() as patch:
        if backend != CHOSEN:
            patch.setenv(VARIABLE, backend)
        yield


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Make a test for each backend of what uses one, or one for the backend chosen."""
    if "backend" in metafunc.fixturenames:
        unfolded = is_unfolded(metafunc.config) or "each_backend" in metafunc.fixturenames
        each = unfolded and not metafunc.definition.get_closest_marker("ring")
        metafunc.parametrize("backend", BACKENDS if each else [CHOSEN], indirect=True)
