"""Whether pages are cached."""

import os
from pathlib import Path

import pytest

from aiozc._kernel import pagecache
from aiozc._kernel.pagecache import BLOCK, Probe, ProbeByReading
from tests.kit.content import write_out

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


@pytest.mark.parametrize("lasts", [0.0, 1000.0])
def test_what_was_read_to_see_whether_it_is_cached_is_not_read_again_for_a_moment(
    lasts: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagecache, "LASTS_S", lasts)
    size = 3 * BLOCK - 5
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.write(os.urandom(size))
        probe, fd = ProbeByReading(), file.fileno()
        assert probe.is_cached(fd, BLOCK - 1, BLOCK + 2)
        assert probe.is_cached(fd, 0, size)
        assert not probe.is_cached(fd, 0, size + 1)
        write_out(file)
        assert probe.is_cached(fd, 0, size) is (lasts > 0)
        assert not ProbeByReading().is_cached(fd, 0, size)
    assert not probe.is_cached(fd, 0, 1)
