"""The file-to-socket machine against lists of outcomes: no kernel, no loop."""

import errno
import itertools
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from aiozc._transfers.machine import MOST_TRIES
from aiozc._transfers.route import CHAINS_PAY, KEEPS_UP, SHARE, Peer, Way, next_way
from aiozc._transfers.sendfile import Sendfile, State
from aiozc._transfers.steps import Chain, End, Offer, Pause, PollOut, Splice

PAGE = 4096
KIB = 1024
MIB = 1 << 20
UNLUCKY = (-errno.EINTR, -errno.ECANCELED, -errno.EAGAIN)


class World:
    """A file, a pipe and a socket that do what a drawn list of numbers tells them.

    It runs chains by the kernel's rules: a short or failed step cuts the chain unless it
    may be short; bytes are their own positions, so that what arrives tells its order.
    """

    def __init__(self, size: int, pipe_size: int, draws: deque[int]) -> None:
        self.size = size
        self.pipe_size = pipe_size
        self.pipe: list[range] = []
        self.arrived: list[range] = []
        self.draws = draws
        self.unlucky = 0

    def draw(self) -> int:
        """Return the next drawn number; 100, all is well, when they are used up."""
        return self.draws.popleft() if self.draws else 100

    def run(self, chain: Chain) -> list[int]:
        """Run a chain and return a result for each step that ran."""
        results: list[int] = []
        if isinstance(chain[0], Offer):
            return self.offer(chain[0])
        for step in chain:
            result = self.step(step)
            results.append(result)
            short = isinstance(step, Splice) and result < step.length
            if (short or result < 0) and not (isinstance(step, Splice) and step.may_be_short):
                break
        return results

    def step(self, step: object) -> int:
        """Do one step, in full, in part, or not at all, as drawn."""
        if isinstance(step, Pause):
            return 0
        percent = self.draw()
        if isinstance(step, PollOut):
            return -errno.ECANCELED if percent < 10 else 0
        self.unlucky = self.unlucky + 1 if percent < 12 else 0
        if 0 < self.unlucky < MOST_TRIES:
            return UNLUCKY[percent % (3 if self.pipe else 2)]
        assert isinstance(step, Splice)
        if step.source is End.SOURCE:
            return self.read(step, percent)
        return self.send(step, percent)

    def offer(self, step: Offer) -> list[int]:
        """Send from the file what there is room for, until something drawn stands in the way."""
        sent, end = 0, min(step.offset + step.length, self.size)
        while step.offset + sent < end:
            percent = self.draw()
            if percent < 15:
                ways = (errno.EAGAIN, errno.ENODATA, errno.ECANCELED)
                return [sent, -ways[percent % 3]]
            start = step.offset + sent
            length = portion(min(SHARE, end - start), percent)
            self.arrived.append(range(start, start + length))
            sent += length
            if sent >= KEEPS_UP and percent % 2:
                return [sent]
        return [sent] if sent == step.length else [sent, 0]

    def read(self, step: Splice, percent: int) -> int:
        """Splice from the file into the pipe: at most what has room there."""
        assert step.source_offset is not None
        room = self.pipe_size - sum(map(len, self.pipe))
        length = max(0, min(step.length, self.size - step.source_offset))
        if length and not room:
            return -errno.EAGAIN
        length = portion(min(length, room), percent)
        if length:
            self.pipe.append(range(step.source_offset, step.source_offset + length))
        return length

    def send(self, step: Splice, percent: int) -> int:
        """Splice from the pipe into the socket: at most what is there."""
        there = sum(map(len, self.pipe))
        if not there:
            return -errno.EAGAIN
        left = sent = portion(min(step.length, there), percent)
        while left:
            head = self.pipe.pop(0)
            self.arrived.append(head[:left])
            if len(head) > left:
                self.pipe.insert(0, head[left:])
            left -= min(left, len(head))
        return sent


