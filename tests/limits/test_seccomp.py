"""The filter that refuses io_uring is one that the library meets as such."""

import errno

import pytest

from aiozc._errors import RingUnavailableError
from aiozc._kernel.ring import Ring
from tests.kit.children import Child
from tests.kit.faults.seccomp import call_io_uring, refuse_io_uring


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_child_in_which_io_uring_is_refused_gets_no_ring(number: int) -> None:
    """Its parent's calls are answered as before."""
    before = [call_io_uring(which) for which in range(3)]

    def child() -> None:
        refuse_io_uring(number)
        assert [call_io_uring(which) for which in range(3)] == [number] * 3
        with pytest.raises(RingUnavailableError, match=errno.errorcode[number]):
            Ring(8)

    Child(child).wait()
    assert [call_io_uring(which) for which in range(3)] == before
