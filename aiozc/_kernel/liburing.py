"""Finding liburing's shared object, and the prototypes of what is called in it."""

import ctypes
import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiozc._errors import RingUnavailableError
from aiozc._kernel import abi

VARIABLE = "AIOZC_LIBURING"
SYSTEM_NAMES = ("liburing-ffi.so.2", "liburing.so.2")
# The newest exported function that liburing 2.2 has and 2.1 has not.
NEWEST_NEEDED = "io_uring_register_ring_fd"


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded liburing that has every function the ring calls."""

    path: str
    version: str
    queue_init_params: Any
    queue_exit: Any
    submit: Any
    peek_batch_cqe: Any
    register_iowq_max_workers: Any


@functools.cache
def load() -> Library:
    """Load liburing: `AIOZC_LIBURING` alone where set, else the package's, else the system's.

    Raises RingUnavailableError, naming each object tried and what was wrong with it.
    """
    faults = []
    for path in _candidates():
        try:
            return open_library(path)
        except RingUnavailableError as error:
            faults.append(str(error))
    raise RingUnavailableError("no usable liburing: " + "; ".join(faults), *_how_to_have_it())


def _how_to_have_it() -> tuple[str, tuple[str, ...]]:
    if os.environ.get(VARIABLE):
        remedy = f"set {VARIABLE} to the path of liburing 2.2 or newer, or unset it"
        return remedy, (f"unset {VARIABLE}",)
    return (
        "install the PyPI package liburing, or the system's liburing 2.2 or newer, or set"
        f" {VARIABLE} to its path",
        ("pip install liburing", "apt install liburing2  # or this"),
    )


def open_library(path: str) -> Library:
    """Load the shared object at `path`, or raise RingUnavailableError with its fault."""
    try:
        shared = ctypes.CDLL(path, use_errno=False)
    except OSError as error:
        raise RingUnavailableError(f"{path} does not load: {error}") from error
    if not hasattr(shared, "io_uring_queue_init_params"):
        raise RingUnavailableError(f"{path} is not liburing")
    if not hasattr(shared, NEWEST_NEEDED):
        raise RingUnavailableError(f"{path} is older than liburing 2.2")
    ring = ctypes.POINTER(abi.Uring)
    return Library(
        path=path,
        version=_version(shared),
        queue_init_params=_prototype(
            shared,
            "io_uring_queue_init_params",
            [ctypes.c_uint, ring, ctypes.POINTER(abi.Params)],
            ctypes.c_int,
        ),
        queue_exit=_prototype(shared, "io_uring_queue_exit", [ring], None),
        submit=_prototype(shared, "io_uring_submit", [ring], ctypes.c_int),
        peek_batch_cqe=_prototype(
            shared,
            "io_uring_peek_batch_cqe",
            [ring, ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint],
            ctypes.c_uint,
        ),
        register_iowq_max_workers=_prototype(
            shared,
            "io_uring_register_iowq_max_workers",
            [ring, ctypes.POINTER(ctypes.c_uint)],
            ctypes.c_int,
        ),
    )


def _candidates() -> list[str]:
    override = os.environ.get(VARIABLE)
    if override:
        return [override]
    # The package is located, never imported: its module is another binding.
    spec = importlib.util.find_spec("liburing")
    folders = (spec.submodule_search_locations if spec else None) or []
    packaged = [str(Path(folder) / "liburing.so") for folder in folders]
    return [*packaged, *SYSTEM_NAMES]


def _prototype(shared: ctypes.CDLL, name: str, arguments: list[Any], result: Any) -> Any:
    function = shared[name]
    function.argtypes = arguments
    function.restype = result
    return function


def _version(shared: ctypes.CDLL) -> str:
    # liburing exports its version since 2.4.
    if hasattr(shared, "io_uring_major_version"):
        return f"{shared.io_uring_major_version()}.{shared.io_uring_minor_version()}"
    return "2.3" if hasattr(shared, "io_uring_register_sync_cancel") else "2.2"
