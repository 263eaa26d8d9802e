"""What this kernel and this liburing can do, and why not.

A ring is made as a loop would make one, but as small as can be, and closed again. Where none
can be had the kernel is asked without liburing, so that each of the two answers for itself.

A ring counts as locked memory of its user (RLIMIT_MEMLOCK; 16 KiB with 8 entries and 44 with
256, on 6.18), and the kernel gives that back some time after it was closed: a large one here
could keep the next loop from having its own.
"""

import errno
import mmap
import os
import resource
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from aiozc._capabilities import Advice, Capabilities, Part, version_of
from aiozc._errors import RingUnavailableError
from aiozc._kernel import calls, liburing
from aiozc._kernel.abi import Feature, Op
from aiozc._kernel.pagecache import VARIABLE as CACHESTAT_VARIABLE
from aiozc._kernel.pagecache import is_wanted
from aiozc._kernel.permitted import New, look, may_call
from aiozc._kernel.refusals import (
    FILTER,
    HERE,
    NEEDED_FEATURES,
    NEEDED_OPCODES,
    allowing,
    forbidden,
    lacking,
    number_in,
    refusal,
)
from aiozc._kernel.ring import SETUP_FLAGS, Ring

VARIABLE = "AIOZC_BACKEND"
BACKENDS = ("io_uring", "readiness")

