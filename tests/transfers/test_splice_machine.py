"""The machine between any two ends against lists of outcomes: no kernel, no loop."""

import errno
from collections import deque
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from aiozc._transfers.machine import MOST_TRIES
from aiozc._transfers.splice import EAGER, PACE, Splicing, State
from aiozc._transfers.steps import (
    Chain,
    End,
    Give,
    Pass,
    Pause,
    PollIn,
    PollOut,
    Receive,
    Splice,
    Step,
    TakeByte,
)

PAGE = 4096
KIB = 1024
MIB = 1 << 20
BEFORE = 3 * PAGE + 17  # where files are read and written
UNLUCKY = (-errno.EINTR, -errno.ECANCELED)


@dataclass(frozen=True)
class Ends:
    """The two ends: each a file, a pipe, or another stream."""

    source: str
    target: str

    @property
    def direct(self) -> bool:
        """Whether one of them is a pipe."""
        return "pipe" in (self.source, self.target)

    def machine(self, count: int | None) -> Splicing:
        """Make the machine for them."""
        return Splicing(
            count,
            socket=self.source == "socket",
            source_offset=BEFORE if self.source == "file" else None,
            target_offset=BEFORE if self.target == "file" else None,
            direct=self.direct,
            between_sockets=self.source == self.target == "socket",
        )


ENDS = [
    Ends(source, target)
    for source in ("file", "socket", "pipe")
    for target in ("file", "socket", "pipe")
]


