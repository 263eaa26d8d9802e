"""What is measured of ``loop_recvfile``: uploads into a file."""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.measure import Case, Settings, Work, present
from bench.meter import CPU_UNITS, LATE_UNITS, per_gigabyte
from bench.scratch import hash_of, make_file, warm
from bench.sources import source_of
from bench.units import GIB, MIB, show_size
from bench.uploads import BASELINE, UPLOADERS, start_uploader, take_upload

SIZES: Final = {True: 192 * MIB, False: GIB}
"""Bytes of an upload with --quick, and without; the tests have less."""
_TMPFS: Final = Path("/dev/shm")


def recvfile(_: argparse.Namespace) -> list[Work]:
    """Give the works."""
    title = "Uploads into a new file, not synced; lateness is another turn's"
    return [
        Work("tmpfs", f"{title}; on tmpfs", BASELINE, _on_tmpfs),
        Work("disk", f"{title}; on a disk", BASELINE, on_disk),
    ]


def _on_tmpfs(settings: Settings, stack: ExitStack) -> Iterator[Case]:
    if not _TMPFS.is_dir() or _filesystem(_TMPFS) != "tmpfs":
        raise BenchError(f"{_TMPFS} is not a tmpfs")
    name = stack.enter_context(tempfile.TemporaryDirectory(prefix="aiozc-bench-", dir=_TMPFS))
    yield _uploads(settings, stack, "tmpfs", Path(name))


def on_disk(settings: Settings, stack: ExitStack) -> Iterator[Case]:
    """Give the case of uploads into a file on a disk."""
    if _filesystem(settings.scratch) == "tmpfs":
        raise BenchError("files would lie on a tmpfs; choose a directory on a disk with --dir")
    yield _uploads(settings, stack, "disk", settings.scratch)


def _uploads(settings: Settings, stack: ExitStack, work: str, where: Path) -> Case:
    size = SIZES[settings.quick]
    if (free := shutil.disk_usage(where).free) < size + 64 * MIB:
        raise BenchError(f"{where} has room for {free // MIB} MiB, not for {show_size(size)}")
    file, path = make_file(settings.scratch / "upload", size), where / "received"
    expected, good = hash_of(file), set[str]()
    source = stack.enter_context(source_of(file))
    names = present(settings, UPLOADERS)
    running = {name: stack.enter_context(start_uploader(name)) for name in names}

    def take(name: str, *, timer: bool) -> dict[str, float]:
        # Only now: a virtual machine's host may take back memory that was free for a second or two,
        # and a GiB written to memory like that took 1.0 to 2.5 s of CPU time in place of 0.34. It
        # is soon enough to keep the file from being written back, which would slow others.
        path.unlink(missing_ok=True)
        warm(file)
        return take_upload(running[name], source, path, size, timer=timer)

    def check(name: str) -> None:
        if name not in good:
            take(name, timer=False)
            if hash_of(path) != expected:
                raise BenchError(f"{name} wrote other bytes than were sent")
            good.add(name)

    def turn(name: str) -> dict[str, float]:
        values = per_gigabyte(size, take(name, timer=False))
        if UPLOADERS[name].blocking:
            return values
        # Another time: waits of a loop with a timer cost more, and the timer is a load.
        return take(name, timer=True) | values

    return Case(
        f"{work}: {show_size(size)}, {_filesystem(where) or 'disk'}",
        {"throughput": "GB/s", **CPU_UNITS, **LATE_UNITS},
        names,
        turn,
        check,
        source.check,
        rounds=(2, 5),
        budget=4.0,
    )


def _filesystem(path: Path) -> str | None:
    """Give the type of the filesystem that a directory is on, where the kernel tells.

    See proc_pid_mountinfo(5): the device is the third field, the type follows a lone hyphen.
    """
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, filesystem = line.partition(" - ")
        if mount.split()[2] == number:
            return filesystem.split()[0]
    return None
