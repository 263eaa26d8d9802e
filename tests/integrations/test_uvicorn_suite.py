"""uvicorn's own tests of its HTTP protocols, with these in their place.

They are in the source distribution of the version installed, which pip brings once; pytest's cache
keeps it.
"""

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

import aiozc

SUBSTITUTE = """
from uvicorn.protocols.http import h11_impl, httptools_impl

from aiozc.integrations.uvicorn import H11Protocol, HttpToolsProtocol

made = []

def note(protocol):
    begin = protocol.__init__
    def noted(self, *arguments, **options):
        made.append(protocol)
        begin(self, *arguments, **options)
    protocol.__init__ = noted

for protocol in (H11Protocol, HttpToolsProtocol):
    note(protocol)
h11_impl.H11Protocol = H11Protocol
httptools_impl.HttpToolsProtocol = HttpToolsProtocol

def pytest_terminal_summary(terminalreporter):
    for protocol in (H11Protocol, HttpToolsProtocol):
        terminalreporter.write_line(f"{made.count(protocol)} of {protocol.__module__}")
"""


@pytest.fixture
def suite(request: pytest.FixtureRequest) -> Path:
    """Return a folder with the tests of the uvicorn that is installed, and not another."""
    name = f"uvicorn-{version('uvicorn')}"
    cache: pytest.Cache = request.config.cache
    folder = cache.mkdir("sources")
    if not (folder / name / "tests").exists():
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "uvicorn"]
        requirement = f"uvicorn=={version('uvicorn')}"
        subprocess.run(
            [sys.executable, *command, "--dest", str(folder), requirement], check=True, timeout=100
        )
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            wanted = (f"{name}/tests/", f"{name}/pyproject.toml")
            members = [member for member in archive if member.name.startswith(wanted)]
            archive.extractall(folder, members, filter="data")
    return folder / name


def test_uvicorns_own_tests_pass(suite: Path, tmp_path: Path) -> None:
    (tmp_path / "substitute.py").write_text(SUBSTITUTE)
    root = Path(aiozc.__file__).parent.parent
    environment = os.environ | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}",
    }
    options = "-o addopts= -p anyio -p substitute -p no:cacheprovider tests/protocols/test_http.py"
    # anyio's plugin imports what pytest has renamed.
    options += " -W ignore:_pytest.python.CallSpec2"
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", *options.split()],
        cwd=suite,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout
    passed = re.search(r"(\d+) passed", outcome.stdout)
    assert passed is not None
    assert int(passed[1]) > 100
    made = re.findall(r"(\d+) of aiozc.integrations.uvicorn", outcome.stdout)
    assert [int(count) > 50 for count in made] == [True, True]
