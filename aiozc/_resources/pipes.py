"""Pipes, their budget, and who owns one.

A pipe has one owner at a time: a transfer's record, or the pool.

- A pool lends what its `BUDGET` says and then small ones, and takes what it gets (K7).
- Only a pipe known to be empty is kept, every other one is closed (K12).
- A pipe whose reader has stalled keeps what is in it, which is nowhere else: it is made as
  small as that, and is no large one any more.
- Making a pipe of 1 MiB and closing it takes 14 us here, dup and close 0.6 us: `KEPT` idle
  ones are enough for a busy loop, since a pipe is lent for one chain after another.
"""

import contextlib
import fcntl
import os

LARGE = 1 << 20
"""Bytes of a large pipe: the default of /proc/sys/fs/pipe-max-size."""
BUDGET = {LARGE: 16, LARGE // 4: 64}
"""How many pipes of each size a pool lends at the most: 32 MiB in all."""
SMALLEST = 16 << 10
"""Bytes of a pipe that waits with few bytes in it."""
KEPT = 4


class Pipe:
    """Both ends of a pipe, non-blocking, and its size in bytes."""

    __slots__ = ("read_end", "size", "write_end")

    def __init__(self, size: int | None) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        if size is not None:
            self._resize(size)
        self.size: int = fcntl.fcntl(self.write_end, fcntl.F_GETPIPE_SZ)

    def _resize(self, size: int) -> None:
        with contextlib.suppress(OSError):
            self.size = fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, size)

    def shrink(self) -> None:
        """Be as small as what is in it lets it be: the kernel refuses less (EBUSY)."""
        size = SMALLEST
        while size < self.size:
            self._resize(size)
            size *= 2

    def close(self) -> None:
        """Close both ends; what lies in the pipe is gone."""
        if self.read_end < 0:
            return
        os.close(self.read_end)
        os.close(self.write_end)
        self.read_end = self.write_end = -1


class PipePool:
    """The pipes of one engine: lent to one chain's record at a time."""

    def __init__(self) -> None:
        self._idle: list[Pipe] = []
        self._lent: set[Pipe] = set()
        self._left = dict(BUDGET)
        self._kept = KEPT

    def __len__(self) -> int:
        return len(self._idle) + len(self._lent)

    @property
    def lent(self) -> int:
        """How many are in use."""
        return len(self._lent)

    def lend(self) -> Pipe:
        """Lend an empty pipe, the largest there may be.

        Raises OSError where the process may open no more.
        """
        if self._idle:
            pipe = self._idle.pop()
        else:
            pipe = Pipe(next((size for size, left in self._left.items() if left > 0), None))
            self._count(pipe, -1)
        self._lent.add(pipe)
        return pipe

    def _count(self, pipe: Pipe, change: int) -> None:
        """Keep count of what is left of the budget; small pipes are outside of it."""
        if pipe.size in self._left:
            self._left[pipe.size] += change

    def give_back(self, pipe: Pipe, *, empty: bool) -> None:
        """Take a pipe back. Call it only when no SQE names the pipe any more."""
        self._lent.remove(pipe)
        if empty and pipe.size >= LARGE and len(self._idle) < self._kept:
            self._idle.append(pipe)
            return
        self._count(pipe, +1)
        pipe.close()

    def shrink(self, pipe: Pipe) -> None:
        """Take back the room that a lent pipe does not need for what is in it."""
        self._count(pipe, +1)
        pipe.shrink()
        self._count(pipe, -1)

    def drop_idle(self) -> bool:
        """Close the idle pipes, for whoever needs descriptors; return whether there were some."""
        dropped, self._idle = self._idle, []
        for pipe in dropped:
            self._count(pipe, +1)
            pipe.close()
        return bool(dropped)

    def close(self) -> None:
        """Close the idle pipes, and keep none from now on; those lent are their records'."""
        self.drop_idle()
        self._kept = 0
