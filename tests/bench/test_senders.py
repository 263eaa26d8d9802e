"""What senders send, what is counted of them, and those that are wrong."""

import argparse
import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from aiozc._engines import at_once
from aiozc._kernel.copying import copier
from bench.commands.crowds import Crowd, mix, serve
from bench.errors import BenchError
from bench.measure import Case, Settings, measure
from bench.processes import Helper
from bench.scratch import hash_of, make_file
from bench.senders.fleet import Fleet, start_worker
from bench.senders.lanes import CountingSocket, Lane, told
from bench.senders.plain import read_write, splice_twice
from bench.senders.table import SENDERS
from bench.senders.worker import Worker
from bench.sink import SinkProcess

LIARS = "tests.bench.liars:Liar"
FILE = 30_000


@contextmanager
def fleet_in(tmp_path: Path, factory: str | None = None) -> Iterator[tuple[Fleet, Settings]]:
    with ExitStack() as stack:
        settings = Settings(argparse.Namespace(quick=True), tmp_path, stack)
        yield Fleet(settings, *([] if factory is None else [factory])), settings


@contextmanager
def lane_to_nobody(tmp_path: Path, buffer: int) -> Iterator[tuple[Lane, socket.socket, Path]]:
    ours, theirs = socket.socketpair()
    with ours, theirs, ExitStack() as stack:
        yield Lane(ours, stack, buffer), theirs, make_file(tmp_path / "file", 10_000)


# Counting


def test_calls_and_what_was_short_are_counted(tmp_path: Path) -> None:
    with lane_to_nobody(tmp_path, 4096) as (lane, theirs, path), path.open("rb") as file:
        read_write(lane)(file, 10_000)
        assert told([lane.counts]) == {"calls": 6, "short reads": 0, "short writes": 0}
        assert theirs.recv(20_000, socket.MSG_WAITALL | socket.MSG_PEEK)[:10_000] == (
            path.read_bytes()
        )
        with pytest.raises(EOFError):
            read_write(lane)(file, 10_001)


def test_a_file_shorter_than_asked_is_a_short_read_with_its_size(tmp_path: Path) -> None:
    with lane_to_nobody(tmp_path, 8192) as (lane, _, path), path.open("rb") as file:
        with pytest.raises(EOFError):
            splice_twice(lane)(file, 20_000)
        assert told([lane.counts])["mean short read"] == 10_000 - 8192


def test_a_loops_own_calls_are_counted_with_what_the_socket_did_not_take() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ExitStack() as stack:
        ours.setblocking(False)
        lane = Lane(ours, stack)
        sock = CountingSocket(lane)
        data = bytes(1 << 22)

        async def send() -> None:
            drain = asyncio.to_thread(theirs.recv, len(data), socket.MSG_WAITALL)
            reader = asyncio.ensure_future(drain)
            await asyncio.get_running_loop().sock_sendall(sock, data)
            await reader

        asyncio.run(send())
        assert lane.counts.calls > lane.counts.short_writes > 0
        assert 0 < lane.counts.short_write_bytes < len(data)


