"""What this kernel and this liburing can do, told as it is."""

import errno
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiozc
from aiozc._capabilities import version_of
from aiozc._errors import RingUnavailableError
from aiozc._kernel import abi, liburing
from aiozc._kernel.refusals import HERE
from aiozc._kernel.ring import Ring
from tests.kit.children import Child
from tests.kit.faults.seccomp import ENTER, SETUP, refuse_calls, refuse_io_uring
from tests.kit.leaks import holdings

CACHESTAT = abi.CACHESTAT_NUMBER


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let each test choose the library and the engine, and leave nothing of it behind."""
    liburing.load.cache_clear()
    monkeypatch.delenv("AIOZC_BACKEND", raising=False)
    yield
    liburing.load.cache_clear()


def in_a_child(function: object) -> None:
    """Run it in a fork, for what cannot be taken back."""
    aiozc.probe()  # imports and loads all there is
    assert callable(function)
    Child(function).wait()


def test_what_is_here_is_told_as_it_is() -> None:
    facts = aiozc.probe()
    library = liburing.load()
    assert (facts.liburing, facts.liburing_version) == (library.path, library.version)
    assert facts.kernel == os.uname().release
    assert facts.kernel.startswith(".".join(map(str, facts.kernel_version)))
    assert facts.pipe_max_size == int(Path("/proc/sys/fs/pipe-max-size").read_text())
    assert facts.page_size == resource.getpagesize()
    assert facts.memlock == resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    assert facts.seccomp == HERE.seccomp()


@pytest.mark.ring
def test_where_a_ring_can_be_had_it_is_chosen_and_nothing_is_refused() -> None:
    Ring(8).close()
    facts = aiozc.probe()
    assert (facts.backend, facts.io_uring, facts.refused) == ("io_uring", True, "")
    assert facts.liburing_fault == ""
    needed = {part.name for part in facts.opcodes + facts.features if part.needed}
    assert needed == {
        "NOP", "POLL_ADD", "TIMEOUT", "ASYNC_CANCEL", "SPLICE", "NODROP", "CQE_SKIP",
    }  # fmt: skip
    assert all(part.present for part in facts.opcodes + facts.features if part.needed)
    others = {part.name for part in facts.opcodes if not part.needed}
    assert others == {"READ_FIXED", "MADVISE", "SEND", "SEND_ZC"}


def test_asking_often_leaves_nothing() -> None:
    aiozc.probe()
    before = holdings()
    for _ in range(20):
        aiozc.probe()
    assert holdings().since(before) == before.since(before)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_under_a_filter_it_is_named_with_the_lines_that_lift_it(number: int) -> None:
    def child() -> None:
        refuse_io_uring(number)
        before = holdings()
        facts = aiozc.probe()
        assert holdings().since(before) == before.since(before)
        assert (facts.backend, facts.io_uring, facts.seccomp) == ("readiness", False, 2)
        assert facts.reason == facts.refused
        assert facts.refused.startswith("io_uring is refused by a seccomp filter (")
        assert {part.present for part in facts.opcodes + facts.features} == {None}
        assert facts.liburing
        assert facts.liburing_fault == ""
        assert facts.advice[0].missing == facts.refused
        assert '"io_uring_setup", "io_uring_enter", "io_uring_register"' in facts.advice[0].lines[1]

    in_a_child(child)


def test_what_a_loop_is_refused_for_is_what_is_told() -> None:
    def child() -> None:
        refuse_io_uring()
        facts = aiozc.probe()
        with pytest.raises(RingUnavailableError) as caught:
            Ring()
        assert facts.refused == str(caught.value)
        assert facts.advice[0].remedy == caught.value.remedy

    in_a_child(child)


@pytest.mark.parametrize("call", [SETUP, ENTER])
def test_a_kernel_that_refuses_and_a_library_that_is_missing_answer_each_for_itself(
    call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def child() -> None:
        monkeypatch.setenv("AIOZC_LIBURING", "/nowhere/liburing.so")
        liburing.load.cache_clear()
        refuse_calls(call, call)
        facts = aiozc.probe()
        assert facts.refused.startswith("io_uring is refused by a seccomp filter")
        assert facts.liburing_fault.startswith("no usable liburing: /nowhere/liburing.so")
        assert [advice.missing for advice in facts.advice[:2]] == [
            facts.refused,
            facts.liburing_fault,
        ]

    in_a_child(child)


@pytest.mark.ring
def test_without_a_library_the_kernel_is_asked_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIOZC_LIBURING", "/nowhere/liburing.so")
    facts = aiozc.probe()
    assert (facts.backend, facts.io_uring, facts.liburing) == ("readiness", True, "")
    assert facts.reason == facts.liburing_fault
    assert all(part.present for part in facts.opcodes + facts.features if part.needed)
    assert facts.advice[0].lines == ("unset AIOZC_LIBURING",)


@pytest.mark.ring
def test_a_library_of_another_layout_is_at_fault_and_not_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiozc._kernel.ring._layout_fits", lambda *_: False)
    facts = aiozc.probe()
    assert (facts.backend, facts.io_uring, facts.refused) == ("readiness", True, "")
    assert "has another layout" in facts.liburing_fault


@pytest.mark.ring
@pytest.mark.parametrize("limit", [0, 64 << 10])
def test_a_user_who_may_lock_no_memory_is_told_so(limit: int) -> None:
    """Kernels differ in what of a ring they count, and count it for all of the user's rings."""

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        facts = aiozc.probe()
        assert facts.memlock == limit
        [advice] = [advice for advice in facts.advice if "lock" in advice.missing]
        assert advice.lines == ("ulimit -l 8192",)
        enough = f"all rings of a user may lock {limit} bytes (RLIMIT_MEMLOCK)"
        assert advice.missing.startswith(enough if facts.io_uring else facts.refused)

    in_a_child(child)


