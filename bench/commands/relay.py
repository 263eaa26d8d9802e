"""What is measured of ``relay``: proxies between a source and a receiver."""

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

from bench.errors import BenchError
from bench.measure import Case, Settings, Work, present
from bench.meter import CPU_UNITS, LATE_UNITS, per_gigabyte
from bench.processes import Helper, Watch, allow_many_descriptors
from bench.proxies import BASELINE, PROXIES, REMARKS, LoopProxy, ProxyProcess
from bench.scratch import make_file, make_sparse_file, warm
from bench.sink import SinkProcess
from bench.sources import AT_ONCE, source_of
from bench.units import KIB, MIB

_MEGABYTE: Final = 10**6
SIZES: Final = {True: 192 * _MEGABYTE, False: 1000 * _MEGABYTE}
"""Bytes of a stream with --quick, and without; the tests have less."""
_CHECKED: Final = 700_001
_GREETING: Final = 4 * KIB
_SETTLING: Final = 0.5


def relay(_: argparse.Namespace) -> list[Work]:
    """Give the works."""
    stream = "A proxy between source and receiver, which discards; lateness is another turn's"
    return [
        Work("stream", stream, BASELINE, streams, REMARKS),
        Work("idle", "Idle relays, after 4 KiB over each", BASELINE, _idle, REMARKS),
        Work("direct", "From source to receiver without a proxy", "no proxy", _direct),
    ]


def pass_through(
    source: Helper,
    proxy: ProxyProcess,
    sink: SinkProcess,
    connections: int,
    size: int,
    *,
    timer: bool = False,
    mark: bool = False,
) -> dict[str, Any]:
    """Send through a proxy, to be hashed with ``mark``; give what was spent.

    Raises BenchError if a byte is missing at the receiver.
    """
    with _told_by(proxy):
        source.ask("connect", address=proxy.address, connections=connections, mark=mark)
        sink.wait_counts(lambda counts: len(counts) == connections, lambda: proxy.check(0))
        proxy.ask("begin", timer=timer)
        elapsed = _end(source, size // connections)
        turn: dict[str, Any] = proxy.ask("end", late="has not ended every connection")
        expected = (size // connections + 16 * mark) * connections
        if turn.get("forwarded", expected) != expected:
            raise BenchError(f"it says it forwarded {turn['forwarded']} bytes, not {expected}")
    return turn | {"elapsed": elapsed}


@contextmanager
def _told_by(proxy: ProxyProcess) -> Iterator[None]:
    """Let the proxy's own words come before those of its peers, where it has failed."""
    try:
        yield
    except BenchError as error:
        proxy.check()
        raise BenchError(f"{proxy.name}: {error}") from None


def _end(source: Helper, size: int, before: int = 0) -> float:
    """Send over connections that stand, and end them; give the seconds until all had come."""
    began = time.monotonic()
    source.ask("end", late="has not seen the end of every connection", size=size, before=before)
    return time.monotonic() - began


def _start(settings: Settings, stack: ExitStack, size: int) -> tuple[Helper, SinkProcess]:
    """Start a source and a receiver."""
    file = make_sparse_file(settings.scratch / "source", size)
    warm(file)
    source = stack.enter_context(source_of(file))
    return source, stack.enter_context(SinkProcess(discard=True, large_buffers=True))


def streams(settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the cases of streams through proxies."""
    size = SIZES[settings.quick]
    source, sink = _start(settings, stack, size)
    names = present(settings, PROXIES)
    running = {name: stack.enter_context(ProxyProcess(name, sink.address)) for name in names}
    checked = make_file(settings.scratch / "checked", _CHECKED)
    checking, good = stack.enter_context(source_of(checked)), set[str]()

    def check(name: str) -> None:
        if name not in good:
            pass_through(checking, running[name], sink, 2, 2 * _CHECKED, mark=True)
            good.add(name)

    def turn(connections: int, name: str) -> dict[str, float]:
        used = running[name]
        values = per_gigabyte(size, pass_through(source, used, sink, connections, size))
        if isinstance(PROXIES[name], LoopProxy):
            # Another time: waits of a loop with a timer cost more, and the timer is a load.
            return pass_through(source, used, sink, connections, size, timer=True) | values
        return values

    for connections in (1, AT_ONCE):
        yield Case(
            f"stream: {size // _MEGABYTE} MB, {connections} conn.",
            {"throughput": "GB/s", **CPU_UNITS, **LATE_UNITS},
            names,
            partial(turn, connections),
            check,
            sink.check,
            rounds=(2, 5),
            budget=3.0,
        )


def stay_idle(
    source: Helper, proxy: ProxyProcess, sink: SinkProcess, relays: int, seconds: float
) -> dict[str, float]:
    """Open connections through a proxy, send a little over each, and look at it meanwhile."""
    watch = Watch(proxy.ready["measured"])
    with _told_by(proxy):
        source.ask("connect", address=proxy.address, connections=relays)
        source.ask("send", size=_GREETING)
        greeted = [_GREETING] * relays
        sink.wait_counts(lambda counts: list(counts) == greeted, lambda: proxy.check(0))
        time.sleep(_SETTLING)
        cpu = watch.look(seconds)
        _end(source, 0, before=_GREETING)
    return {"process CPU": cpu, "threads": watch.threads, "memory growth": watch.growth / MIB}


def _idle(settings: Settings, stack: ExitStack) -> Iterator[Case]:
    relays, seconds = (200, 0.4) if settings.quick else (2000, 5.0)
    need, hard = 3 * relays + 100, allow_many_descriptors()
    if hard < need:
        raise BenchError(f"{relays} relays need {need} descriptors, and the hard limit is {hard}")
    source, sink = _start(settings, stack, MIB)

    def turn(name: str) -> dict[str, float]:
        with ProxyProcess(name, sink.address) as proxy:
            return stay_idle(source, proxy, sink, relays, seconds)

    units = {"process CPU": "%", "threads": "", "memory growth": "MiB"}
    title = f"idle: {relays}, for {seconds:g} s"
    names = present(settings, PROXIES)
    yield Case(title, units, names, turn, check_peers=sink.check, rounds=(1, 2))


def _direct(settings: Settings, stack: ExitStack) -> Iterator[Case]:
    size = SIZES[settings.quick]
    source, sink = _start(settings, stack, size)

    def turn(connections: int, _: str) -> dict[str, float]:
        source.ask("connect", address=sink.address, connections=connections)
        return {"throughput": size / _end(source, size // connections) / 1e9}

    for connections in (1, AT_ONCE):
        name = f"direct: {size // _MEGABYTE} MB, {connections} conn."
        case = partial(turn, connections)
        yield Case(name, {"throughput": "GB/s"}, ["no proxy"], case, rounds=(2, 3), budget=0.5)