@pytest.mark.parametrize("name", ["aiozc readiness", "sock_sendfile"])
@pytest.mark.parametrize("size", [4096, 1 << 20])
def test_each_call_that_an_awaited_sender_makes_is_counted_once(
    name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def watch(mover: str) -> None:
        original = getattr(os, mover)

        def call(*arguments: Any, **more: Any) -> int:
            made.append(mover)
            moved: int = original(*arguments, **more)
            return moved

        monkeypatch.setattr(os, mover, call)

    def watched(size: int) -> Any:
        read, copy = copier(size)

        def call(*arguments: int) -> int:
            made.extend(("preadv2", "send"))
            return copy(*arguments)

        return read, call

    monkeypatch.setenv("AIOZC_BACKEND", "readiness")
    worker = Worker(socket.socket(), name)
    for mover in ("sendfile", "splice", "preadv", "pwritev", "pread", "pwrite", "readv", "writev"):
        watch(mover)
    monkeypatch.setattr(at_once, "copier", watched)
    file = str(make_file(tmp_path / "file", size))
    with SinkProcess() as sink:
        found = worker.send(sink.address, [[file]], size, file, times=5, count=True)
    worker._channel.close()

    assert found["calls"] == len(made) > 0
    assert found["bytes per call"] == 5 * size / len(made)


# Senders


def test_every_sender_here_sends_every_byte_and_tells_what_it_took(tmp_path: Path) -> None:
    file = str(make_file(tmp_path / "file", FILE))
    order: dict[str, Any] = {"files": [[file, file]] * 2, "size": FILE, "warm_file": file}
    with SinkProcess() as sink, fleet_in(tmp_path) as (fleet, settings):
        names = fleet.present(list(SENDERS))
        assert settings.failed == {}
        assert {"read+write", "sock_sendfile", "aiozc readiness"} <= set(names)
        for name in names:
            fleet.check(name, sink.address, file, FILE)
            more = {"times": 3, "warm_size": FILE, "warm_times": 1, "buffer": 4096, "count": True}
            found = fleet.send(name, address=sink.address, **order, **more, timer=True)
            sender = SENDERS[name]
            assert found["checked"]
            assert (found["files"], found["bytes"]) == (12, 12 * FILE)
            assert found["elapsed"] > 0
            assert 0 < found["loop_cpu"] <= found["process_cpu"]
            assert found["memory"] > 1
            assert ("short writes" in found) is sender.shortness
            for metric in ("lateness max", "latency p50"):
                assert (metric in found) is (sender.awaited is not None)
            assert ("copies" in found) is (name.startswith(("zc", "MSG_")))
            if name == "read+write":
                assert found["calls"] == 2 * 12 * 8
    assert fleet.unchecked == []


@pytest.mark.parametrize(
    ("liar", "told"),
    [
        ("lose_a_byte", "lose_a_byte failed: the receiver got 9998 bytes in place of 10000"),
        ("double_a_byte", "double_a_byte failed: the receiver got 10002 bytes in place of 10000"),
        ("turn_a_byte", "turn_a_byte failed: the receiver's bytes are not those of the file"),
        ("say_less", "say_less failed: it says it sent 4999 bytes in place of 5000"),
    ],
)
def test_a_sender_that_loses_doubles_or_turns_bytes_is_named_and_the_others_go_on(
    liar: str, told: str, tmp_path: Path
) -> None:
    file = str(make_file(tmp_path / "file", 5000))
    with (
        SinkProcess() as sink,
        start_worker("sendfile") as honest,
        start_worker(liar, LIARS) as bad,
    ):
        workers = {"sendfile": honest, liar: bad}

        def turn(name: str) -> dict[str, float]:
            order: dict[str, Any] = {
                "address": sink.address,
                "size": 5000,
                "warm_file": file,
                "hash": True,
            }
            found: dict[str, float] = workers[name].ask("send", files=[[file, file]], **order)
            return found

        failed: dict[str, str] = {}
        case = Case("a: case", {"elapsed": "s"}, list(workers), turn, check_peers=sink.check)
        samples = list(measure("send", case, case.contenders, 2, failed=failed))

    assert failed[liar].startswith(told)
    assert [sample.contender for sample in samples] == ["sendfile"] * 2


def test_a_sender_that_cannot_run_here_is_missing_with_its_reason(tmp_path: Path) -> None:
    with fleet_in(tmp_path, LIARS) as (fleet, settings):
        assert fleet.present(["refuse"]) == []
    assert "no such call here" in settings.missing["refuse"]


@pytest.mark.parametrize("liar", ["send_for_ever", "sleep_for_ever"])
def test_a_receiver_that_dies_is_what_a_run_reports(liar: str, tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 5000)
    with SinkProcess() as sink, start_worker(liar, LIARS) as worker:
        assert worker.ready is None
        order = {"size": 5000, "warm_file": str(file), "files": [[str(file)]]}

        def turn(_: str) -> dict[str, float]:
            worker.begin("send", address=sink.address, **order)
            os.kill(sink.pid if liar == "send_for_ever" else worker.pid, signal.SIGKILL)
            found: dict[str, float] = worker.hear()
            return found

        case = Case("a: case", {"elapsed": "s"}, [liar], turn, check_peers=sink.check)
        failed: dict[str, str] = {}
        if liar == "sleep_for_ever":
            assert list(measure("send", case, [liar], 1, failed=failed)) == []
            assert "ended too early" in failed[liar]
        else:
            with pytest.raises(BenchError, match=r"the receiver process ended too early, .* -9"):
                list(measure("send", case, [liar], 1, failed=failed))


# Many at once


def test_slow_clients_are_served_by_a_process_that_is_watched(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 16 << 20)

    served = serve("sock_sendfile", Crowd(5, 400_000, 200_000), file, 0.1, 0.2)

    assert served["threads"] >= 1
    assert served["steady CPU"] > 0
    assert 0 < served["client with least"] <= served["client with most"]


def test_a_transfer_to_slow_clients_that_ends_too_early_is_reported(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 1000)

    with pytest.raises(BenchError, match="a transfer ended too early: 1000"):
        serve("sock_sendfile", Crowd(2, 400_000), file, 0.2, 0.2)


def test_small_requests_wait_beside_everything_else(tmp_path: Path) -> None:
    small = make_file(tmp_path / "small", 4096)
    stream = make_file(tmp_path / "stream", 1 << 20)
    cold = [make_file(tmp_path / f"cold-{number}", 100_000) for number in range(2)]

    found = mix("aiozc readiness", small, stream, cold, 0.1)

    assert 0 < found["wait p50"] <= found["wait p99"] <= found["wait max"]
    assert found["streams"] > 0


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"abcdabce", "an answer is not what was asked for"),
        (b"abceabce", "the answers are not the bytes of the file, by their hash"),
        (b"abcdabcdabcd", "an answer is not what was asked for"),
        (b"abcd", "the server has closed a connection"),
    ],
)
def test_a_server_of_small_requests_that_loses_doubles_or_turns_bytes_is_caught(
    answer: bytes, told: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"abcd")
    asked = {"connections": 1, "rate": 1000, "seconds": 0.002, "size": 4}
    with Helper("the client", "bench.requests:Requests") as requests:
        requests.begin("run", **asked, sha256=hash_of(tmp_path / "file"))
        with socket.create_connection(requests.ready) as sock:
            assert sock.recv(1) + sock.recv(1) == b"??"
            sock.sendall(answer)
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(BenchError, match=f"the client failed: {told}"):
                requests.hear()
