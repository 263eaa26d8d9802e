"""What `probe()` returns: records of plain values, which `dataclasses.asdict` makes into JSON."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Part:
    """An opcode or a feature of io_uring, by the kernel's name for it.

    `needed`: the ring is not used without it. `present` is None where it cannot be asked,
    because the kernel refuses a ring.
    """

    name: str
    needed: bool
    present: bool | None


@dataclass(frozen=True, slots=True)
class Advice:
    """Something missing, and what would lift it.

    `missing` and `remedy` are one line each; `lines` are what to run or to write, a line
    each, and may be none.
    """

    missing: str
    remedy: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What aiozc can do in this process, on this kernel, and why not.

    Values that Linux alone has are None or empty elsewhere, as are those that cannot be read.

    The outcome:
        backend: "io_uring" or "readiness", which of the two a loop gets; "sock_sendfile" on
            systems other than Linux, where files go by the loop's own; "" where no transfer
            works at all.
        reason: why that one, in a sentence.
        advice: what is missing, the gravest first, and what would lift it.

    The kernel:
        platform: `sys.platform`.
        kernel: its release, as uname(2) tells it; `kernel_version`: its leading numbers.
        io_uring: whether it gives this process a ring that can do what is needed.
        refused: who refuses it, in a sentence; "" where nobody does.
        io_uring_disabled, io_uring_group: the sysctls kernel.*, None before Linux 6.6.
        seccomp: the mode of this process: 0 off, 1 strict, 2 a filter.
        opcodes, features: those that aiozc uses.
        cachestat: whether cachestat(2) can be called.

    liburing:
        liburing: the path or name of the shared object that is used; "" where none is.
        liburing_version: "2.9", say.
        liburing_fault: what was tried, and what was wrong with each; "" where one is used.

    Limits:
        pipe_max_size: bytes that an unprivileged user's pipe may grow to.
        pipe_user_pages_soft: pages of all such pipes of a user, beyond which new ones stay
            small; `pipe_user_pages_hard`: beyond which there are none; 0 is no limit.
        page_size: bytes.
        memlock: bytes that may be locked (the soft RLIMIT_MEMLOCK), -1 for no limit.
        optmem_max: bytes of a socket's ancillary buffers (net.core.optmem_max).
    """

    backend: Literal["io_uring", "readiness", "sock_sendfile", ""]
    reason: str
    advice: tuple[Advice, ...] = ()
    platform: str
    kernel: str
    kernel_version: tuple[int, ...]
    io_uring: bool = False
    refused: str = ""
    io_uring_disabled: int | None = None
    io_uring_group: int | None = None
    seccomp: int | None = None
    opcodes: tuple[Part, ...] = ()
    features: tuple[Part, ...] = ()
    cachestat: bool = False
    liburing: str = ""
    liburing_version: str = ""
    liburing_fault: str = ""
    pipe_max_size: int | None = None
    pipe_user_pages_soft: int | None = None
    pipe_user_pages_hard: int | None = None
    page_size: int | None = None
    memlock: int | None = None
    optmem_max: int | None = None


def version_of(release: str) -> tuple[int, ...]:
    """Return the leading numbers of a kernel's release: (6, 18, 44) of "6.18.44-generic"."""
    numbers = []
    for part in release.replace("-", ".").split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers[:3])
