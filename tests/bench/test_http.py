"""``python -m bench http``: servers are started, asked, and gone."""

import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.errors import BenchError
from bench.http.flood import SlowReaders
from bench.http.servers import Running, Server, Site, free_port
from bench.processes import importing_bench

WRK = """#!/bin/sh
for url; do :; done
{python} -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1]).read()' "$url" || exit 1
echo '{{"microseconds": 2000000, "requests": 10, "bytes": 40960, "p50": 1500, "p99": 2500,' \\
    '"errors": {errors}}}' >&2
"""


def site(tmp_path: Path) -> Site:
    return Site(tmp_path, tmp_path, free_port())


def test_a_server_that_ends_says_its_last_words(tmp_path: Path) -> None:
    program = "import sys; print('first', file=sys.stderr); sys.exit('no such luck')"
    server = Server("a server", [], lambda _: [sys.executable, "-c", program])

    with (
        Running(server, site(tmp_path)) as running,
        pytest.raises(BenchError, match="a server ended with status 1: no such luck"),
    ):
        running.wait_ready()


def test_a_server_ends_with_its_block_and_so_does_what_it_started(tmp_path: Path) -> None:
    program = (
        "import http.server, subprocess, sys; port = int(sys.argv[1]);"
        "subprocess.Popen(['sleep', '1000']);"
        "http.server.HTTPServer(('127.0.0.1', port), http.server.SimpleHTTPRequestHandler)"
        ".serve_forever()"
    )
    server = Server("a server", [], lambda s: [sys.executable, "-c", program, str(s.port)])

    with Running(server, site(tmp_path)) as running:
        running.wait_ready()
        assert running.cpu() > 0
        processes = [os.pidfd_open(pid) for pid in running.processes()]

    assert len(processes) == 2
    for process in processes:
        assert select.select([process], [], [], 60)[0]
        os.close(process)


def test_what_is_not_installed_is_named() -> None:
    def command(_: Site) -> list[str]:
        return []

    assert Server("s", ["/no-such-program"], command).missing() == (
        "no-such-program is not installed"
    )
    assert Server("s", ["no_such.module"], command).missing() == (
        "the module no_such.module is not installed"
    )
    assert Server("s", ["/sh", "json"], command).missing() is None


@pytest.mark.usefixtures("keeps_signals")
def test_a_server_that_sends_other_bytes_is_named_and_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import http.server, sys\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "        self.wfile.write(bytes(4096))\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()"
    )
    liar = Server("liar", [], lambda s: [sys.executable, "-c", program, str(s.port)])
    for module in ("command", "started"):
        monkeypatch.setattr(f"bench.http.{module}.SERVERS", (liar,))
    (tmp_path / "wrk").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    status = main(["http", "--size", "4K", "--rounds", "1", "--dir", str(tmp_path)])

    assert status == 1
    assert capsys.readouterr().err == "bench: liar does not send the file of 4096 bytes\n"


def bench(tmp_path: Path, *arguments: str, errors: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run a command, with a wrk that asks once and makes figures up."""
    wrk = tmp_path / "wrk"
    wrk.write_text(WRK.format(python=sys.executable, errors=errors))
    wrk.chmod(0o755)
    env = importing_bench()
    env["PATH"] = f"{tmp_path}{os.pathsep}{env['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("errors", [0, 3])
def test_a_run_checks_drives_and_lists_servers(errors: int, tmp_path: Path) -> None:
    found = tmp_path / "found.json"

    done = bench(
        tmp_path,
        *("http", "--servers", "aiohttp,aiohttp+aiozc"),
        *("--size", "4K", "--rounds", "2", "--json", str(found), "--dir", str(tmp_path)),
        errors=errors,
    )

    written = json.loads(found.read_text())
    servers = written["sweeps"][0]["points"][0]["senders"]
    assert "nginx is no Python program" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "wrk"]
    if errors:
        assert done.returncode == 1
        assert servers == {}
        assert written["failed"]["aiohttp"] == "aiohttp: wrk saw 3 errors"
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert servers.keys() == {"aiohttp", "aiohttp+aiozc"}
        for server in servers.values():
            assert server["samples"]["requests"] == [5, 5]
            assert server["samples"]["latency p99"] == [2.5, 2.5]
            assert all(cpu > 0 for cpu in server["samples"]["CPU"])


def test_a_flood_shows_what_a_small_request_waits_beside_it(tmp_path: Path) -> None:
    done = bench(tmp_path, "flood", "--servers", "aiohttp+aiozc", "--slow", "5", "--rounds", "2")

    assert (done.returncode, done.stderr) == (0, "")
    row = next(line for line in done.stdout.splitlines() if "aiohttp+aiozc" in line)
    assert row.split()[1:] == ["1.50", "±0", "%", "2.50", "±0", "%", "5", "±0", "%"]


def test_slow_readers_that_are_given_up_are_no_success() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with SlowReaders(listener.getsockname()[1], 3) as slow:
            served = [listener.accept()[0] for _ in range(3)]
            slow.check()
            for one in served[1:]:
                one.close()
            while slow.count > 1:
                time.sleep(0.01)
            with pytest.raises(BenchError, match="2 slow readers were given up"):
                slow.check()
        served[0].close()
