"""No machine tries the same for ever: it ends, or lets time pass, after so many tries."""

import errno
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiozc._transfers.machine import MOST_TRIES
from aiozc._transfers.route import CHAINS_PAY
from aiozc._transfers.sendfile import Sendfile
from aiozc._transfers.splice import Splicing
from aiozc._transfers.steps import (
    AwaitRoom,
    End,
    Offer,
    Pass,
    Pause,
    PollIn,
    PollOut,
    Receive,
    SendZeroCopy,
    Splice,
)
from aiozc._transfers.zerocopy import Piece, ZeroCopy

MIB = 1 << 20
PIPE = 1 << 16
IN_A_ROW = 20
"""Chains between two pauses: more is a machine that spins."""
CUT_SHORT = (-errno.EINTR, -errno.ECANCELED)

Machine = Sendfile | Splicing | ZeroCopy


def makes_of_splicing() -> dict[str, Splicing]:
    """Return a splicing for each two kinds of ends."""
    made = {}
    for source in ("file", "socket", "pipe"):
        for target in ("file", "socket", "pipe"):
            made[f"{source} to {target}"] = Splicing(
                None,
                socket=source == "socket",
                source_offset=4096 if source == "file" else None,
                target_offset=4096 if target == "file" else None,
                direct="pipe" in (source, target),
                between_sockets=source == target == "socket",
            )
    return made


def machines() -> dict[str, Machine]:
    """Return one of each make, with nothing moved yet."""
    return {
        "small file": Sendfile(0, CHAINS_PAY),
        "large file": Sendfile(17, 64 * MIB),
        **makes_of_splicing(),
        "zero copy": ZeroCopy([Piece(0, 0, 64 * MIB)]),
        "copies": ZeroCopy([Piece(0, 0, 64 * MIB)], must_copy=True),
        "zero copy alone": ZeroCopy([Piece(0, 0, 64 * MIB)], may_copy=False),
    }


def next_chain(machine: Machine) -> Sequence[object]:
    """Return the machine's next chain."""
    if isinstance(machine, ZeroCopy):
        return machine.next_chain(24)
    return machine.next_chain(PIPE, 8)


def advance(machine: Machine, chain: Sequence[object], results: list[int]) -> None:
    """Tell the machine what became of a chain."""
    machine.advance(chain, results)  # type: ignore[arg-type]


def goes_on(step: object) -> bool:
    """Return whether the chain goes on behind this step, though it has failed."""
    return isinstance(step, SendZeroCopy) or (isinstance(step, Splice) and step.may_be_short)


def with_bytes_in_hand(machine: Machine) -> None:
    """Have something in the pipe, where there is one."""
    for _ in range(3):
        chain = next_chain(machine)
        if isinstance(chain[0], AwaitRoom | Offer | SendZeroCopy):
            return
        results = []
        for step in chain:
            spliced = isinstance(step, Splice) and step.source is End.SOURCE
            if isinstance(step, Receive | Splice) and (spliced or isinstance(step, Receive)):
                results.append(step.length)
            else:
                results.append(0 if isinstance(step, PollIn | Pass) else -errno.EAGAIN)
            if results[-1] < 0 and not goes_on(step):
                break
        advance(machine, chain, results)


def answer(draw: st.DataObject, step: object) -> int:
    """Draw one of the answers by which nothing moves."""
    answers: tuple[int, ...] = (*CUT_SHORT, -errno.EAGAIN)
    if isinstance(step, AwaitRoom):
        answers = (0, 1)
    elif isinstance(step, PollIn | PollOut | Pause):
        answers = (0, *CUT_SHORT)
    elif isinstance(step, Pass):
        answers = (0,)
    elif isinstance(step, Receive):
        answers = CUT_SHORT
    elif isinstance(step, Offer):
        answers = (*answers, -errno.ENODATA)
    elif isinstance(step, Splice) and step.source is End.PIPE:
        answers = (*answers, 0)
    return draw.draw(st.sampled_from(answers))


@given(st.sampled_from(list(machines())), st.booleans(), st.data())
def test_whatever_comes_to_nothing_the_machine_ends_or_pauses_within_a_bound(
    name: str, in_hand: bool, data: st.DataObject
) -> None:
    machine = machines()[name]
    if in_hand:
        with_bytes_in_hand(machine)
    in_a_row = 0
    for _ in range(60):
        if machine.done:
            return
        chain = next_chain(machine)
        results: list[int] = []
        for step in chain:
            if isinstance(step, Offer):
                results.append(0)
            results.append(answer(data, step))
            alone = isinstance(step, Pass) and data.draw(st.booleans())
            if alone or (results[-1] < 0 and not goes_on(step)):
                break
        advance(machine, chain, results)
        in_a_row = 0 if isinstance(chain[0], Pause) else in_a_row + 1
        assert in_a_row <= IN_A_ROW


def test_a_send_that_a_signal_cuts_short_each_time_ends_by_that() -> None:
    machine = machines()["small file"]
    for _ in range(4 * MOST_TRIES):
        if machine.done:
            break
        chain = next_chain(machine)
        advance(machine, chain, [0, -errno.EINTR] if isinstance(chain[0], Offer) else [0])
    assert machine.error == errno.EINTR


@pytest.mark.parametrize("name", [name for name in machines() if name != "small file"])
@pytest.mark.parametrize("first", CUT_SHORT)
def test_what_is_cut_short_each_time_ends_by_the_error_that_began_it(name: str, first: int) -> None:
    """As each chain ends where no worker can be had; what can be waited for is ready each time."""
    machine = machines()[name]
    (other,) = set(CUT_SHORT) - {first}
    errors = [first] + [other] * MOST_TRIES
    for _ in range(5 * MOST_TRIES):
        if machine.done:
            break
        chain = next_chain(machine)
        results: list[int] = []
        if isinstance(chain[0], Offer):
            advance(machine, chain, [0, -errno.ENODATA])  # by a worker again
            continue
        for step in chain:
            waits = isinstance(step, PollIn | PollOut | Pause | Pass)
            results.append(0 if waits else errors[0])
            if results[-1] < 0 and not goes_on(step):
                break
        if results[-1] < 0:
            errors.pop(0)
        advance(machine, chain, results)
    assert machine.error == -first
    assert len(errors) == 1
    assert machine.position == 0
