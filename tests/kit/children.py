"""Forks of this process that run one function."""

import faulthandler
import os
import traceback
import warnings
from collections.abc import Callable


class Child:
    """A fork of this process that runs one function, and tells how it ended."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._report, writing = os.pipe()
        with warnings.catch_warnings():
            # The far end's thread makes this a fork of several threads; the child uses
            # nothing that the thread may have locked.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            self._become(function, writing)
        os.close(writing)

    def _become(self, function: Callable[[], object], writing: int) -> None:
        status = 1
        try:
            faulthandler.dump_traceback_later(60, exit=True)
            function()
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-4096:])
        finally:
            os._exit(status)

    def wait(self) -> None:
        """Wait for its end; raise AssertionError with its traceback if it failed."""
        with open(self._report, "rb") as report:
            told = report.read().decode()
        _, status = os.waitpid(self._pid, 0)
        assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}\n{told}"