def portion(length: int, percent: int) -> int:
    """Return a part of `length`: all of it from 60 on, and 1 at the least."""
    return length if percent >= 60 or length < 2 else max(1, length * percent // 60)


def drive(transfer: Sendfile, world: World, most_steps: int) -> int:
    """Run a transfer to its end as an engine does; return the number of chains."""
    chains = 0
    while not transfer.done:
        if not transfer.needs_pipe:
            world.pipe.clear()
        chain = transfer.next_chain(world.pipe_size, most_steps)
        assert 1 <= len(chain) <= most_steps
        transfer.advance(chain, world.run(chain))
        assert transfer.in_pipe >= sum(map(len, world.pipe)) or not transfer.needs_pipe
        chains += 1
    return chains


def arrived_in_order(world: World) -> range:
    """Return what arrived as one run of positions; fail where it is none."""
    runs = [piece for piece in world.arrived if len(piece)]
    for before, after in itertools.pairwise(runs):
        assert before.stop == after.start, f"{after} arrived behind {before}"
    return range(runs[0].start, runs[-1].stop) if runs else range(0)


sizes = st.one_of(
    st.integers(1, 3 * PAGE),
    st.integers(CHAINS_PAY - PAGE, CHAINS_PAY + PAGE),
    st.integers(1, 6 * CHAINS_PAY),
)


@given(
    length=sizes,
    offset=st.integers(0, 3 * PAGE),
    missing=st.one_of(st.just(0), st.integers(0, 2 * CHAINS_PAY)),
    pages=st.sampled_from((1, 2, 16, 256)),
    most_steps=st.integers(3, 48),
    crowded=st.booleans(),
    draws=st.lists(st.integers(0, 100), max_size=400),
)
def test_any_order_of_short_failed_and_complete_steps_sends_each_byte_once_in_order(
    length: int,
    offset: int,
    missing: int,
    pages: int,
    most_steps: int,
    crowded: bool,
    draws: list[int],
) -> None:
    size = max(offset, offset + length - missing)  # the file is shorter than was thought
    world = World(size, pages * PAGE, deque(draws))
    transfer = Sendfile(offset, length, crowded=lambda: crowded)
    drive(transfer, world, most_steps)
    arrived = arrived_in_order(world)
    assert transfer.error == 0
    assert len(arrived) == transfer.position == min(length, size - offset)
    assert not arrived or arrived.start == offset


@given(
    length=sizes,
    draws=st.lists(st.integers(0, 100), max_size=60),
    failing=st.integers(0, 20),
    number=st.sampled_from((errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.EINVAL)),
)
def test_a_step_that_fails_ends_the_transfer_with_what_the_socket_took(
    length: int, draws: list[int], failing: int, number: int
) -> None:
    class Failing(World):
        steps = 0

        def step(self, step: object) -> int:
            self.steps += 1
            return -number if self.steps > failing else super().step(step)

        def offer(self, step: Offer) -> list[int]:
            self.steps += 1
            return [0, -number] if self.steps > failing else super().offer(step)

    world = Failing(length, 16 * PAGE, deque(draws))
    transfer = Sendfile(0, length)
    drive(transfer, world, 12)
    assert len(arrived_in_order(world)) == transfer.position
    assert transfer.error == number or transfer.position == length


def test_chunks_behind_an_unaligned_offset_end_on_page_boundaries() -> None:
    chain = Sendfile(5 * PAGE + 1, 16 * MIB).next_chain(16 * PAGE, 9)
    reads = [step for step in chain if isinstance(step, Splice) and step.source is End.SOURCE]
    assert [(step.source_offset, step.length) for step in reads] == [
        (5 * PAGE + 1, 16 * PAGE - 1),
        (21 * PAGE, 16 * PAGE),
        (37 * PAGE, 16 * PAGE),
        (53 * PAGE, 16 * PAGE),
    ]


def test_a_peer_found_slow_costs_no_pipe_until_there_is_room() -> None:
    transfer = Sendfile(0, 16 * MIB)
    transfer.advance(transfer.next_chain(16 * PAGE, 3), [16 * PAGE, -errno.EAGAIN])
    transfer.advance(transfer.next_chain(16 * PAGE, 3), [-errno.ECANCELED])
    assert transfer.state is State.WAITING
    assert transfer.in_pipe == 16 * PAGE, "whoever gives up the pipe must know that it is not empty"
    assert not transfer.needs_pipe
    assert transfer.next_chain(0, 6) == (Offer(0, 16 * MIB, full=True),)


def test_a_peer_that_takes_more_than_its_buffers_hold_in_a_row_gets_a_pipe_again() -> None:
    transfer = Sendfile(0, 64 * MIB, inline=64 * KIB)
    assert not transfer.needs_pipe
    offered = Offer(64 * KIB, 64 * MIB - 64 * KIB, full=True)
    assert transfer.next_chain(0, 6) == (offered,)
    transfer.advance((offered,), [KEEPS_UP])
    assert transfer.needs_pipe


def test_where_the_next_bytes_go() -> None:
    """What is not cached goes by the workers, and so does much for who keeps up with it."""
    little, much = CHAINS_PAY, CHAINS_PAY + 1
    for left, cached, peer, crowded, way in [
        (1, False, Peer.NEW, False, Way.CHAIN),
        (much, False, Peer.SLOW, True, Way.CHAIN),
        (little, True, Peer.NEW, False, Way.INLINE),
        (little, True, Peer.FAST, False, Way.INLINE),
        (much, True, Peer.NEW, False, Way.CHAIN),
        (much, True, Peer.FAST, False, Way.CHAIN),
        (much, True, Peer.SLOW, False, Way.INLINE),
        (much, True, Peer.NEW, True, Way.INLINE),
        (much, True, Peer.FAST, True, Way.INLINE),
    ]:
        assert next_way(left, cached, peer, crowded) is way, (left, cached, peer, crowded)


def test_an_empty_pipe_that_takes_nothing_is_an_error_and_no_endless_loop() -> None:
    transfer = Sendfile(0, 16 * MIB)
    chain = transfer.next_chain(16 * PAGE, 6)
    transfer.advance(chain, [-errno.EAGAIN])
    assert transfer.error == errno.EAGAIN


def test_polls_stand_only_in_the_chain_behind_a_full_socket() -> None:
    transfer = Sendfile(0, 64 * MIB)
    fast = transfer.next_chain(16 * PAGE, 6)
    assert PollOut() not in fast
    transfer.advance(fast, [16 * PAGE, PAGE, -errno.EAGAIN])
    slow = transfer.next_chain(16 * PAGE, 8)
    assert [isinstance(step, PollOut) for step in slow] == [True, False] + [False, True, False] * 2
    transfer.advance(slow, [0, 15 * PAGE, *[16 * PAGE, 0, 16 * PAGE] * 2])
    assert PollOut() not in transfer.next_chain(16 * PAGE, 6)


def test_what_stays_in_the_pipe_goes_first() -> None:
    transfer = Sendfile(0, 16 * MIB)
    chain = transfer.next_chain(16 * PAGE, 3)
    transfer.advance(chain, [16 * PAGE, 5 * PAGE])
    left = transfer.next_chain(16 * PAGE, 3)
    assert left == [PollOut(), Splice(End.PIPE, End.TARGET, 11 * PAGE, may_be_short=True)]


def test_a_file_that_has_grown_is_gone_on_with() -> None:
    transfer = Sendfile(0, 64 * KIB, inline=64 * KIB)
    before = transfer.done
    transfer.extend(80 * KIB)
    assert (before, transfer.done) == (True, False)
    assert transfer.next_chain(0, 6) == (Offer(64 * KIB, 16 * KIB, full=False),)


def test_polls_that_come_true_for_nothing_are_followed_by_longer_and_longer_pauses() -> None:
    transfer = Sendfile(0, 1000)
    pauses = []
    for results in [[0, -errno.EAGAIN]] * 4 + [[1000]]:
        while not isinstance((chain := transfer.next_chain(0, 6))[0], Offer):
            pauses += [step.level for step in chain if isinstance(step, Pause)]
            transfer.advance(chain, [0])
        transfer.advance(chain, results)
    assert pauses == [0, 1, 2, 3]
    assert transfer.done


def test_an_offer_of_which_nothing_is_told_is_an_offer_still() -> None:
    """As in a forked child, whose parent it is that sends."""
    transfer = Sendfile(0, 1000)
    chain = transfer.next_chain(0, 6)
    transfer.advance(chain, [])
    assert (transfer.position, transfer.next_chain(0, 6)) == (0, chain)
