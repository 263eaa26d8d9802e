"""``python -m aiozc info``: what it prints, and how it ends."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import aiozc

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "aiozc"]
# What a shell's `exec` does, under a filter that stays.
FILTERED = """
import os, sys
from tests.kit.faults.seccomp import refuse_io_uring
refuse_io_uring(int(sys.argv[1]))
os.execv(sys.executable, [sys.executable, "-m", "aiozc", *sys.argv[2:]])
"""


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test choose the engine."""
    monkeypatch.delenv("AIOZC_BACKEND", raising=False)


def run(*command: str, **variables: str) -> tuple[int, str]:
    """Run it; return its exit status, and what it printed with single spaces."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, " ".join(done.stdout.split())


@pytest.mark.ring
def test_what_is_here_is_printed() -> None:
    facts = aiozc.probe()
    status, text = run(*COMMAND, "info")
    assert status == 0
    assert text.startswith(f"aiozc {aiozc.__version__} on ")
    assert f"engine {facts.backend} {facts.reason} kernel Linux {facts.kernel} " in text
    assert f"liburing {facts.liburing_version} {facts.liburing} " in text
    assert "needed: NOP, POLL_ADD, TIMEOUT, ASYNC_CANCEL, SPLICE" in text
    assert "io_uring allowed kernel.io_uring_disabled: " in text


@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"], ["--help"], ["--version"]])
def test_who_reads_no_more_ends_it_quietly(arguments: list[str]) -> None:
    """As `head -1` does; the exit status says the same."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=ROOT, stdout=output, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_json_has_the_same_facts() -> None:
    status, text = run(*COMMAND, "info", "--json")
    assert status == 0
    told = json.loads(text)
    assert told.pop("aiozc") == aiozc.__version__
    assert told.pop("python") == sys.version.split()[0]
    facts = json.dumps(dataclasses.asdict(aiozc.probe()))
    assert told == json.loads(" ".join(facts.split()))


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_under_a_filter_it_says_so_and_that_transfers_work(number: int) -> None:
    status, text = run(sys.executable, "-c", FILTERED, str(number), "info")
    assert status == 0
    assert "engine readiness io_uring is refused by a seccomp filter (" in text
    assert "Seccomp: 2 in /proc/self/status" in text
    assert "seccomp: a filter" in text
    rule = '{ "names": ["io_uring_setup", "io_uring_enter", "io_uring_register"], '
    assert rule + '"action": "SCMP_ACT_ALLOW" }' in text


def test_the_ring_asked_for_under_a_filter_is_a_failure() -> None:
    filtered = (sys.executable, "-c", FILTERED, str(errno.EPERM), "info")
    status, text = run(*filtered, AIOZC_BACKEND="io_uring")
    assert status == 1
    assert "AIOZC_BACKEND asks for io_uring, but io_uring is refused by a seccomp filter" in text
    status, text = run(*filtered, AIOZC_BACKEND="readiness")
    assert status == 0
    assert "engine readiness AIOZC_BACKEND asks for it" in text


@pytest.mark.ring
def test_a_missing_library_is_named_with_what_was_tried() -> None:
    status, text = run(*COMMAND, "info", AIOZC_LIBURING="/nowhere/liburing.so")
    assert status == 0
    assert "engine readiness no usable liburing: /nowhere/liburing.so does not load: " in text
    assert "io_uring allowed" in text
    assert "liburing cannot be used, see below" in text
    assert "-> set AIOZC_LIBURING to the path of liburing 2.2 or newer, or unset it" in text


@pytest.mark.ring
def test_an_unknown_engine_is_a_failure_with_all_the_facts() -> None:
    status, text = run(*COMMAND, "info", AIOZC_BACKEND="epoll")
    assert status == 1
    assert "engine none: transfers do not work AIOZC_BACKEND is 'epoll': it can be" in text
    assert "io_uring allowed" in text
    status, text = run(*COMMAND, "info", "--json", AIOZC_BACKEND="epoll")
    assert status == 1
    assert json.loads(text)["backend"] == ""


def test_without_a_command_it_says_how_it_is_used() -> None:
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m aiozc ")
