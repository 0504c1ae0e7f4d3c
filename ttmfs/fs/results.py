"""KeptResults: the results of commands that wait in open files to be read, and how much of them is kept.

A program may leave any number of files open, each with a result of megabytes (`read` of an address space). Of one
user's results the latest LIMIT bytes are kept; who comes too late for an older one is told so.
"""

from typing import Final, Protocol

LIMIT: Final = 16 << 20
"""Bytes of results that are kept for one user."""


class Keeper(Protocol):
    """An open command file."""

    def give_up(self) -> None:
        """Its result is kept no longer."""


class _User:
    """`kept`: open files with a result and its size, the one written longest ago first. `total`: of all of them."""

    __slots__ = ("kept", "total")

    def __init__(self) -> None:
        self.kept: dict[Keeper, int] = {}
        self.total = 0

    def drop(self, keeper: Keeper) -> None:
        self.total -= self.kept.pop(keeper, 0)


class KeptResults:
    """What all open command files of a mount hold."""

    def __init__(self) -> None:
        self._users: dict[int, _User] = {}

    def keep(self, uid: int, keeper: Keeper, size: int) -> None:
        """`keeper` has a new result of `size` bytes; older ones of its user make room."""
        user = self._users.setdefault(uid, _User())
        user.drop(keeper)
        user.kept[keeper] = size
        user.total += size
        while user.total > LIMIT and len(user.kept) > 1:
            oldest = next(iter(user.kept))
            user.drop(oldest)
            oldest.give_up()

    def drop(self, uid: int, keeper: Keeper) -> None:
        """`keeper` was closed, or is written anew."""
        user = self._users.get(uid)
        if user is not None:
            user.drop(keeper)
            if not user.kept:
                del self._users[uid]
