"""What comes to nothing is tried again so many times, and ends by the error that began it."""

import asyncio
import errno
import io
import os
from typing import Any

import pytest

import aiozc
from aiozc._transfers.machine import MOST_TRIES
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, assert_same, pattern
from tests.kit.far_ends import Connect
from tests.kit.faults.fuse import Fuse, Op
from tests.kit.tasks import outcome_of
from tests.kit.waiting import turns

pytestmark = pytest.mark.anyio
CONTENT = pattern(300 * KIB)


@pytest.mark.parametrize("size", [5000, 3 * 256 * KIB + 1])
@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
async def test_a_bad_sector_ends_a_direct_send_and_is_asked_for_a_few_times(
    number: int, size: int, connect: Connect
) -> None:
    """Where the whole is one block, or its last one, too."""
    sock, _ = connect()
    with Fuse({"bad": bytes(size)}) as fuse, os.fdopen(fuse.open("bad"), "rb") as file:
        fuse.fail(Op.READ, number)
        with pytest.raises(OSError, match=r"error|argument") as caught:
            await aiozc.sendfile_zc(sock, file, direct=True)
        assert caught.value.errno in (errno.EIO, number)
        assert fuse.asked(Op.READ) < 30


async def test_a_file_that_claims_to_be_longer_each_time_ends_where_its_content_does(
    connect: Connect,
) -> None:
    sock, receiver = connect()
    with Fuse({"log": CONTENT}) as fuse, os.fdopen(fuse.open("log"), "rb") as file:
        fuse.claim_more(10_000)
        assert await aiozc.loop_sendfile(sock, file) == len(CONTENT)
        assert fuse.asked(Op.READ) < 30
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


class Target(io.RawIOBase):
    """A file that takes what `answers` say, and then everything; None is no room just now."""

    def __init__(self, *answers: int | None) -> None:
        super().__init__()
        self.answers = list(answers)
        self.taken = b""
        self.asked = 0

    def writable(self) -> bool:
        """Say yes."""
        return True

    def write(self, data: Any) -> int | None:
        """Take what is due."""
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else len(data)
        self.taken += bytes(data[: answer or 0])
        return answer


async def test_a_file_that_takes_nothing_ends_an_upload_after_so_many_tries() -> None:
    near, far = socket_pair()
    with near, far:
        far.sendall(b"bytes")
        target = Target(2, *[0] * 100)
        with pytest.raises(OSError, match="takes none of what is written") as caught:
            await aiozc.loop_recvfile(near, target)
        assert caught.value.errno == errno.EIO
        told: Any = caught.value
        assert (told.transferred, told.lost) == (2, 3)
        assert target.asked == MOST_TRIES + 2


async def test_a_file_without_room_is_tried_now_and_then_and_the_upload_can_be_cancelled() -> None:
    near, far = socket_pair()
    with near, far:
        far.sendall(b"bytes")
        target = Target(2, *[None] * 1000)
        receiving = asyncio.create_task(aiozc.loop_recvfile(near, target))
        while target.asked < 4:
            await turns(1)
        receiving.cancel()
        outcome: Any = await outcome_of(receiving)
        assert isinstance(outcome, asyncio.CancelledError)
        assert (outcome.transferred, outcome.lost) == (2, 3)  # type: ignore[attr-defined]
        assert target.asked < 10


async def test_a_file_that_has_room_again_gets_every_byte() -> None:
    near, far = socket_pair()
    with near, far:
        far.sendall(b"some bytes")
        far.shutdown(1)
        target = Target(2, None, None, 3, None)
        assert await aiozc.loop_recvfile(near, target) == 10
        assert target.taken == b"some bytes"


class Digest:
    """What takes everything, and does not say so, as hashes do."""

    def __init__(self) -> None:
        self.taken = b""

    def write(self, data: Any) -> None:
        """Take it."""
        self.taken += data


async def test_what_says_nothing_of_what_it_takes_has_taken_it() -> None:
    near, far = socket_pair()
    with near, far:
        far.sendall(b"bytes")
        far.shutdown(1)
        target = Digest()
        assert await aiozc.loop_recvfile(near, target) == 5
        assert target.taken == b"bytes"
