"""Which liburing is used, and which is refused."""

import ctypes
import ctypes.util
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiozc._errors import RingUnavailableError
from aiozc._kernel import abi, liburing
from aiozc._kernel.ring import Ring, prep_nop


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Let each test load the library anew, and leave nothing of it behind."""
    liburing.load.cache_clear()
    yield
    liburing.load.cache_clear()


def a_path() -> str:
    """Return the path of a liburing that is here."""
    return liburing.load().path


@pytest.mark.ring
def test_what_is_found_here_is_new_enough_and_works() -> None:
    library = liburing.load()
    major, minor = map(int, library.version.split("."))
    assert (major, minor) >= (2, 2)
    ring = Ring(8)
    ring.submit([prep_nop(1)])
    ring.close()


def test_the_variable_is_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOZC_LIBURING", "/nowhere/liburing.so")
    with pytest.raises(RingUnavailableError) as caught:
        liburing.load()
    sentence = str(caught.value)
    assert sentence.startswith("no usable liburing: /nowhere/liburing.so does not load: ")
    assert all(name not in sentence for name in liburing.SYSTEM_NAMES)


def test_the_variable_goes_before_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = tmp_path / "liburing-of-mine.so"
    link.symlink_to(Path(a_path()).resolve())
    liburing.load.cache_clear()
    monkeypatch.setenv("AIOZC_LIBURING", str(link))
    assert liburing.load().path == str(link)


def test_every_object_tried_is_named_with_its_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(liburing, "SYSTEM_NAMES", ("libnowhere-ffi.so.2", "libnowhere.so.2"))
    with pytest.raises(RingUnavailableError) as caught:
        liburing.load()
    assert "libnowhere-ffi.so.2 does not load" in str(caught.value)
    assert "libnowhere.so.2 does not load" in str(caught.value)


def test_another_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ctypes.util.find_library("m")
    assert other is not None
    monkeypatch.setenv("AIOZC_LIBURING", other)
    with pytest.raises(RingUnavailableError, match=f"{other} is not liburing"):
        liburing.load()


def test_an_older_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_path()
    monkeypatch.setattr(liburing, "NEWEST_NEEDED", "io_uring_of_a_later_year")
    with pytest.raises(RingUnavailableError, match=r"is older than liburing 2\.2"):
        liburing.open_library(path)


@pytest.mark.ring
@pytest.mark.parametrize("field", ["features", "flags", "ring_fd"])
def test_a_library_of_another_layout_is_refused_and_leaves_nothing(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own answer is moved by one field, as a changed struct would."""
    library = liburing.load()
    real = library.queue_init_params

    class Shifted:
        path, version = "liburing-shifted.so", "9.9"
        queue_exit = library.queue_exit

        @staticmethod
        def queue_init_params(entries: int, uring: object, parameters: object) -> int:
            result = int(real(entries, uring, parameters))
            filled = ctypes.cast(uring, ctypes.POINTER(abi.Uring)).contents  # type: ignore[arg-type]
            Shifted.kept = int(getattr(filled, field))
            setattr(filled, field, -1 if field == "ring_fd" else 0)
            return result

        kept = 0

    monkeypatch.setattr(liburing, "load", lambda: Shifted)
    with pytest.raises(RingUnavailableError, match=r"liburing-shifted.so \(liburing 9.9\)"):
        Ring(8)
    if field == "ring_fd":
        # The library has lost sight of it; a library of another layout would have not.
        os.close(Shifted.kept)
