"""``python -m bench send``: what senders send, what is counted of them, and how a run ends."""

import asyncio
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from aiozc._engines import at_once
from aiozc._kernel.copying import copier
from bench.__main__ import main
from bench.errors import BenchError
from bench.processes import importing_bench
from bench.scratch import cached_pages, make_file, warm
from bench.send.lanes import CountingSocket, Lane
from bench.send.plain import read_write, splice_twice
from bench.send.plan import Point, Sweep
from bench.send.run import Run, Settings
from bench.send.table import SENDERS, sender_named
from bench.send.worker import Done, Order, Worker, take_turn
from bench.sink import MARK, SinkProcess
from tests.bench.test_command import run_bench

LIARS = "tests.bench.liars"


@pytest.fixture
def sink() -> Iterator[SinkProcess]:
    with SinkProcess() as sink:
        yield sink


def answer_to(address: tuple[str, int], *pieces: bytes) -> dict[str, object]:
    with socket.create_connection(address) as sock:
        for piece in pieces:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        found: dict[str, object] = json.loads(sock.makefile("rb").readline())
        return found


def settings_for(sink: SinkProcess, tmp_path: Path, *, rounds: int = 1) -> Settings:
    return Settings(sink.address, sink, tmp_path, "read+write", rounds)


@contextmanager
def lane_to_nobody(tmp_path: Path, buffer: int) -> Iterator[tuple[Lane, socket.socket, Path]]:
    ours, theirs = socket.socketpair()
    with ours, theirs, ExitStack() as stack:
        yield Lane(ours, buffer, stack), theirs, make_file(tmp_path / "file", 10_000)


# The sink


def test_a_sink_tells_how_many_bytes_came_and_the_hash_of_those_behind_a_mark(
    sink: SinkProcess,
) -> None:
    assert answer_to(sink.address, b"abc", b"de") == {"received": 5, "sha256": None}
    assert answer_to(sink.address) == {"received": 0, "sha256": None}
    assert answer_to(sink.address, MARK, b"abc") == {
        "received": 3,
        "sha256": hashlib.sha256(b"abc").hexdigest(),
    }


def test_a_sink_that_discards_counts_and_hashes_all_the_same() -> None:
    data = os.urandom(300_000)
    with SinkProcess(discard=True) as sink:
        assert answer_to(sink.address, data)["received"] == len(data)
        assert answer_to(sink.address, MARK, data)["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_paced_sink_reads_each_connection_to_its_end_and_takes_its_time() -> None:
    with SinkProcess(pace=10_000_000) as sink:
        began = time.monotonic()
        assert answer_to(sink.address, bytes(1_000_000))["received"] == 1_000_000
        assert time.monotonic() - began > 0.05  # 1 MB at 10 MB/s, less a step


# Counting


def test_calls_and_what_was_short_are_counted(tmp_path: Path) -> None:
    with lane_to_nobody(tmp_path, 4096) as (lane, theirs, path), path.open("rb") as file:
        read_write(lane)(file, 10_000)
        assert lane.counts.calls == 6
        assert (lane.counts.short_reads, lane.counts.short_writes) == (0, 0)
        assert theirs.recv(20_000, socket.MSG_WAITALL | socket.MSG_PEEK)[:10_000] == (
            path.read_bytes()
        )
        with pytest.raises(EOFError):
            read_write(lane)(file, 10_001)


def test_a_file_shorter_than_asked_is_a_short_read_with_its_size(tmp_path: Path) -> None:
    with lane_to_nobody(tmp_path, 8192) as (lane, _, path), path.open("rb") as file:
        with pytest.raises(EOFError):
            splice_twice(lane)(file, 20_000)
        assert (lane.counts.short_reads, lane.counts.short_read_bytes) == (1, 10_000 - 8192)


def test_a_loops_own_calls_are_counted_with_what_the_socket_did_not_take() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ExitStack() as stack:
        ours.setblocking(False)
        lane = Lane(ours, 1, stack)
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
    name: str, size: int, sink: SinkProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    for mover in ("sendfile", "splice", "preadv", "pwritev", "pread", "pwrite", "readv", "writev"):
        watch(mover)
    monkeypatch.setattr(at_once, "copier", watched)
    monkeypatch.setenv("AIOZC_BACKEND", "readiness")
    file = str(make_file(tmp_path / "file", size))
    order = Order(sink.address, [[file]], size, 4096, file, times=5, observe=True)
    sample = take_turn(sender_named(name), order).sample

    assert sample["calls"] == len(made) > 0
    assert sample["bytes per call"] == 5 * size / len(made)


# Senders


def test_every_sender_here_sends_every_byte_and_tells_what_it_took(
    sink: SinkProcess, tmp_path: Path
) -> None:
    names = [sender.name for sender in SENDERS]
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name)) for name in names}
        run = Run(settings_for(sink, tmp_path), workers)
        run.begin(lambda _: None)
        point = Point(70_000, 3, connections=2, buffer=4096)
        turns = []
        found = run.measure(Sweep("a-sweep", "", names, [point]), point, lambda: turns.append(1))

    assert run.found.failed == {}
    assert run.found.unchecked == []
    assert list(found["senders"]) == [name for name in names if name not in run.found.missing]
    assert {"read+write", "sock_sendfile", "aiozc readiness"} <= found["senders"].keys()
    assert len(turns) == len(found["senders"])
    for sender in SENDERS:
        if sender.name in run.found.missing:
            continue
        samples = found["senders"][sender.name]["samples"]
        assert samples["files"] == [6]
        assert samples["bytes"] == [420_000]
        assert samples["time"][0] > 0
        assert samples["CPU"][0] > 0
        assert samples["memory"][0] > 1
        assert samples["calls"][0] > 0
        assert ("short writes" in samples) is sender.shortness
        assert bool(found["senders"][sender.name]["lateness"]) is (sender.awaited is not None)
    assert found["senders"]["read+write"]["samples"]["calls"] == [2 * 6 * 18]


