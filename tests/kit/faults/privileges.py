"""A process without the privileges that root has."""

import os

NOBODY = 65534
FIRST, USERS = 20_000, 40_000  # numbers that belong to no user


def drop_privileges() -> None:
    """Become a user like nobody, if this is root, and one whom no other test is.

    What a user may lock, and hold in pipes, is counted for all processes of theirs.
    """
    if os.geteuid() == 0:
        user = FIRST + os.getpid() % USERS
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(user, user, user)
