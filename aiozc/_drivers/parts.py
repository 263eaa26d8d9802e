"""What a zero-copy transfer sends: files and memory of objects, in order, as one source."""

import array
import contextlib
import errno
import itertools
import mmap
import os
from collections.abc import Sequence

from aiozc._engines.inline import SMALL, Inline
from aiozc._errors import error_from
from aiozc._kernel.memory import Export, Mapping, direct_alignment
from aiozc._kernel.status import known
from aiozc._resources.buffers import SIZE
from aiozc._resources.liveness import Ask
from aiozc._resources.loans import Loan
from aiozc._resources.records import HasFileno, Original
from aiozc._transfers.steps import ReadFixed, SendCopied, SendFixed, SendMemory, SendZeroCopy
from aiozc._transfers.zerocopy import Piece

TOGETHER = 256 << 10
"""The most bytes that are copied together, and sent by one step."""
MOST = 512
"""The most objects of these: copying so many of a byte takes 20 us."""
TINY = 256
"""Bytes that are copied at once. 100,000 views keep the interpreter's collector busy for 50 ms."""
_OWN_MEMORY = frozenset({bytes, bytearray, array.array})

READ = 1 << 20
"""Bytes of one read of what is to be cached."""


class Gather:
    """Small objects that follow each other, copied together when they are to be sent.

    None of them may be mapped: reading from here what a truncation has taken away ends the process
    by SIGBUS.
    """

    def __init__(self, first: memoryview) -> None:
        self.nbytes = 0
        self._buffers: list[bytes | memoryview] = []
        self._add(first)

    def _add(self, view: memoryview) -> None:
        self.nbytes += view.nbytes
        data = view.obj
        if isinstance(data, bytes) and len(data) == view.nbytes:
            self._buffers.append(data)
        else:
            # What may change is held by a view of it, which is larger than what is TINY.
            self._buffers.append(bytes(view) if view.nbytes <= TINY else view)

    def take(self, view: memoryview) -> bool:
        """Add one more, if there is room."""
        fits = len(self._buffers) < MOST and self.nbytes + view.nbytes <= TOGETHER
        if fits:
            self._add(view)
        return fits

    def copy(self) -> bytes:
        """Return the bytes of all of them."""
        return b"".join(self._buffers)


def is_small(source: object) -> bool:
    """Return whether something is memory that is to be gathered with its neighbours."""
    return (
        isinstance(source, memoryview)
        and 0 < source.nbytes <= SMALL
        and source.c_contiguous
        and type(source.obj) in _OWN_MEMORY
    )


Source = HasFileno | memoryview | Gather


class _FilePart:
    """A file, the window of it that is mapped, and where what is to be sent of it ends."""

    def __init__(self, holder: HasFileno, piece: Piece) -> None:
        self.original = Original(holder, piece.offset)
        self.original.remember()
        self.mapping = Mapping()
        self.direct = -1
        self.end = piece.offset + piece.length
        self._holder = holder
        self._alignment = 0

    def ask_alignment(self) -> int:
        """Return the alignment of O_DIRECT reads; 0 where the file system has none."""
        alignment = direct_alignment(self._holder.fileno())
        self._alignment = alignment if alignment < SIZE else 0
        return self._alignment

    def take_up(self, *, direct: bool) -> None:
        """Duplicate the descriptor, and open the file with O_DIRECT if that is wanted."""
        if self.original.has_moved():
            raise error_from(errno.EBADF, f"{self._holder!r} was closed during the transfer")
        try:
            self.original.own()
        except BaseException:
            self.original.abandon()
            raise
        if direct and self._alignment:
            path = f"/proc/self/fd/{self.original.fd}"
            with contextlib.suppress(OSError):
                self.direct = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)

    def close_direct(self) -> None:
        if self.direct >= 0:
            os.close(self.direct)
            self.direct = -1

    def stage(self, step: SendZeroCopy, slot: int, alignment: int) -> tuple[ReadFixed, SendFixed]:
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
        size = known(self.original.fd).size
        if size < end:
            raise error_from(
                errno.ENODATA,
                f"the file has {size} bytes, and those up to {end} were to be sent:"
                " it was truncated during the transfer",
            )

    def locate(self, inline: Inline, steps: Sequence[SendZeroCopy]) -> list[SendMemory]:
        """Return the sends, which follow each other, by their addresses."""
        fd, start = self.original.fd, steps[0].offset
        length = steps[-1].offset + steps[-1].length - start
        # All of them in one window: later it must not move.
        address = self.mapping.address_of(fd, start, length, self.end) - start
        # One question takes 40 us for 16 MiB, where sixteen take 160.
        cached = inline.is_cached(fd, start, length)
        return [
            SendMemory(address + at, size, not (cached or inline.is_cached(fd, at, size)))
            for _, at, size in steps
        ]

    def follow(self, moved: int) -> None:
        # In a forked child it was closed, and the position is the parent's.
        if self.original.fd >= 0:
            self.original.follow(moved)

    def close(self) -> None:
        self.close_direct()
        self.mapping.close()
        self.original.close()