@dataclass
class World:
    """Two ends and a pipe that do what a drawn list of numbers tells them.

    It runs chains by the kernel's rules: a short or failed step cuts the chain unless it may
    be short. A byte is its own place in the source, so that what arrives tells its order.
    """

    ends: Ends
    size: int
    pipe_size: int
    draws: deque[int]
    taken: int = 0
    pipe: deque[int] = field(default_factory=deque)
    memory: deque[int] = field(default_factory=deque)
    arrived: dict[int, int] = field(default_factory=dict)
    sent: int = 0
    marks: set[int] = field(default_factory=set)
    source_error: int = 0
    target_error: int = 0
    steps: int = 0
    unlucky: int = 0

    def run(self, chain: Chain) -> list[int]:
        """Run a chain and return a result for each step that ran."""
        results: list[int] = []
        for index, step in enumerate(chain):
            if isinstance(step, PollIn):
                assert not self.pipe, "it waits for the source with bytes in hand"
            result = self.step(step)
            results.append(result)
            if isinstance(step, TakeByte | Pause):
                assert len(chain) == 1
                return results
            if isinstance(step, Pass):
                return self.hand_on(chain)
            short = result < (step.length if isinstance(step, Splice) else 0)
            if short and not (isinstance(step, Splice) and step.may_be_short):
                return results
            assert index == len(chain) - 1 or isinstance(step, Splice | PollIn | PollOut)
        return results

    def step(self, step: Step) -> int:
        """Do one step, in full, in part, or not at all, as drawn."""
        self.steps += 1
        if isinstance(step, Pass):
            return 0
        percent = self.draws.popleft() if self.draws else 100
        if isinstance(step, Pause):
            return 0
        if isinstance(step, TakeByte):
            return self.take_byte(step, percent)
        if isinstance(step, PollIn | PollOut):
            return UNLUCKY[percent % 2] if percent < 10 else 0
        if isinstance(step, Give):
            return self.give(step.length)
        assert isinstance(step, Splice)
        assert not self.memory, "what lies in memory goes first"
        self.unlucky = self.unlucky + 1 if percent < 10 else 0
        if 0 < self.unlucky < MOST_TRIES:
            return UNLUCKY[percent % 2]
        if step.source is End.PIPE:
            return self.write(step, percent)
        if self.source_error and self.taken == self.size:
            return -self.source_error
        if step.target is End.PIPE:
            return self.read(step, percent)
        if self.target_error:
            return -self.target_error
        if percent < 20:
            return -errno.EAGAIN
        self.pipe.extend(self.take(step, portion(step.length, percent)))
        return self.deliver(step, len(self.pipe))

    def hand_on(self, chain: Chain) -> list[int]:
        """Hand on messages of drawn sizes, until something stands in the way."""
        wanted, receive, give = chain
        assert isinstance(wanted, Pass)
        assert isinstance(receive, Receive)
        assert isinstance(give, Give)
        before = self.sent
        while wanted.length is None or self.sent - before < wanted.length:
            passed = self.sent - before
            percent = self.draws.popleft() if self.draws else 100
            if percent < 10:
                break
            if self.taken == self.size:
                return [passed, -self.source_error]
            left = receive.length if wanted.length is None else wanted.length - passed
            most = portion(min(receive.length, left), percent)
            self.marks.discard(self.taken)
            ahead = [mark for mark in self.marks if mark > self.taken]
            message = range(self.taken, min(self.taken + most, self.size, *ahead))
            self.taken = message.stop
            self.memory.extend(message)
            given = self.give(len(message))
            if given != len(message) or len(message) >= EAGER:
                return [passed, len(message), given]
        return [self.sent - before]

    def give(self, length: int) -> int:
        """Send what lies in memory, in full, in part, or not at all, as drawn."""
        assert length == len(self.memory)
        self.steps += 1
        percent = self.draws.popleft() if self.draws else 100
        if self.target_error:
            return -self.target_error
        if percent < 20:
            return -errno.EAGAIN
        given = portion(length, percent)
        for place in range(self.sent, self.sent + given):
            self.arrived[place] = self.memory.popleft()
        self.sent += given
        return given

    def take_byte(self, step: TakeByte, percent: int) -> int:
        """Receive a byte, past the mark that nobody else passes."""
        assert self.ends.source == "socket"
        if self.taken == self.size:
            return -self.source_error
        if percent < 20 or len(self.pipe) == self.pipe_size:
            return -errno.EAGAIN
        if step.target is End.TARGET and self.target_error:
            return -self.target_error
        self.marks.discard(self.taken)
        self.pipe.append(self.taken)
        self.taken += 1
        if step.target is End.TARGET:
            self.arrived[self.sent] = self.pipe.popleft()
            self.sent += 1
        return 1

    def read(self, step: Splice, percent: int) -> int:
        """Splice into the pipe: at most what has room there."""
        room = self.pipe_size - len(self.pipe)
        if not room or (percent < 20 and step.source_offset is None):
            return -errno.EAGAIN
        got = self.take(step, portion(min(step.length, room), percent))
        self.pipe.extend(got)
        return len(got)

    def take(self, step: Splice, length: int) -> range:
        """Take bytes from the source: a file's from the offset that the step names.

        None of a socket's behind a mark.
        """
        if step.source_offset is not None:
            assert step.source_offset == BEFORE + self.taken
        ahead = [mark for mark in self.marks if mark >= self.taken]
        got = range(self.taken, min(self.taken + length, self.size, *ahead))
        self.taken = got.stop
        return got

    def write(self, step: Splice, percent: int) -> int:
        """Splice out of the pipe: at most what is there."""
        if not self.pipe:
            return -errno.EAGAIN
        if self.target_error:
            return -self.target_error
        if percent < 20 and step.target_offset is None:
            return -errno.EAGAIN
        return self.deliver(step, portion(min(step.length, len(self.pipe)), percent))

    def deliver(self, step: Splice, length: int) -> int:
        """Give bytes to the target: to a file at the offset that the step names."""
        start = self.sent if step.target_offset is None else step.target_offset - BEFORE
        for place in range(start, start + length):
            self.arrived[place] = self.pipe.popleft()
        self.sent += length
        return length

    def check_arrived(self, count: int) -> None:
        """Check that the first `count` bytes arrived, each once and at its place."""
        assert self.sent == count == len(self.arrived)
        assert all(place == byte for place, byte in self.arrived.items())


