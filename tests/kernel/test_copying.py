"""What is cached goes from a file to a socket, and nothing waits."""

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aiozc._kernel.copying import copier
from tests.kit.content import write_out

SIZE = 16384


def test_a_cached_range_arrives_from_any_offset(tmp_path: Path) -> None:
    _, copy = copier(SIZE)
    near, far = socket.socketpair()
    with near, far, (tmp_path / "file").open("w+b", buffering=0) as file:
        for offset in (0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32 + 5, 2**40):
            content = os.urandom(5000)
            os.pwrite(file.fileno(), content, offset)
            assert copy(near.fileno(), file.fileno(), offset, 5000) == 5000
            assert far.recv(SIZE, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == content
        # Up to the file's end, and not beyond.
        assert copy(near.fileno(), file.fileno(), offset + 4990, 5000) == 10
        assert far.recv(SIZE) == content[-10:]
        assert copy(near.fileno(), file.fileno(), offset + 5000, 5000) == 0


def test_what_is_not_cached_is_not_read(tmp_path: Path) -> None:
    """Asking starts the reading of what is near: so each is asked for another place.

    And a fast disk may have answered before the kernel looks: so each is asked again and again.
    """
    has_ends, copy = copier(SIZE)
    far_place = 16 << 20
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        fd = file.fileno()
        for offset in (0, far_place):
            os.pwrite(fd, os.urandom(SIZE), offset)

        def sent() -> int:
            near, far = socket.socketpair()
            with near, far:
                return copy(near.fileno(), fd, far_place, SIZE)

        def behind_a_write_out(ask: Callable[[], int]) -> int:
            write_out(file)
            return ask()

        ask = partial(has_ends, fd, 0, far_place + SIZE)
        assert not all(behind_a_write_out(ask) for _ in range(20))
        assert any(behind_a_write_out(sent) == -errno.ENODATA for _ in range(20))
        os.pread(fd, SIZE, 0)
        os.pread(fd, SIZE, far_place)
        assert has_ends(fd, 0, far_place + SIZE)
        assert not has_ends(fd, far_place, SIZE + 1)
        assert sent() == SIZE


def test_a_full_socket_takes_what_it_has_room_for_and_then_nothing(tmp_path: Path) -> None:
    """Also a blocking one: nothing waits."""
    _, copy = copier(SIZE)
    content = os.urandom(SIZE)
    near, far = socket.socketpair()
    with near, far, (tmp_path / "file").open("w+b", buffering=0) as file:
        file.write(content)
        sent = []
        while (result := copy(near.fileno(), file.fileno(), 0, SIZE)) > 0:
            sent.append(result)
        assert result == -errno.EAGAIN
        for length in sent:
            assert far.recv(length, socket.MSG_WAITALL) == content[:length]
        far.close()
        assert copy(near.fileno(), file.fileno(), 0, SIZE) == -errno.EPIPE
        assert copy(-1, file.fileno(), 0, SIZE) == -errno.EBADF
        assert copy(near.fileno(), -1, 0, SIZE) == -errno.EBADF
