"""The senders' processes of a run: started together, each checked once, ended with the run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.errors import BenchError
from bench.measure import Settings, Work
from bench.on_loop import start
from bench.processes import Helper
from bench.scratch import make_file
from bench.senders.worker import TIME_LIMIT
from bench.units import MIB

_CHECKED: Final = 3 * MIB + 4097
"""The most bytes of a file whose hash is checked: not a whole number of anything."""


class Fleet:
    """Senders by their names; those that cannot run here are noted as missing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: dict[str, Helper] = {}
        self._checked: set[str] = set()
        self.unchecked: list[str] = []
        """Senders whose bytes the far end did not check."""

    def present(self, work: Work) -> list[str]:
        """Start those of a work that have not been; give those that can run."""
        record, names = self._settings.record, work.present()
        new = [name for name in names if name not in self._workers]
        for name in new:
            worker = start("sender", name, "bench.senders.worker:Worker")
            self._workers[name] = self._settings.stack.enter_context(worker)
        for name in new:
            try:
                if self._workers[name].ready is not None:
                    record.missing[name] = self._workers[name].ready
            except BenchError as error:
                record.failed[name] = str(error)
        wrong = record.missing.keys() | record.failed.keys()
        return [name for name in names if name not in wrong]

    def checks(
        self, address: tuple[str, int], peers: Callable[[], object], file: Path | None = None
    ) -> dict[str, Any]:
        """Give what checks a sender of a case, by the first bytes of a file, and its receiver."""
        path = file or self._settings.scratch / "checked"
        if not path.exists():
            make_file(path, _CHECKED)
        size = min(path.stat().st_size, _CHECKED)
        check = partial(self.check, address=address, file=str(path), size=size)
        return {"check": check, "check_peers": peers}

    def check(self, name: str, address: tuple[str, int], file: str, size: int) -> None:
        """Let one send a file twice over each of two connections, to be hashed."""
        if name not in self._checked:
            twice = {"paths": [file, file], "connections": 2, "hash": True}
            plan = {"address": address, "size": size, "warm_file": file}
            if not self.send(name, **plan, **twice)["checked"]:
                self.unchecked.append(name)
            self._checked.add(name)

    def send(self, name: str, **plan: Any) -> dict[str, Any]:
        """Let one do a turn; one that fails may be busy still, and is ended."""
        try:
            found: dict[str, Any] = self._workers[name].ask("send", TIME_LIMIT, **plan)
            if not found["checked"] and name in self._checked and name not in self.unchecked:
                raise BenchError(f"{name}: the receiver no longer tells what has come")
        except BenchError:
            self._workers[name].close()
            raise
        return found


def fleet_of(work: Work) -> Fleet:
    """Give the fleet that the works of a run share."""
    fleet: Fleet = work.settings.shared.setdefault("fleet", Fleet(work.settings))
    return fleet
