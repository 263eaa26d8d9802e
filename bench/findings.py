"""What a run has found, in sentences that are made from its figures."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from bench.found import Point, Samples, median, spread
from bench.report import show_number
from bench.units import show_size

_PAIRS: Final = (
    ("io_uring", "io_uring linked", "a READ and a SEND"),
    ("io_uring splice", "io_uring splice linked", "two SPLICEs"),
)
OURS: Final = "aiozc"
STDLIB: Final = "sock_sendfile"
DRAWN: Final = (
    "read+write",
    "sendfile",
    "splice",
    "io_uring linked",
    "sock_sendfile",
    "to_thread(sendfile)",
    "streams",
    "aiozc",
    "aiozc readiness",
)
"""Who is drawn over the size of the file: more lines than these cannot be told apart."""


def sweep_named(found: dict[str, Any], name: str) -> list[Point]:
    """Give the points of a sweep; none where the run has not done it."""
    return next((sweep["points"] for sweep in found["sweeps"] if sweep["name"] == name), [])


def samples_of(point: Point, sender: str) -> Samples:
    """Give a sender's samples; none where it took no turn."""
    samples: Samples = point["senders"].get(sender, {}).get("samples", {})
    return samples


def number(point: Point, sender: str, metric: str) -> float | None:
    """Give a sender's median."""
    return median(samples_of(point, sender), metric)


def differ(point: Point, one: str, other: str, metric: str) -> bool:
    """Whether two senders differ by more than the spread of both."""
    a, b = number(point, one, metric), number(point, other, metric)
    if a is None or b is None:
        return False
    both = spread(samples_of(point, one), metric) + spread(samples_of(point, other), metric)
    return abs(a - b) > both


# sendfile(2) beside read and write.


def buffers(points: Sequence[Point]) -> Iterator[str]:
    """Tell whether sendfile(2) takes less CPU than read and write."""
    less: list[str] = []
    more: list[str] = []
    same: list[str] = []
    lines = []
    for point in points:
        copy, direct = number(point, "read+write", "CPU"), number(point, "sendfile", "CPU")
        if not copy or direct is None:
            continue
        size = show_size(point["buffer"])
        if not differ(point, "sendfile", "read+write", "CPU"):
            same.append(size)
        else:
            (less if direct < copy else more).append(size)
        lines.append(
            f"- {size}: {show_number(direct)} ms/GB against {show_number(copy)}, a factor of "
            f"{show_number(direct / copy)}; {_busy(point, 'sendfile')} of a core against "
            f"{_busy(point, 'read+write')}"
        )
    if lines:
        worth = _worth("here `sendfile` takes less", "it takes more", less, more, same)
        yield (
            "The reference program shows a client with `sendfile` at 41 % CPU and 0.13 s in the "
            "kernel, where read and write take 99 % and 0.66 s: a fifth of the time in the kernel. "
            f"Of the process's CPU time for a GB, over the bytes of one call, {worth}:"
        )
        yield "\n".join(lines)


def _busy(point: Point, sender: str) -> str:
    cpu, speed = number(point, sender, "CPU"), number(point, sender, "throughput")
    assert cpu is not None
    assert speed is not None
    return f"{cpu * speed / 10:.0f} %"


def buffers_title(points: Sequence[Point]) -> str:
    """Say it in a picture's title."""
    span = _span(points, "sendfile", "read+write", "CPU")
    if span is None:
        return "CPU time of the plain system calls"
    return f"sendfile takes {span} times the CPU of read+write"


def _span(points: Sequence[Point], one: str, other: str, metric: str) -> str | None:
    """Give the smallest and the largest factor between two senders."""
    factors = []
    for point in points:
        a, b = number(point, one, metric), number(point, other, metric)
        if a is not None and b:
            factors.append(a / b)
    if not factors:
        return None
    low, high = show_number(min(factors)), show_number(max(factors))
    return low if low == high else f"{low} to {high}"


# Linked SQEs beside single ones.


def linked(points: Sequence[Point]) -> Iterator[str]:
    """Tell what linking SQEs is worth."""
    for single, chain, what in _PAIRS:
        faster: list[str] = []
        slower: list[str] = []
        same: list[str] = []
        lines = []
        for point in points:
            one, both = number(point, single, "throughput"), number(point, chain, "throughput")
            if not one or both is None:
                continue
            size = show_size(point["buffer"])
            if not differ(point, single, chain, "throughput"):
                same.append(size)
            else:
                (faster if both > one else slower).append(size)
            lines.append(
                f"- {size}: {show_number(both)} GB/s against {show_number(one)}, a factor of "
                f"{show_number(both / one)}; {_calls(point, chain)} calls against "
                f"{_calls(point, single)}, {_cpu(point, chain)} ms/GB against {_cpu(point, single)}"
            )
        if lines:
            better, worse = "linked ones are faster", "linked ones are slower"
            yield (
                f"`{chain}` submits {what} as one chain, `{single}` waits for each: "
                f"{_worth(better, worse, faster, slower, same)}. By the bytes of one SQE:"
            )
            yield "\n".join(lines)


def _worth(
    better: str, worse: str, good: Sequence[str], bad: Sequence[str], same: Sequence[str]
) -> str:
    """Say at which sizes something is better, at which it is not, and where nobody can tell."""
    parts = []
    if good:
        parts.append(f"{better} at {_list(good)}")
    if bad:
        parts.append(f"this kernel says otherwise at {_list(bad)}, where {worse}")
    if same:
        parts.append(f"the difference is within the spread at {_list(same)}")
    return "; ".join(parts)


