"""Memory by its address: what is mapped and what is held is given back."""

import ctypes
import errno
import mmap
import sys
from pathlib import Path

import pytest

from aiozc._kernel.memory import Export, Mapping
from tests.kit.content import MakeFile, pattern

PAGE = mmap.PAGESIZE


def mapped(name: str) -> int:
    """Return how many mappings of a file there are."""
    return sum(line.endswith(name) for line in Path("/proc/self/maps").read_text().splitlines())


def test_any_bytes_of_a_file_can_be_mapped_and_the_window_moves(make_file: MakeFile) -> None:
    content = pattern(20 * PAGE)
    file = make_file(content)
    mapping = Mapping(window=4 * PAGE)
    for offset, length in ((0, 1), (1, PAGE), (5 * PAGE - 7, 100), (3, 9 * PAGE), (19 * PAGE, 5)):
        address = mapping.address_of(file.fileno(), offset, length, len(content))
        assert ctypes.string_at(address, length) == content[offset : offset + length]
        assert mapped(file.name) == 1
    mapping.close()
    mapping.close()
    assert mapped(file.name) == 0


def test_what_cannot_be_mapped_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file, pytest.raises(PermissionError) as caught:
        Mapping().address_of(file.fileno(), 0, 1, 1)
    assert caught.value.errno == errno.EACCES


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_an_exported_object_is_held_until_it_is_released(kind: type) -> None:
    data = kind(pattern(1000))
    before = sys.getrefcount(data)
    export = Export(data)
    assert ctypes.string_at(export.address, 1000) == bytes(data)
    assert bytes(export.view(990, 10)) == bytes(data)[990:]
    assert sys.getrefcount(data) == before + 1
    if isinstance(data, bytearray):
        with pytest.raises(BufferError):
            data.extend(b"more")
    export.release()
    export.release()
    assert sys.getrefcount(data) == before


def test_what_is_not_one_run_of_bytes_cannot_be_exported() -> None:
    with pytest.raises(TypeError):
        Export("text")
    with pytest.raises(BufferError):
        Export(memoryview(bytes(10))[::2])


def test_what_is_kept_is_held_for_good() -> None:
    data = bytearray(10)
    export = Export(data)
    export.keep()
    export.release()
    del export
    with pytest.raises(BufferError):
        data.clear()