@pytest.mark.parametrize(
    ("liar", "told"),
    [
        ("lose_a_byte", "lose_a_byte failed: it sent 9997 bytes in place of 10000"),
        ("turn_a_byte", "turn_a_byte failed: its bytes are not those of the file, by their hash"),
    ],
)
def test_a_sender_that_loses_or_turns_bytes_is_named(
    liar: str, told: str, sink: SinkProcess, tmp_path: Path
) -> None:
    file = str(make_file(tmp_path / "file", 5000))
    with Worker(liar, LIARS) as worker:
        worker.wait_ready()
        order = Order(sink.address, [[file, file]], 5000, 4096, file, hash=True)
        with pytest.raises(BenchError) as caught:
            worker.take_turn(order)

    assert str(caught.value) == told.replace("9997", "9998")


def test_a_run_goes_on_without_a_sender_that_loses_bytes(sink: SinkProcess, tmp_path: Path) -> None:
    with Worker("lose_a_byte", LIARS) as liar, Worker("sendfile") as honest:
        run = Run(settings_for(sink, tmp_path), {"splice": liar, "sendfile": honest})
        run.begin(lambda _: None)
        point = Point(5000, 1)
        names = ["splice", "sendfile"]
        found = run.measure(Sweep("a-sweep", "", names, [point]), point, lambda: None)

    assert list(run.found.failed) == ["splice"]
    assert "in place of" in run.found.failed["splice"]
    assert list(found["senders"]) == ["sendfile"]


class Looker(Worker):
    """Counts the cached pages of the files that it is to send, and reads them."""

    def __init__(self) -> None:
        self.missing = None
        self.cached: list[list[int | None]] = []

    def take_turn(self, order: Order) -> Done:
        """Look, and leave the files cached."""
        paths = [Path(path) for paths in order.files for path in paths]
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in paths]
            self.cached.append([cached_pages(file.fileno()) for file in files])
        for path in paths:
            warm(path)
        return Done(checked=True)


