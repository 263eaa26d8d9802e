"""The interpreter's own tests of `sendfile` and `sock_sendfile`, on loops with aiozc.

They are those of `test/test_asyncio/test_sendfile.py`, with the loop made by aiozc; on uvloop
as well, which has neither method by itself. No test is left out: the three that put a hook of
asyncio's in the place of `loop._sendfile_native` find it on both, since it is installed there.
"""

import asyncio
import importlib
import os
import tempfile
from typing import Any

import uvloop

import aiozc

try:
    cpython: Any = importlib.import_module("test.test_asyncio.test_sendfile")
    utils: Any = importlib.import_module("test.test_asyncio.utils")
except ImportError as error:
    raise ImportError(
        "the interpreter's own tests are needed: its package `test`, which some distributions "
        "keep in a package of its own (libpython3-testsuite, python3-test)"
    ) from error


class Installed(cpython.SendfileTestsBase):  # type: ignore[misc]
    """The tests, with what they need around a loop that is not asyncio's as well."""

    @classmethod
    def setUpClass(cls) -> None:
        """Make the test's file in a folder that is gone afterwards."""
        before = os.getcwd()
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        os.chdir(folder)
        cls.addClassCleanup(os.chdir, before)
        super().setUpClass()

    @staticmethod
    def close_loop(loop: asyncio.AbstractEventLoop) -> None:
        """End the loop and its executor; of asyncio's alone the attributes are known."""
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


class TestOnAsyncio(Installed, utils.TestCase):  # type: ignore[misc]
    """All of them on asyncio's loop."""

    def create_event_loop(self) -> asyncio.AbstractEventLoop:
        """Make a loop."""
        return aiozc.new_event_loop()


class TestOnUvloop(Installed, utils.TestCase):  # type: ignore[misc]
    """All of them on uvloop's."""

    def create_event_loop(self) -> asyncio.AbstractEventLoop:
        """Make a loop."""
        return aiozc.new_event_loop(uvloop.new_event_loop)
