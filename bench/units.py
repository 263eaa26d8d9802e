"""Sizes as people write them: 4K, 64 KiB, 1 MiB."""

import re
from typing import Final

from bench.errors import BadInputError

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

_UNITS: Final = {"": 1, "K": KIB, "M": MIB, "G": GIB}
_SIZE: Final = re.compile(r"(\d{1,15}) ?([KMG]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Read a size of one byte or more: a number of bytes, or of K, M or G (powers of 1024)."""
    found = _SIZE.fullmatch(text.strip())
    size = int(found[1]) * _UNITS[found[2].upper()] if found else 0
    if size < 1:
        raise BadInputError(f"{text!r} is no size: write a number of bytes, as 65536 or 64K")
    return size


def show_size(size: int) -> str:
    """Write a size, in the largest unit that it is a whole number of."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"
