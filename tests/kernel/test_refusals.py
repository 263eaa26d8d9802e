"""Who refuses a ring, and what would lift it."""

import errno
import os
from pathlib import Path

import pytest

from aiozc._errors import RingUnavailableError
from aiozc._kernel import liburing
from aiozc._kernel.abi import Feature, Op
from aiozc._kernel.refusals import (
    NEEDED_FEATURES,
    NEEDED_OPCODES,
    Places,
    allowing,
    culprits,
    lacking,
    refusal,
)
from aiozc._kernel.ring import Ring
from tests.kit.children import Child
from tests.kit.faults.seccomp import ENTER, REGISTER, SETUP, refuse_calls
from tests.kit.leaks import holdings

FIRST_NAMESPACE = "         0          0 4294967295\n"
ANOTHER_NAMESPACE = "         0       1000          1\n"
ALL_CAPABILITIES = "000001ffffffffff"
ALL_BUT_SYS_ADMIN = "000001ffffdfffff"
STRANGER = max(os.getegid(), *os.getgroups(), 0) + 1
FILTERED, REACHED = errno.EPERM, errno.EBADF


class Machine:
    """Files as the kernel has them, with what a test says in them."""

    def __init__(self, folder: Path) -> None:
        self.places = Places(folder / "kernel", folder / "self")
        self.places.sysctls.mkdir()
        self.places.process.mkdir()

    def sysctls(self, disabled: int, group: int = -1) -> None:
        (self.places.sysctls / "io_uring_disabled").write_text(f"{disabled}\n")
        (self.places.sysctls / "io_uring_group").write_text(f"{group}\n")

    def process(
        self,
        *,
        seccomp: int = 0,
        capabilities: str = "0000000000000000",
        users: str = FIRST_NAMESPACE,
    ) -> None:
        lines = "Name:\tserver", f"CapEff:\t{capabilities}", f"Seccomp:\t{seccomp}", ""
        (self.places.process / "status").write_text("\n".join(lines))
        (self.places.process / "uid_map").write_text(users)

    def who(self, number: int = errno.EPERM, entering: int = REACHED) -> list[str]:
        return [culprit.who for culprit in culprits(number, entering, self.places)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.process()
    return made


def test_the_sysctl_refuses_all_by_2(machine: Machine) -> None:
    machine.sysctls(2)
    machine.process(capabilities=ALL_CAPABILITIES)
    [culprit] = culprits(errno.EPERM, REACHED, machine.places)
    assert culprit.who == "the sysctl kernel.io_uring_disabled = 2"
    assert culprit.lines == ("sysctl -w kernel.io_uring_disabled=0",)


@pytest.mark.parametrize(
    ("group", "capabilities", "users", "refuses"),
    [
        (-1, "0", FIRST_NAMESPACE, True),
        (STRANGER, "0", FIRST_NAMESPACE, True),
        (os.getegid(), "0", FIRST_NAMESPACE, False),
        (-1, ALL_BUT_SYS_ADMIN, FIRST_NAMESPACE, True),
        (-1, ALL_CAPABILITIES, FIRST_NAMESPACE, False),
        (-1, ALL_CAPABILITIES, ANOTHER_NAMESPACE, True),
    ],
)
def test_the_sysctl_refuses_by_1_who_is_neither_privileged_nor_of_the_group(
    group: int, capabilities: str, users: str, refuses: bool, machine: Machine
) -> None:
    machine.sysctls(1, group)
    machine.process(capabilities=capabilities, users=users)
    named = "the sysctl kernel.io_uring_disabled = 1" in machine.who()
    assert named is refuses
    if refuses:
        [culprit] = culprits(errno.EPERM, REACHED, machine.places)
        assert f"kernel.io_uring_group = {group}" in culprit.sign
        assert f"sysctl -w kernel.io_uring_group={os.getegid()}  # or this" in culprit.lines


def test_a_filter_is_told_from_a_module_by_what_reaches_io_uring(machine: Machine) -> None:
    machine.sysctls(0)
    assert machine.who() == ["a security module"]
    assert machine.who(errno.EACCES) == ["a security module"]
    machine.process(seccomp=2)
    assert machine.who(entering=FILTERED) == ["a seccomp filter"]
    assert machine.who() == ["a seccomp filter or a security module"]


def test_a_sysctl_and_a_filter_are_both_named(machine: Machine) -> None:
    machine.sysctls(2)
    machine.process(seccomp=2)
    expected = ["the sysctl kernel.io_uring_disabled = 2", "a seccomp filter"]
    assert machine.who(entering=FILTERED) == expected
    assert machine.who(errno.ENOSYS, entering=errno.ENOSYS) == expected


def test_no_such_call_is_a_filters_word_where_the_kernel_has_it(machine: Machine) -> None:
    machine.process(seccomp=2)
    doubtful = ["a seccomp filter, or missing in this kernel"]
    assert machine.who(errno.ENOSYS, entering=errno.ENOSYS) == doubtful
    assert machine.who(errno.ENOSYS, entering=REACHED) == ["a seccomp filter"]
    machine.sysctls(0)
    assert machine.who(errno.ENOSYS, entering=errno.ENOSYS) == ["a seccomp filter"]


def test_nobody_refuses_where_the_kernel_has_none_or_is_too_old(machine: Machine) -> None:
    assert machine.who(errno.ENOSYS, entering=errno.ENOSYS) == []
    assert machine.who(errno.EINVAL) == []
    assert machine.who(errno.ENOMEM) == []


def test_a_machine_without_procfs_names_whom_it_can(tmp_path: Path) -> None:
    nowhere = Places(tmp_path / "none", tmp_path / "none")
    assert [culprit.who for culprit in culprits(errno.EPERM, REACHED, nowhere)] == [
        "a security module"
    ]


@pytest.mark.ring
@pytest.mark.parametrize(
    ("number", "cause", "remedy"),
    [
        (errno.EINVAL, r"older than Linux 5\.19 \(EINVAL\)", "Linux 5.19 or newer"),
        (errno.ENOMEM, r"no memory that may be locked .* \(ENOMEM\)", "ulimit -l"),
        (errno.EPERM, r"io_uring is refused by .* \(EPERM", "allow io_uring"),
    ],
)
def test_a_refusal_says_the_cause_and_what_lifts_it(number: int, cause: str, remedy: str) -> None:
    error = refusal(number)
    assert isinstance(error, RingUnavailableError)
    with pytest.raises(RingUnavailableError, match=cause):
        raise error
    assert remedy in error.remedy
    assert "\n" not in f"{error}{error.remedy}"
    assert error.__notes__ == [f"What would lift it: {error.remedy}"]


@pytest.mark.ring
def test_another_error_number_is_no_refusal() -> None:
    error = refusal(errno.EMFILE, "setting up")
    assert isinstance(error, OSError)
    assert error.errno == errno.EMFILE


def test_a_ring_that_lacks_something_needed_is_refused_by_name() -> None:
    assert lacking(NEEDED_FEATURES | 1, NEEDED_OPCODES | {Op.SEND_ZC}) is None
    error = lacking(Feature.NODROP, NEEDED_OPCODES - {Op.SPLICE, Op.TIMEOUT})
    assert str(error) == "this kernel's io_uring lacks CQE_SKIP, SPLICE, TIMEOUT"


def test_the_rule_for_a_profile_allows_what_it_names() -> None:
    assert "".join(allowing("cachestat", "splice")).replace(" ", "") == (
        '{"names":["cachestat","splice"],"action":"SCMP_ACT_ALLOW"}'
    )


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EACCES])
@pytest.mark.parametrize(
    "calls",
    [(SETUP, REGISTER), (SETUP, SETUP), (ENTER, ENTER), (REGISTER, REGISTER)],
    ids=["all", "setup", "enter", "register"],
)
def test_a_ring_under_a_filter_is_refused_by_name_and_leaves_nothing(
    calls: tuple[int, int], number: int
) -> None:
    liburing.load()

    def child() -> None:
        refuse_calls(*calls, number)
        before = holdings()
        with pytest.raises(RingUnavailableError, match="refused by a seccomp filter") as caught:
            Ring(8)
        assert "Seccomp: 2 in /proc/self/status" in str(caught.value)
        assert "io_uring_setup, io_uring_enter and io_uring_register" in caught.value.remedy
        assert caught.value.lines == allowing(
            "io_uring_setup", "io_uring_enter", "io_uring_register"
        )
        assert holdings().since(before) == before.since(before)

    Child(child).wait()
