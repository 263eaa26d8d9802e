"""Whether pages are cached."""

import os
from pathlib import Path

import pytest

from aiozc._kernel.pagecache import Probe

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(os.urandom(64 * PAGE))
    with made.open("rb") as file:
        os.fsync(file.fileno())
    return made


def test_what_was_written_or_read_is_cached_and_what_was_dropped_is_not(path: Path) -> None:
    probe = Probe()
    with path.open("rb") as file:
        fd = file.fileno()
        assert probe.is_cached(fd, 0, 64 * PAGE)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert probe.is_cached(fd, 0, 64 * PAGE) is False
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(fd, PAGE, 5 * PAGE)
        assert probe.is_cached(fd, 5 * PAGE, PAGE)
        assert probe.is_cached(fd, 5 * PAGE + 1, PAGE - 1)
        assert probe.is_cached(fd, 5 * PAGE + 1, PAGE) is False


def test_nothing_is_known_of_a_descriptor_that_is_none() -> None:
    assert Probe().is_cached(-1, 0, 1) is None
