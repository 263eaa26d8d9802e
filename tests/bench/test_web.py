"""``http``, ``web`` and ``flood``: servers are started, asked, and gone."""

import os
import select
import socket
from pathlib import Path

import pytest

from bench.contenders import CONTENDERS, Contender, Running
from bench.ends import SinkProcess
from bench.errors import BenchError
from bench.samples import work_of
from bench.scratch import make_file
from bench.web.commands import upload
from tests.bench.conftest import Bench, Recorded

HERE = Path(__file__).parent
LIAR = (HERE.parent / "kit" / "faults" / "lying_server.py").read_text()


def server_of(path: Path, program: str) -> Contender:
    path.write_text(program)
    return Contender("a server", command=f"{{python}} {path} {{port}}")


@pytest.fixture(autouse=True)
def wrk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a wrk that asks once, by a real client, and makes figures up."""
    (tmp_path / "wrk").symlink_to(HERE / "wrk.sh")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def test_a_server_that_ends_says_its_last_words(tmp_path: Path) -> None:
    program = "import sys; print('first', file=sys.stderr); sys.exit('no such luck')"
    server = server_of(tmp_path / "server", program)

    with (
        Running(server, tmp_path) as running,
        pytest.raises(BenchError, match="a server ended with status 1: no such luck"),
    ):
        assert running.ready


def test_a_server_ends_with_its_block_and_so_does_what_it_started(tmp_path: Path) -> None:
    with Running(server_of(tmp_path / "liar", LIAR), tmp_path) as running:
        port = running.ready[1]
        assert running.cpu() > 0
        with pytest.raises(BenchError, match=r"an upload broke: .* error: 500"):
            upload(port, make_file(tmp_path / "file", 10), 1, 1, form=False)
        processes = [os.pidfd_open(pid) for pid in running.processes()]

    assert len(processes) == 2
    for process in processes:
        assert select.select([process], [], [], 60)[0]
        os.close(process)


def test_what_is_not_installed_is_named() -> None:
    needs = {"/no-such-program": "no-such-program", "no_such.module": "the module no_such.module"}
    for need, told in needs.items():
        assert Contender("s", needs=["json", need]).missing() == f"{told} is not installed"
    assert Contender("s", needs=["/sh", "json"]).missing() is None


def test_a_server_that_sends_other_bytes_is_named_and_not_measured(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTENDERS["server"], "aiohttp", server_of(tmp_path / "liar", LIAR))
    status, _, err = bench("http", "--servers", "aiohttp", "--size", "4K", "--rounds", "1")

    assert (status, err) == (1, "bench: aiohttp does not send the file of 4096 bytes\n")


def test_a_run_of_http_checks_drives_and_lists_servers(
    bench: Bench, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = ("http", "--servers", "aiohttp+aiozc", "--size", "4K")
    record, out = recorded(*what)
    values = {sample.metric: sample.value for sample in record.samples}

    assert "nginx is no Python program" in out
    assert (values["requests"], values["latency p99"]) == (5, 2.5)
    assert values["CPU"] > 0
    monkeypatch.setenv("WRK_ERRORS", "3")
    status, _, err = bench(*what, "--rounds", "1")
    assert (status, err) == (1, "bench: aiohttp+aiozc: wrk saw 3 errors\n")


def test_a_run_of_web_asks_for_files_and_ranges_and_uploads(recorded: Recorded) -> None:
    record, _ = recorded("web", "--servers", "uvicorn", "--size", "64K")
    works = {work_of(*sample[:2]) for sample in record.samples}
    assert works == {"web/static", "web/ranges", "web/uploads"}
    assert len({sample.case for sample in record.samples}) >= 4


def test_a_flood_shows_what_a_small_request_waits_beside_it(recorded: Recorded) -> None:
    record, _ = recorded("flood", "--servers", "aiohttp+aiozc", "--slow", "5")
    values = {sample.metric: sample.value for sample in record.samples}
    assert values == {"wait p50": 1.5, "wait p99": 2.5, "flood": 5}
    with socket.create_server(("127.0.0.1", 0)) as listener, SinkProcess(pace=10**6) as slow:
        slow.ask("ask_for", port=listener.getsockname()[1], path="/file", count=3)
        served = [listener.accept()[0] for _ in range(3)]
        slow.counts(3)
        for one in served[1:]:
            one.shutdown(socket.SHUT_WR)
            one.close()
        slow.wait_counts(lambda counts: len(counts) == 1)
        with pytest.raises(BenchError, match="2 clients were given up"):
            slow.counts(3)
        served[0].close()
