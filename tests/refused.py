"""Run pytest where the kernel refuses io_uring: `python -m tests.refused [pytest's arguments]`."""

import os
import sys

from tests.kit.faults.seccomp import refuse_io_uring

if __name__ == "__main__":
    refuse_io_uring()
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])
