"""Zero-copy transfers for asyncio and uvloop, on io_uring."""

import sys
from typing import TYPE_CHECKING

from aiozc._capabilities import Advice, Capabilities, Part
from aiozc._errors import RingUnavailableError
from aiozc._version import __version__

if TYPE_CHECKING or sys.platform == "linux":
    from aiozc import lowlevel, streams
    from aiozc._api.relay import relay
    from aiozc._api.sendfile import loop_sendfile
    from aiozc._api.splice import loop_recvfile, splice_pipe
    from aiozc._api.zerocopy import ZeroCopySend, sendfile_zc
    from aiozc._engines.reactor import Reactor, Statistics, backend, get_reactor
    from aiozc._install.loops import install, new_event_loop, run, uninstall
    from aiozc._kernel.features import probe
else:
    from aiozc._elsewhere import (
        Reactor,
        Statistics,
        ZeroCopySend,
        backend,
        get_reactor,
        install,
        loop_recvfile,
        loop_sendfile,
        lowlevel,
        new_event_loop,
        probe,
        relay,
        run,
        sendfile_zc,
        splice_pipe,
        streams,
        uninstall,
    )

__all__ = [
    "Advice",
    "Capabilities",
    "Part",
    "Reactor",
    "RingUnavailableError",
    "Statistics",
    "ZeroCopySend",
    "__version__",
    "backend",
    "get_reactor",
    "install",
    "loop_recvfile",
    "loop_sendfile",
    "lowlevel",
    "new_event_loop",
    "probe",
    "relay",
    "run",
    "sendfile_zc",
    "splice_pipe",
    "streams",
    "uninstall",
]
