"""What a zero-copy transfer sends: files and memory of objects, in order, as one source."""

import errno
import mmap
import os
from collections.abc import Sequence

from aiozc._engines.at_once import AtOnce
from aiozc._engines.buffers import SIZE
from aiozc._engines.records import HasFileno, Original
from aiozc._errors import error_from
from aiozc._kernel.memory import Export, Mapping, direct_alignment
from aiozc._kernel.status import known
from aiozc._transfers.steps import ReadFixed, SendCopied, SendFixed, SendMemory, SendZero
from aiozc._transfers.zerocopy import Piece

Source = HasFileno | Export


def hold(data: object) -> Export:
    """Return the memory of a bytes-like object, held until it is released."""
    return Export(data)


class _FilePart:
    """A file, the window of it that is mapped, and where what is to be sent of it ends."""

    def __init__(self, holder: HasFileno, piece: Piece) -> None:
        self.original = Original(holder, piece.offset)
        self.mapping = Mapping()
        self.direct = -1
        self.end = piece.offset + piece.length

    def open_direct(self) -> int:
        """Open the file again, to be read past the page cache; return what aligns such reads.

        Raises OSError where it cannot be.
        """
        path = f"/proc/self/fd/{self.original.copy}"
        self.direct = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        alignment = direct_alignment(self.direct)
        if not 0 < alignment < SIZE:
            raise error_from(errno.EINVAL, "reading past the page cache")
        return alignment

    def close_direct(self) -> None:
        if self.direct >= 0:
            os.close(self.direct)
            self.direct = -1

    def stage(self, step: SendZero, slot: int, alignment: int) -> tuple[ReadFixed, SendFixed]:
        """Return a send as a read of whole blocks into a buffer, and a send of it."""
        start = step.offset % alignment
        length = -(-(start + step.length) // alignment) * alignment
        read = ReadFixed(self.direct, step.offset - start, slot, length)
        return read, SendFixed(slot, start, step.length)

    def check_length(self, end: int) -> None:
        """Raise OSError (ENODATA) where the file ends before `end`.

        What lies behind its end in its last page reads as zeros, and would be sent: of a file
        that is cut off between this look and the send, up to a page of them.
        """
        size = known(self.original.copy).size
        if size < end:
            raise error_from(
                errno.ENODATA,
                f"the file has {size} bytes, and those up to {end} were to be sent:"
                " it was truncated during the transfer",
            )

    def locate(self, at_once: AtOnce, steps: Sequence[SendZero]) -> list[SendMemory]:
        """Return the sends, which follow each other, by their addresses."""
        fd, start = self.original.copy, steps[0].offset
        length = steps[-1].offset + steps[-1].length - start
        # All of them in one window: later it must not move.
        address = self.mapping.address_of(fd, start, length, self.end) - start
        # One question takes 40 us for 16 MiB, where sixteen take 160.
        cached = at_once.is_cached(fd, start, length)
        return [
            SendMemory(address + at, size, not (cached or at_once.is_cached(fd, at, size)))
            for _, at, size in steps
        ]

    def follow(self, moved: int) -> None:
        # In a forked child it was closed, and the position is the parent's.
        if self.original.copy >= 0:
            self.original.follow(moved)

    def close(self) -> None:
        self.close_direct()
        self.mapping.close()
        self.original.close()


class Parts(Original):
    """The parts of a transfer, a record's source: each a file, or memory that is held."""

    __slots__ = ("_alignment", "_parts", "_pieces")

    def __init__(self, sources: Sequence[Source], pieces: Sequence[Piece]) -> None:
        """Take a source for each piece. Raises OSError (EBADF) for a file that is closed."""
        self._pieces = pieces
        self._alignment = mmap.PAGESIZE
        self._parts = [
            source if isinstance(source, Export) else _FilePart(source, piece)
            for source, piece in zip(sources, pieces, strict=True)
        ]
        self.copy = -1

    def _files(self) -> list[_FilePart]:
        return [part for part in self._parts if isinstance(part, _FilePart)]

    def duplicate(self) -> None:
        """Have numbers of our own for the files."""
        for file in self._files():
            file.original.duplicate()

    def check_open(self) -> None:
        """Raise OSError (EBADF) where one of the files was closed by the caller."""
        for file in self._files():
            file.original.check_open()

    def has_moved(self) -> bool:
        """Return whether one of the files says that it is closed, or elsewhere."""
        return any(file.original.has_moved() for file in self._files())

    def follow_each(self, sent: Sequence[int]) -> None:
        """Let each file of which something was sent stand behind that, and one alone anyway."""
        for part, moved in zip(self._parts, sent, strict=True):
            if isinstance(part, _FilePart) and (moved or len(sent) == 1):
                part.follow(moved)

    def close(self) -> None:
        """Close our numbers, and unmap: what is in the send queue stays what it is."""
        for file in self._files():
            file.close()

    def abandon(self) -> None:
        """Close our numbers, whoever has them."""
        for file in self._files():
            file.original.abandon()

    def check_lengths(self, chain: Sequence[SendZero]) -> None:
        """Raise OSError (ENODATA) where a file ends before what is to be sent of it."""
        for step in chain:
            part = self._parts[step.part]
            if isinstance(part, _FilePart):
                part.check_length(step.offset + step.length)

    def locate(self, at_once: AtOnce, chain: Sequence[SendZero]) -> list[SendMemory]:
        """Return the sends by their addresses. Raises the OSError of mmap(2)."""
        found: list[SendMemory] = []
        for number, part in enumerate(self._parts):
            steps = [step for step in chain if step.part == number]
            if not steps:
                continue
            if isinstance(part, Export):
                found += [SendMemory(part.address + at, size, False) for _, at, size in steps]
            else:
                found += part.locate(at_once, steps)
        return found

    def open_direct(self) -> int:
        """Have the files be read past the page cache; return what aligns the reads of all.

        0 where one of them cannot be read so: then none is.
        """
        try:
            aligned = [file.open_direct() for file in self._files()]
        except OSError:
            self.close_direct()
            return 0
        self._alignment = max(aligned, default=mmap.PAGESIZE)
        return self._alignment

    def close_direct(self) -> None:
        """Have the files be read through the page cache again."""
        for file in self._files():
            file.close_direct()

    def is_direct(self, step: SendZero) -> bool:
        """Return whether it is a file's, to be read past the page cache."""
        part = self._parts[step.part]
        return isinstance(part, _FilePart) and part.direct >= 0

    def stage(self, step: SendZero, slot: int) -> tuple[ReadFixed, SendFixed]:
        """Return the read and the send for a step that `is_direct`."""
        part = self._parts[step.part]
        assert isinstance(part, _FilePart)
        return part.stage(step, slot, self._alignment)

    def is_whole(self, step: SendZero, read: ReadFixed) -> bool:
        """Return whether the file has all that is to be read for a step."""
        part = self._parts[step.part]
        assert isinstance(part, _FilePart)
        return read.offset + read.length <= known(part.original.copy).size

    def memory_of(self, step: SendCopied) -> memoryview | None:
        """Return a piece that is in memory already; None where it has to be read."""
        part = self._parts[step.part]
        return part.view(step.offset, step.length) if isinstance(part, Export) else None

    def read_cached(self, step: SendCopied, memory: memoryview) -> bool:
        """Read all of a file's piece into memory if no disk has to be waited for."""
        part = self._parts[step.part]
        assert isinstance(part, _FilePart)
        try:
            got = os.preadv(part.original.copy, (memory,), step.offset, os.RWF_NOWAIT)
        except OSError:
            return False
        return got == len(memory)

    def read(self, step: SendCopied, memory: memoryview) -> int:
        """Read a file's piece into memory, waiting for the disk; return how many there are."""
        part = self._parts[step.part]
        assert isinstance(part, _FilePart)
        return os.preadv(part.original.copy, (memory,), step.offset)
