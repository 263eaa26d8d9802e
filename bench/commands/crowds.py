"""``pace`` and ``mixed``: many clients at once, slow ones alone, or small requests beside all."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.errors import BenchError
from bench.measure import Case, Settings
from bench.processes import Helper, Watch, allow_many_descriptors, told_by
from bench.scratch import make_cold, make_file, make_sparse_file, warm
from bench.senders.fleet import checking, fleet_of, start_worker
from bench.senders.table import EVERYWHERE
from bench.sink import SinkProcess
from bench.units import GIB, KIB, MIB

_SMALL_BUFFER: Final = 200_000
_FILE: Final = 64 * MIB
_DESCRIPTORS: Final = 5
"""What one client takes at most: its socket and file, duplicates of both, a share of pipes."""
_UNITS: Final = {
    **dict.fromkeys(("filling CPU", "steady CPU"), "%"),
    **dict.fromkeys(("lateness p99", "lateness max"), "ms"),
    "threads": "",
    "memory growth": "MiB",
    **dict.fromkeys(("client with least", "client with most"), "KB/s"),
}


class Crowd(NamedTuple):
    """Clients that read so many bytes in each second, and the server's send buffer for each."""

    clients: int
    pace: int
    send_buffer: int = 0


_CROWDS: Final = {
    True: (Crowd(50, 400_000), Crowd(300, 50_000)),
    False: (Crowd(500, 400_000), Crowd(3000, 50_000)),
}
_TIMES: Final = {True: (0.4, 0.6), False: (3.0, 5.0)}
"""Seconds that buffers fill, and that are looked at then: with --quick, and without."""


def paces(work: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the cases of slow clients, with send buffers of a size or as the kernel has them."""
    for crowd in _CROWDS[settings.quick]:
        if work == "small":
            crowd = crowd._replace(send_buffer=_SMALL_BUFFER)
        yield crowd_case(settings, stack, work, crowd, *_TIMES[settings.quick])


def crowd_case(
    settings: Settings, stack: ExitStack, work: str, crowd: Crowd, filling: float, seconds: float
) -> Case:
    """Make the case of one crowd; each turn has a process and a receiver of its own."""
    need, most = crowd.clients * _DESCRIPTORS + 100, allow_many_descriptors()
    if need > most:
        raise BenchError(f"{crowd.clients} clients need {need} descriptors, and {most} can be had")
    file = warm(make_sparse_file(settings.scratch / "slow", _FILE))
    checks = checking(settings, stack.enter_context(SinkProcess()))
    names = fleet_of(settings).present(EVERYWHERE)
    turn = partial(serve, crowd=crowd, file=file, filling=filling, seconds=seconds)
    title = f"{work}: {crowd.clients} clients of {crowd.pace / 1000:g} KB/s"
    return Case(title, _UNITS, names, turn, **checks, rounds=(1, 2))


def serve(name: str, crowd: Crowd, file: Path, filling: float, seconds: float) -> dict[str, Any]:
    """Let a sender serve a crowd; give its figures."""
    plan = crowd._asdict() | {"file": str(file), "size": file.stat().st_size}
    with SinkProcess(pace=plan.pop("pace")) as sink, told_by(sink), start_worker(name) as worker:
        worker.begin("crowd", address=sink.address, filling=filling, seconds=seconds, **plan)
        worker.hear()
        sink.wait_counts(lambda counts: len(counts) == crowd.clients)
        watch, counts = Watch(worker.pid), []
        for part in (filling, seconds):
            worker.begin("go on")
            watch.look(part)
            worker.hear()
            counts.append(sink.counts())
            if len(counts[-1]) != crowd.clients:
                raise BenchError(f"{crowd.clients - len(counts[-1])} clients were given up")
        found: dict[str, float] = worker.ask("go on")
    came = zip(*counts, strict=True)
    speeds = [(after - before) / found["steady seconds"] / 1e3 for before, after in came]
    return found | {
        "lateness p99": found["steady lateness p99"],
        "lateness max": max(found["filling lateness max"], found["steady lateness max"]),
        "threads": watch.threads,
        "memory growth": watch.growth / MIB,
        "client with least": min(speeds),
        "client with most": max(speeds),
    }


# Small requests beside everything else

_RATE, _CONNECTIONS, _STREAMS, _CLIENTS, _PACE, _COLD = 1000, 16, 4, 100, 400_000, 8
_MIXED: Final = {True: (0.6, 64 * MIB, 4 * MIB), False: (5.0, GIB, 64 * MIB)}
"""Seconds, the size of a stream and that of a cold file: with --quick, and without."""
_WAITS: Final = {"wait p50": "ms", "wait p99": "ms", "wait max": "ms"}


def mixed_cases(work: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the case of small requests beside streams, slow clients and cold files."""
    seconds, large, cold = _MIXED[settings.quick]
    small = make_file(settings.scratch / "mixed-small", 4 * KIB)
    stream = make_sparse_file(settings.scratch / "mixed-stream", large)
    colds = [make_file(settings.scratch / f"mixed-{i}", cold) for i in range(_COLD)]
    for file in (small, stream):
        warm(file)
    checks = checking(settings, stack.enter_context(SinkProcess()))
    names = fleet_of(settings).present(EVERYWHERE)
    turn = partial(mix, small=small, stream=stream, cold=colds, seconds=seconds)
    units = {**_WAITS, "process CPU": "%", "streams": "GB/s"}
    yield Case(f"{work}: for {seconds:g} s", units, names, turn, **checks, rounds=(1, 3))


def mix(name: str, small: Path, stream: Path, cold: list[Path], seconds: float) -> dict[str, Any]:
    """Let a sender do all at once; give what the small requests waited."""
    for file in cold:
        make_cold(file)
    size, sha256 = small.stat().st_size, hashlib.sha256(small.read_bytes()).hexdigest()
    with (
        SinkProcess(discard=True) as fast,
        SinkProcess(pace=_PACE) as slow,
        Helper("the client of small requests", "bench.senders.crowd:Requests") as requests,
        told_by(fast, slow, requests),
        start_worker(name) as worker,
    ):
        worker.begin(
            "mix",
            requests=requests.ready,
            connections=_CONNECTIONS,
            small=str(small),
            fast=fast.address,
            streams=_STREAMS,
            slow=slow.address,
            clients=_CLIENTS,
            stream=str(stream),
            cold=[str(file) for file in cold],
            every=seconds / len(cold),
        )
        asked = {"connections": _CONNECTIONS, "rate": _RATE, "size": size, "sha256": sha256}
        requests.begin("run", seconds=seconds, **asked)
        waits = requests.hear(seconds + 60)
        worker.hear()
        sent = sum(fast.counts())
        found = worker.ask("go on")
    return {**waits, **found, "streams": sent / found["seconds"] / 1e9}
