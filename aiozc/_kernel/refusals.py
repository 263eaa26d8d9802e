"""Who refuses an io_uring here, and what would lift it.

Several refuse by the same error numbers, and are told apart so:

- The sysctl kernel.io_uring_disabled (Linux 6.6, Documentation/admin-guide/sysctl/kernel.rst):
  2 refuses all with EPERM; 1 all but who has CAP_SYS_ADMIN, in the first user namespace, or
  is of the group kernel.io_uring_group. Only io_uring_setup asks for it.
- A seccomp filter answers what it likes, mostly EPERM, some ENOSYS, and mostly to all three
  calls. It sees io_uring_enter before io_uring does, which answers EBADF to a descriptor
  that is none: any other answer is a filter's. (Checked on 6.18 with filters of both kinds.)
- A security module may refuse io_uring_setup since Linux 6.15; SELinux answers EACCES.
- ENOSYS also comes from a kernel built without io_uring. Where the sysctl is there, it was
  built with it.
"""

import errno
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from aiozc._errors import RingUnavailableError, error_from
from aiozc._kernel import calls
from aiozc._kernel.abi import Call, Feature, Op
from aiozc._kernel.permitted import read_procfs

OLDEST = "Linux 5.19"
"""The first kernel whose io_uring does what is needed."""
NEEDED_FEATURES = Feature.NODROP | Feature.CQE_SKIP
NEEDED_OPCODES = frozenset({Op.NOP, Op.POLL_ADD, Op.TIMEOUT, Op.ASYNC_CANCEL, Op.SPLICE})

CALLS = tuple(call.name.lower() for call in Call)
_REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})
FILTER = 2  # SECCOMP_MODE_FILTER, include/uapi/linux/seccomp.h
_CAP_SYS_ADMIN = 21  # include/uapi/linux/capability.h
_ALL_USERS = ["0", "0", "4294967295"]  # /proc/self/uid_map in the first user namespace


@dataclass(frozen=True)
class Places:
    """Where it is read who refuses."""

    sysctls: Path = Path("/proc/sys/kernel")
    process: Path = Path("/proc/self")

    def sysctl(self, name: str) -> int | None:
        """Return a sysctl's value; None where there is none."""
        return number_in(self.sysctls / name)

    def status(self, field: str) -> str:
        """Return a field of the process's status; "" where there is none."""
        for line in read_procfs(self.process / "status").splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
        return ""

    def seccomp(self) -> int | None:
        """Return the mode of seccomp: 0 off, 1 strict, 2 a filter; None where unknown."""
        value = self.status("Seccomp")
        return int(value) if value.isdecimal() else None


HERE = Places()


@dataclass(frozen=True)
class _Culprit:
    who: str
    remedy: str
    lines: tuple[str, ...] = ()
    sign: str = ""


def allowing(*names: str) -> tuple[str, ...]:
    """Return the lines of a rule for the `syscalls` of a seccomp profile (OCI's format)."""
    quoted = ", ".join(f'"{name}"' for name in names)
    return ("{", f'  "names": [{quoted}],', '  "action": "SCMP_ACT_ALLOW"', "}")


def number_in(path: Path) -> int | None:
    """Return the number that is all there is in a file; None where there is none."""
    try:
        return int(read_procfs(path))
    except ValueError:
        return None


def refusal(number: int, doing: str = "setting up an io_uring") -> Exception:
    """Return what to raise for an error number of io_uring's: who refuses, what lifts it.

    It is a RingUnavailableError for the named causes, else the OSError itself.
    """
    if found := culprits(number, calls.entering_nothing(), HERE):
        signs = [errno.errorcode.get(number, str(number)), *(one.sign for one in found)]
        return RingUnavailableError(
            f"io_uring is refused by {' and by '.join(one.who for one in found)}"
            f" ({'; '.join(filter(None, signs))})",
            "; ".join(one.remedy for one in found),
            [line for one in found for line in one.lines],
        )
    if number == errno.ENOSYS:
        return _too_old("this kernel has no io_uring (ENOSYS)")
    if number == errno.EINVAL:
        return _too_old(f"this kernel's io_uring is older than {OLDEST} (EINVAL)")
    if number == errno.ENOMEM:
        return RingUnavailableError(
            "no memory that may be locked is left for a ring (ENOMEM)",
            "raise the limit of memory that may be locked (ulimit -l, LimitMEMLOCK= of systemd),"
            " or the memory limit of the control group",
            ["ulimit -l 8192"],
        )
    return error_from(number, doing)


