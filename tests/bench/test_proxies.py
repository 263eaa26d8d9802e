"""Proxies in processes of their own, between a source and a receiver that counts."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.processes import count_threads, cpu_time, resident_memory
from bench.proxies import BASELINE, PROXIES, LoopProxy, Proxy, RunningProxy, haproxy_remark
from bench.receivers import Receiver
from bench.relay_works import pass_through, stay_idle
from bench.scratch import make_file
from bench.sources import Source

SIZE = 300_000


@contextmanager
def between_two(tmp_path: Path, proxy: Proxy) -> Iterator[tuple[Source, RunningProxy, Receiver]]:
    with ExitStack() as stack:
        source = stack.enter_context(Source(make_file(tmp_path / "file", 70_000)))
        receiver = stack.enter_context(Receiver("discard", large_buffers=True))
        yield source, stack.enter_context(RunningProxy(proxy, receiver.address)), receiver


@pytest.mark.parametrize("connections", [1, 3])
def test_a_source_sends_its_file_over_and_over_until_the_size_is_reached(
    connections: int, tmp_path: Path
) -> None:
    file = make_file(tmp_path / "file", 1000)
    with Source(file) as source, Receiver("read") as receiver:
        source.connect(receiver.address, connections)
        source.send(2500, end=False)
        source.wait_sent()
        receiver.wait_counts([2500] * connections)
        source.send(100)
        ended = receiver.wait_all_ended(connections)
        source.wait_sent()

    assert [end.received for end in ended] == [2600] * connections


def test_a_source_whose_far_end_goes_away_says_so(tmp_path: Path) -> None:
    with Source(make_file(tmp_path / "file", 1000)) as source:
        with Receiver("read") as receiver:
            source.connect(receiver.address, 1)
            os.kill(receiver.pid, signal.SIGKILL)
        source.send(1 << 40)
        with pytest.raises(BenchError, match="the source failed: "):
            source.wait_sent()


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)
def test_a_proxy_forwards_every_byte_and_tells_what_it_took(proxy: Proxy, tmp_path: Path) -> None:
    on_loop = isinstance(proxy, LoopProxy)
    with between_two(tmp_path, proxy) as (source, running, receiver):
        for timer in (False, on_loop):
            turn = pass_through(source, running, receiver, 3, SIZE, timer=timer)

    assert turn.elapsed > 0
    assert 0 < turn.loop_cpu <= turn.process_cpu
    assert bool(turn.lateness) is on_loop


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)
def test_idle_relays_are_looked_at_in_the_process_that_forwards(
    proxy: Proxy, tmp_path: Path
) -> None:
    with between_two(tmp_path, proxy) as (source, running, receiver):
        idle = stay_idle(source, running, receiver, relays=5, seconds=0.05)

    assert idle.threads >= 1
    assert idle.cpu >= 0


def test_a_proxy_that_dies_is_what_the_error_names(tmp_path: Path) -> None:
    with between_two(tmp_path, BASELINE) as (source, running, receiver):
        os.kill(running.pid, signal.SIGKILL)
        with pytest.raises(BenchError, match=r"the proxy \(streams, asyncio\) process ended"):
            pass_through(source, running, receiver, 1, SIZE)


def test_a_proxy_that_fails_tells_its_reason_before_it_ends(tmp_path: Path) -> None:
    with between_two(tmp_path, BASELINE) as (source, running, receiver):
        receiver.close()
        with pytest.raises(BenchError, match=r"\(streams, asyncio\) failed: ConnectionRefused"):
            pass_through(source, running, receiver, 1, SIZE)


def test_where_haproxy_is_not_installed_its_place_has_the_reason() -> None:
    assert "haproxy is not installed" in haproxy_remark(None)


def test_a_process_is_looked_at_from_outside() -> None:
    me = os.getpid()
    before = cpu_time(me)
    while cpu_time(me) == before:
        pass

    assert count_threads(me) >= 1
    assert resident_memory(me) > 1_000_000
