"""``python -m bench``: every command run once, with real peers and less of all; how it refuses."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from bench.__main__ import COMMANDS
from bench.commands import crowds, overview, recvfile, relay, sendfile
from bench.commands.crowds import Crowd
from bench.processes import importing_bench
from bench.record import RUNS
from bench.samples import Record
from bench.senders.table import SENDERS
from bench.sink import SinkProcess
from tests.bench.conftest import Bench

Recorded = Callable[..., tuple[Record, str]]
WHO = ("sock_sendfile", "aiozc readiness")


@pytest.fixture(autouse=True)
def less_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands do what they do with tiny files, few clients and two senders."""
    less: dict[Any, dict[str, Any]] = {
        sendfile: {
            "EVERYWHERE": WHO,
            "_SMALL": {4096: 64},
            "_MIDDLE": (131072,),
            "_BYTES_OF_A_TURN": {True: 1 << 20},
            "_STREAM": {True: 1 << 20},
            "_COLD": {True: (2, 200_000)},
            "_ZC": (),
            "Crowd": lambda *_: Crowd(3, 400_000),
        },
        crowds: {
            "EVERYWHERE": WHO,
            "_CROWDS": {True: (Crowd(3, 400_000),)},
            "_TIMES": {True: (0.05, 0.1)},
            "_MIXED": {True: (0.05, 1 << 20, 100_000)},
            "_CLIENTS": 3,
        },
        relay: {"SIZES": {True: 1_000_000}, "_SETTLING": 0},
        recvfile: {"SIZES": {True: 1 << 20}},
    }
    for module, parts in less.items():
        for name, value in parts.items():
            monkeypatch.setattr(module, name, value)
    for module in (relay, recvfile):
        kept = ("streams", "aiozc readiness", "recv_into, write")
        name = "PROXIES" if module is relay else "UPLOADERS"
        table = {key: value for key, value in getattr(module, name).items() if key in kept}
        monkeypatch.setattr(module, name, table)