_ENTRIES = 8
_LARGE_PIPE = 1 << 20
_LITTLE_MEMLOCK = 1 << 20
_CACHESTAT_SINCE = (6, 5)
_SEND_ZC_SINCE = "Linux 6.0"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the kernel says of a ring; None where it does not say."""

    refused: RingUnavailableError | None
    features: int | None = None
    opcodes: Collection[Op] | None = None


def probe() -> Capabilities:
    """Find out what aiozc can do here, and why not: see `Capabilities`.

    It makes a small ring and closes it, in about a millisecond, and needs no running loop.
    The environment variable AIOZC_BACKEND is taken into account.

    Raises OSError where a ring cannot be tried for want of descriptors or memory.
    """
    look()
    library, fault = _find_library()
    answer, fault = _ask_ring(fault)
    backend, reason = _choose(answer.refused or fault)
    release = os.uname().release
    facts = Capabilities(
        backend=backend,
        reason=reason,
        platform=sys.platform,
        kernel=release,
        kernel_version=version_of(release),
        io_uring=answer.refused is None,
        refused=_sentence(answer.refused),
        io_uring_disabled=HERE.sysctl("io_uring_disabled"),
        io_uring_group=HERE.sysctl("io_uring_group"),
        seccomp=HERE.seccomp(),
        opcodes=tuple(_opcodes(answer.opcodes)),
        features=tuple(_features(answer.features)),
        cachestat=is_wanted() and calls.has_cachestat(),
        liburing=library.path if library else "",
        liburing_version=library.version if library else "",
        liburing_fault=_sentence(fault),
        pipe_max_size=number_in(Path("/proc/sys/fs/pipe-max-size")),
        pipe_user_pages_soft=number_in(Path("/proc/sys/fs/pipe-user-pages-soft")),
        pipe_user_pages_hard=number_in(Path("/proc/sys/fs/pipe-user-pages-hard")),
        page_size=mmap.PAGESIZE,
        memlock=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        optmem_max=number_in(Path("/proc/sys/net/core/optmem_max")),
    )
    return replace(facts, advice=tuple(_advice(facts, answer.refused, fault)))


def _find_library() -> tuple[liburing.Library | None, RingUnavailableError | None]:
    try:
        return liburing.load(), None
    except RingUnavailableError as error:
        return None, error


def _ask_ring(
    fault: RingUnavailableError | None,
) -> tuple[_Answer, RingUnavailableError | None]:
    """Return what the kernel says, and what is wrong with liburing: `fault`, if that is known.

    A ring that liburing cannot make and the kernel can is liburing's fault.
    """
    if fault:
        return _ask_kernel(), fault
    try:
        ring = Ring(_ENTRIES)
    except RingUnavailableError as error:
        answer = _ask_kernel()
        return answer, None if answer.refused else error
    ring.close()
    return _Answer(None, ring.features, ring.opcodes), None


def _ask_kernel() -> _Answer:
    if not may_call(New.IO_URING):
        return _Answer(forbidden())
    try:
        fd, features = calls.set_up(_ENTRIES, SETUP_FLAGS)
    except OSError as error:
        return _Answer(_named(error))
    try:
        opcodes = calls.opcodes(fd)
    except OSError as error:
        return _Answer(_named(error), features)
    finally:
        os.close(fd)
    entering = calls.entering_nothing()
    if entering != errno.EBADF:
        return _Answer(_named(OSError(entering, "entering")), features, opcodes)
    return _Answer(lacking(features, opcodes), features, opcodes)


def _named(error: OSError) -> RingUnavailableError:
    """Return the named cause behind an error number; raise the error where it is none."""
    cause = refusal(error.errno or 0)
    if isinstance(cause, RingUnavailableError):
        return cause
    raise error


def _sentence(error: RingUnavailableError | None) -> str:
    return str(error) if error else ""


def wanted_backend(wanted: str | None = None) -> str | None:
    """Return what a caller or else the environment asks for, None where neither does.

    Raises ValueError for what is no backend.
    """
    asker = "backend"
    if wanted is None:
        asker, wanted = VARIABLE, os.environ.get(VARIABLE) or None
    if wanted not in {None, *BACKENDS}:
        raise ValueError(f"{asker} is {wanted!r}: it can be {' or '.join(BACKENDS)}")
    return wanted


def _choose(error: RingUnavailableError | None) -> tuple[Literal["io_uring", "readiness", ""], str]:
    try:
        wanted = wanted_backend()
    except ValueError as unknown:
        return "", str(unknown)
    if wanted == "readiness":
        return "readiness", f"{VARIABLE} asks for it"
    if wanted and error:
        return "", f"{VARIABLE} asks for io_uring, but {error}"
    if error:
        return "readiness", str(error)
    if wanted:
        return "io_uring", f"{VARIABLE} asks for it"
    return "io_uring", "the kernel and liburing do all that is needed"


def _opcodes(present: Collection[Op] | None) -> Iterator[Part]:
    for op in sorted(Op, key=lambda op: (op not in NEEDED_OPCODES, op)):
        there = None if present is None else op in present
        yield Part(op.name, op in NEEDED_OPCODES, there)


def _features(present: int | None) -> Iterator[Part]:
    for feature in Feature:
        there = None if present is None else bool(feature & present)
        yield Part(str(feature.name), feature in NEEDED_FEATURES, there)


def _advice(
    facts: Capabilities,
    refused: RingUnavailableError | None,
    fault: RingUnavailableError | None,
) -> Iterator[Advice]:
    if not facts.backend and os.environ.get(VARIABLE) not in BACKENDS:
        remedy = f"set {VARIABLE} to {' or '.join(BACKENDS)}, or unset it"
        yield Advice(facts.reason, remedy, (f"unset {VARIABLE}",))
    for error in filter(None, (refused, fault)):
        yield Advice(str(error), error.remedy, error.lines)
    if not facts.cachestat:
        yield _cachestat_advice(facts)
    sends = {part.name: part.present for part in facts.opcodes}[Op.SEND_ZC.name]
    if sends is False:
        yield Advice("this kernel's io_uring lacks SEND_ZC", f"{_SEND_ZC_SINCE} or newer", ())
    if not facts.refused and 0 <= (facts.memlock or 0) < _LITTLE_MEMLOCK:
        yield _memlock_advice(facts.memlock or 0)
    if facts.pipe_max_size is not None and facts.pipe_max_size < _LARGE_PIPE:
        yield _pipe_advice(facts.pipe_max_size)


def _cachestat_advice(facts: Capabilities) -> Advice:
    missing = "cachestat(2) cannot be called: how much of a file is cached is not known"
    if not is_wanted():
        missing = (
            f"{CACHESTAT_VARIABLE}=0: how much of a file is cached is not asked by cachestat(2)"
        )
        return Advice(missing, f"unset {CACHESTAT_VARIABLE}", (f"unset {CACHESTAT_VARIABLE}",))
    if facts.kernel_version < _CACHESTAT_SINCE or facts.seccomp != FILTER:
        return Advice(missing, "Linux 6.5 or newer", ())
    remedy = "allow cachestat in the container's seccomp profile"
    return Advice(missing, remedy, allowing("cachestat"))


def _memlock_advice(limit: int) -> Advice:
    return Advice(
        f"all rings of a user may lock {limit} bytes (RLIMIT_MEMLOCK), and one takes 44 KiB",
        "raise the limit to 8 MiB (ulimit -l, LimitMEMLOCK= of systemd, docker run --ulimit)",
        ("ulimit -l 8192",),
    )


def _pipe_advice(limit: int) -> Advice:
    return Advice(
        f"pipes grow to {limit} bytes, and large transfers use pipes of {_LARGE_PIPE}",
        "set the sysctl fs.pipe-max-size, on the host",
        (f"sysctl -w fs.pipe-max-size={_LARGE_PIPE}",),
    )
