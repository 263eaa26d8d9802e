"""What senders send, what is counted of them, and those that are wrong."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
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

LIARS = "tests.kit.faults.liars:Liar"
FILE = 30_000


def test_calls_and_what_was_short_are_counted_with_what_it_moved(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    path, data = make_file(tmp_path / "file", 10_000), bytes(1 << 22)
    with ours, theirs, ExitStack() as stack, path.open("rb") as file:
        lane = Lane(ours, stack, 4096)
        read_write(lane)(file, 10_000)
        assert told([lane.counts]) == {"calls": 6, "short reads": 0, "short writes": 0}
        assert theirs.recv(10_000, socket.MSG_WAITALL) == path.read_bytes()
        lane = Lane(ours, stack, 8192)
        with pytest.raises(EOFError):
            splice_twice(lane)(file, 20_000)
        assert told([lane.counts])["mean short read"] == 10_000 - 8192
        theirs.recv(10_000, socket.MSG_WAITALL)
        ours.setblocking(False)
        sock = CountingSocket(lane := Lane(ours, stack))

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

    def watched(name: str, original: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any, **more: Any) -> int:
            made.extend(name.split())
            return original(*arguments, **more)

        return call

    def watched_copier(size: int) -> Any:
        read, copy = copier(size)
        return read, watched("preadv2 send", copy)

    channel = socket.socket()
    monkeypatch.setenv("AIOZC_BACKEND", "readiness")
    worker = Worker(channel, name)
    for mover in ("sendfile", "splice", "preadv", "pwritev", "pread", "pwrite", "readv", "writev"):
        monkeypatch.setattr(os, mover, watched(mover, getattr(os, mover)))
    monkeypatch.setattr(at_once, "copier", watched_copier)
    file = str(make_file(tmp_path / "file", size))
    with SinkProcess() as sink, channel:
        found = worker.send(sink.address, [[file]], size, file, times=5, count=True)

    assert found["calls"] == len(made) > 0
    assert found["bytes per call"] == 5 * size / len(made)


def test_every_sender_here_sends_every_byte_and_tells_what_it_took(tmp_path: Path) -> None:
    file = str(make_file(tmp_path / "file", FILE))
    order: dict[str, Any] = {"files": [[file, file]] * 2, "size": FILE, "warm_file": file}
    order |= {"times": 3, "warm_size": FILE, "warm_times": 1, "buffer": 4096, "count": True}
    with SinkProcess() as sink, ExitStack() as stack:
        settings = Settings(None, tmp_path, stack)
        fleet = Fleet(settings)
        names = fleet.present(list(SENDERS))
        assert settings.failed == {}
        assert {"read+write", "sock_sendfile", "aiozc readiness"} <= set(names)
        for name in names:
            sender = SENDERS[name]
            fleet.check(name, sink.address, file, FILE)
            found = fleet.send(name, address=sink.address, **order, timer=True)
            assert (found["files"], found["bytes"]) == (12, 12 * FILE)
            assert 0 < found["loop_cpu"] <= found["process_cpu"]
            assert min(found["elapsed"], found["memory"], found["checked"]) > 0
            assert ("short writes" in found) is sender.shortness
            for metric in ("lateness max", "latency p50"):
                assert (metric in found) is (sender.awaited is not None)
            assert ("copies" in found) is (name.startswith(("zc", "MSG_")))
            assert name != "read+write" or found["calls"] == 2 * 12 * 8
        assert Fleet(settings, LIARS).present(["refuse"]) == fleet.unchecked == []
    assert "no such call here" in settings.missing["refuse"]


@pytest.mark.parametrize(
    ("liar", "told"),
    [
        ("lose_a_byte", "the receiver got 9998 bytes in place of 10000"),
        ("double_a_byte", "the receiver got 10002 bytes in place of 10000"),
        ("turn_a_byte", "the receiver's bytes are not those of the file, by their hash"),
        ("say_less", "it says it sent 4999 bytes in place of 5000"),
        ("sleep_for_ever", "sleep_for_ever process ended too early, with status -9"),
        ("send_for_ever", "the receiver process ended too early, with status -9"),
    ],
)
def test_a_sender_that_is_wrong_is_named_and_a_receiver_that_dies_is_what_a_run_reports(
    liar: str, told: str, tmp_path: Path
) -> None:
    file = str(make_file(tmp_path / "file", 5000))
    with SinkProcess() as sink, start_worker(liar, LIARS) as bad, start_worker("sendfile") as good:
        order: dict[str, Any] = {"size": 5000, "warm_file": file, "files": [[file, file]]}

        def turn(name: str) -> dict[str, float]:
            worker = bad if name == liar else good
            worker.begin("send", address=sink.address, hash=True, **order)
            if "for_ever" in name:
                os.kill(sink.pid if name == "send_for_ever" else bad.pid, signal.SIGKILL)
            found: dict[str, float] = worker.hear()
            return found

        failed: dict[str, str] = {}
        case = Case("a: case", {"elapsed": "s"}, ["sendfile", liar], turn, check_peers=sink.check)
        turns = measure("send", case, case.contenders, 2, failed=failed)
        if liar == "send_for_ever":
            with pytest.raises(BenchError, match=told):
                list(turns)
        else:
            assert [sample.contender for sample in turns] == ["sendfile"] * 2
            assert told in failed[liar]


# Many at once


def test_slow_clients_are_served_by_a_process_that_is_watched(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 16 << 20)

    served = serve("sock_sendfile", Crowd(5, 400_000, 200_000), file, 0.1, 0.2)

    assert served["threads"] >= 1
    assert served["steady CPU"] > 0
    assert 0 < served["client with least"] <= served["client with most"]
    short = make_file(tmp_path / "short", 1000)
    with pytest.raises(BenchError, match="a transfer ended too early: 1000"):
        serve("sock_sendfile", Crowd(2, 400_000), short, 0.2, 0.2)


def test_a_receiver_of_slow_clients_that_dies_is_what_the_error_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sinks: list[SinkProcess] = []

    def start(**how: Any) -> SinkProcess:
        sinks.append(SinkProcess(**how))
        return sinks[-1]

    monkeypatch.setattr("bench.commands.crowds.SinkProcess", start)
    look = "bench.commands.crowds.Watch.look"
    monkeypatch.setattr(look, lambda *_: os.kill(sinks[0].pid, signal.SIGKILL))
    file = make_file(tmp_path / "file", 16 << 20)
    with pytest.raises(BenchError, match="the receiver process ended too early, with status -9"):
        serve("sock_sendfile", Crowd(2, 400_000), file, 5, 5)


def test_small_requests_wait_beside_everything_else(tmp_path: Path) -> None:
    names = ("small", "stream", "cold-0", "cold-1")
    small, stream, *cold = (make_file(tmp_path / name, 1 << 16) for name in names)

    found = mix("aiozc readiness", small, stream, cold, 0.1)

    assert 0 < found["wait p50"] <= found["wait p99"] <= found["wait max"]
    assert found["streams"] > 0


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"abcdabce", "an answer is not what was asked for"),
        (b"abceabce", "an answer is not what was asked for, by its hash"),
        (b"abcdabcdabcd", "an answer is not what was asked for"),
        (b"abcd", "the server has closed a connection"),
    ],
)
def test_a_server_of_small_requests_that_loses_doubles_or_turns_bytes_is_caught(
    answer: bytes, told: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"abcd")
    asked = {"connections": 1, "rate": 1000, "seconds": 0.002, "size": 4}
    with Helper("the client", "bench.senders.crowd:Requests") as requests:
        requests.begin("run", **asked, sha256=hash_of(tmp_path / "file"))
        with socket.create_connection(requests.ready) as sock:
            assert sock.recv(1) + sock.recv(1) == b"??"
            sock.sendall(answer)
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(BenchError, match=f"the client failed: {told}"):
                requests.hear()