def portion(length: int, percent: int) -> int:
    """Return a part of `length`: all of it from 60 on, and 1 at the least."""
    return length if percent >= 60 or length < 2 else max(1, length * percent // 60)


def drive(transfer: Splicing, world: World, most_steps: int) -> None:
    """Run a transfer to its end as an engine does."""
    while not transfer.done:
        assert transfer.needs_pipe or not world.pipe
        pipe_size = world.pipe_size if transfer.needs_pipe else 0
        chain = transfer.next_chain(pipe_size, most_steps)
        assert 1 <= len(chain) <= most_steps
        if transfer.inline_cost:
            assert all(isinstance(step, Splice | TakeByte | Give) for step in chain)
        transfer.advance(chain, world.run(chain))
        assert transfer.in_pipe == len(world.pipe) + len(world.memory)
        assert not (world.pipe and world.memory)
        assert transfer.position == world.sent


machines = st.sampled_from(ENDS)
draws_of_steps = st.lists(st.integers(0, 100), max_size=300).map(deque)


@given(
    ends=machines,
    size=st.one_of(st.integers(0, 3 * PAGE), st.integers(0, 80 * PAGE)),
    count=st.one_of(st.none(), st.integers(1, 80 * PAGE)),
    pages=st.sampled_from((1, 2, 16)),
    most_steps=st.integers(8, 48),
    draws=draws_of_steps,
)
def test_any_order_of_short_failed_and_complete_steps_moves_each_byte_once_in_order(
    ends: Ends, size: int, count: int | None, pages: int, most_steps: int, draws: deque[int]
) -> None:
    world = World(ends, size, pages * PAGE, draws)
    transfer = ends.machine(count)
    drive(transfer, world, most_steps)
    assert transfer.error == 0
    world.check_arrived(size if count is None else min(size, count))
    assert world.taken == transfer.position, "no more leaves the source than was asked for"


@given(
    ends=machines.filter(lambda ends: ends.source == "socket"),
    size=st.integers(0, 40 * PAGE),
    marks=st.sets(st.integers(0, 40 * PAGE), max_size=4),
    draws=draws_of_steps,
)
def test_where_splice_stops_before_the_end_a_byte_by_recv_leads_on(
    ends: Ends, size: int, marks: set[int], draws: deque[int]
) -> None:
    """At the mark of TCP's urgent data it says 0, as at the end."""
    world = World(ends, size, 4 * PAGE, draws, marks=marks)
    transfer = ends.machine(None)
    drive(transfer, world, 48)
    assert transfer.error == 0
    world.check_arrived(size)


@given(
    ends=machines,
    size=st.integers(0, 40 * PAGE),
    most_steps=st.integers(8, 48),
    draws=draws_of_steps,
)
def test_a_source_that_fails_is_told_of_when_all_that_came_before_has_arrived(
    ends: Ends, size: int, most_steps: int, draws: deque[int]
) -> None:
    world = World(ends, size, 4 * PAGE, draws, source_error=errno.ECONNRESET)
    transfer = ends.machine(None)
    drive(transfer, world, most_steps)
    assert transfer.error == errno.ECONNRESET
    assert transfer.source_failed or ends.direct
    world.check_arrived(size)


@given(
    ends=machines,
    size=st.integers(1, 40 * PAGE),
    failing=st.integers(0, 30),
    most_steps=st.integers(8, 48),
    draws=draws_of_steps,
)
def test_a_target_that_fails_leaves_each_byte_arrived_told_of_as_lost_or_in_the_source(
    ends: Ends, size: int, failing: int, most_steps: int, draws: deque[int]
) -> None:
    class Failing(World):
        def step(self, step: Step) -> int:
            if self.steps >= failing:
                self.target_error = errno.ENOSPC
            return super().step(step)

    world = Failing(ends, size, 4 * PAGE, draws)
    transfer = ends.machine(None)
    drive(transfer, world, most_steps)
    world.check_arrived(transfer.position)
    if transfer.error:
        assert transfer.error == errno.ENOSPC
        assert not transfer.source_failed
        between = len(world.pipe) + len(world.memory)
        assert transfer.lost == (between if ends.source != "file" else 0)
    else:
        assert transfer.position == size
    assert transfer.position + transfer.in_pipe == world.taken


def between_sockets() -> Splicing:
    return Splicing(None, between_sockets=True)


def hand_on(transfer: Splicing, *results: int) -> None:
    """Have the messages end by that."""
    chain = transfer.next_chain(0, 48)
    assert [type(step) for step in chain] == [Pass, Receive, Give]
    assert not transfer.needs_pipe
    transfer.advance(chain, results)


def make_flow(transfer: Splicing) -> None:
    """Have it be fast."""
    hand_on(transfer, 0, EAGER, EAGER)
    assert transfer.state is State.FLOWING


def test_a_dry_source_is_waited_for_without_a_pipe() -> None:
    transfer = between_sockets()
    make_flow(transfer)
    transfer.advance(transfer.next_chain(MIB, 48), [-errno.EAGAIN] * 2)
    hand_on(transfer, 100)
    assert transfer.position == 100 + EAGER


def test_bytes_that_the_target_has_no_room_for_are_all_that_is_waited_with() -> None:
    transfer = between_sockets()
    make_flow(transfer)
    transfer.advance(transfer.next_chain(MIB, 48), [100 * KIB, 60 * KIB])
    assert transfer.needs_pipe
    assert transfer.next_chain(MIB, 48) == [PollOut()]
    transfer.advance([PollOut()], [0])
    rest = (Splice(End.PIPE, End.TARGET, 40 * KIB, may_be_short=True),)
    assert transfer.next_chain(MIB, 48) == rest


def test_what_is_left_of_a_message_goes_before_the_next_and_needs_no_pipe() -> None:
    transfer = between_sockets()
    hand_on(transfer, 5000, 1000, 600)
    for taken, left in ((-errno.EAGAIN, 400), (100, 300), (300, 0)):
        assert not transfer.needs_pipe
        assert transfer.next_chain(0, 48) == [PollOut()]
        transfer.advance([PollOut()], [0])
        assert transfer.inline_cost
        chain = transfer.next_chain(0, 48)
        assert chain == (Give(transfer.in_pipe),)
        transfer.advance(chain, [taken])
        assert transfer.lost == left
    hand_on(transfer, 0)
    assert transfer.position == 6000


def test_a_large_message_that_has_met_a_full_target_is_followed_by_a_round_through_a_pipe() -> None:
    transfer = between_sockets()
    hand_on(transfer, 0, EAGER, 1)
    transfer.advance([PollOut()], [0])
    transfer.advance(transfer.next_chain(0, 48), [EAGER - 1])
    assert transfer.state is State.INLINE
    transfer.advance(transfer.next_chain(MIB, 48), [EAGER - 1, EAGER - 1])
    hand_on(transfer, 0)


def test_a_fast_stream_goes_by_chains_until_half_of_its_reads_find_nothing() -> None:
    transfer = between_sockets()
    make_flow(transfer)
    found, nothing = [EAGER, EAGER], [-errno.EAGAIN] * 2
    for rounds in (1, 2, 4, 8):
        assert transfer.state is State.FLOWING
        chain = transfer.next_chain(MIB, 48)
        assert len(chain) == 2 * rounds
        transfer.advance(chain, found * rounds)
    transfer.advance(transfer.next_chain(MIB, 48), found * 8 + nothing * 7 + found)
    assert transfer.state is State.FLOWING
    chain = transfer.next_chain(MIB, 48)
    assert len(chain) == 2 * 9, "what was of no use is not planned again"
    transfer.advance(chain, nothing * 8 + found)
    hand_on(transfer, 0)


def test_a_slow_upload_keeps_no_pipe_while_it_is_waited_for() -> None:
    transfer = Splicing(None, target_offset=0)
    probe = transfer.next_chain(MIB, 48)
    assert probe == (Splice(End.PIPE, End.TARGET, 1, target_offset=0),)
    transfer.advance(probe, [-errno.EAGAIN])
    chain = transfer.next_chain(MIB, 48)
    assert chain[0] == PollIn()
    transfer.advance(chain, [-errno.ECANCELED])
    assert not transfer.needs_pipe
    transfer.advance(transfer.next_chain(0, 48), [0])
    assert transfer.next_chain(MIB, 48) == [
        Splice(End.SOURCE, End.PIPE, MIB, may_be_short=True),
        Splice(End.PIPE, End.TARGET, MIB, target_offset=0),
    ]


def test_a_file_that_answers_that_it_has_no_room_is_an_error_and_no_endless_loop() -> None:
    transfer = Splicing(None, source_offset=0, target_offset=0)
    transfer.advance(transfer.next_chain(MIB, 48), [-errno.EAGAIN])
    assert transfer.error == errno.EAGAIN


def test_polls_that_come_true_for_nothing_are_followed_by_a_pause() -> None:
    transfer = between_sockets()
    hand_on(transfer, 0, 1000, -errno.EAGAIN)
    for _ in range(2):
        transfer.advance(transfer.next_chain(0, 48), [0])
        transfer.advance(transfer.next_chain(0, 48), [-errno.EAGAIN])
    assert transfer.next_chain(0, 48) == (Pause(0),)
    transfer.advance([Pause(0)], [0])
    assert transfer.next_chain(0, 48) == [PollOut()]


def test_an_upload_whose_polls_come_true_for_nothing_takes_a_byte_and_then_pauses() -> None:
    transfer = Splicing(None, target_offset=0, socket=True)
    transfer.advance(transfer.next_chain(MIB, 48), [-errno.EAGAIN])
    for _ in range(2):
        transfer.advance(transfer.next_chain(MIB, 48), [0, -errno.EAGAIN])
        if transfer.state is not State.MARKED:
            transfer.advance(transfer.next_chain(MIB, 48), [0])
    assert transfer.next_chain(MIB, 48) == (TakeByte(End.PIPE),)
    transfer.advance([TakeByte(End.PIPE)], [-errno.EAGAIN])
    assert not transfer.needs_pipe
    assert transfer.next_chain(0, 48) == (Pause(0),)
    transfer.advance([Pause(0)], [0])
    assert transfer.next_chain(0, 48) == [PollIn()]


def test_what_waits_in_the_midst_of_a_write_is_written_to_in_small_steps_behind_polls() -> None:
    """Interrupted too it does not wait where there is nothing to wait for: for a file."""
    transfer = Splicing(3 * PACE, source_offset=0, paced=True)
    assert transfer.next_chain(MIB, 48) == [
        Splice(End.SOURCE, End.PIPE, PACE, 0),
        PollOut(),
        Splice(End.PIPE, End.TARGET, PACE),
    ]
    transfer.advance(transfer.next_chain(MIB, 48), [PACE, -errno.ECANCELED])
    assert transfer.next_chain(MIB, 48) == [PollOut()]
    transfer.advance([PollOut()], [0])
    first, write, *rest = transfer.next_chain(MIB, 48)
    assert (first, write) == (PollOut(), Splice(End.PIPE, End.TARGET, PACE))
    assert len(rest) == 3
    transfer.advance([first, write, *rest], [0, PACE, -errno.EINTR])
    while not transfer.done:
        chain = transfer.next_chain(MIB, 8)
        assert 0 < len(chain) <= 8
        transfer.advance(chain, [step.length if isinstance(step, Splice) else 0 for step in chain])
    assert (transfer.position, transfer.error) == (3 * PACE, 0)