@pytest.mark.parametrize("cold", [True, False])
def test_files_are_as_cold_or_as_cached_as_asked_before_each_turn(
    cold: bool, sink: SinkProcess, tmp_path: Path
) -> None:
    looker = Looker()
    settings = replace(settings_for(sink, tmp_path, rounds=2), cold=cold)
    point = Point(100_000, 3)
    sweep = Sweep("a-sweep", "", ["read+write"], [point])

    Run(settings, {"read+write": looker}).measure(sweep, point, lambda: None)

    files, pages = (3, 0) if cold else (1, -(-100_000 // os.sysconf("SC_PAGESIZE")))
    assert looker.cached in ([[pages] * files] * 2, [[None] * files] * 2)


def test_a_sender_that_cannot_run_here_is_missing_with_its_reason(
    sink: SinkProcess, tmp_path: Path
) -> None:
    with Worker("refuse", LIARS) as worker:
        run = Run(settings_for(sink, tmp_path), {"splice": worker})
        run.begin(lambda _: None)

    assert "no such call here" in run.found.missing["splice"]


def test_a_receiver_that_dies_is_what_a_run_reports(sink: SinkProcess, tmp_path: Path) -> None:
    with Worker("send_for_ever", LIARS) as worker:
        run = Run(settings_for(sink, tmp_path), {"splice": worker})
        threading.Timer(0.3, os.kill, (sink.pid, signal.SIGKILL)).start()
        with pytest.raises(BenchError, match=r"the receiver process ended too early, .* -9"):
            run.begin(lambda _: None)


def test_a_receiver_elsewhere_that_has_gone_is_what_a_run_reports(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    settings = Settings(address, None, tmp_path, "read+write", 1)
    with Worker("sendfile") as worker:
        run = Run(settings, {"sendfile": worker})
        with pytest.raises(BenchError, match="takes no connections: Connection refused"):
            run.begin(lambda _: None)


def test_a_worker_that_is_busy_ends_with_its_parent(tmp_path: Path) -> None:
    file = str(make_file(tmp_path / "file", 5000))
    program = (
        "from bench.send.worker import Order, Worker\n"
        "from bench.sink import SinkProcess\n"
        f"with SinkProcess() as sink, Worker('sleep_for_ever', {LIARS!r}) as worker:\n"
        "    worker.wait_ready()\n"
        "    print(worker.pid, flush=True)\n"
        f"    worker.take_turn(Order(sink.address, [[{file!r}]], 5000, 4096, {file!r}))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], env=importing_bench(), stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        process = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert select.select([process], [], [], 60)[0]
    os.close(process)


def test_a_worker_whose_parent_goes_before_it_is_ready_ends_without_a_word() -> None:
    ours, theirs = socket.socketpair()
    with (
        theirs,
        subprocess.Popen(
            [sys.executable, "-m", "bench.send.worker", "read+write", str(theirs.fileno())],
            env=importing_bench(),
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        ) as worker,
    ):
        ours.close()
        theirs.close()
        _, err = worker.communicate(timeout=60)

    assert (worker.returncode, err) == (0, "")


# The command


def test_a_run_to_a_sink_elsewhere_shows_a_table_and_writes_json(
    sink: SinkProcess, tmp_path: Path
) -> None:
    file, found = make_file(tmp_path / "given", 30_000), tmp_path / "found.json"

    done = run_bench(
        *("send", f"127.0.0.1:{sink.address[1]}", str(file), "--senders", "read+write,sendfile"),
        *("--buffer", "4K,8K", "--times", "2", "--connections", "2", "--rounds", "2", "--cold"),
        *("--dir", str(tmp_path), "--json", str(found), "--baseline", "sendfile"),
    )

    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads(found.read_text())
    assert written["command"].startswith("python -m bench send 127.0.0.1:")
    assert [point["buffer"] for point in written["sweeps"][0]["points"]] == [4096, 8192]
    for point in written["sweeps"][0]["points"]:
        for name in ("read+write", "sendfile"):
            assert point["senders"][name]["samples"]["bytes"] == [120_000, 120_000]
            assert name in done.stdout
    assert "told no hash" not in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "given"]


def test_a_sink_of_another_kind_will_do_and_is_said_to_tell_no_hash(tmp_path: Path) -> None:
    def swallow(listener: socket.socket) -> None:
        for _ in range(4):  # it is asked whether it is there, two are the check's, one a turn's
            with listener.accept()[0] as sock:
                while sock.recv(65536):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=swallow, args=[listener], daemon=True)
        thread.start()
        file = make_file(tmp_path / "given", 30_000)
        done = run_bench(
            *("send", f"127.0.0.1:{listener.getsockname()[1]}", str(file)),
            *("--senders", "read+write", "--rounds", "1"),
        )
        thread.join(30)

    assert (done.returncode, done.stderr) == (0, "")
    assert "The receiver told no hash for read+write." in done.stdout


@pytest.mark.usefixtures("keeps_signals")
def test_a_name_with_several_addresses_is_the_one_that_takes_connections(
    sink: SinkProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resolve = socket.getaddrinfo

    def several(host: str, *arguments: Any, **more: Any) -> Any:
        hosts = ["127.0.0.2", "127.0.0.1"] if host == "a-name" else [host]
        return [found for name in hosts for found in resolve(name, *arguments, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", several)
    status = main(
        ["send", f"a-name:{sink.address[1]}", __file__, "--senders", "read+write", "--rounds", "1"]
    )

    assert (status, capsys.readouterr().err) == (0, "")


@pytest.mark.usefixtures("keeps_signals")
def test_bad_input_is_one_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"127.0.0.1:{listener.getsockname()[1]}"
    cases = {
        ("no-such-host.invalid:9", __file__): "there is no host",
        (closed, __file__): "takes no connections: Connection refused",
        ("127.0.0.1:x", __file__): "is no HOST:PORT",
        (str(tmp_path / "nothing"),): "No such file or directory",
        (str(tmp_path / "empty"),): "is empty",
        (str(tmp_path),): "is a directory",
        ("--size", "4X"): "'4X' is no size",
        ("--size", "4K,0"): "'0' is no size",
        ("--times", "none"): "'none' is no whole number",
        (__file__, "--size", "1G"): "bytes, not 1073741824",
        ("--senders", "carrier-pigeon"): "there is no sender 'carrier-pigeon'",
        ("--size", "4K", "--only", "sizes"): "--only is for",
        ("--json", str(tmp_path)): "--json: ",
    }
    for arguments, told in cases.items():
        status = main(["send", *arguments])
        err = capsys.readouterr().err
        assert status == 2
        assert err.startswith("bench: ")
        assert err.count("\n") == 1
        assert told in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_process_and_no_file_behind(
    number: signal.Signals, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "bench", "send", "--dir", str(tmp_path), "--rounds", "1000"),
            *("--senders", "read+write,streams,aiozc readiness"),
        ],
        env=importing_bench(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        me = psutil.Process(process.pid)
        while not any((path / "file-0").exists() for path in tmp_path.iterdir()):
            select.select([], [], [], 0.01)
            assert process.poll() is None
        children = me.children(recursive=True)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)

    assert err == "bench: stopped\n"
    assert process.returncode == 128 + number
    assert len(children) == 4
    assert not [child for child in children if child.is_running()]
    assert list(tmp_path.iterdir()) == []
