"""On other systems: files go by the loop's own `sock_sendfile`, and the rest says why not."""

import inspect
import json
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest

import aiozc
from aiozc import _elsewhere, streams

FUNCTIONS = [name for name in aiozc.__all__ if inspect.isfunction(getattr(aiozc, name, None))]
SAME = [*sorted(FUNCTIONS), *(f"streams.{name}" for name in streams.__all__)]


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_where_the_system_is_another_files_are_sent_and_the_rest_says_why_not(
    system: str,
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.kit.faults.another_system", system],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    told, end = json.JSONDecoder().raw_decode(done.stdout)
    assert (told["platform"], told["backend"]) == (system, "sock_sendfile")
    assert (told["io_uring"], told["advice"]) == (False, [])
    text = " ".join(done.stdout[end:].split())
    assert (
        "engine sock_sendfile aiozc moves bytes in the kernel by Linux's splice(2), which" in text
    )
    assert f"{system} does not have: aiozc.loop_sendfile hands over" in text


@pytest.mark.parametrize("name", SAME)
def test_a_function_takes_the_same_on_every_system(name: str) -> None:
    here, elsewhere = (
        [
            (parameter.name, parameter.kind, parameter.default)
            for parameter in inspect.signature(attrgetter(name)(module)).parameters.values()
        ]
        for module in (aiozc, _elsewhere)
    )
    assert here == elsewhere
