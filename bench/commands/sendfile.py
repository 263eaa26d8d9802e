"""``sendfile``, ``middle``, ``zc``: one file after another, by the stdlib's way and by aiozc's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from bench.commands.crowds import Crowd, crowd_case
from bench.measure import Case, Settings
from bench.meter import CPU_UNITS, LATE_UNITS, per_gigabyte
from bench.scratch import make_cold, make_file, warm
from bench.senders.fleet import receive, sending
from bench.senders.table import EVERYWHERE, FLOOR
from bench.sink import AWAKE, SinkProcess
from bench.units import GIB, KIB, MIB, show_size

_SMALL: Final = {4 * KIB: 4096, 16 * KIB: 4096, 64 * KIB: 2048, 256 * KIB: 1536}
"""Sizes, and how many of each are sent in a turn."""
_MIDDLE: Final = (128 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB)
_BYTES_OF_A_TURN: Final = {True: 32 * MIB, False: 256 * MIB}
_STREAM: Final = {True: 256 * MIB, False: GIB}
_COLD: Final = {True: (16, 16 * MIB), False: (64, 32 * MIB)}
"""With --quick, and without; the tests have less."""
_WARM: Final = {"warm_size": 4 * KIB, "warm_times": 2}
"""It is small: only loop and engine are to be ready, the connection is a new one."""


def _of_a_transfer(turn: dict[str, Any]) -> dict[str, float]:
    """Give what one of a turn's transfers took, in us."""
    parts = {"time": "elapsed", "loop CPU": "loop_cpu", "process CPU": "process_cpu"}
    return turn | {name: turn[part] * 1e6 / turn["files"] for name, part in parts.items()}


def _repeated(
    settings: Settings,
    sink: SinkProcess,
    work: str,
    transfers: Mapping[int, int],
    connections: Sequence[int],
    metrics: Sequence[str],
    contenders: Sequence[str],
    **rest: Any,
) -> Iterator[Case]:
    """Give the cases of cached files, each sent so often in a turn over some connections."""
    units = dict.fromkeys(metrics, "us")
    for size, count in transfers.items():
        path = str(warm(make_file(settings.scratch / f"cached-{size}", size)))
        for several in connections:
            name, times = f"{work}: {show_size(size)}, {several} conn.", max(count // several, 4)
            order = {"files": [[path]] * several, "size": size, "times": times}
            order |= {"warm_file": path, "warm_size": size, "warm_times": max(times // 8, 4)}
            case = settings, sink, name, units, contenders, _of_a_transfer, order
            yield sending(*case, **rest)


def small(work: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the cases of small files."""
    sink = receive(settings, stack, discard=True)
    counts = {size: count // (4 if settings.quick else 1) for size, count in _SMALL.items()}
    who = (*EVERYWHERE, FLOOR)
    rest = {"rounds": (5, 9), "budget": 0.6}
    return _repeated(settings, sink, work, counts, (1, 16, 64), ["time"], who, **rest)


def middle(peer: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the cases of files between the small and the large."""
    sink = receive(settings, stack, discard=peer == "discards", awake=AWAKE)
    counts = {size: _BYTES_OF_A_TURN[settings.quick] // size for size in _MIDDLE}
    metrics = ("time", "latency p50", "latency p99", "loop CPU", "process CPU")
    rest = {"rounds": (2, 5), "budget": 1.0}
    return _repeated(settings, sink, peer, counts, (1, 16), metrics, EVERYWHERE, **rest)


def stream(work: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the cases of one large file."""
    size = _STREAM[settings.quick]
    file = str(make_file(settings.scratch / "stream", size))
    warm(settings.scratch / "stream")
    for does in ("discards", "reads"):
        sink = receive(settings, stack, discard=does == "discards", awake=AWAKE)
        name = f"{work}: {show_size(size)}, peer {does}"
        order = {"files": [[file]], "size": size, "warm_file": file, **_WARM}
        yield sending(
            *(settings, sink, name, {"throughput": "GB/s", **CPU_UNITS}, EVERYWHERE),
            *(_of_a_gigabyte, order),
            rounds=(3, 7),
            budget=1.5,
        )


def _of_a_gigabyte(turn: dict[str, Any]) -> dict[str, float]:
    return {**turn, **per_gigabyte(turn["bytes"], turn)}


def cold(work: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the case of cold files."""
    count, size = _COLD[settings.quick]
    sink = receive(settings, stack, discard=True)
    files = [make_file(settings.scratch / f"cold-{i}", size) for i in range(count)]
    first = make_file(settings.scratch / "cold-warm-up", 4 * KIB)
    order = {"files": [[str(file)] for file in files], "size": size, "timer": True}
    case = sending(
        *(settings, sink, f"{work}: {count} of {show_size(size)}"),
        *({**LATE_UNITS, "throughput": "GB/s"}, EVERYWHERE, _of_a_gigabyte),
        order | {"warm_file": str(first), **_WARM},
        rounds=(3, 5),
        budget=3.0,
    )

    def turn(name: str) -> Any:
        for file in files:
            make_cold(file)
        return case.turn(name)

    yield replace(case, turn=turn)


def slow(work: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the case of slow clients."""
    seconds = 0.6 if settings.quick else 3.0
    yield crowd_case(settings, stack, work, Crowd(500, 400_000), seconds, seconds)


# What it costs to know when the file may be overwritten. The shape of the first work is that of the
# kernel's tools/testing/selftests/net/msg_zerocopy with ``-t 2`` for TCP: one connection, one
# payload sent again and again for 2 seconds.

_COUNTS: Final = {"sends": "", "completions": "", "copies": ""}


def zero_copies(
    work: str,
    settings: Settings,
    stack: ExitStack,
    *,
    contenders: Sequence[str],
    mebibytes: int,
    seconds: float,
) -> Iterator[Case]:
    """Give the case of one file, sent for some time, or once."""
    size = mebibytes * MIB
    seconds *= 0.15 if settings.quick else 1
    sink = receive(settings, stack, discard=False)
    file = warm(make_file(settings.scratch / f"zc-{size}", size))
    # So that loop and engine are set up, and the window is open.
    warm_up = {"warm_file": str(file), "warm_size": size, "warm_times": 1}
    yield sending(
        *(settings, sink),
        f"{work}: {show_size(size)}, {f'for {seconds:g} s' if seconds else 'once'}",
        {"throughput": "GB/s", **CPU_UNITS, **({} if work == "once" else _COUNTS)},
        contenders,
        # Sends that do not ask for it count as none.
        lambda turn: dict.fromkeys(_COUNTS, 0) | _of_a_gigabyte(turn),
        {"files": [[str(file)]], "size": size, "seconds": seconds, **warm_up},
        rounds=(2, 5) if seconds else (5, 25),
        budget=6.0,
    )
