"""``pace`` and ``mixed``: many clients at once, slow ones alone, or small requests beside all."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.ends import SinkProcess
from bench.errors import BenchError
from bench.measure import Case, Work
from bench.on_loop import start
from bench.processes import Helper, Watch, allow_many_descriptors, told_by
from bench.scratch import hash_of, make_cold, make_file, make_sparse_file, warm
from bench.senders.fleet import fleet_of
from bench.units import KIB, MIB, parse_size

_CROWD: Final = "bench.senders.crowd:Crowd"
_DESCRIPTORS: Final = 5
"""What one client takes at most: its socket and file, duplicates of both, a share of pipes."""
_PERIOD: Final = 0.010
"""Seconds between two looks at how late the loop is: at 1 ms the timer takes 2 % of a core."""


def paces(work: Work, *, crowds: Sequence[tuple[int, int]], **how: Any) -> Iterator[Case]:
    """Give the cases of slow clients; each turn has a process and a receiver of its own."""
    fleet, sink = fleet_of(work), work.enter(SinkProcess())
    names, most = fleet.present(work), allow_many_descriptors()
    file = warm(make_sparse_file(work.scratch / "slow", 64 * MIB))
    for clients, pace in crowds:
        if (need := clients * _DESCRIPTORS + 100) > most:
            raise BenchError(f"{clients} clients need {need} descriptors, and {most} can be had")
        turn = partial(serve, file=file, clients=clients, pace=pace, **how)
        title = f"{clients} clients of {pace / 1000:g} KB/s"
        yield work.case(title, names, turn, **fleet.checks(sink.address, sink.check))


def serve(
    name: str,
    file: Path,
    clients: int,
    pace: int,
    filling: float,
    seconds: float,
    send_buffer: int = 0,
) -> dict[str, Any]:
    """Let a sender serve clients that read so many bytes in a second; give its figures.

    That is for so many seconds after those in which the buffers fill.
    """
    found: dict[str, Any] = {}
    with SinkProcess(pace=pace) as sink, told_by(sink), start("sender", name, _CROWD) as crowd:
        whom: dict[str, Any] = {
            "address": sink.address,
            "clients": clients,
            "send_buffer": send_buffer,
        }
        crowd.ask("add", files=[str(file)], then="error", **whom)
        crowd.ask("become_nobody")
        sink.wait_counts(lambda counts: len(counts) == clients)
        watch, counts = Watch(crowd.pid), []
        for part, duration in (("filling", filling), ("steady", seconds)):
            crowd.ask("begin", timer=True, period=_PERIOD)
            watch.look(duration)
            spent = crowd.ask("end")
            counts.append(sink.counts_of(clients))
            spent["CPU"] = _percent(spent)
            found |= {f"{part} {metric}": value for metric, value in spent.items()}
        crowd.ask("stop")
    came = zip(*counts, strict=True)
    speeds = [(after - before) / found["steady elapsed"] / 1e3 for before, after in came]
    return found | {
        "lateness p99": found["steady lateness p99"],
        "lateness max": max(found["filling lateness max"], found["steady lateness max"]),
        "threads": watch.threads,
        "memory growth": watch.growth / MIB,
        "client with least": min(speeds),
        "client with most": max(speeds),
    }


def mixes(
    work: Work, *, stream_size: str, cold_size: str, several: int, **how: Any
) -> Iterator[Case]:
    """Give the case of small requests beside streams, slow clients and several cold files."""
    fleet, sink = fleet_of(work), work.enter(SinkProcess())
    large = make_sparse_file(work.scratch / "mixed-stream", parse_size(stream_size))
    small = make_file(work.scratch / "mixed-small", 4 * KIB)
    names = [work.scratch / f"mixed-{number}" for number in range(several)]
    colds = [make_file(name, parse_size(cold_size)) for name in names]
    turn = partial(mix, small=warm(small), stream=warm(large), cold=colds, **how)
    checks = fleet.checks(sink.address, sink.check)
    yield work.case(f"for {how['seconds']:g} s", fleet.present(work), turn, **checks)


def mix(
    name: str,
    small: Path,
    stream: Path,
    cold: Sequence[Path],
    seconds: float,
    rate: int,
    connections: int,
    streams: int,
    clients: int,
    pace: int,
) -> dict[str, Any]:
    """Let a sender do all at once; give what so many small requests a second waited."""
    for file in cold:
        make_cold(file)
    asked = {"size": small.stat().st_size, "sha256": hash_of(small)}
    with (
        SinkProcess(discard=True) as fast,
        SinkProcess(pace=pace) as slow,
        Helper("the client of small requests", "bench.senders.crowd:Requests") as requests,
        told_by(fast, slow, requests),
        start("sender", name, _CROWD) as crowd,
    ):
        for address, number in ((fast.address, streams), (slow.address, clients)):
            crowd.ask("add", address=address, clients=number, files=[str(stream)], then="again")
        colds: dict[str, Any] = {"files": [str(file) for file in cold], "clients": len(cold)}
        crowd.ask("add", address=fast.address, then="end", every=seconds / len(cold), **colds)
        crowd.ask("answer", address=requests.ready, connections=connections, path=str(small))
        crowd.ask("begin")
        requests.begin("run", seconds=seconds, connections=connections, rate=rate, **asked)
        waits = requests.hear(seconds + 60)
        spent = crowd.ask("end")
        sent = sum(fast.counts())
        crowd.ask("stop")
    return {**waits, "process CPU": _percent(spent), "streams": sent / spent["elapsed"] / 1e9}


def _percent(spent: dict[str, Any]) -> float:
    return float(spent["process CPU"] / spent["elapsed"] * 100)
