"""The kernel threads of a ring: whether they answer, and how many there may be.

A chain that stands in a disk that does not answer holds its worker for as long as that takes, and
what needs no disk waits behind it: a splice always takes a worker (K1). And where the process may
have no more tasks there is no worker at all (K17). Both are told by asking: an operation that does
nothing and takes a worker comes back at once, or not within a tick, or with ECANCELED. So with
chains at work each tick asks, once for regular files and once for all else (they have workers of
their own), which takes about 20 us.

- No answer within a tick: the ring may have twice as many workers, `MOST` in the end. When the
  chains have ended that were at work then, it may have `WORKERS` again.
- Still none, or no worker can be made: chains go by the engine's other backend until one is.
  What is queued for a worker is cancelled, and its transfer goes on there.
"""

import errno
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from aiozc._engines.backend import Port
from aiozc._kernel import abi
from aiozc._kernel.abi import SqeFlag
from aiozc._kernel.ring import Ring, Sqe, prep_cancel, prep_nop, prep_splice
from aiozc._transfers.steps import Pause, PollIn, PollOut

if TYPE_CHECKING:
    from aiozc._engines.uring import Submission

WORKERS = 8
"""Kernel threads of one ring, for regular files and for all else, each."""
MOST = WORKERS + 64
"""The same, with those that wait for disks that do not answer."""
ANEW_S = 1.0
"""Seconds after which it is asked again whether a worker can be made."""
EVICTED = 64
"""Chains whose steps are taken out of the queue in one tick."""
QUESTIONS = ((1 << 64) - 3, (1 << 64) - 2)
"""Their `user_data`."""

_logger = logging.getLogger("aiozc")


class Workers:
    """The workers of one ring. `submit` submits SQEs to it, and raises OSError."""

    def __init__(self, ring: Ring, engine: Port, submit: Callable[[Sequence[Sqe]], None]) -> None:
        self._ring = ring
        self._engine = engine
        self._submit = submit
        self._bound = WORKERS
        self._at_work: dict[int, Submission] = {}
        self._outlasted: set[int] = set()
        """Of the chains that were at work when there were too few workers those that still are."""
        self._asked = 0
        self._late = False
        self._refused = False
        """Whether one of the answers was that no worker can be made."""
        self._refused_at: float | None = None
        """When it was last found that no worker can be made (time.monotonic)."""
        self._crowded = False
        self._ended = False

    def stop_asking(self) -> None:
        """Ask no more: the ring ends, and cancels its operations itself."""
        self._ended = True

    def begin(self, run: "Submission") -> None:
        """Note that a chain is begun."""
        if len(run.chain) > 1 or not isinstance(run.chain[0], PollIn | PollOut | Pause):
            self._at_work[run.number] = run

    def end(self, run: "Submission") -> None:
        """Note that a chain has ended."""
        if self._at_work.pop(run.number, None) is None:
            return
        if self._outlasted:
            self._outlasted.discard(run.number)
            if not self._outlasted:
                self._allow(WORKERS)
        results = run.results
        if results and results[-1] == -errno.ECANCELED and not run.stopping and max(results) <= 0:
            self._ask()

    def at_tick(self) -> None:
        """Ask whether there are workers, or act on a late answer."""
        if self._asked:
            if self._late:
                self._relieve()
            self._late = True
        elif self._refused_at is not None:
            if time.monotonic() - self._refused_at > ANEW_S:
                # The kernel took what the limit was for the bound, if that was less.
                self._allow(self._bound)
                self._ask()
        elif self._at_work:
            self._ask()

    def _ask(self) -> None:
        if not self._asked and not self._ended:
            self._late = self._refused = False
            self._put_questions()

    def _put_questions(self) -> None:
        fd, nowhere = self._ring.fd, abi.NO_OFFSET
        files, others = QUESTIONS
        try:
            self._submit(
                (
                    prep_nop(files, int(SqeFlag.ASYNC)),
                    prep_splice(fd, nowhere, fd, nowhere, 0, 0, others),
                )
            )
        except OSError:
            return
        self._asked += 2

    def answered(self, result: int) -> None:
        """Note the result of a question."""
        self._asked -= 1
        if self._ended:
            return
        if result == -errno.ECANCELED:
            self._refused = True
            self._refused_at = time.monotonic()
            _warn_of_refusal()
            self._engine.lose_workers()
        elif not self._asked and not self._refused and not self._engine.has_workers:
            self._crowded = False
            self._refused_at = None
            self._engine.regain_workers()

    def _relieve(self) -> None:
        """Allow more workers, or have chains go by the other backend."""
        if self._refused:
            # By a limit of 0 (RLIMIT_NPROC) what is queued stays so, without a word.
            self._evict()
            self._cancel(QUESTIONS)
            return
        if self._bound < MOST:
            self._outlasted |= self._at_work.keys()
            self._allow(min(2 * self._bound, MOST))
            # What is queued gets the new ones when something comes to the queue.
            self._put_questions()
            return
        if not self._crowded:
            self._crowded = True
            _warn_of_limit()
            self._engine.lose_workers()
        self._evict()

    def _allow(self, bound: int) -> None:
        self._bound = bound
        self._ring.bound_workers(bound)

    def _evict(self) -> None:
        """Take what is queued out of the queue: it comes back with ECANCELED."""
        for run in [run for run in self._at_work.values() if not run.evicted][:EVICTED]:
            run.evicted = True
            self.take_out(run)

    def take_out(self, run: "Submission") -> None:
        """Cancel a chain that no worker has begun with; one that has one is left to it.

        By `user_data`: what is queued has no file yet by which it could be found.
        """
        self._cancel(numbers_of(run))

    def _cancel(self, numbers: Sequence[int]) -> None:
        sqes = [prep_cancel(number) for number in numbers]
        for first in range(0, len(sqes), self._ring.entries):
            try:
                self._submit(sqes[first : first + self._ring.entries])
            except OSError:
                return


INDEX_BITS = 12
"""`user_data` of a step: the chain's number, and the step's index in its lowest bits."""
BESIDE = 1 << 63
"""A bit of the `user_data` of what goes before a step, and is nobody's result."""


def numbers_of(run: "Submission") -> list[int]:
    """Return the `user_data` of a chain's steps that take a worker."""
    first = run.number << INDEX_BITS
    steps = [
        first | index
        for index, step in enumerate(run.chain)
        if not isinstance(step, PollIn | PollOut | Pause)
    ]
    return steps if run.record.loan is None else [*steps, *(BESIDE | step for step in steps)]


@functools.cache
def _warn_of_refusal() -> None:
    _logger.warning(
        "the process may have no more tasks (a pids cgroup, RLIMIT_NPROC), so that io_uring has"
        " no threads: transfers go by readiness (os.sendfile, os.splice) until it has"
    )


@functools.cache
def _warn_of_limit() -> None:
    _logger.warning(
        "%d threads of one io_uring wait for disks that do not answer: what needs none goes by"
        " readiness (os.sendfile, os.splice) until they do",
        MOST,
    )
