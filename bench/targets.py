"""What developers aim at: shown with --targets, and no part of a run."""

from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Final

from bench.figures import Figure


class Verdict(Enum):
    """How a figure stands to a target."""

    AIM = "aim"
    PASS = "pass"
    MISS = "miss"


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio to the baseline that is to be reached, or with ``most`` a value not to exceed."""

    must: float
    aim: float | None = None
    most: bool = False
    whose: str = "aiozc"
    """How the names begin of those it is for."""

    @property
    def shown(self) -> tuple[str, str]:
        """What is to be reached, and what is hoped for."""
        must = f"<= {self.must:g}" if self.most else f"{self.must:.2g}x"
        return must, "" if self.aim is None else f"{self.aim:.2g}x"


def judge(target: Target, figure: Figure) -> Verdict:
    """Judge a figure by its ratio, or by the worst round."""
    if target.most:
        return Verdict.PASS if figure.high <= target.must else Verdict.MISS
    if figure.ratio < target.must:
        return Verdict.MISS
    return Verdict.AIM if target.aim is not None and figure.ratio >= target.aim else Verdict.PASS


def target_of(command: str, case: str, metric: str) -> Target | None:
    """Find the target of a metric, if it has one."""
    for (of, pattern, name), target in _TARGETS.items():
        if command in (of, "overview") and name == metric and fnmatchcase(case, pattern):
            return target
    return None


_TARGETS: Final = {
    ("sendfile", "small: 4 KiB, 1 conn.", "time"): Target(5, 7),
    ("sendfile", "small: 4 KiB, 64 conn.", "time"): Target(3, 5),
    ("sendfile", "small: [16]* KiB, 1 conn.", "time"): Target(2.5, 4),
    ("sendfile", "small: 256 KiB, *", "time"): Target(1, 1.25),
    ("sendfile", "stream: *", "throughput"): Target(0.95, 1.1),
    ("sendfile", "stream: *", "loop CPU"): Target(4, 10),
    ("sendfile", "stream: *", "process CPU"): Target(0.77, 1),
    ("sendfile", "cold: *", "lateness max"): Target(30, 100),
    ("sendfile", "cold: *", "throughput"): Target(1, 1.3),
    ("sendfile", "slow-clients: *", "threads"): Target(24, most=True),
    ("sendfile", "slow-clients: *", "memory growth"): Target(64, most=True),
    ("middle", "*[!0-9][48] MiB, *", "time"): Target(0.95, 1.1),
    ("middle", "*", "time"): Target(1, 1.25),
    ("middle", "*[!0-9][48] MiB, *", "loop CPU"): Target(4, 10),
    ("middle", "*", "loop CPU"): Target(1, 1.25),
    ("middle", "*[!0-9][48] MiB, *", "process CPU"): Target(0.77, 1),
    ("middle", "*", "process CPU"): Target(1, 1.25),
    ("pace", "*", "steady CPU"): Target(1, 1.4),
    ("pace", "*", "filling CPU"): Target(0.83, 1),
    ("mixed", "*", "wait p99"): Target(5, 20),
    ("relay", "stream: * 1 conn.", "throughput"): Target(2.5, 3.5),
    ("relay", "stream: * 64 conn.", "throughput"): Target(2.5, 4),
    ("relay", "idle: *", "process CPU"): Target(1, most=True),
    ("relay", "idle: *", "threads"): Target(24, most=True),
    ("relay", "idle: *", "memory growth"): Target(64, most=True),
    ("recvfile", "*", "throughput"): Target(1.3, 2),
    ("recvfile", "*", "loop CPU"): Target(4, 8),
    ("zc", "once: *", "throughput"): Target(0.77, whose="zc"),
    ("zc", "pipelined: *", "throughput"): Target(3, whose="zc"),
}