def forbidden() -> RingUnavailableError:
    """Return what to raise where io_uring's calls may not even be tried."""
    culprit = _seccomp("a seccomp filter, which ends a process that calls it")
    return RingUnavailableError(
        f"io_uring is refused by {culprit.who} ({culprit.sign})", culprit.remedy, culprit.lines
    )


def lacking(features: int, opcodes: Collection[int]) -> RingUnavailableError | None:
    """Return what to raise for a ring that lacks what is needed; None where it lacks nothing."""
    missing = [one.name for one in NEEDED_FEATURES & ~Feature(features)]
    missing += sorted(one.name for one in NEEDED_OPCODES if one not in opcodes)
    if not missing:
        return None
    return _too_old(f"this kernel's io_uring lacks {', '.join(map(str, missing))}")


def _too_old(cause: str) -> RingUnavailableError:
    return RingUnavailableError(cause, f"{OLDEST} or newer, built with CONFIG_IO_URING")


def culprits(number: int, entering: int, places: Places) -> list[_Culprit]:
    """Return who refuses, of those that can be told to allow it.

    `number` is what was answered, and `entering` what io_uring_enter answers for a
    descriptor that is none.
    """
    filtered = _is_filtered(number, entering, places)
    if number not in _REFUSED and not filtered:
        return []
    certain = [_sysctl(places), _seccomp("a seccomp filter") if filtered else None]
    if any(certain):
        return [culprit for culprit in certain if culprit]
    if places.seccomp() != FILTER:
        return [] if number == errno.ENOSYS else [_MODULE]
    if number == errno.ENOSYS:
        return [_seccomp("a seccomp filter, or missing in this kernel")]
    return [_seccomp("a seccomp filter or a security module")]


def _is_filtered(number: int, entering: int, places: Places) -> bool:
    """Return whether a filter answers for certain: nothing else would in that way."""
    if entering == errno.EBADF:
        return number == errno.ENOSYS
    return entering != errno.ENOSYS or places.sysctl("io_uring_disabled") is not None


def _sysctl(places: Places) -> _Culprit | None:
    value = places.sysctl("io_uring_disabled")
    if value == 2:
        return _Culprit(
            "the sysctl kernel.io_uring_disabled = 2",
            "set the sysctl kernel.io_uring_disabled to 0, on the host",
            ("sysctl -w kernel.io_uring_disabled=0",),
        )
    if value != 1 or _has_sys_admin(places):
        return None
    group = places.sysctl("io_uring_group")
    if group in {os.getegid(), *os.getgroups()}:
        return None
    return _Culprit(
        "the sysctl kernel.io_uring_disabled = 1",
        "set the sysctl kernel.io_uring_disabled to 0, or kernel.io_uring_group to a group of"
        " this process, on the host",
        (
            "sysctl -w kernel.io_uring_disabled=0",
            f"sysctl -w kernel.io_uring_group={os.getegid()}  # or this",
        ),
        f"no CAP_SYS_ADMIN here; kernel.io_uring_group = {group}",
    )


def _has_sys_admin(places: Places) -> bool:
    """Return whether the process has CAP_SYS_ADMIN where the sysctl asks for it."""
    effective = int(places.status("CapEff") or "0", 16)
    first = read_procfs(places.process / "uid_map").split() == _ALL_USERS
    return first and bool(effective >> _CAP_SYS_ADMIN & 1)


def _seccomp(who: str) -> _Culprit:
    named = f"{CALLS[0]}, {CALLS[1]} and {CALLS[2]}"
    remedy = f"allow {named} in the container's seccomp profile"
    return _Culprit(who, remedy, allowing(*CALLS), "Seccomp: 2 in /proc/self/status")


_MODULE = _Culprit(
    "a security module",
    "allow io_uring in its policy (SELinux: the permission io_uring { allowed })",
)
