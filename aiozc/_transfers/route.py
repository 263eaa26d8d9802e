"""Where the next bytes of a file go, decided in one place.

A chain costs a trip through io-wq for each step and one through the loop, 150 to 200 us in all and
two to three times the CPU time of a system call, whatever its length: it pays where much is left
for a peer that keeps up, and for what is not cached at any length. All else goes in the loop's
thread, by one sendfile(2) for as much as the socket takes, as `loop.sock_sendfile` does it.
"""

import enum

SHARE = 2 << 20
"""Bytes that one call may send in the loop's thread: about 0.2 ms of it."""
OFFER = 256 << 10
"""Bytes, the least that a call is made for where there are more."""
CHAINS_PAY = 2 << 20
"""Bytes left, above which a chain takes less of the loop's CPU time and no more time in all."""
KEEPS_UP = 4 << 20
"""Bytes taken in a row that make a peer a fast one: more than a send buffer has room for.

(tcp_wmem: 4 MiB at the most, where a wait for room ends when a third is free.)
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


def next_offer(offered: int, taken: int) -> int:
    """Return what to offer a peer next, which took so much of what it was offered last.

    Whether it is cached is asked for all that is offered, at 10 us a MiB (K16): so no more is
    offered than a peer is likely to take.
    """
    return min(max(2 * (offered if taken == offered else taken), OFFER), SHARE)