@pytest.mark.parametrize(
    ("arguments", "works", "contenders", "metric"),
    [
        (["sendfile", "--targets"], 4, {*WHO, "os.sendfile alone"}, "lateness max"),
        (["middle"], 2, {*WHO}, "process CPU"),
        (["pace", "--only", "small"], 1, {*WHO}, "steady CPU"),
        (["mixed"], 1, {*WHO}, "wait p99"),
        (["relay"], 3, {"streams", "aiozc readiness", "no proxy"}, "throughput"),
        (["recvfile"], 2, {"recv_into, write", "aiozc readiness"}, "lateness p99"),
        (["send", "--only", "linked", "--senders", "read+write"], 1, {"read+write"}, "calls"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_measures_shows_and_records(
    arguments: list[str], works: int, contenders: set[str], metric: str, recorded: Recorded
) -> None:
    record, out = recorded(*arguments)

    assert len(record.works) == works
    assert len({sample.work for sample in record.samples}) == works
    assert {sample.contender for sample in record.samples} == contenders
    assert any(sample.metric == metric and sample.value > 0 for sample in record.samples)
    assert metric in " ".join(out.split())
    assert record.machine["cpus"] >= 1
    assert "aiozc" in record.machine
    told = ("must", "aim", "5x", "7x")  # what developers aim at is shown where it is asked for
    assert all(word in out for word in told) is ("--targets" in arguments)


def test_zc_and_calls_take_part_where_there_is_a_ring(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.commands.calls._WHO", ("sock_sendfile",))
    monkeypatch.setattr(
        "bench.commands.calls._AMOUNT", "--processes=1 --values=1 --warmups=0 --loops=3"
    )
    for command, contender in (("zc", "memory"), ("calls", "sock_sendfile")):
        record, _ = recorded(command, *(["--only", "once"] if command == "zc" else []))
        assert contender in {sample.contender for sample in record.samples}


def test_the_default_is_one_table_of_best_and_worst_that_fits_100_columns(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "_slow", lambda *_: iter(()))
    status, out, err = bench("--quick")

    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    table = out.partition("What aiozc makes of it")[2]
    for row in ("4 KiB, cached: time", "cold files: latest 1 ms timer", "relay, 1 connection"):
        assert row in table
    for word in ("must", "miss", "aim", "target"):
        assert word not in out


def test_the_help_and_the_refusal_of_what_is_no_command_name_every_command(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench("--help")
    told, (status, _, refused) = capsys.readouterr().out, bench("nonsense")

    assert status == 2
    for name, command in COMMANDS.items():
        assert f"\n  {name} " in told
        assert command.purpose in told
        assert name in refused


def test_the_record_names_commands_that_there_are() -> None:
    assert {run.partition(" ")[0] for run in RUNS} <= COMMANDS.keys()


@pytest.mark.parametrize(
    ("package", "command", "told"),
    [
        ("matplotlib", "plot", "plot cannot run here: ImportError: not today"),
        ("aiozc", "sendfile", "sendfile cannot run here: ImportError: not today"),
    ],
)
def test_a_command_that_cannot_be_imported_says_so_in_a_sentence(
    package: str, command: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('not today')\n")
    env = importing_bench()
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "bench", command, "--quick"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"bench: {told}\n")


def test_bad_input_is_one_sentence_and_status_2(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"127.0.0.1:{listener.getsockname()[1]}"
    cases = {
        ("no-such-command",): "there is no command",
        ("--quick", "send"): "unrecognized arguments",
        ("--only", "no-such-work"): "there is no work 'no-such-work', but small",
        ("relay", "--only", "small"): "there is no work 'small', but stream",
        ("recvfile", "--awake", "1"): "unrecognized arguments",
        ("--rounds", "0"): "'0' is no whole number",
        ("--awake", "-1"): "--awake",
        ("--dir", "/no/such/directory"): "is not a directory",
        ("--json", "/no/such/directory/file"): "is not a directory",
        ("--json", str(tmp_path)): "is a directory",
        ("send", "no-such-host.invalid:9", __file__): "there is no host",
        ("send", closed, __file__): "takes no connections: Connection refused",
        ("send", "127.0.0.1:x", __file__): "is no HOST:PORT",
        ("send", str(tmp_path / "nothing")): "No such file or directory",
        ("send", str(tmp_path / "empty")): "is empty",
        ("send", str(tmp_path)): "Is a directory",
        ("send", "--size", "4X"): "'4X' is no size",
        ("send", "--times", "none"): "'none' is no whole number",
        ("send", __file__, "--size", "1G"): "bytes, not 1073741824",
        ("send", "--senders", "carrier-pigeon"): "there is no sender 'carrier-pigeon'",
        ("send", "--size", "4K", "--only", "sizes"): "--only is for",
        ("flood", "--servers", "pigeon"): "there is no server 'pigeon'",
        ("sink", "--port", "70000"): "there is no port 70000",
        ("sink", "--host", "192.0.2.1"): "cannot listen on 192.0.2.1:9999",
        ("plot", str(tmp_path / "nothing")): "cannot be read",
        ("compare", __file__, __file__): "is not lines of JSON",
    }
    for arguments, told in cases.items():
        status, _, err = bench(*arguments)
        assert (arguments, status) == (arguments, 2)
        assert err.startswith("bench: ")
        assert err.count("\n") == 1
        assert told in err


# To another machine


def test_a_run_to_a_sink_elsewhere_sends_cold_copies_of_a_file(
    recorded: Recorded, tmp_path: Path
) -> None:
    (tmp_path / "given").write_bytes(os.urandom(30_000))
    with SinkProcess() as sink:
        record, out = recorded(
            *("send", f"127.0.0.1:{sink.address[1]}", str(tmp_path / "given"), "--cold"),
            *("--senders", "read+write,aiozc readiness", "--baseline", "aiozc readiness"),
            *("--buffer", "4K,8K", "--times", "2", "--connections", "2"),
        )
    assert record.commands[0].startswith("python -m bench send 127.0.0.1:")
    cases = {sample.case for sample in record.samples}
    assert [case.rpartition(" ")[0][-8:] for case in sorted(cases)] == ["buffer 4", "buffer 8"]
    assert "told no hash" not in out


def test_a_sink_of_another_kind_will_do_and_is_said_to_tell_no_hash(
    recorded: Recorded, tmp_path: Path
) -> None:
    (tmp_path / "given").write_bytes(bytes(30_000))
    socks = []

    def swallow(listener: socket.socket) -> None:
        for _ in range(5):  # it is asked twice whether it is there, two are the check's
            sock, _ = listener.accept()
            socks.append(sock)
            while sock.recv(65536):
                pass
            sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=swallow, args=[listener])
        thread.start()
        port = listener.getsockname()[1]
        _, out = recorded(
            "send", f"127.0.0.1:{port}", str(tmp_path / "given"), "--senders", "read+write"
        )
        thread.join(30)
    assert "The receiver told no hash for read+write." in out


def test_the_sink_of_another_machine_tells_where_it_is_and_what_came() -> None:
    command = [sys.executable, "-m", "bench", "sink", "--port", "0", "--discard"]
    with subprocess.Popen(
        command,
        env=importing_bench(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as sink:
        assert sink.stderr is not None
        port = int(sink.stderr.readline().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"12345")
            sock.shutdown(socket.SHUT_WR)
            assert json.loads(sock.makefile().readline()) == {"received": 5, "sha256": None}
        sink.send_signal(signal.SIGINT)
        told = sink.stderr.read()
    assert told == "bench: 1 connections brought 5 bytes\nbench: stopped\n"
    assert sink.returncode == 130


def test_a_signal_leaves_no_process_and_no_file_behind(tmp_path: Path) -> None:
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "bench", "send", "--dir", str(tmp_path), "--rounds", "1000"),
            *("--senders", "read+write,aiozc readiness", "--size", "4K"),
        ],
        env=importing_bench(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        me = psutil.Process(process.pid)
        while not any((path / "file-0").exists() for path in tmp_path.iterdir()):
            select.select([], [], [], 0.02)
            assert process.poll() is None
        children = me.children(recursive=True)
        process.terminate()
        _, err = process.communicate(timeout=60)

    assert err == "bench: stopped\n"
    assert process.returncode == 128 + signal.SIGTERM
    assert len(children) == 3
    assert not [child for child in children if child.is_running()]
    assert list(tmp_path.iterdir()) == []


def test_the_senders_of_send_are_all_in_the_table() -> None:
    assert {"aiozc", "aiozc uvloop readiness", "sendfile_zc"} <= SENDERS.keys()
