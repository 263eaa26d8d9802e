"""``python -m bench``: every command run once, with real peers and less of all; how it refuses."""

import json
import os
import select
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from bench.console import COMMANDS
from bench.ends import SinkProcess
from bench.processes import importing_bench
from bench.samples import Record, work_of
from tests.bench.conftest import CASES, Bench, Recorded, start_python


@pytest.mark.parametrize("case", CASES["commands"], ids=lambda case: case["arguments"])
def test_a_command_measures_shows_and_records(case: dict[str, Any], recorded: Recorded) -> None:
    arguments, works, metric = case["arguments"], case["works"], case["metric"]
    record, out = recorded(*arguments.split())

    assert len(record.works) == len({work_of(*sample[:2]) for sample in record.samples}) == works
    ringed = {"aiozc", "zc", "zc uvloop"}  # where a ring can be had
    assert {sample.contender for sample in record.samples} - ringed == set(case["contenders"])
    assert any(sample.metric == metric and sample.value > 0 for sample in record.samples)
    assert metric in " ".join(out.split())
    assert record.machine["cpus"] >= 1
    told = ("must", "aim", "5x", "7x")  # what developers aim at is shown where it is asked for
    assert all(word in out for word in told) is ("--targets" in arguments)


def test_the_default_is_one_table_of_best_and_worst_that_fits_100_columns(bench: Bench) -> None:
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
        assert command["purpose"] in told
        assert name in refused


@pytest.mark.parametrize(("package", "command"), [("matplotlib", "plot"), ("aiozc", "sendfile")])
def test_a_command_that_cannot_be_imported_says_so_in_a_sentence(
    package: str, command: str, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('not today')\n")
    env = importing_bench()
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    with start_python("-m", "bench", command, "--quick", env=env, cwd=tmp_path) as process:
        out, err = process.communicate(timeout=60)
    told = f"bench: {command} cannot run here: ImportError: not today\n"
    assert (process.returncode, out, err) == (1, "", told)


def test_bad_input_is_one_sentence_and_status_2(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    Record({}).write(tmp_path / "none")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"127.0.0.1:{listener.getsockname()[1]}"
    parts = {"tmp": tmp_path, "here": __file__, "closed": closed}
    for asked, told in CASES["refusals"].items():
        arguments = asked.format(**parts)
        status, _, err = bench(*arguments.split())
        assert (arguments, status) == (arguments, 2)
        assert (err[:7], err.count("\n")) == ("bench: ", 1)
        assert told in err


def test_a_run_to_a_sink_elsewhere_sends_cold_copies_of_a_file(
    recorded: Recorded, tmp_path: Path
) -> None:
    (tmp_path / "given").write_bytes(os.urandom(30_000))
    with SinkProcess() as sink:
        record, out = recorded(
            *("send", f"127.0.0.1:{sink.ready[1]}", str(tmp_path / "given"), "--cold"),
            *("--senders", "read+write,aiozc readiness", "--baseline", "aiozc readiness"),
            *("--buffer", "4K,8K", "--times", "2", "--connections", "2"),
        )
    assert record.commands[0].startswith("python -m bench send 127.0.0.1:")
    assert str(tmp_path / "found") not in record.commands[0]
    assert {sample.case[-5:] for sample in record.samples} == {"4 KiB", "8 KiB"}
    assert "told no hash" not in out


def test_a_sink_of_another_kind_will_do_and_is_said_to_tell_no_hash(
    recorded: Recorded, tmp_path: Path
) -> None:
    (tmp_path / "given").write_bytes(bytes(30_000))

    def swallow(listener: socket.socket) -> None:
        for _ in range(6):  # two ask whether it is there, two are the check's
            with listener.accept()[0] as sock:
                while sock.recv(65536):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=swallow, args=[listener])
        thread.start()
        where = (f"127.0.0.1:{listener.getsockname()[1]}", str(tmp_path / "given"))
        _, out = recorded("send", *where, "--senders", "read+write")
        thread.join(30)
    assert "The receiver told no hash for read+write." in out


def test_the_sink_of_another_machine_tells_where_it_is_and_what_came() -> None:
    with start_python("-m", "bench", "sink", "--port", "0", "--discard") as sink:
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
    what = ["--dir", str(tmp_path), "--rounds", "1000", "--size", "4K"]
    who = ["--senders", "read+write,aiozc readiness"]
    with start_python("-m", "bench", "send", *what, *who) as process:
        me = psutil.Process(process.pid)
        while not any((path / "file-0").exists() for path in tmp_path.iterdir()):
            select.select([], [], [], 0.02)
            assert process.poll() is None
        children = me.children(recursive=True)
        process.terminate()
        _, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (128 + signal.SIGTERM, "bench: stopped\n")
    assert len(children) == 3
    assert not [child for child in children if child.is_running()]
    assert list(tmp_path.iterdir()) == []
