"""What is measured of ``relay``: proxies between a source and a receiver."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Final

from bench.cases import (
    Case,
    Settings,
    Work,
    cpu_metrics,
    cpu_per_gigabyte,
    lateness,
    lateness_metrics,
    throughput,
    throughput_metric,
)
from bench.errors import BenchError
from bench.measure import AtLeast, AtMost, Metric, Sample, Turn
from bench.processes import (
    allow_many_descriptors,
    count_threads,
    cpu_time,
    resident_memory,
)
from bench.proxies import HAPROXY, PROXIES, REMARKS, TUNED_HAPROXY, LoopProxy, Proxy, RunningProxy
from bench.receivers import Ended, Receiver
from bench.scratch import make_sparse_file, warm
from bench.sources import AT_ONCE, Source
from bench.units import KIB, MIB

MEGABYTE: Final = 10**6
QUICK = 192 * MEGABYTE
"""Bytes of a stream with --quick; the tests set less."""
_CONNECTIONS: Final = (1, AT_ONCE)
_STREAM_TARGETS: Final = {1: AtLeast(2.5, aim=3.5), AT_ONCE: AtLeast(2.5, aim=4)}
_HAPROXY_TARGETS: Final = {1: AtLeast(1.0, aim=1.3)}


def pass_through(
    source: Source,
    proxy: RunningProxy,
    receiver: Receiver,
    connections: int,
    size: int,
    *,
    timer: bool = False,
) -> Turn:
    """Send ``size`` bytes through a proxy; raise BenchError if one is missing at the receiver."""
    with _told_by(proxy):
        source.connect(proxy.address, connections)
        receiver.wait_counts([0] * connections, check=lambda: proxy.check(0))
        proxy.begin(timer=timer)
        elapsed = _send(source, receiver, connections, size)
    turn, forwarded = proxy.end()
    if forwarded not in (size, None):
        raise BenchError(f"{proxy.name} says it forwarded {forwarded} bytes in place of {size}")
    return replace(turn, elapsed=elapsed)


@contextmanager
def _told_by(proxy: RunningProxy) -> Iterator[None]:
    """Let the proxy's own words come before those of its peers, where it has failed."""
    try:
        yield
    except BenchError as error:
        proxy.check()
        raise BenchError(f"{proxy.name}: {error}") from None


