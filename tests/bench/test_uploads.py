"""Uploads from a source process into a file."""

import asyncio
import socket
from pathlib import Path
from typing import IO

import pytest

from bench.errors import BenchError
from bench.scratch import make_file
from bench.sources import Source
from bench.uploads import UPLOADERS, Receive, Uploader, take_upload

SIZE = 700_001
UPLOADER = UPLOADERS[0]


def receiving_with(receive: Receive) -> Uploader:
    return Uploader("an uploader", asyncio.SelectorEventLoop, receive)


@pytest.mark.parametrize("uploader", UPLOADERS, ids=lambda uploader: uploader.name)
def test_an_upload_is_the_file_that_was_sent_and_is_measured(
    uploader: Uploader, tmp_path: Path
) -> None:
    file, received = make_file(tmp_path / "file", SIZE), tmp_path / "received"
    with Source(file) as source:
        turn = take_upload(uploader, source, received, SIZE, timer=not uploader.blocking)

    assert received.read_bytes() == file.read_bytes()
    assert turn.elapsed > 0
    assert 0 < turn.loop_cpu <= turn.process_cpu
    assert bool(turn.lateness) is not uploader.blocking


async def lose_one(sock: socket.socket, file: IO[bytes]) -> int:
    received = await UPLOADER.receive(sock, file)
    file.truncate(received - 1)
    return received


async def say_less(sock: socket.socket, file: IO[bytes]) -> int:
    return await UPLOADER.receive(sock, file) - 1


@pytest.mark.parametrize(
    ("receive", "told"), [(lose_one, "wrote 700000 bytes"), (say_less, "says it received 700000")]
)
def test_an_upload_that_is_not_whole_is_caught(receive: Receive, told: str, tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", SIZE)
    with Source(file) as source, pytest.raises(BenchError, match=told):
        take_upload(receiving_with(receive), source, tmp_path / "received", SIZE)


def test_an_upload_goes_into_a_new_file_alone(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", SIZE)
    with Source(file) as source, pytest.raises(FileExistsError):
        take_upload(UPLOADER, source, file, SIZE)