@pytest.mark.ring
def test_a_filter_of_cachestat_is_told_from_an_old_kernel() -> None:
    def child() -> None:
        assert aiozc.probe().cachestat
        refuse_calls(CACHESTAT, CACHESTAT)
        facts = aiozc.probe()
        assert not facts.cachestat
        assert '  "names": ["cachestat"],' in facts.advice[0].lines
        assert facts.backend == "io_uring"

    in_a_child(child)


@pytest.mark.ring
@pytest.mark.parametrize(
    ("wanted", "chosen", "reason"),
    [
        ("", "io_uring", "the kernel and liburing do all that is needed"),
        ("io_uring", "io_uring", "AIOZC_BACKEND asks for it"),
        ("readiness", "readiness", "AIOZC_BACKEND asks for it"),
        ("epoll", "", "AIOZC_BACKEND is 'epoll': it can be io_uring or readiness"),
    ],
)
def test_the_variable_chooses_the_engine(
    wanted: str, chosen: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOZC_BACKEND", wanted)
    facts = aiozc.probe()
    assert (facts.backend, facts.reason) == (chosen, reason)
    assert [advice.lines for advice in facts.advice if advice.missing == reason] == (
        [] if chosen else [("unset AIOZC_BACKEND",)]
    )


@pytest.mark.ring
def test_a_ring_asked_for_that_cannot_be_had_is_no_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIOZC_BACKEND", "io_uring")
    monkeypatch.setenv("AIOZC_LIBURING", "/nowhere/liburing.so")
    facts = aiozc.probe()
    assert facts.backend == ""
    assert facts.reason == f"AIOZC_BACKEND asks for io_uring, but {facts.liburing_fault}"


@pytest.mark.ring
def test_want_of_descriptors_is_an_error_and_no_refusal() -> None:
    def child() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        with pytest.raises(OSError, match="Too many open files") as caught:
            aiozc.probe()
        assert caught.value.errno == errno.EMFILE

    in_a_child(child)


def test_a_release_is_read_as_far_as_it_is_numbers() -> None:
    read = {release: version_of(release) for release in ("6.18.44-fc", "5.15.0+", "10")}
    assert read == {"6.18.44-fc": (6, 18, 44), "5.15.0+": (5, 15), "10": (10,)}


def test_the_sentences_are_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOZC_LIBURING", "/nowhere/liburing.so")
    facts = aiozc.probe()
    for sentence in (facts.reason, facts.liburing_fault, facts.advice[0].remedy):
        assert re.fullmatch(r".+", sentence)