def _send(source: Source, receiver: Receiver, connections: int, size: int) -> float:
    """Send over connections that stand; give the seconds until the receiver had all."""
    started = time.monotonic()
    source.send(size // connections)
    ended = receiver.wait_all_ended(connections)
    source.wait_sent()
    _check_received(ended, size // connections)
    return max(end.at for end in ended) - started


def _check_received(ended: Iterable[Ended], expected: int) -> None:
    for end in ended:
        if end.received != expected:
            raise BenchError(f"the receiver got {end.received} bytes in place of {expected}")


# Streams


def _stream_size(settings: Settings) -> int:
    return QUICK if settings.quick else 1000 * MEGABYTE


def _start_source(settings: Settings, stack: ExitStack, size: int) -> Source:
    file = make_sparse_file(settings.scratch / "source", size)
    warm(file)
    return stack.enter_context(Source(file))


def _streams(settings: Settings, stack: ExitStack) -> list[Case[Proxy]]:
    size = _stream_size(settings)
    source = _start_source(settings, stack, size)
    receiver = stack.enter_context(Receiver("discard", large_buffers=True))
    running = {
        proxy.name: stack.enter_context(RunningProxy(proxy, receiver.address)) for proxy in PROXIES
    }
    for proxy in running.values():  # so that loop and engine are set up
        pass_through(source, proxy, receiver, 2, 8 * MIB)
    cases = []
    for connections in _CONNECTIONS:

        def run(proxy: Proxy, connections: int = connections) -> Sample:
            used = running[proxy.name]
            turn = pass_through(source, used, receiver, connections, size)
            sample = {**throughput(size, turn), **cpu_per_gigabyte(size, turn)}
            if isinstance(proxy, LoopProxy):
                # Another time: waits of a loop with a timer cost more, and the timer is a load.
                turn = pass_through(source, used, receiver, connections, size, timer=True)
                sample.update(lateness(turn))
            return sample

        metrics = [throughput_metric(_STREAM_TARGETS[connections])]
        for rival in HAPROXY, TUNED_HAPROXY:
            if rival in PROXIES:
                target = _HAPROXY_TARGETS.get(connections) if rival is HAPROXY else None
                metrics.append(throughput_metric(target, against=rival.name))
        cases.append(
            Case(
                f"{size // MEGABYTE} MB, {connections} conn.",
                [*metrics, *cpu_metrics(), *lateness_metrics()],
                run,
                settings.choose_rounds(2, 5),
                settings.choose_budget(3.0),
            )
        )
    return cases


# Idle relays

_GREETING: Final = 4 * KIB
_SETTLING: Final = 0.5
_LOOK: Final = 0.1


@dataclass(frozen=True, slots=True)
class Idle:
    """What a process with idle relays took."""

    cpu: float
    """Seconds of CPU in each second."""
    threads: int
    """The largest number seen."""
    growth: int
    """Bytes of resident memory, at most, above those before the first connection."""


def stay_idle(
    source: Source, proxy: RunningProxy, receiver: Receiver, relays: int, seconds: float
) -> Idle:
    """Open connections through a proxy, send a little over each, and look at it meanwhile."""
    pid = proxy.measured
    before = resident_memory(pid)
    with _told_by(proxy):
        source.connect(proxy.address, relays)
        source.send(_GREETING, end=False)
        source.wait_sent()
        receiver.wait_counts([_GREETING] * relays, check=lambda: proxy.check(0))
        time.sleep(_SETTLING)
        threads = growth = 0
        cpu, began = cpu_time(pid), time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            threads = max(threads, count_threads(pid))
            growth = max(growth, resident_memory(pid) - before)
            time.sleep(_LOOK)
        cpu = (cpu_time(pid) - cpu) / (now - began)
        source.send(0)
        ended = receiver.wait_all_ended(relays)
        source.wait_sent()
    _check_received(ended, _GREETING)
    return Idle(cpu, threads, growth)


def _idle(settings: Settings, stack: ExitStack) -> list[Case[Proxy]]:
    relays, seconds = (200, 0.4) if settings.quick else (2000, 5.0)
    need, hard = 3 * relays + 100, allow_many_descriptors()
    if hard < need:
        raise BenchError(f"{relays} relays need {need} descriptors, and the hard limit is {hard}")
    source = _start_source(settings, stack, MIB)
    receiver = stack.enter_context(Receiver("discard", large_buffers=True))

    def run(proxy: Proxy) -> Sample:
        with RunningProxy(proxy, receiver.address) as running:
            idle = stay_idle(source, running, receiver, relays, seconds)
        return {
            "process CPU": idle.cpu * 100,
            "threads": idle.threads,
            "memory growth": idle.growth / MIB,
        }

    metrics = [
        Metric("process CPU", "%", "less", AtMost(1)),
        Metric("threads", "", "less", AtMost(24)),
        Metric("memory growth", "MiB", "less", AtMost(64)),
    ]
    return [
        Case(
            f"{relays}, for {seconds:g} s",
            metrics,
            run,
            settings.choose_rounds(1, 2),
            settings.choose_budget(0),
        )
    ]


# Without a proxy


@dataclass(frozen=True, slots=True)
class _NoProxy:
    name: str = "no proxy"
    judged: bool = False


def _direct(settings: Settings, stack: ExitStack) -> list[Case[_NoProxy]]:
    size = _stream_size(settings)
    source = _start_source(settings, stack, size)
    receiver = stack.enter_context(Receiver("discard", large_buffers=True))

    def make_case(connections: int) -> Case[_NoProxy]:
        def run(_: _NoProxy) -> Sample:
            source.connect(receiver.address, connections)
            receiver.wait_counts([0] * connections)
            elapsed = _send(source, receiver, connections, size)
            return throughput(size, Turn(elapsed, 0, 0))

        return Case(
            f"{size // MEGABYTE} MB, {connections} conn.",
            [throughput_metric()],
            run,
            settings.choose_rounds(2, 3),
            settings.choose_budget(0.5),
        )

    return [make_case(connections) for connections in _CONNECTIONS]


WORKS: Final = (
    Work(
        "stream",
        "A proxy between source and receiver, which discards; lateness is another turn's",
        _streams,
        PROXIES,
        REMARKS,
    ),
    Work("idle", "Idle relays, after 4 KiB over each", _idle, PROXIES, REMARKS),
    Work("direct", "From source to receiver without a proxy", _direct, (_NoProxy(),)),
)