def linked_title(points: Sequence[Point]) -> str:
    """Say it in a picture's title."""
    parts: list[str] = []
    for single, chain, what in _PAIRS:
        if span := _span(points, chain, single, "throughput"):
            parts.append(f"{what} {span} times{'' if parts else ' as fast'}")
    return f"Linking makes {', '.join(parts)}" if parts else "Linked SQEs"


def _calls(point: Point, sender: str) -> str:
    return show_number(number(point, sender, "calls") or 0)


def _cpu(point: Point, sender: str) -> str:
    return show_number(number(point, sender, "CPU") or 0)


# Every sender over the size of the file.


def throughput_title(points: Sequence[Point]) -> str:
    """Say who is fastest with the largest file, of those that are drawn."""
    point = points[-1]
    speeds = {
        name: speed for name in DRAWN if (speed := number(point, name, "throughput")) is not None
    }
    if not speeds:
        return "Throughput over the size of the file"
    best = max(speeds, key=lambda name: speeds[name])
    others = [name for name in speeds if name != best]
    same = [name for name in others if not differ(point, best, name, "throughput")]
    size = show_size(point["size"])
    told = f"{best} is fastest with {size} files, at {show_number(speeds[best])} GB/s"
    if same:
        told += f", within the spread of {_list(same) if len(same) < 3 else f'{len(same)} others'}"
    beside = [f"{name} {show_number(speeds[name])}" for name in (OURS, STDLIB) if name in others]
    return f"{told} ({', '.join(beside)})" if beside else told


def cpu_title(points: Sequence[Point]) -> str:
    """Say what a GB in large files costs."""
    size = show_size(points[-1]["size"])
    return _beside(points[-1], "CPU", "ms", f"of CPU time for a GB in {size} files")


def time_title(points: Sequence[Point]) -> str:
    """Say how long the smallest file takes."""
    return _beside(points[0], "time", "us", f"for one {show_size(points[0]['size'])} file")


def lateness_title(point: Point) -> str:
    """Say how late a timer was at the worst."""
    told = [
        f"{max(late):.3g} ms ({name})"
        for name in (OURS, STDLIB)
        if (late := point["senders"].get(name, {}).get("lateness"))
    ]
    what = f"A 1 ms timer beside {show_size(point['size'])} files is late"
    return f"{what} by up to {', '.join(told)}" if told else what


def _beside(point: Point, metric: str, unit: str, what: str) -> str:
    """Say what aiozc takes and what others do: "aiozc takes 5 us for one file, sendfile 4"."""
    told: list[str] = []
    for sender in (OURS, STDLIB, "sendfile", "read+write"):
        value = number(point, sender, metric)
        if value is not None and len(told) < 3:
            verb, rest = ("", "") if told else (" takes", f" {unit} {what}")
            told.append(f"{sender}{verb} {show_number(value)}{rest}")
    return ", ".join(told) if told else f"The {metric} {what}"


def sizes(points: Sequence[Point]) -> Iterator[str]:
    """Set aiozc against the standard library's way, for small files and for large ones."""
    for point in (points[0], points[-1]) if len(points) > 1 else points[:1]:
        lines = []
        for metric, unit, what in (
            ("time", "us", "time for a file"),
            ("loop CPU", "ms", "CPU time of the loop for a GB"),
            ("lateness max", "ms", "the latest that a 1 ms timer was"),
        ):
            ours, theirs = number(point, OURS, metric), number(point, STDLIB, metric)
            if ours is None or theirs is None:
                continue
            within = "" if differ(point, OURS, STDLIB, metric) else " (within the spread)"
            lines.append(
                f"- {what}: {show_number(ours)} {unit} by `{OURS}`, {show_number(theirs)} {unit} "
                f"by `{STDLIB}`{within}"
            )
        if lines:
            yield f"Files of {show_size(point['size'])}, on asyncio:"
            yield "\n".join(lines)


# Web servers.


def http(points: Sequence[Point]) -> Iterator[str]:
    """Set each server with aiozc against itself without."""
    lines = []
    for point, stock, one, other, apart in _with_and_without(points):
        within = "" if apart else ", within the spread"
        lines.append(
            f"- {show_size(point['size'])}, {stock}: {show_number(one)} GB/s with aiozc, "
            f"{show_number(other)} without ({show_number(one / other)}x{within})"
        )
    if lines:
        yield "With aiozc and without:"
        yield "\n".join(lines)


def http_title(points: Sequence[Point]) -> str:
    """Say what aiozc makes of the largest difference there is."""
    pairs = list(_with_and_without(points))
    if not pairs:
        return "Web servers under wrk"
    apart = [pair for pair in pairs if pair[4]]
    if not apart:
        return "Web servers under wrk: aiozc makes no difference beyond the spread"
    point, stock, one, other, _ = max(apart, key=lambda pair: pair[2] / pair[3])
    return (
        f"With aiozc, {stock} sends {show_size(point['size'])} files at {show_number(one)} GB/s "
        f"in place of {show_number(other)}"
    )


def _with_and_without(points: Sequence[Point]) -> Iterator[tuple[Point, str, float, float, bool]]:
    """Give throughputs with aiozc and without, and whether they differ by more than the spread."""
    for point in points:
        for ours in point["senders"]:
            stock = ours.replace("+aiozc", "")
            one, other = number(point, ours, "throughput"), number(point, stock, "throughput")
            if stock != ours and one is not None and other:
                apart = differ(point, ours, stock, "throughput")
                yield point, stock, one, other, apart


def _list(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
