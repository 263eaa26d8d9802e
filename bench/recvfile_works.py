"""What is measured of ``loop_recvfile``: uploads into a file."""

import hashlib
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.cases import (
    Case,
    Settings,
    Work,
    cpu_metrics,
    cpu_per_gigabyte,
    lateness,
    lateness_metrics,
    throughput,
    throughput_metric,
)
from bench.errors import BenchError
from bench.measure import AtLeast, Sample
from bench.scratch import make_file, warm
from bench.sources import Source
from bench.units import GIB, MIB, show_size
from bench.uploads import UPLOADERS, Uploader, take_upload

QUICK = 192 * MIB
"""Bytes of an upload with --quick; the tests set less."""
_TMPFS: Final = Path("/dev/shm")


def _on_tmpfs(settings: Settings, stack: ExitStack) -> list[Case[Uploader]]:
    if not _TMPFS.is_dir() or _filesystem(_TMPFS) != "tmpfs":
        raise BenchError(f"{_TMPFS} is not a tmpfs")
    name = stack.enter_context(tempfile.TemporaryDirectory(prefix="aiozc-bench-", dir=_TMPFS))
    return _uploads(settings, stack, Path(name))


def _on_disk(settings: Settings, stack: ExitStack) -> list[Case[Uploader]]:
    if _filesystem(settings.scratch) == "tmpfs":
        raise BenchError("files would lie on a tmpfs; choose a directory on a disk with --dir")
    return _uploads(settings, stack, settings.scratch)


def _uploads(settings: Settings, stack: ExitStack, where: Path) -> list[Case[Uploader]]:
    size = QUICK if settings.quick else GIB
    if (free := shutil.disk_usage(where).free) < size + 64 * MIB:
        raise BenchError(f"{where} has room for {free // MIB} MiB, not for {show_size(size)}")
    file = make_file(settings.scratch / "upload", size)
    expected = _hash(file)
    source = stack.enter_context(Source(file))
    path = where / "received"
    known_good: set[str] = set()

    def take(uploader: Uploader, *, timer: bool) -> Sample:
        # Only now: a virtual machine's host may take back memory that was free for a second or two,
        # and a GiB written to memory like that took 1.0 to 2.5 s of CPU time in place of 0.34. It
        # is soon enough to keep the file from being written back, which would slow others.
        path.unlink(missing_ok=True)
        warm(file)
        turn = take_upload(uploader, source, path, size, timer=timer)
        if uploader.name not in known_good and _hash(path) != expected:
            raise BenchError(f"{uploader.name} wrote other bytes than were sent")
        known_good.add(uploader.name)
        if timer:
            return lateness(turn)
        return {**throughput(size, turn), **cpu_per_gigabyte(size, turn)}

    def run(uploader: Uploader) -> Sample:
        sample = take(uploader, timer=False)
        if uploader.blocking:
            return sample
        # Another time: waits of a loop with a timer cost more, and the timer is a load.
        return {**sample, **take(uploader, timer=True)}

    take(UPLOADERS[0], timer=False)  # for the memory of the first turn
    return [
        Case(
            f"{show_size(size)}, {_filesystem(where) or 'disk'}",
            [
                throughput_metric(AtLeast(1.3, aim=2)),
                *cpu_metrics(AtLeast(4, aim=8)),
                *lateness_metrics(),
            ],
            run,
            settings.choose_rounds(2, 5),
            settings.choose_budget(4.0),
        )
    ]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


_TITLE: Final = "Uploads into a new file, not synced; lateness is another turn's"
WORKS: Final = (
    Work("tmpfs", f"{_TITLE}; on tmpfs", _on_tmpfs, UPLOADERS),
    Work("disk", f"{_TITLE}; on a disk", _on_disk, UPLOADERS),
)
