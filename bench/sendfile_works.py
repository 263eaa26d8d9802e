"""What is measured of ``loop_sendfile``."""

from contextlib import ExitStack
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
from bench.measure import AtLeast, AtMost, Metric, Sample
from bench.receivers import Mode, Receiver
from bench.scratch import make_cold, make_file, make_sparse_file, warm
from bench.senders import FLOOR, SENDERS, Sender
from bench.slow_clients import SlowPlan, serve_slow_clients
from bench.transfers import Plan, take_turn
from bench.units import GIB, KIB, MIB, show_size

# Small files

_SMALL_SIZES: Final = (4 * KIB, 64 * KIB, 256 * KIB)
_SMALL_CONNECTIONS: Final = (1, 16, 64)
_SMALL_TARGETS: Final = {
    (4 * KIB, 1): AtLeast(5, aim=8),
    (4 * KIB, 64): AtLeast(4, aim=6),
    (64 * KIB, 1): AtLeast(4, aim=6),
    (256 * KIB, 16): AtLeast(1.8, aim=2.5),
}
_TRANSFERS_IN_A_TURN: Final = {4 * KIB: 4096, 64 * KIB: 2048, 256 * KIB: 1536}


def _small(settings: Settings, stack: ExitStack) -> list[Case[Sender]]:
    receiver = stack.enter_context(settings.receive("discard"))
    cases = []
    for size in _SMALL_SIZES:
        file = make_file(settings.scratch / f"small-{size}", size)
        warm(file)
        for connections in _SMALL_CONNECTIONS:
            transfers = _TRANSFERS_IN_A_TURN[size] // (4 if settings.quick else 1)
            repeats = max(transfers // connections, 4)
            plan = Plan(
                files=[file] * connections,
                size=size,
                repeats=repeats,
                warm_file=file,
                warm_size=size,
                warm_repeats=max(repeats // 8, 4),
            )

            def run(sender: Sender, plan: Plan = plan) -> Sample:
                elapsed = take_turn(sender, receiver, plan).elapsed
                return {"time": elapsed * 1e6 / plan.transfers}

            cases.append(
                Case(
                    f"{size // KIB} KiB, {connections} conn.",
                    [Metric("time", "us", "less", _SMALL_TARGETS.get((size, connections)))],
                    run,
                    settings.choose_rounds(5, 15),
                    settings.choose_budget(0.6),
                )
            )
    return cases


# One large stream

STREAM_AWAKE: Final = 50e-6
"""Without it the throughput depends, fourfold, on whether the receiver happens to fall asleep."""
_LOOP_CPU_TARGETS: Final[dict[Mode, AtLeast]] = {
    "discard": AtLeast(8, aim=12),
    "read": AtLeast(2, aim=4),
}
_THROUGHPUT_TARGETS: Final[dict[Mode, AtLeast]] = {
    "discard": AtLeast(1.0, aim=1.2),
    "read": AtLeast(1.0, aim=1.1),
}


def _stream(settings: Settings, stack: ExitStack) -> list[Case[Sender]]:
    size = 256 * MIB if settings.quick else GIB
    file = make_file(settings.scratch / "stream", size)
    warm(file)
    # The warm-up is small: only loop and engine are to be ready, the connection is a new one.
    plan = Plan(
        files=[file], size=size, repeats=1, warm_file=file, warm_size=4 * KIB, warm_repeats=2
    )
    peers: list[tuple[Mode, str]] = [("discard", "discards"), ("read", "reads")]
    cases = []
    for mode, does in peers:
        receiver = stack.enter_context(settings.receive(mode, awake=STREAM_AWAKE))

        def run(sender: Sender, receiver: Receiver = receiver) -> Sample:
            turn = take_turn(sender, receiver, plan)
            return {**throughput(plan.bytes, turn), **cpu_per_gigabyte(plan.bytes, turn)}

        metrics = [
            throughput_metric(_THROUGHPUT_TARGETS[mode]),
            *cpu_metrics(_LOOP_CPU_TARGETS[mode]),
        ]
        cases.append(
            Case(
                f"{show_size(size)}, peer {does}",
                metrics,
                run,
                settings.choose_rounds(3, 7),
                settings.choose_budget(1.5),
            )
        )
    return cases


# Many cold files


def _cold(settings: Settings, stack: ExitStack) -> list[Case[Sender]]:
    count, size = (16, 16 * MIB) if settings.quick else (64, 32 * MIB)
    receiver = stack.enter_context(settings.receive("discard"))
    files = [make_file(settings.scratch / f"cold-{i}", size) for i in range(count)]
    warm_file = make_file(settings.scratch / "cold-warm-up", 4 * KIB)
    warm(warm_file)
    plan = Plan(
        files=files,
        size=size,
        repeats=1,
        warm_file=warm_file,
        warm_size=4 * KIB,
        warm_repeats=2,
        timer=True,
    )

    def run(sender: Sender) -> Sample:
        for file in files:
            make_cold(file)
        turn = take_turn(sender, receiver, plan)
        return {**lateness(turn), **throughput(plan.bytes, turn)}

    metrics = [
        *lateness_metrics(AtLeast(20, aim=100)),
        throughput_metric(AtLeast(0.95, aim=1.2)),
    ]
    return [
        Case(
            f"{count} of {show_size(size)}",
            metrics,
            run,
            settings.choose_rounds(3, 5),
            settings.choose_budget(3.0),
        )
    ]


# Slow clients

_CLIENTS: Final = 500


def _slow_clients(settings: Settings, stack: ExitStack) -> list[Case[Sender]]:  # noqa: ARG001
    file = make_sparse_file(settings.scratch / "slow", 64 * MIB)
    warm(file)
    seconds = 1.2 if settings.quick else 6.0
    plan = SlowPlan(str(file), 64 * MIB, _CLIENTS, seconds)

    def run(sender: Sender) -> Sample:
        served = serve_slow_clients(sender, plan)
        return {
            "threads": served.threads,
            "memory growth": served.growth / MIB,
            "process CPU": served.cpu * 100,
            "client with least": served.least / KIB,
            "client with most": served.most / KIB,
        }

    metrics = [
        Metric("threads", "", "less", AtMost(24)),
        Metric("memory growth", "MiB", "less", AtMost(64)),
        Metric("process CPU", "%", "less"),
        Metric("client with least", "KiB", "more"),
        Metric("client with most", "KiB", "more"),
    ]
    return [
        Case(
            f"{_CLIENTS}, for {seconds:g} s",
            metrics,
            run,
            settings.choose_rounds(1, 2),
            settings.choose_budget(0),
        )
    ]


WORKS: Final[tuple[Work[Sender], ...]] = (
    Work(
        "small",
        "Small cached files: time per transfer, peer discards",
        _small,
        (*SENDERS, FLOOR),
    ),
    Work("stream", "One large cached file: throughput, and CPU time per GB", _stream, SENDERS),
    Work(
        "cold",
        "Cold files, all at once, peer discards: how late a 1 ms timer is on the loop",
        _cold,
        SENDERS,
    ),
    Work(
        "slow-clients",
        "Slow clients, each reads 16 KiB every 40 ms; the process that serves them is unprivileged",
        _slow_clients,
        SENDERS,
    ),
)