class _Memory:
    """Memory of an object, held until it is released, or small objects' that is copied once."""

    def __init__(self, source: memoryview | Gather, loan: Loan) -> None:
        self._lent = isinstance(source, memoryview)
        self._source = source
        self._loan = loan
        self._export: Export | None = None

    @property
    def export(self) -> Export:
        if self._export is None:
            source = self._source
            self._export = Export(source.copy() if isinstance(source, Gather) else source)
            self._loan.exports.add(self._export)
            self._loan.copied |= not self._lent
        return self._export

    def locate(self, steps: Sequence[SendZeroCopy]) -> list[SendMemory]:
        address = self.export.address
        return [SendMemory(address + at, size, lent=self._lent) for _, at, size in steps]

    def follow(self, moved: int) -> None:
        """It has no position."""

    def close(self) -> None:
        # What was lent is the loan's.
        if not self._lent and self._export is not None:
            self._loan.drop(self._export)


class Parts(Original):
    """The parts of a transfer, a record's source: each a file, or memory.

    They are taken up when it is their turn, and given up behind it, so that a sequence of thousands
    of files takes no more descriptors and mappings than one chain needs.
    """

    __slots__ = (
        *("_alignment", "_direct", "_first", "_loan", "_open", "_parts"),
        *("lacks_direct", "pieces"),
    )

    def __init__(self, loan: Loan, *, direct: bool) -> None:
        """Take parts, one by one. `direct`: the files are to be read past the page cache."""
        self.pieces: list[Piece] = []
        self._alignment = mmap.PAGESIZE
        self._direct = direct
        self.lacks_direct = False
        """Whether one of the files has turned out not to be read past the page cache."""
        self._loan = loan
        self._first = self._owners = 0
        self._open: dict[int, _FilePart | _Memory] = {}
        self._parts: list[_FilePart | memoryview | Gather | None] = []
        self.fd = -1

    def add(self, source: Source, offset: int, length: int) -> None:
        """Add the next part, `length` bytes of a source. OSError (EBADF) for a closed file."""
        piece = Piece(len(self.pieces), offset, length)
        if isinstance(source, memoryview | Gather):
            self._parts.append(source)
        else:
            file = _FilePart(source, piece)
            if self._direct:
                self._alignment = max(self._alignment, file.ask_alignment())
            self._parts.append(file)
        self.pieces.append(piece)

    @property
    def alignment(self) -> int:
        """What the reads of all the files are to be aligned by."""
        return self._alignment

    def take_up(self, number: int) -> None:
        """Open what sending a part needs. Raises OSError."""
        if number in self._open:
            return
        part = self._parts[number]
        if isinstance(part, _FilePart):
            part.take_up(direct=self._direct)
            self.lacks_direct |= self._direct and part.direct < 0
            self._open[number] = part
        else:
            assert part is not None
            self._open[number] = _Memory(part, self._loan)

    def go_on(self, number: int) -> None:
        """Give up the parts before that one: all of them was sent."""
        for done in range(self._first, number):
            part = self._open.pop(done, None)
            if part is not None:
                part.follow(self.pieces[done].length)
                part.close()
                self._parts[done] = None
        self._first = max(self._first, number)

    def stop(self, sent: int) -> None:
        """Set the position of the file that was being sent; a single file's also where none was."""
        if (sent or len(self.pieces) == 1) and self._first in self._open:
            self._open[self._first].follow(sent)

    def _files(self) -> list[_FilePart]:
        return [part for part in self._open.values() if isinstance(part, _FilePart)]

    def own(self) -> None:
        """Do nothing: each part has its descriptor when it is its turn."""

    def check_open(self) -> None:
        """Raise OSError (EBADF) where one of the files in use was closed by the caller."""
        for file in self._files():
            file.original.check_open()

    def is_open(self) -> bool:
        """Return whether the files in use are the same open files still."""
        return all(file.original.is_open() for file in self._files())

    def ask(self) -> tuple[Ask, object]:
        """Return what tells quickly whether one of the files in use was closed."""
        part = self._open.get(0)
        if len(self.pieces) > 1 or part is None:  # or it is not its turn yet
            return self._have_moved, False
        return part.original.ask() if isinstance(part, _FilePart) else (int, 0)

    def _have_moved(self) -> bool:
        return any(file.original.has_moved() for file in self._files())

    def close(self) -> None:
        """Close our numbers, and unmap: what is in the send queue stays what it is."""
        while self._open:
            self._open.popitem()[1].close()
        self._parts.clear()

    def abandon(self) -> None:
        """Close our numbers, whoever has them."""
        self.close()

    def check_lengths(self, chain: Sequence[SendZeroCopy]) -> None:
        """Raise OSError (ENODATA) where a file ends before what is to be sent of it."""
        ends = {step.part: step.offset + step.length for step in chain}
        for number, end in ends.items():
            part = self._open[number]
            if isinstance(part, _FilePart):
                part.check_length(end)

    def locate(self, inline: Inline, chain: Sequence[SendZeroCopy]) -> list[SendMemory]:
        """Return the sends by their addresses. Raises the OSError of mmap(2)."""
        found: list[SendMemory] = []
        for number, steps in itertools.groupby(chain, lambda step: step.part):
            part = self._open[number]
            if isinstance(part, _Memory):
                found += part.locate(list(steps))
            else:
                found += part.locate(inline, list(steps))
        return found

    def close_direct(self) -> None:
        """Have the files be read through the page cache again."""
        self._direct = False
        for file in self._files():
            file.close_direct()

    def is_direct(self, step: SendZeroCopy) -> bool:
        """Return whether it is a file's, to be read past the page cache."""
        part = self._open[step.part]
        return isinstance(part, _FilePart) and part.direct >= 0

    def stage(self, step: SendZeroCopy, slot: int) -> tuple[ReadFixed, SendFixed]:
        """Return the read and the send for a step that `is_direct`."""
        part = self._open[step.part]
        assert isinstance(part, _FilePart)
        return part.stage(step, slot, self._alignment)

    def is_whole(self, step: SendZeroCopy, read: ReadFixed) -> bool:
        """Return whether the file has all that is to be read for a step."""
        part = self._open[step.part]
        assert isinstance(part, _FilePart)
        return read.offset + read.length <= known(part.original.fd).size

    def memory_of(self, step: SendCopied) -> memoryview | None:
        """Return a piece that is in memory already; None where it has to be read."""
        part = self._open[step.part]
        if isinstance(part, _Memory):
            return part.export.view(step.offset, step.length)
        return None

    def read_cached(self, step: SendCopied, memory: memoryview) -> bool:
        """Read all of a file's piece into memory if no disk has to be waited for."""
        part = self._open[step.part]
        assert isinstance(part, _FilePart)
        try:
            got = os.preadv(part.original.fd, (memory,), step.offset, os.RWF_NOWAIT)
        except OSError:
            return False
        return got == len(memory)

    def read_through(self, sends: Sequence[SendZeroCopy]) -> None:
        """Read files' pieces, waiting for their disks, so that they are cached."""
        memory = bytearray(min(max(step.length for step in sends), READ))
        for step in sends:
            part = self._parts[step.part]
            if isinstance(part, _FilePart):
                for offset in range(step.offset, step.offset + step.length, len(memory)):
                    os.preadv(part.original.fd, (memory,), offset)

    def read(self, step: SendCopied, memory: memoryview) -> int:
        """Read a file's piece into memory, waiting for the disk; return how many there are."""
        part = self._open[step.part]
        assert isinstance(part, _FilePart)
        return os.preadv(part.original.fd, (memory,), step.offset)
