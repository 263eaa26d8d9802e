"""Bytes that a stream has read ahead of a transfer: they come before those in its socket."""

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from aiozc._api.arguments import check_count, check_offset
from aiozc._api.splice import loop_recvfile
from aiozc._errors import annotate

PIECE = 64 * 1024
"""Bytes that were read ahead and go on at once, at the most."""

Move = Callable[[Any, int, int | None], Coroutine[Any, Any, int]]
"""Moves from a socket, behind so many bytes, no more than are left; returns how many those were."""


class ReadAhead:
    """Chunks of bytes, which the transfers can have as sockets. What came nowhere stays."""

    def __init__(self, chunks: deque[Any]) -> None:
        self._chunks = chunks

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def pieces(self) -> Iterator[contextlib.AbstractContextManager[socket.socket]]:
        """Give all of it as sockets, one after the other."""
        while self._chunks:
            yield self._piece()

    @contextlib.contextmanager
    def _piece(self) -> Iterator[socket.socket]:
        with self.as_socket(None) as piece:
            before = len(piece.recv(PIECE, socket.MSG_PEEK))
            try:
                yield piece
            finally:
                self.drop(before - len(piece.recv(PIECE, socket.MSG_PEEK)))

    def as_socket(self, most: int | None) -> contextlib.AbstractContextManager[socket.socket]:
        """Give the first of it as a socket, `most` bytes if that is not None."""
        return ended_socket(self._chunks[0][: PIECE if most is None else min(most, PIECE)])

    def drop(self, count: int) -> None:
        """Have so many of the first bytes no more."""
        rest = self._chunks.popleft()[count:]
        if rest:
            self._chunks.appendleft(rest)


@contextlib.contextmanager
def ended_socket(content: bytes) -> Iterator[socket.socket]:
    """Give a socket that has those bytes, or the first of them, and then ends."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        far.send(content)
        far.close()
        yield near


class Moved:
    """How far a transfer came, of `count` bytes at the most; `lost` as in what it raises."""

    def __init__(self, count: int | None = None) -> None:
        check_count(count)
        self.moved = 0
        self.lost = 0
        self._count = count

    @property
    def left(self) -> int | None:
        """How many bytes may still come; None where that is all there are."""
        return None if self._count is None else self._count - self.moved

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Say so in what is raised."""
        try:
            yield
        except BaseException as error:
            annotate(error, self.moved, self.lost)
            raise


class Moving(Moved):
    """A transfer from several sockets, one after the other."""

    def __init__(self, count: int | None, move: Move) -> None:
        super().__init__(count)
        self._move = move

    async def take_ahead(self, ahead: ReadAhead) -> None:
        """Move what was read ahead."""
        while ahead and self.left != 0:
            before = self.moved
            try:
                with ahead.as_socket(self.left) as piece:
                    await self.take(piece)
            finally:
                # What has left the piece, and came nowhere, is here still.
                self.lost = 0
                ahead.drop(self.moved - before)

    async def take(self, sock: Any) -> None:
        """Move what is in a socket, to its end."""
        if self.left == 0:
            return
        try:
            self.moved += await self._move(sock, self.moved, self.left)
        except BaseException as error:
            self.moved += getattr(error, "transferred", 0)
            self.lost = getattr(error, "lost", 0)
            raise


def into_file(file: Any, offset: int, *, fallback: bool) -> Move:
    """Return what receives into a file, from `offset` on. Raises as `check_offset` does."""
    check_offset(offset)
    has_places = not hasattr(file, "seekable") or file.seekable()

    async def move(sock: Any, moved: int, left: int | None) -> int:
        place = offset + moved if has_places else offset
        return await loop_recvfile(sock, file, place, left, fallback=fallback)

    return move
