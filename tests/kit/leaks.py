"""What a process holds of the kernel, and a check that no more of it is left."""

import contextlib
import gc
import os
import resource
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiozc
from tests.kit import tasks
from tests.kit.waiting import are_threads_at_rest, jobs_of_threads, wait_until


@dataclass(frozen=True)
class Holdings:
    """What this process holds of the kernel; a quick look counts descriptors and threads."""

    descriptors: dict[int, str]
    threads: frozenset[str]
    quick: bool
    ring_workers: int = 0
    mappings: int = 0
    rings: int = 0  # mappings of them

    def since(self, before: "Holdings") -> tuple[set[tuple[int, str]], int, frozenset[str]]:
        """Return what is held now that was not held before: descriptors, rings, threads."""
        return (
            self.descriptors.items() - before.descriptors.items(),
            max(0, self.rings - before.rings),
            self.threads - before.threads,
        )


def holdings(*, quick: bool = False) -> Holdings:
    """Count the descriptors, the threads, the rings' workers, and the mappings.

    A `quick` look leaves out the last two: the kernel takes 0.6 ms to list the mappings.
    """
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            descriptors[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    # trio keeps its threads for ten seconds, and we ours for five; anyio does not wait for the
    # ends of its own.
    names = (thread.name for thread in threading.enumerate())
    others = ("Trio thread", "AnyIO worker thread", "aiozc")
    threads = frozenset(name for name in names if not name.startswith(others))
    if jobs := jobs_of_threads():
        threads |= {f"{jobs} jobs of aiozc's threads"}
    if quick:
        return Holdings(descriptors, threads, quick)
    maps = Path("/proc/self/maps").read_bytes()
    mappings, rings = maps.count(b"\n"), maps.count(b"[io_uring]")
    return Holdings(descriptors, threads, quick, count_ring_workers(), mappings, rings)


@contextlib.contextmanager
def open_files(number: int) -> Iterator[None]:
    """Let this process have that many open files for a while, or as many as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(number, hard)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def check_nothing_left(before: Holdings) -> None:
    """Check that no more is held than before, but for the kernel's workers."""
    for thread in threading.enumerate():
        if thread.name == "AnyIO worker thread":
            thread.join(10)  # its loop has told it to end
    # One that has told a loop of its result has a few lines to go yet.
    given_up = time.monotonic() + 10
    wait_until(lambda: are_threads_at_rest() or time.monotonic() > given_up)
    nothing = before.since(before)
    left = holdings(quick=before.quick).since(before)
    if left != nothing:
        gc.collect()  # slow
        left = holdings(quick=before.quick).since(before)
    assert left == nothing, left


def count_ring_workers() -> int:
    """Count the kernel's workers (`iou-wrk-*`) among this process's threads."""
    count = 0
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            count += Path(f"/proc/self/task/{task}/comm").read_text().startswith("iou-wrk")
    return count


IDLE_PIPES = 4  # what a reactor at rest may keep


async def check_at_rest(reactor: aiozc.Reactor) -> None:
    """Check that nothing is in flight, within some turns: pipes are closed a moment later."""
    for _ in range(100):
        statistics = reactor.statistics()
        if statistics.in_flight == 0 and statistics.pipes <= IDLE_PIPES:
            return
        await tasks.sleep(0.001)
    assert statistics.in_flight == 0
    assert statistics.pipes <= IDLE_PIPES
