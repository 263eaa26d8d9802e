"""Tests of many values: each value a test of its own, or all of them folded into one.

To make a loop, its reactor and the ends of connections costs more than to run most bodies, so
where everything runs, a test of many values runs with all of them one after the other, or at the
same time, and tells with which of them it failed. With `-k` or `--unfold` each of them is a test,
which has the value's name.
"""

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.kit import tasks

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Each:
    """The values that a test is to run with, as rows of what the names stand for."""

    names: list[str]
    rows: list[tuple[Any, ...]]
    ids: list[str]
    group: Callable[..., str] | None
    together: bool

    def label(self, row: tuple[Any, ...]) -> str:
        """Return the name of the test that a row is folded into."""
        return self.group(*row) if self.group else f"each {' and '.join(self.names)}"


@dataclass(frozen=True)
class Folded:
    """What a test is given in the place of an argument: all it is to run with."""

    cases: dict[str, Arguments]
    together: bool


def each(
    names: str,
    values: Iterable[Any] | Mapping[str, Any],
    *,
    group: Callable[..., str] | None = None,
    together: bool = False,
) -> pytest.MarkDecorator:
    """Run a test with each of the values, to which a mapping gives names of their own.

    Those for which `group` returns the same are folded into one test, which runs them all at the
    same time if they are to run `together`.
    """
    split = names.split(", ")
    listed = list(values.values() if isinstance(values, Mapping) else values)
    rows = [tuple(value) if len(split) > 1 else (value,) for value in listed]
    ids = list(values) if isinstance(values, Mapping) else [_name(row) for row in rows]
    assert len(set(ids)) == len(rows), ids
    return pytest.mark.each(Each(split, rows, ids, group, together))


def is_unfolded(config: pytest.Config) -> bool:
    """Say whether each value is a test of its own."""
    return bool(config.getoption("unfold") or config.getoption("keyword"))


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Make the tests of a function that is marked by `each`."""
    marked: list[Each] = [mark.args[0] for mark in metafunc.definition.iter_markers("each")]
    if is_unfolded(metafunc.config):
        for one in marked:
            metafunc.parametrize(one.names, one.rows, ids=one.ids)
    elif marked:
        names = [name for one in marked for name in one.names]
        folded = _fold(marked)
        metafunc.parametrize(names, [[one] * len(names) for one in folded.values()], ids=folded)


def _name(row: tuple[Any, ...]) -> str:
    """Return the name of the test of a row."""
    return "-".join(str(getattr(value, "__name__", value)) for value in row)


def _fold(marked: list[Each]) -> dict[str, Folded]:
    names = [name for one in marked for name in one.names]
    together = any(one.together for one in marked)
    groups: dict[str, Folded] = {}
    for pairs in itertools.product(*(zip(one.ids, one.rows, strict=True) for one in marked)):
        ids, rows = zip(*pairs, strict=True)
        label = "-".join(one.label(row) for one, row in zip(marked, rows, strict=True))
        case = dict(zip(names, itertools.chain(*rows), strict=True))
        groups.setdefault(label, Folded({}, together)).cases["-".join(ids)] = case
    return groups


def unfold_in_run(item: pytest.Function) -> None:
    """Have a test with folded arguments run with each of them."""
    folded = next((one for one in item.funcargs.values() if isinstance(one, Folded)), None)
    if folded is not None:
        is_async = inspect.iscoroutinefunction(item.obj)
        item.obj = (_run_async if is_async else _run)(item.obj, folded)


def _run(body: Callable[..., None], folded: Folded) -> Callable[..., None]:
    @functools.wraps(body)
    def test(**arguments: Any) -> None:
        failures = _Failures()
        for name, case in folded.cases.items():
            with failures.kept(name), _apart(arguments) as own:
                body(**own | case)
        failures.tell()

    return test


def _run_async(body: Callable[..., Any], folded: Folded) -> Callable[..., Any]:
    @functools.wraps(body)
    async def test(**arguments: Any) -> None:
        failures = _Failures()

        async def run(name: str) -> None:
            with failures.kept(name), _apart(arguments) as own:
                await body(**own | folded.cases[name])

        if folded.together:
            for task in [tasks.start(run(name)) for name in folded.cases]:
                await task
        else:
            for name in folded.cases:
                await run(name)
        failures.tell()

    return test


@contextlib.contextmanager
def _apart(arguments: Arguments) -> Iterator[Arguments]:
    """Yield the arguments, with ends that are closed behind this case."""
    if "ends" not in arguments:
        yield arguments
        return
    with arguments["ends"].apart() as ends:
        yield arguments | {"ends": ends}


@dataclass
class _Failures:
    """The errors of some of the cases: one does not hide the others."""

    errors: list[Exception] = field(default_factory=list)

    @contextlib.contextmanager
    def kept(self, name: str) -> Iterator[None]:
        """Keep an error until the other cases have run."""
        try:
            yield
        except Exception as error:
            error.add_note(f"with {name}")
            self.errors.append(error)

    def tell(self) -> None:
        """Raise the error that there was, or all of them."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise ExceptionGroup("some of the cases", self.errors)
