"""Where the next bytes of a file go, decided in one place.

A chain costs a trip through io-wq for each step and one through the loop, 150 to 200 us in all and
two to three times the CPU time of a system call, whatever its length: it pays where much is left
for a peer that keeps up, and for what is not cached at any length. All else goes in the loop's
thread, by one sendfile(2) for as much as the socket takes, as `loop.sock_sendfile` does it.
"""

import enum

SHARE = 2 << 20
"""Bytes that one call may send in the loop's thread: about 0.2 ms of it."""
OFFER = 64 << 10
"""Bytes offered beyond the room that a send buffer says it has: it takes a little more.

Whether they are cached is asked for all that are offered, at 10 us a MiB (K16), or at 80 where the
file is of somebody else: 500 slow peers cost a half more where twice what each took last was.
"""
CHAINS_PAY = 8 << 20
"""Bytes left, above which a chain halves the loop's CPU time, for about the same time in all.

How many times better than `loop.sock_sendfile`, to one peer that reads, in time, the loop's CPU
time and the process's: 4 MiB by chains 0.7, 1.3 and 0.6, without 0.9, 0.8 and 0.8; 16 MiB by chains
0.8, 2.4 and 0.8, without 1.0, 0.9 and 0.9.
"""
KEEPS_UP = 8 << 20
"""Bytes taken in a row that make a peer a fast one: more than most buffers have room for.

(tcp_wmem is 4 MiB at the most, tcp_rmem 6 MiB on most systems and 32 MiB on some.)
"""
CHAINS = 4
"""Chains of cached files at a time: more of them only wait for the workers' CPU time."""


class Peer(enum.Enum):
    """What is known of who receives."""

    NEW = "was offered nothing yet"
    SLOW = "had no room left when it was offered something last"
    FAST = "took all that it was offered, more than its buffers hold"


class Way(enum.Enum):
    """Where bytes go."""

    INLINE = "the loop's thread"
    CHAIN = "the workers"


def next_way(left: int, cached: bool, peer: Peer, crowded: bool) -> Way:
    """Return where the next bytes go, `left` being there to send.

    `cached`: nothing says that they are not. `crowded`: as many chains as pay are under way.
    """
    if not cached:
        return Way.CHAIN
    pays = left > CHAINS_PAY and peer is not Peer.SLOW and not crowded
    return Way.CHAIN if pays else Way.INLINE
