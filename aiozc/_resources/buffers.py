"""Buffers that are registered with a ring: a disk writes into them, and a socket sends from them.

They are locked while the ring is there (RLIMIT_MEMLOCK counts them), so that neither a read nor
a send has to look their pages up; sends of them are not charged again. A buffer is used again
when the notification of its send has come. (Checked on 6.18: a ring closed and the buffers
unmapped with a send on its way, every byte arrived: the pages stay until then.)
"""

import errno

from aiozc._errors import error_from
from aiozc._kernel.calls import register_buffers
from aiozc._kernel.memory import Region

SIZE = 256 << 10
"""Bytes of one buffer."""
COUNT = 8
"""Buffers of one ring."""


class Buffers:
    """The registered buffers of the ring behind a descriptor."""

    def __init__(self, ring: int) -> None:
        """Raise OSError where they cannot be had: EBADF without a ring, ENOMEM."""
        if ring < 0:
            raise error_from(errno.EBADF, "registering buffers")
        self._region = Region(SIZE * COUNT)
        try:
            register_buffers(ring, self._region.address, SIZE, COUNT)
        except BaseException:
            self._region.close()
            raise
        self._free = set(range(COUNT))

    def take(self, most: int) -> set[int]:
        """Take `most` buffers, or as many as are free; return their numbers."""
        return {self._free.pop() for _ in range(min(most, len(self._free)))}

    def give_back(self, slot: int) -> None:
        """Give a buffer back. Neither an SQE nor a send queue may refer to it."""
        self._free.add(slot)

    def address_of(self, slot: int) -> int:
        """Return a buffer's address."""
        return self._region.address + slot * SIZE

    def close(self) -> None:
        """Unmap them: the ring has ended."""
        self._region.close()
