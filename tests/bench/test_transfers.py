"""Receiver processes, and turns whose bytes they count."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from bench.errors import BenchError
from bench.processes import importing_bench
from bench.receivers import Mode, Receiver
from bench.scratch import cached_pages, make_file, warm
from bench.senders import BASELINE, SENDERS, Send, Sender
from bench.slow_clients import SlowPlan, serve_slow_clients
from bench.transfers import Plan, take_turn

SIZE = 100_000


def make_plan(tmp_path: Path, *, connections: int = 3, timer: bool = False) -> Plan:
    file = make_file(tmp_path / "file", SIZE)
    return Plan(
        files=[file] * connections,
        size=SIZE,
        repeats=2,
        warm_file=file,
        warm_size=1000,
        warm_repeats=2,
        timer=timer,
    )


def sending_with(send: Send) -> Sender:
    return Sender("a sender", asyncio.SelectorEventLoop, send)


@pytest.mark.parametrize("mode", ["discard", "read", "slow"])
def test_a_receiver_counts_every_byte_of_each_connection(mode: Mode) -> None:
    with Receiver(mode) as receiver:
        expected = {}
        for length in (0, 1, 70_000):
            with socket.create_connection(receiver.address) as sock:
                sock.sendall(bytes(length))
                expected[sock.getsockname()[1]] = length

        ended = receiver.wait_ended(expected)

    assert {port: end.received for port, end in ended.items()} == expected


def test_a_receiver_tells_the_counts_of_open_connections() -> None:
    with Receiver("read") as receiver, socket.create_connection(receiver.address) as sock:
        sock.sendall(b"12345")
        while receiver.counts() != [5]:
            pass


@pytest.mark.parametrize("sender", SENDERS, ids=lambda sender: sender.name)
def test_a_turn_gives_times_when_every_byte_has_come(sender: Sender, tmp_path: Path) -> None:
    with Receiver("discard") as receiver:
        turn = take_turn(sender, receiver, make_plan(tmp_path, timer=True))

    assert turn.elapsed > 0
    assert turn.loop_cpu > 0
    assert turn.process_cpu > 0
    assert turn.lateness


def test_a_sender_that_loses_bytes_is_caught(tmp_path: Path) -> None:
    async def lose_one(sock: socket.socket, file: IO[bytes], offset: int, count: int) -> int:
        await BASELINE.send(sock, file, offset, count - 1)
        return count

    with Receiver("discard") as receiver, pytest.raises(BenchError, match="in place of"):
        take_turn(sending_with(lose_one), receiver, make_plan(tmp_path))


def test_a_sender_that_says_it_sent_less_is_caught(tmp_path: Path) -> None:
    async def say_less(sock: socket.socket, file: IO[bytes], offset: int, count: int) -> int:
        return await BASELINE.send(sock, file, offset, count) - 1

    with Receiver("discard") as receiver, pytest.raises(BenchError, match="says it sent"):
        take_turn(sending_with(say_less), receiver, make_plan(tmp_path))


def test_a_receiver_that_dies_is_reported_while_its_connections_break(tmp_path: Path) -> None:
    with Receiver("discard") as receiver:

        async def kill_then_send(
            sock: socket.socket, file: IO[bytes], offset: int, count: int
        ) -> int:
            os.kill(receiver.pid, signal.SIGKILL)
            while True:
                await BASELINE.send(sock, file, offset, count)

        with pytest.raises(BenchError, match=r"ended too early, with status -9"):
            take_turn(sending_with(kill_then_send), receiver, make_plan(tmp_path))


def test_a_receiver_that_dies_is_reported_to_who_waits_for_counts() -> None:
    with Receiver("read") as receiver, socket.create_connection(receiver.address) as sock:
        os.kill(receiver.pid, signal.SIGKILL)
        with pytest.raises(BenchError, match="ended too early"):
            receiver.wait_ended([sock.getsockname()[1]])
        with pytest.raises(BenchError, match="ended too early"):
            receiver.counts()


def test_an_error_of_the_sender_is_raised_as_it_is(tmp_path: Path) -> None:
    async def fail(*_: object) -> int:
        raise ZeroDivisionError

    with Receiver("discard") as receiver, pytest.raises(ZeroDivisionError):
        take_turn(sending_with(fail), receiver, make_plan(tmp_path))


def test_a_receiver_ends_with_its_block() -> None:
    with Receiver("discard") as receiver:
        process = os.pidfd_open(receiver.pid)
    assert has_ended(process)


def test_a_receiver_ends_when_its_parent_is_killed() -> None:
    program = (
        "from bench.receivers import Receiver\n"
        "with Receiver('slow') as receiver:\n"
        "    print(receiver.pid, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=importing_bench(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        process = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert has_ended(process)


def has_ended(process: int) -> bool:
    """Wait for the end of a process, at most a minute; close its descriptor."""
    try:
        return bool(select.select([process], [], [], 60)[0])
    finally:
        os.close(process)


def test_slow_clients_are_served_by_a_process_that_is_watched(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 32 * 1024 * 1024)

    served = serve_slow_clients(BASELINE, SlowPlan(str(file), 32 * 1024 * 1024, 5, 0.3))

    assert served.threads >= 1
    assert served.cpu > 0
    assert 0 < served.least <= served.most


def test_slow_clients_are_counted_when_the_receiver_has_accepted_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_file(tmp_path / "file", 32 * 1024 * 1024)
    counts, looks = Receiver.counts, []

    def without_the_last(receiver: Receiver) -> list[int]:
        looks.append(found := counts(receiver))
        return found if len(looks) > 2 else found[:-1]

    monkeypatch.setattr(Receiver, "counts", without_the_last)

    assert serve_slow_clients(BASELINE, SlowPlan(str(file), 32 * 1024 * 1024, 3, 0.3)).most > 0
    assert len(looks) == 3


def test_a_transfer_to_slow_clients_that_ends_too_early_is_reported(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 1000)

    with pytest.raises(BenchError, match="a transfer ended too early: 1000"):
        serve_slow_clients(BASELINE, SlowPlan(str(file), 1000, 2, 30))


@pytest.mark.parametrize("size", [1, 4096, 5_000_000])
def test_a_file_is_as_long_as_asked_and_is_cached_once_read(size: int, tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", size)
    warm(file)

    assert file.stat().st_size == size
    with file.open("rb") as opened:
        assert cached_pages(opened.fileno()) in (-(-size // 4096), None)
