"""The ring alone, without a loop."""

import errno
import gc
import itertools
import os
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aiozc._kernel import abi, ring
from aiozc._kernel.abi import SqeFlag
from aiozc._kernel.ring import (
    Completion,
    Ring,
    prep_cancel_all,
    prep_cancel_fd,
    prep_nop,
    prep_poll,
    prep_splice,
)

pytestmark = pytest.mark.ring

SOFT = SqeFlag.IO_LINK
QUIET = SqeFlag.IO_LINK | SqeFlag.CQE_SKIP_SUCCESS
HARD = SqeFlag.IO_HARDLINK
NONBLOCK = abi.SpliceFlag.NONBLOCK


@pytest.fixture
def small() -> Iterator[Ring]:
    made = Ring(8, max_workers=2)
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    yield ends
    for end in ends:
        os.close(end)


def wait(used: Ring, number: int) -> list[tuple[int, int]]:
    """Wait until `number` CQEs have come, and return them."""
    readable = select.poll()
    readable.register(used.fd, select.POLLIN)
    found = used.drain()
    while len(found) < number:
        readable.poll()
        found += used.drain()
    return [(one.user_data, one.result) for one in found]


def mappings() -> int:
    return Path("/proc/self/maps").read_text(encoding="ascii").count("anon_inode:[io_uring]")


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def fill(sock: socket.socket) -> None:
    """Send until there is no room left."""
    while True:
        try:
            sock.send(bytes(65536))
        except BlockingIOError:
            return


def test_completions_come_back_with_their_user_data_in_order(small: Ring) -> None:
    small.submit([prep_nop(number) for number in range(1, 9)])
    assert [user_data for user_data, _ in wait(small, 8)] == list(range(1, 9))
    assert small.drain() == []


def test_the_queue_wraps_around_with_chains_of_any_length(small: Ring) -> None:
    sent, got = [], []
    for round_ in range(100):
        chain = [prep_nop(round_ * 8 + index) for index in range(1 + round_ % 8)]
        small.submit(chain)
        sent += [sqe[8] for sqe in chain]
        got += [user_data for user_data, _ in wait(small, len(chain))]
    assert got == sent


def test_a_chain_longer_than_the_ring_is_refused_whole(small: Ring) -> None:
    with pytest.raises(ValueError, match="9 SQEs exceeds the ring's 8"):
        small.submit([prep_nop(1)] * 9)
    small.submit([prep_nop(2)])
    assert wait(small, 1) == [(2, 0)]


def test_completions_that_overflow_the_queue_are_all_drained(small: Ring) -> None:
    for batch in range(20):
        small.submit([prep_nop(batch * 8 + index) for index in range(8)])
    assert small._cq_mask + 1 < 160
    assert [user_data for user_data, _ in wait(small, 160)] == list(range(160))


def test_a_soft_link_is_cut_by_a_short_splice(
    small: Ring, pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]
) -> None:
    """Fact 2: the rest completes with ECANCELED, and the bytes are where they went."""
    reading, writing = pipe
    os.write(writing, b"abc")
    splice = (reading, abi.NO_OFFSET, pair[0].fileno(), abi.NO_OFFSET, 10, NONBLOCK)
    small.submit([prep_splice(*splice, 1, SOFT), prep_nop(2)])
    assert sorted(wait(small, 2)) == [(1, 3), (2, -errno.ECANCELED)]
    assert pair[1].recv(10) == b"abc"


