"""Files are opened without waiting, or not at all."""

import os
from pathlib import Path

import pytest

from aiozc._kernel.paths import CachedOpener


def test_a_path_that_is_cached_is_opened_with_the_flags_given(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    opener = CachedOpener(os.O_RDONLY | os.O_CLOEXEC)
    fd = opener.open(os.fsencode(path))
    with os.fdopen(fd, "rb") as file:
        assert file.read() == b"content"
        assert not os.get_inheritable(fd)


def test_what_cannot_be_opened_is_an_error_and_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    opener = CachedOpener(os.O_RDONLY | os.O_CLOEXEC)
    with pytest.raises(OSError, match="opening a file"):
        opener.open(os.fsencode(tmp_path / "nobody"))
    with pytest.raises(ValueError, match="null byte"):
        opener.open(os.fsencode(tmp_path / "file") + b"\0.txt")
