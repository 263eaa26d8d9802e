"""The zero-copy machine against lists of outcomes: no kernel, no loop."""

import errno
import mmap
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiozc._transfers.machine import MOST_TRIES
from aiozc._transfers.steps import AwaitRoom, LoanStep, Pause, SendCopied, SendZeroCopy
from aiozc._transfers.zerocopy import CHAIN, CHUNK, FIRST, LEAST, Piece, State, ZeroCopy

MIB = 1 << 20
UNLUCKY = (-errno.EINTR, -errno.ECANCELED, -errno.EAGAIN)
FULL = (-errno.ENOMEM, -errno.ENOBUFS)


class World:
    """A socket that does what a drawn list of numbers tells it, by the kernel's rules.

    Bytes are a part and a place in it, so that what arrives tells its order.
    """

    def __init__(self, draws: deque[int]) -> None:
        self.draws = draws
        self.unlucky = 0
        self.arrived: list[tuple[int, int, int]] = []

    def run(self, chain: Sequence[LoanStep]) -> list[int]:
        """Run a chain: behind the first step that is short or fails the others are cancelled."""
        results: list[int] = []
        if len(chain) > 1 and self.draws and self.draws[0] % 7 == 0:
            # As charged for when it is submitted: nothing of it begins.
            self.draws.popleft()
            return [-errno.ECANCELED] + [-errno.ENOMEM] * (len(chain) - 1)
        for step in chain:
            cut = results and not self.whole(chain[len(results) - 1], results[-1])
            results.append(-errno.ECANCELED if cut else self.step(step))
        return results

    @staticmethod
    def whole(step: LoanStep, result: int) -> bool:
        """Return whether a step did all that it was to do."""
        return isinstance(step, SendZeroCopy | SendCopied) and result == step.length

    def step(self, step: LoanStep) -> int:
        """Do one step, in full, in part, or not at all, as drawn."""
        percent = self.draws.popleft() if self.draws else 100
        if isinstance(step, Pause):
            return 0
        if isinstance(step, AwaitRoom):
            return percent % 2
        self.unlucky = self.unlucky + 1 if percent < 15 else 0
        if 0 < self.unlucky < MOST_TRIES:
            return UNLUCKY[percent % 3]
        if percent < 40 and isinstance(step, SendZeroCopy):
            return FULL[percent % 2]
        sent = step.length if percent >= 60 else max(1, step.length * percent // 60)
        self.arrived.append((step.part, step.offset, sent))
        return sent


def drive(transfer: ZeroCopy, world: World, most_steps: int) -> int:
    """Run a transfer to its end as an engine does; return the number of chains."""
    chains = 0
    while not transfer.done:
        chain = transfer.next_chain(most_steps)
        assert 1 <= len(chain) <= most_steps
        sizes = [step.length for step in chain if isinstance(step, SendZeroCopy | SendCopied)]
        assert all(0 < size <= CHUNK for size in sizes)
        assert sum(sizes) <= CHAIN
        transfer.advance(chain, world.run(chain))
        chains += 1
    return chains


def merged(arrived: list[tuple[int, int, int]]) -> list[Piece]:
    """Return runs of bytes that follow each other as one."""
    runs: list[Piece] = []
    for part, offset, length in arrived:
        if runs and (runs[-1].part, runs[-1].offset + runs[-1].length) == (part, offset):
            runs[-1] = runs[-1]._replace(length=runs[-1].length + length)
        else:
            runs.append(Piece(part, offset, length))
    return runs


@st.composite
def some_pieces(draw: st.DrawFn) -> list[Piece]:
    """Draw pieces of up to four parts."""
    sizes = draw(st.lists(st.integers(1, 5 * MIB), min_size=1, max_size=4))
    return [Piece(part, draw(st.integers(0, 1 << 34)), size) for part, size in enumerate(sizes)]


@given(some_pieces(), st.lists(st.integers(0, 100), max_size=200), st.integers(1, 24))
def test_whatever_the_kernel_answers_each_byte_is_sent_once_and_in_order(
    pieces: list[Piece], draws: list[int], most_steps: int
) -> None:
    world = World(deque(draws))
    transfer = ZeroCopy(pieces)
    drive(transfer, world, most_steps)
    assert transfer.error == 0
    assert transfer.position == sum(piece.length for piece in pieces)
    assert merged(world.arrived) == pieces


@given(some_pieces(), st.lists(st.integers(15, 100), max_size=60), st.integers(1, 24))
def test_an_error_ends_it_with_what_was_sent_before(
    pieces: list[Piece], draws: list[int], most_steps: int
) -> None:
    world = World(deque(draws))
    transfer = ZeroCopy(pieces)
    while world.draws:
        chain = transfer.next_chain(most_steps)
        transfer.advance(chain, world.run(chain))
        if transfer.done:
            return
    chain = transfer.next_chain(most_steps)
    waits = isinstance(chain[0], AwaitRoom | Pause)
    transfer.advance(chain, [1 if waits else -errno.ECONNRESET])
    assert transfer.error == (0 if waits else errno.ECONNRESET)
    assert transfer.position == sum(length for _, _, length in world.arrived)
    number, sent = transfer.reached
    assert sum(piece.length for piece in pieces[:number]) + sent == transfer.position


def length_of(chain: Sequence[LoanStep]) -> int:
    """Return how many bytes a chain sends."""
    return sum(step.length for step in chain if isinstance(step, SendZeroCopy | SendCopied))


def test_chains_shrink_while_memory_is_short_and_grow_again() -> None:
    transfer = ZeroCopy([Piece(0, 0, 640 * MIB)])
    doubled = [go_through(transfer) for _ in range(5)]
    assert doubled == [FIRST, 2 * FIRST, 4 * FIRST, CHAIN, CHAIN]
    halved = []
    while transfer.state is State.SENDING:
        chain = transfer.next_chain(24)
        halved.append(length_of(chain))
        transfer.advance(chain, [-errno.ECANCELED] * (len(chain) - 1) + [-errno.ENOMEM])
    assert halved == [CHAIN >> level for level in range(11)]
    assert halved[-1] == LEAST
    assert transfer.next_chain(24) == (AwaitRoom(),)
    transfer.advance((AwaitRoom(),), [1])
    assert [go_through(transfer) for _ in range(7)] == [LEAST << level for level in range(7)]
    grown = [go_through(transfer) for _ in range(9)]
    assert grown == [*range(CHUNK, CHAIN + 1, CHUNK), CHAIN]


def go_through(transfer: ZeroCopy) -> int:
    """Have a chain go through; return its length."""
    chain = transfer.next_chain(24)
    transfer.advance(chain, World(deque()).run(chain))
    return length_of(chain)


def run_out(transfer: ZeroCopy) -> None:
    """Have the kernel lock no more memory for it, until it waits."""
    while transfer.state is not State.WAITING:
        transfer.advance(transfer.next_chain(1), [-errno.ENOMEM])


def test_where_others_have_the_memory_one_piece_is_copied_and_the_next_is_not() -> None:
    transfer = ZeroCopy([Piece(0, 0, MIB)])
    run_out(transfer)
    transfer.advance((AwaitRoom(),), [0])
    [copy] = transfer.next_chain(24)
    assert isinstance(copy, SendCopied)
    transfer.advance((copy,), [copy.length])
    assert transfer.copied
    assert isinstance(transfer.next_chain(24)[0], SendZeroCopy)


def test_what_may_not_be_copied_waits_for_the_others() -> None:
    transfer = ZeroCopy([Piece(0, 0, MIB)], may_copy=False)
    run_out(transfer)
    transfer.advance((AwaitRoom(),), [1])
    assert isinstance(transfer.next_chain(1)[0], SendZeroCopy)
    transfer.advance(transfer.next_chain(1), [-errno.EOPNOTSUPP])
    assert transfer.error == errno.EOPNOTSUPP


def test_what_may_not_be_copied_fails_where_there_is_nobody_to_wait_for() -> None:
    transfer = ZeroCopy([Piece(0, 0, MIB)], may_copy=False)
    run_out(transfer)
    transfer.advance((AwaitRoom(),), [0])
    assert transfer.error == errno.ENOMEM


def test_a_socket_that_refuses_gets_all_of_it_copied() -> None:
    transfer = ZeroCopy([Piece(0, 0, 5), Piece(1, 10, MIB)])
    transfer.advance(transfer.next_chain(2), [5, -errno.EOPNOTSUPP])
    while not transfer.done:
        [step] = transfer.next_chain(24)
        assert isinstance(step, SendCopied)
        assert step.part == 1
        transfer.advance((step,), [step.length])
    assert transfer.position == MIB + 5


def test_what_must_be_copied_is() -> None:
    transfer = ZeroCopy([Piece(0, 0, MIB)], must_copy=True)
    while not transfer.done:
        [step] = transfer.next_chain(24)
        assert isinstance(step, SendCopied)
        transfer.advance((step,), [step.length])
    assert transfer.copied


def test_a_file_that_ends_before_its_end_is_an_error() -> None:
    transfer = ZeroCopy([Piece(0, 0, 100)])
    transfer.advance(transfer.next_chain(1), [-errno.EOPNOTSUPP])
    transfer.advance(transfer.next_chain(1), [0])
    assert transfer.error == errno.EFAULT


def test_sends_end_on_the_boundaries_of_pages() -> None:
    chain = ZeroCopy([Piece(0, 5, 2 * CHUNK - 7)]).next_chain(24)
    ends = [step.offset + step.length for step in chain if isinstance(step, SendZeroCopy)]
    assert all(end % mmap.PAGESIZE == 0 for end in ends[:-1])
    assert ends[-1] == 2 * CHUNK - 2


class Counted(list[Piece]):
    """Pieces that count how often one of them is looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("must_copy", [False, True])
def test_thousands_of_pieces_are_looked_at_a_few_times_each(must_copy: bool) -> None:
    pieces = Counted(Piece(number, 0, 100) for number in range(3000))
    transfer = ZeroCopy(pieces, must_copy=must_copy)
    while not transfer.done:
        chain = transfer.next_chain(24)
        transfer.advance(chain, World(deque()).run(chain))
    assert pieces.looks < 10 * len(pieces)
