"""The benchmark's own processes: sinks, sources, proxies and uploaders, and how they end."""

import hashlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.commands.receive import SERVER, Proxy, pass_through, start_proxy, take_upload
from bench.contenders import CONTENDERS
from bench.ends import MARK, SinkProcess, source_of
from bench.errors import BenchError
from bench.on_loop import start
from bench.processes import Helper
from bench.scratch import cached_pages, make_cold, make_file, make_sparse_file, warm
from tests.bench.conftest import CASES, start_python, work_of
from tests.kit.faults.liars import liar

SIZE = 300_000


def present(kind: str, tmp_path: Path) -> list[str]:
    names = [name for name in CONTENDERS[kind] if name != "no proxy"]
    return work_of(tmp_path, *names, kind=kind).present()


def answer_to(address: tuple[str, int], *pieces: bytes) -> dict[str, object]:
    with socket.create_connection(address) as sock:
        for piece in pieces:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        found: dict[str, object] = json.loads(sock.makefile("rb").readline())
        return found


@pytest.mark.parametrize("how", [{}, {"discard": True, "large_buffers": True}, {"pace": 10**7}])
def test_a_sink_tells_how_many_bytes_came_and_the_hash_of_those_behind_a_mark(
    how: dict[str, Any],
) -> None:
    data, began = os.urandom(SIZE), time.monotonic()
    with SinkProcess(**how) as sink:
        assert answer_to(sink.ready, bytes(10**6)) == {"received": 10**6, "sha256": None}
        paced = time.monotonic() - began > 0.05  # 1 MB at 10 MB/s, less a step
        assert paced or "pace" not in how
        assert answer_to(sink.ready) == {"received": 0, "sha256": None}
        sha256 = hashlib.sha256(data).hexdigest()
        assert answer_to(sink.ready, MARK, data) == {"received": SIZE, "sha256": sha256}
        with socket.create_connection(sink.ready) as sock:
            sock.sendall(b"12345")
            sink.wait_counts(lambda counts: list(counts) == [5])


def test_a_helper_that_dies_is_reported_to_who_waits_for_it() -> None:
    with SinkProcess() as sink:
        sink.check(0)
        os.kill(sink.pid, signal.SIGKILL) if sink.ready else None
        with pytest.raises(BenchError, match=r"the receiver process ended too early, with .* -9"):
            sink.counts()
        with pytest.raises(BenchError, match="ended too early"):
            sink.check()


@pytest.mark.parametrize("asked", ["", "; source.begin('end', size=1 << 30)"])
def test_a_helper_ends_when_its_parent_is_killed_also_when_it_is_busy(
    asked: str, tmp_path: Path
) -> None:
    file = str(make_sparse_file(tmp_path / "file", 1 << 30))
    program = (
        "from pathlib import Path; from bench.ends import SinkProcess\n"
        "from bench.ends import source_of\n"
        f"with SinkProcess(pace=1) as sink, source_of(Path({file!r})) as source:\n"
        f"    source.ask('connect', address=sink.ready, connections=1){asked}\n"
        "    print(source.pid, flush=True); input()\n"
    )
    with start_python("-c", program) as parent:
        assert parent.stdout is not None
        process = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert select.select([process], [], [], 60)[0]
    os.close(process)


def test_a_source_sends_each_its_part_of_a_file_and_checks_what_came(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 7500)
    with source_of(file) as source, SinkProcess() as sink:
        for mark in (False, True):
            source.ask("connect", address=sink.ready, connections=3, mark=mark)
            source.ask("end", size=2500)
        source.ask("connect", address=sink.ready, connections=2)
        source.ask("send", size=100)
        with pytest.raises(BenchError, match="the receiver got 350 bytes in place of 300"):
            source.ask("end", size=250, before=50)
    with source_of(file) as source, SinkProcess() as sink:
        source.ask("connect", address=sink.ready, connections=3)
        with pytest.raises(BenchError, match="the file that is sent ends before byte 7503"):
            source.ask("end", size=2501)


@pytest.mark.parametrize("size", [1, 4096, 5_000_000])
def test_a_file_is_as_long_as_asked_and_cached_or_cold(size: int, tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", size)
    for make, pages in ((warm, -(-size // 4096)), (make_cold, 0)):
        make(file)
        assert cached_pages(file) in (pages, None)
    assert file.stat().st_size == size


@contextmanager
def between_two(tmp_path: Path, name: str) -> Iterator[tuple[Helper, Proxy, SinkProcess]]:
    with ExitStack() as stack:
        source = stack.enter_context(source_of(make_file(tmp_path / "file", SIZE)))
        sink = stack.enter_context(SinkProcess(discard=True, large_buffers=True))
        proxy = start_proxy(name, sink.ready, tmp_path)
        stack.enter_context(proxy)
        yield source, proxy, sink


def test_proxies_forward_every_byte_and_tell_what_they_took(tmp_path: Path) -> None:
    names = present("proxy", tmp_path)
    assert {"streams", "aiozc readiness"} <= set(names)
    with between_two(tmp_path, "streams") as (source, _, sink):
        for name in names:
            on_loop = "HAProxy" not in name
            with start_proxy(name, sink.ready, tmp_path) as proxy:
                pass_through((source, sink), proxy, 2, SIZE, mark=True)
                turn = pass_through((source, sink), proxy, 3, SIZE, timer=on_loop)
            assert turn["elapsed"] > 0
            assert 0 < turn["loop CPU"] <= turn["process CPU"]
            assert ("lateness max" in turn) is on_loop


def test_a_proxy_that_dies_is_what_the_error_names(tmp_path: Path) -> None:
    with between_two(tmp_path, "streams") as (source, proxy, sink):
        os.kill(proxy.pid, signal.SIGKILL) if proxy.ready else None
        with pytest.raises(BenchError, match="streams process ended too early"):
            pass_through((source, sink), proxy, 1, SIZE)


def test_an_upload_is_the_file_that_was_sent_and_is_measured(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", SIZE)
    with source_of(file) as source:
        for number, name in enumerate(present("uploader", tmp_path)):
            path, timer = tmp_path / f"received-{number}", not CONTENDERS["uploader"][name].blocking
            with start("uploader", name, SERVER) as uploader:
                turn = take_upload(uploader, source, path, SIZE, timer=timer)
            assert path.read_bytes() == file.read_bytes()
            assert 0 < turn["loop CPU"] <= turn["process CPU"]
            assert ("lateness max" in turn) is timer


@pytest.mark.parametrize(("name", "told"), CASES["uploads"].items())
def test_an_upload_that_is_not_whole_is_caught(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_file(tmp_path / "file", SIZE)
    monkeypatch.setitem(CONTENDERS["uploader"], name, liar(name))
    with (
        source_of(file) as source,
        start("uploader", name, SERVER) as uploader,
        pytest.raises(BenchError, match=told),
    ):
        take_upload(uploader, source, tmp_path / "received", SIZE)