def test_a_hard_link_goes_on_behind_a_short_splice(
    small: Ring, pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    os.write(writing, b"abc")
    splice = (reading, abi.NO_OFFSET, pair[0].fileno(), abi.NO_OFFSET, 10, NONBLOCK)
    small.submit([prep_splice(*splice, 1, HARD), prep_nop(2)])
    assert sorted(wait(small, 2)) == [(1, 3), (2, 0)]


def test_a_quiet_chain_posts_one_completion(small: Ring) -> None:
    """Fact 3: the last one's, or the first that failed."""
    small.submit([prep_nop(1, QUIET), prep_nop(2, QUIET), prep_nop(3)])
    assert wait(small, 1) == [(3, 0)]
    bad = prep_poll(-1, select.POLLIN, 5, QUIET)
    small.submit([prep_nop(4, QUIET), bad, prep_nop(6)])
    assert wait(small, 1) == [(5, -errno.EBADF)]
    assert small.drain() == []


def test_what_waits_on_a_descriptor_is_cancelled_by_it(
    small: Ring, pair: tuple[socket.socket, socket.socket]
) -> None:
    fill(pair[0])
    fd = pair[0].fileno()
    small.submit([prep_poll(fd, select.POLLOUT, 1, QUIET), prep_nop(2)])
    small.submit([prep_poll(pair[1].fileno(), select.POLLPRI, 3)])
    small.submit([prep_cancel_fd(fd, 9)])
    assert sorted(wait(small, 2)) == [(1, -errno.ECANCELED), (9, 1)]
    small.submit([prep_cancel_all(10)])
    assert sorted(wait(small, 2)) == [(3, -errno.ECANCELED), (10, 1)]


def test_the_ring_polls_readable_while_completions_wait(small: Ring) -> None:
    """Fact 10."""
    readable = select.epoll()
    readable.register(small.fd, select.EPOLLIN)
    assert readable.poll(0) == []
    small.submit([prep_nop(1)])
    assert readable.poll(0) == [(small.fd, select.EPOLLIN)]
    small.drain()
    assert readable.poll(0) == []
    readable.close()


def test_closing_leaves_no_descriptor_and_no_mapping() -> None:
    gc.collect()
    before = descriptors(), mappings()
    for _ in range(50):
        used = Ring(64)
        used.submit([prep_nop(1)])
        used.close()
        used.close()
        assert used.closed
        assert used.drain() == []
    assert (descriptors(), mappings()) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_is_raised_while_it_is_made_leaves_no_descriptor_and_no_mapping(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    before = descriptors(), mappings()
    for place in ("_layout_fits", "lacking"):

        def fail(*_: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(ring, place, fail)
            with pytest.raises(error):
                Ring(8)
        assert (descriptors(), mappings()) == before


def test_a_closed_ring_takes_nothing() -> None:
    used = Ring(8)
    used.close()
    with pytest.raises(ValueError, match="the ring is closed"):
        used.submit([prep_nop(1)])


def test_a_chain_of_which_the_kernel_takes_nothing_is_never_submitted_later(
    small: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(small, "_enter", lambda: -errno.EBUSY)
        with pytest.raises(OSError, match="submitting to the ring") as caught:
            small.submit([prep_nop(1), prep_nop(2)])
        assert caught.value.errno == errno.EBUSY
    small.submit([prep_nop(3)])
    assert wait(small, 1) == [(3, 0)]
    assert small.drain() == []


def test_a_chain_cut_by_the_kernel_breaks_the_ring(
    small: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first half is submitted for real, as an allocation failure would leave it."""

    def enter_with_one() -> int:
        small._uring.sq.sqe_tail -= 1
        return int(small._lib.submit(small._by_reference))

    monkeypatch.setattr(small, "_enter", enter_with_one)
    with pytest.raises(ring.BrokenRingError, match="took 1 of a chain's 2 SQEs"):
        small.submit([prep_nop(1, SOFT), prep_nop(2)])


def test_a_forked_child_gives_up_its_copies_and_leaves_the_parents_ring_alone(
    small: Ring,
) -> None:
    small.submit([prep_nop(7)])
    number = small.fd
    child = os.fork()
    if child == 0:
        fault = 0
        fault |= not small.closed
        fault |= (mappings() != 0) << 1
        fault |= os.path.exists(f"/proc/self/fd/{number}") << 2
        fault |= (small.drain() != []) << 3
        os._exit(fault)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert small.drain() == [Completion(7, 0)]
    small.submit([prep_nop(8)])
    assert wait(small, 1) == [(8, 0)]


def test_the_rings_workers_are_bounded() -> None:
    """Fact 15: sixteen splices that wait make no more threads than were allowed.

    In a thread of its own: workers are a thread's, and idle ones of another ring would do.
    """
    with ThreadPoolExecutor(1) as pool:
        pool.submit(wait_by_sixteen_splices).result()


def wait_by_sixteen_splices() -> None:
    used = Ring(64, max_workers=2)
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(32)]
    before = set(os.listdir("/proc/self/task"))
    for index in range(16):
        source, target = pipes[2 * index][0], pipes[2 * index + 1][1]
        used.submit([prep_splice(source, abi.NO_OFFSET, target, abi.NO_OFFSET, 1, 0, index)])
    assert 1 <= len(set(os.listdir("/proc/self/task")) - before) <= 2
    used.submit([prep_cancel_all(99)])
    assert len(wait(used, 17)) == 17
    used.close()
    for end in itertools.chain.from_iterable(pipes):
        os.close(end)
