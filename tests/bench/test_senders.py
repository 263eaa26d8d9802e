"""What senders send, what is counted of them, and those that are wrong."""

import asyncio
import os
import posix
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any
from unittest.mock import Mock

import pytest

from aiozc._engines import inline
from aiozc._kernel.copying import copier
from bench.commands.crowds import serve
from bench.commands.send import fleet_of
from bench.contenders import CONTENDERS
from bench.ends import SinkProcess
from bench.errors import BenchError
from bench.measure import Case, measure
from bench.on_loop import start
from bench.processes import Helper
from bench.scratch import hash_of, make_file
from bench.senders.lanes import Lane, counted
from bench.senders.worker import Worker
from tests.bench.conftest import CASES, work_of
from tests.kit.faults.liars import liar

SENDERS = CONTENDERS["sender"]
FILE = 30_000


def counts_of(name: str, lane: Lane, file: IO[bytes], size: int) -> dict[str, float]:
    """Let a sender send a file to who reads at once, and count its calls."""

    async def send() -> None:
        await (await SENDERS[name].function()(lane))(file, size)

    with counted(SENDERS[name]) as told:
        asyncio.run(send())
    return told(size)


def test_calls_and_what_was_short_are_counted_with_what_it_moved(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    path = make_file(tmp_path / "file", 10_000)
    large = make_file(tmp_path / "large", 1 << 22)
    with ours, theirs, ExitStack() as stack, path.open("rb") as file, large.open("rb") as all_:
        found = counts_of("read+write", Lane(ours, stack, 4096), file, 10_000)
        told = {"calls": 6, "bytes per call": 10_000 / 6, "short reads": 0, "short writes": 0}
        assert found == told
        assert theirs.recv(10_000, socket.MSG_WAITALL) == path.read_bytes()
        sending = asyncio.run(SENDERS["splice"].function()(Lane(ours, stack, 8192)))
        with counted(SENDERS["splice"]) as counts, pytest.raises(EOFError):
            sending(file, 20_000).send(None)
        assert counts(10_000)["mean short read"] == 10_000 - 8192
        theirs.recv(10_000, socket.MSG_WAITALL)
        ours.setblocking(False)
        with ThreadPoolExecutor() as threads:
            threads.submit(theirs.recv, 1 << 22, socket.MSG_WAITALL)
            found = counts_of("sock_sendall", Lane(ours, stack, 1 << 22), all_, 1 << 22)
        assert found["calls"] > found["short writes"] > 0
        assert 0 < found["mean short write"] < 1 << 22


@pytest.mark.parametrize("name", ["aiozc readiness", "sock_sendfile"])
@pytest.mark.parametrize("size", [4096, 65536, 1 << 20])
def test_each_call_that_an_awaited_sender_makes_is_counted_once(
    name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, made = Mock(), []

    def watched_copier(size: int) -> Any:
        read, copies.side_effect = copier(size)
        return read, copies

    monkeypatch.setenv("AIOZC_BACKEND", "readiness")
    for mover in ("sendfile", "splice", "preadv", "pwritev", "pread", "pwrite", "readv", "writev"):
        for module in (os, posix):
            made.append(Mock(side_effect=getattr(module, mover)))
            monkeypatch.setattr(module, mover, made[-1])
    monkeypatch.setattr(inline, "copier", watched_copier)
    file = str(make_file(tmp_path / "file", size))
    plan = {"paths": [file], "size": size, "warm_file": file, "times": 5, "count": True}
    with SinkProcess() as sink, socket.socket() as channel:
        worker = Worker(channel, asdict(SENDERS[name]))
        found = asyncio.run(worker.send(address=sink.ready, **plan))

    calls = 2 * copies.call_count + sum(mover.call_count for mover in made)  # preadv2 and send
    assert found["calls"] == calls > 0
    assert found["bytes per call"] == 5 * size / calls


def test_every_sender_here_sends_every_byte_and_tells_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(make_file(tmp_path / "file", FILE))
    order: dict[str, Any] = {"paths": [file, file], "connections": 2, "size": FILE, "times": 3}
    order |= {"warm_file": file, "warm_size": FILE, "warm_times": 1, "buffer": 4096, "count": True}
    monkeypatch.setitem(SENDERS, "refuse", liar("refuse"))
    work = work_of(tmp_path, *SENDERS)
    with SinkProcess() as sink, work.settings.stack:
        record, fleet = work.settings.record, fleet_of(work)
        names = fleet.present(work)
        assert record.failed == {}
        assert "no such call here" in record.missing["refuse"]
        assert {"read+write", "sock_sendfile", "aiozc readiness"} <= set(names)
        for name in names:
            sender = SENDERS[name]
            fleet.check(name, sink.ready, file, FILE)
            found = fleet.send(name, address=sink.ready, **order, timer=True)
            assert (found["files"], found["bytes"]) == (12, 12 * FILE)
            assert 0 < found.get("loop CPU", 1e-9) <= found["process CPU"]
            assert min(found["elapsed"], found["memory"], found["checked"]) > 0
            assert ("short writes" in found) is not sender.own_calls
            for metric in ("lateness max", "latency p50", "loop CPU"):
                assert (metric in found) is not sender.blocking
            assert ("copies" in found) is (name.startswith(("zc", "MSG_", "sendfile_zc")))
            assert name != "read+write" or found["calls"] == 2 * 12 * 8
        assert fleet.unchecked == []


@pytest.mark.parametrize(("name", "told"), CASES["liars"].items())
def test_a_sender_that_is_wrong_is_named_and_a_receiver_that_dies_is_what_a_run_reports(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, worker = str(make_file(tmp_path / "file", 5000)), "bench.senders.worker:Worker"
    monkeypatch.setitem(SENDERS, name, liar(name))
    with (
        SinkProcess() as sink,
        start("sender", name, worker) as bad,
        start("sender", "sendfile", worker) as good,
    ):
        order: dict[str, Any] = {"size": 5000, "warm_file": file, "paths": [file, file]}

        def turn(who: str) -> dict[str, float]:
            helper = bad if who == name else good
            helper.begin("send", address=sink.ready, hash=True, **order)
            if "for_ever" in who:
                os.kill(sink.pid if name == "send_for_ever" else bad.pid, signal.SIGKILL)
            found: dict[str, float] = helper.hear()
            return found

        failed: dict[str, str] = {}
        case = Case("a: case", {"elapsed": "s"}, ["sendfile", name], turn, check_peers=sink.check)
        turns = measure("send", case, 2, failed=failed)
        if name == "send_for_ever":
            with pytest.raises(BenchError, match=told):
                list(turns)
        else:
            assert [sample.contender for sample in turns] == ["sendfile"] * 2
            assert told in failed[name]


def test_slow_clients_are_served_by_a_process_that_is_watched(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 16 << 20)

    served = serve("sock_sendfile", file, 400_000, 0.1, 0.2, clients=5, send_buffer=200_000)

    assert served["threads"] >= 1
    assert served["steady CPU"] > 0
    assert 0 < served["client with least"] <= served["client with most"]
    short = make_file(tmp_path / "short", 1000)
    with pytest.raises(BenchError, match="a transfer ended too early: 1000"):
        serve("sock_sendfile", short, 400_000, 0.2, 0.2, clients=2)


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
        serve("sock_sendfile", file, 400_000, 5, 5, clients=2)


@pytest.mark.parametrize(("answer", "told"), CASES["answers"].items())
def test_a_server_of_small_requests_that_loses_doubles_or_turns_bytes_is_caught(
    answer: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"abcd")
    asked = {"connections": 1, "rate": 1000, "seconds": 0.002, "size": 4}
    with Helper("the client", "bench.commands.crowds:Requests") as requests:
        requests.begin("run", **asked, sha256=hash_of(tmp_path / "file"))
        with socket.create_connection(requests.ready) as sock:
            assert sock.recv(1) + sock.recv(1) == b"??"
            sock.sendall(answer.encode())
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(BenchError, match=f"the client failed: {told}"):
                requests.hear()
