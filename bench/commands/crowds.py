"""``pace`` and ``mixed``: many clients at once, slow ones alone, or small requests beside all."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from bench.ends import SinkProcess
from bench.errors import BenchError
from bench.measure import Case, Values, Work
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
        yield work.case(title, names, turn, **fleet.checks(sink.ready, sink.check))


def serve(
    name: str, file: Path, pace: int, filling: float, seconds: float, **whom: Any
) -> dict[str, Any]:
    """Let a sender serve clients that read so many bytes in a second; give its figures.

    That is for so many seconds after those in which the buffers fill.
    """
    found: dict[str, Any] = {}
    with SinkProcess(pace=pace) as sink, told_by(sink), start("sender", name, _CROWD) as crowd:
        crowd.ask("add", address=sink.ready, files=[str(file)], then="error", **whom)
        crowd.ask("become_nobody")
        sink.wait_counts(lambda counts: len(counts) == whom["clients"])
        watch, counts = Watch(crowd.pid), []
        for part, duration in (("filling", filling), ("steady", seconds)):
            crowd.ask("begin", timer=True, period=_PERIOD)
            watch.look(duration)
            spent = crowd.ask("end")
            counts.append(sink.counts_of(whom["clients"]))
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


def mixes(work: Work, **how: Any) -> Iterator[Case]:
    """Give the case of small requests beside streams, slow clients and several cold files."""
    plan, fleet, sink = SimpleNamespace(**how), fleet_of(work), work.enter(SinkProcess())
    small = warm(make_file(work.scratch / "mixed-small", 4 * KIB))
    stream = warm(make_sparse_file(work.scratch / "mixed-stream", parse_size(plan.stream_size)))
    names = [work.scratch / f"mixed-{number}" for number in range(plan.several)]
    colds = [make_file(name, parse_size(plan.cold_size)) for name in names]
    asked = {"seconds": plan.seconds, "connections": plan.connections, "rate": plan.rate}
    asked |= {"size": small.stat().st_size, "sha256": hash_of(small)}

    def turn(name: str) -> Values:
        for file in colds:
            make_cold(file)
        with (
            SinkProcess(discard=True) as fast,
            SinkProcess(pace=plan.pace) as slow,
            Helper("the client of small requests", "bench.senders.crowd:Requests") as requests,
            told_by(fast, slow, requests),
            start("sender", name, _CROWD) as crowd,
        ):
            for then, address, clients, files in (
                ("again", fast.ready, plan.streams, [stream]),
                ("again", slow.ready, plan.clients, [stream]),
                ("end", fast.ready, plan.several, colds),
                ("answer", requests.ready, plan.connections, [small]),
            ):
                whom = {"address": address, "clients": clients, "files": list(map(str, files))}
                crowd.ask("add", every=plan.seconds / plan.several, then=then, **whom)
            crowd.ask("begin")
            requests.begin("run", **asked)
            waits = requests.hear(plan.seconds + 60)
            spent = crowd.ask("end")
            sent = sum(fast.counts())
            crowd.ask("stop")
        return {**waits, "process CPU": _percent(spent), "streams": sent / spent["elapsed"] / 1e9}

    checks = fleet.checks(sink.ready, sink.check)
    yield work.case(f"for {plan.seconds:g} s", fleet.present(work), turn, **checks)


def _percent(spent: dict[str, Any]) -> float:
    return float(spent["process CPU"] / spent["elapsed"] * 100)
