"""A seccomp filter that ends the process for calls that it does not know: none of these is made."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import aiozc
from aiozc._engines.opening import open_beneath, open_regular
from aiozc._kernel import permitted
from aiozc._kernel.pagecache import Probe
from aiozc._kernel.permitted import New, look, may_call
from aiozc._kernel.status import known
from tests.kit.children import Child
from tests.kit.faults.seccomp import (
    CACHESTAT,
    ENTER,
    OPENAT2,
    REGISTER,
    SETUP,
    STATX,
    call_io_uring,
    end_process_for,
    refuse_calls,
    refuse_io_uring,
)
from tests.kit.in_children import TRANSFERS, file_for_anybody
from tests.kit.loops import LOOPS, LoopFactory, run_on

RING = (SETUP, ENTER, REGISTER)
ALL = (*RING, OPENAT2, CACHESTAT, STATX)
BUT_UVLOOPS = ALL[2:]
"""uvloop makes a ring of its own with each loop, and dies of a filter that ends it for that."""
FILTERED = """
import os, sys
from tests.kit.faults.seccomp import end_process_for
end_process_for(*map(int, sys.argv[2:]))
os.execv(sys.executable, [sys.executable, "-m", "aiozc", sys.argv[1]])
"""


def test_the_filter_ends_a_process() -> None:
    pid = os.fork()
    if pid == 0:
        end_process_for(*ALL)
        call_io_uring(2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGSYS


@pytest.mark.parametrize(
    ("calls", "left"),
    [
        (ALL, set()),
        (RING[:1], {New.STATX, New.OPENAT2, New.CACHESTAT}),
        (RING[2:], {New.STATX, New.OPENAT2, New.CACHESTAT}),
        ((CACHESTAT,), {New.STATX, New.OPENAT2, New.IO_URING}),
        ((OPENAT2, STATX), {New.CACHESTAT, New.IO_URING}),
    ],
)
def test_what_may_be_called_is_found_out(calls: Sequence[int], left: set[New]) -> None:
    """Also where the filter comes when it was found out before."""
    assert look() == set(New)

    def child() -> None:
        end_process_for(*calls)
        assert look() == left
        assert {call for call in New if may_call(call)} == left

    Child(child).wait()


def test_what_is_refused_may_be_called() -> None:
    """As a container's profile does: where it allows io_uring that is used."""

    def child() -> None:
        refuse_io_uring()
        refuse_calls(OPENAT2, OPENAT2)
        assert look() == set(New)

    Child(child).wait()


def test_it_is_asked_once_for_a_process_and_its_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = permitted._ask

    def ask() -> frozenset[New]:
        asked.append(1)
        return real()

    monkeypatch.setattr(permitted, "_ask", ask)

    def child() -> None:
        end_process_for(CACHESTAT)
        for _ in range(3):
            look()
        assert len(asked) == 1
        end_process_for(OPENAT2)
        look()
        assert look() == {New.STATX, New.IO_URING}
        assert len(asked) == 2

    look()
    assert not asked
    Child(child).wait()


def test_where_it_cannot_be_asked_none_is_made_and_it_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> int:
        raise BlockingIOError

    def child() -> None:
        end_process_for(CACHESTAT)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fork", refuse)
            assert look() == set()
        assert look() == {New.STATX, New.OPENAT2, New.IO_URING}

    Child(child).wait()


@pytest.mark.parametrize("ring", [True, False], ids=["all", "but the ring"])
@pytest.mark.parametrize("way", TRANSFERS)
def test_every_transfer_lives(
    way: Any, ring: bool, loop_factory: LoopFactory, tmp_path: Path
) -> None:
    path = file_for_anybody(tmp_path)

    async def main() -> None:
        await way(path)
        fd, size = await open_regular(str(path))
        os.close(fd)
        assert size == path.stat().st_size
        opened = await open_beneath(str(path.parent), path.name, follow=False)
        assert opened.status.st_size == size
        opened.close()

    calls = ALL if loop_factory is LOOPS["asyncio"] else BUT_UVLOOPS

    def child() -> None:
        end_process_for(*(calls if ring else (CACHESTAT, OPENAT2, STATX)))
        run_on(loop_factory, main())

    Child(child).wait()


def test_a_ring_that_is_asked_for_is_refused_in_a_sentence(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with pytest.raises(aiozc.RingUnavailableError, match="ends a process that calls it"):
            aiozc.Reactor(backend="io_uring")

    def child() -> None:
        end_process_for(REGISTER)
        run_on(loop_factory, main())

    Child(child).wait()


def test_a_file_that_is_known_is_known_as_without_the_call(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        before = known(file.fileno())

        def child() -> None:
            end_process_for(*ALL)
            look()
            assert known(file.fileno()) == before

        Child(child).wait()


@pytest.mark.parametrize("variables", [{}, {"AIOZC_BACKEND": "readiness"}])
def test_info_tells_of_it(variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILTERED, "info", *map(str, ALL)],
        cwd=Path(__file__).parents[2],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    text = " ".join(done.stdout.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert "engine readiness" in text
    assert "io_uring is refused by a seccomp filter, which ends a process that calls it" in text
    assert "cachestat no" in text


def test_cachestat_is_not_called_where_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    monkeypatch.setenv("AIOZC_CACHESTAT", "0")

    def child() -> None:
        with path.open("rb") as file:
            probe = Probe()
            end_process_for(CACHESTAT)  # and nobody looks
            assert probe.is_cached(file.fileno(), 0, 7) is None
            assert not aiozc.probe().cachestat
            assert "unset AIOZC_CACHESTAT" in [one.remedy for one in aiozc.probe().advice]

    Child(child).wait()
