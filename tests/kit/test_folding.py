"""What a test of many values is: one test, or one for each of them."""

from collections.abc import Callable

import pytest

HOOKS = """
import pytest
from tests.kit import folding

def pytest_addoption(parser):
    parser.addoption("--unfold", action="store_true")

def pytest_configure(config):
    config.addinivalue_line("markers", "each")

def pytest_generate_tests(metafunc):
    folding.parametrize(metafunc)

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    folding.unfold_in_run(pyfuncitem)
"""
TESTS = """
import asyncio
import pytest
from tests.kit.folding import each

@each("size", [1, 2, 3])
@each("opener", {"by path": open, "by number": open})
def test_product(size, opener):
    assert size == 2

@pytest.mark.anyio
@each(
    "size, end",
    {"first": (1, "tcp"), "second": (2, "tcp"), "third": (3, "pipe")},
    group=lambda _, end: end,
)
async def test_grouped(size, end, anyio_backend):
    assert size != 2

gate = asyncio.Barrier(2)

@pytest.mark.anyio
@each("number", [1, 2], together=True)
async def test_together(number, anyio_backend, pytestconfig):
    if not pytestconfig.getoption("unfold"):
        await gate.wait()

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Run these tests with options of pytest."""
    pytester.makeconftest(HOOKS)
    pytester.makepyfile(TESTS)
    without = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]  # which takes a second
    given = [*without, "-o", "asyncio_default_fixture_loop_scope=function", "-v"]
    return lambda *options: pytester.runpytest_inprocess(*given, *options)


def test_folded_all_values_are_run_and_those_that_fail_are_named(run: Run) -> None:
    told = run()
    told.assert_outcomes(passed=2, failed=2)
    told.stdout.fnmatch_lines(["*::test_together?each number? PASSED*"])
    told.stdout.fnmatch_lines(["*::test_grouped?pipe? PASSED*"])
    told.stdout.fnmatch_lines(["*with second"])
    for size in (1, 3):
        told.stdout.fnmatch_lines([f"*with by path-{size}", f"*with by number-{size}"])
    told.stdout.no_fnmatch_line("*with by *-2")


def test_unfolded_each_value_is_a_test(run: Run) -> None:
    run("--unfold").assert_outcomes(passed=6, failed=5)


def test_a_value_is_chosen_by_its_name(run: Run) -> None:
    run("-k", "third").assert_outcomes(passed=1, deselected=10)
