"""The senders' processes of a run: started together, each checked once, ended with the run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from bench.errors import BenchError
from bench.measure import Case, Settings, Values
from bench.processes import Helper
from bench.scratch import make_file
from bench.senders.worker import TIME_LIMIT
from bench.sink import SinkProcess
from bench.units import MIB

CHECKED: Final = 3 * MIB + 4097
"""The most bytes of a file whose hash is checked: not a whole number of anything."""
WORKER: Final = "bench.senders.worker:Worker"


def start_worker(name: str, factory: str = WORKER) -> Helper:
    """Start a sender's process."""
    return Helper(name, factory, name=name)


class Fleet:
    """Senders by their names; those that cannot run here are noted as missing."""

    def __init__(self, settings: Settings, factory: str = WORKER) -> None:
        self._settings, self._factory = settings, factory
        self._workers: dict[str, Helper] = {}
        self._checked: set[str] = set()
        self.unchecked: list[str] = []
        """Senders whose bytes the far end did not check."""

    def present(self, names: Sequence[str]) -> list[str]:
        """Start those that have not been; give those that can run."""
        settings = self._settings
        new = [name for name in names if name not in self._workers]
        for name in new:
            worker = settings.stack.enter_context(start_worker(name, self._factory))
            self._workers[name] = worker
        for name in new:
            try:
                if self._workers[name].ready is not None:
                    settings.missing[name] = self._workers[name].ready
            except BenchError as error:
                settings.failed[name] = str(error)
        wrong = settings.missing.keys() | settings.failed.keys()
        return [name for name in names if name not in wrong]

    def check(self, name: str, address: tuple[str, int], file: str, size: int) -> None:
        """Let one send a file twice over one connection and once over another, to be hashed."""
        if name not in self._checked:
            order = {"files": [[file, file], [file]], "size": size, "warm_file": file, "hash": True}
            if not self.send(name, address=address, **order)["checked"]:
                self.unchecked.append(name)
            self._checked.add(name)

    def send(self, name: str, **order: Any) -> dict[str, Any]:
        """Let one do a turn; one that fails may be busy still, and is ended."""
        late = f"was not done after {TIME_LIMIT:.0f} s"
        try:
            found: dict[str, Any] = self._workers[name].ask("send", TIME_LIMIT, late, **order)
            if not found["checked"] and name in self._checked and name not in self.unchecked:
                raise BenchError(f"{name}: the receiver no longer tells what has come")
        except BenchError:
            self._workers[name].close()
            raise
        return found


def fleet_of(settings: Settings) -> Fleet:
    """Give the fleet that the works of a run share."""
    fleet: Fleet = settings.shared.setdefault("fleet", Fleet(settings))
    return fleet


def receive(
    settings: Settings, stack: ExitStack, *, discard: bool, awake: float = 0
) -> SinkProcess:
    """Start a receiver; the command line may say how long it looks before it sleeps."""
    asked = getattr(settings.options, "awake", None)
    sink = SinkProcess(discard=discard, awake=awake if asked is None else asked)
    return stack.enter_context(sink)


def checking(settings: Settings, sink: SinkProcess) -> dict[str, Any]:
    """Give what checks a sender of a case, and its receiver."""
    path = settings.scratch / "checked"
    if not path.exists():
        make_file(path, CHECKED)
    check = fleet_of(settings).check
    check_it = partial(check, address=sink.address, file=str(path), size=CHECKED)
    return {"check": check_it, "check_peers": sink.check}


def sending(
    settings: Settings,
    sink: SinkProcess,
    name: str,
    units: Mapping[str, str],
    contenders: Sequence[str],
    values: Callable[[dict[str, Any]], Values],
    order: Mapping[str, Any],
    **rest: Any,
) -> Case:
    """Make a case in which senders do an order; ``values`` makes figures of what they tell."""
    fleet = fleet_of(settings)

    def turn(contender: str) -> Values:
        return values(fleet.send(contender, address=sink.address, **order))

    present = fleet.present(contenders)
    return Case(name, units, present, turn, **checking(settings, sink), **rest)
