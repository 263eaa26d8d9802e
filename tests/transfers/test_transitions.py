"""The tables of what may follow each state: whole, and checked."""

import pytest

from aiozc._resources import lifecycle
from aiozc._resources.lifecycle import Phase
from aiozc._transfers import sendfile, splice, zerocopy
from aiozc._transfers.machine import Transitions

TABLES = {"sendfile": sendfile, "splice": splice, "zerocopy": zerocopy}


@pytest.mark.parametrize("module", TABLES.values(), ids=TABLES)
def test_each_state_is_in_the_table_and_leads_to_the_end(module: object) -> None:
    table: Transitions[sendfile.State] = module.NEXT  # type: ignore[attr-defined]
    states = set(module.State)  # type: ignore[attr-defined]
    done = module.State.DONE  # type: ignore[attr-defined]
    assert table.keys() | {done} == states
    ending = {done}
    while more := {state for state in table if ending & table[state].keys()} - ending:
        ending |= more
    assert ending == states


def test_a_record_is_closed_only_when_no_chain_is_in_flight() -> None:
    table = lifecycle.NEXT
    before_the_end = {phase for phase in table if Phase.CLOSED in table[phase]}
    assert before_the_end == {Phase.IDLE, Phase.ABANDONED}
    assert set(Phase) == table.keys() | {Phase.LOST, Phase.CLOSED}
    with pytest.raises(AssertionError, match="CLOSED behind"):
        table.check(Phase.STOPPING, Phase.CLOSED)


def test_a_state_that_may_not_follow_is_a_failure() -> None:
    before, after = sendfile.State.PAUSING, sendfile.State.FLOWING
    sendfile.NEXT.check(before, before)
    with pytest.raises(AssertionError, match=r"FLOWING behind State\.PAUSING"):
        sendfile.NEXT.check(before, after)
