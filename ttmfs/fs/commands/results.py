"""KeptResults: results of commands, and texts, that wait in open files to be read, and how much of them is kept.

A program may leave any number of files open, each with megabytes (`read` of an address space; the trace). Of what one
user has not closed the latest bytes are kept; who comes too late for something older is told so.
"""

from typing import Final, Protocol

LIMIT: Final = 16 << 20
"""Bytes of results that are kept for one user."""

TEXTS_LIMIT: Final = 64 << 20
"""Bytes of texts."""


class Keeper(Protocol):
    """An open file."""

    def give_up(self) -> None:
        """What it has is kept no longer."""


class _User:
    """`kept`: open files with a result and its size, the one written longest ago first. `total`: of all of them."""

    __slots__ = ("kept", "total")

    def __init__(self) -> None:
        self.kept: dict[Keeper, int] = {}
        self.total = 0

    def drop(self, keeper: Keeper) -> None:
        self.total -= self.kept.pop(keeper, 0)


class KeptResults:
    """What all open files of a kind hold: at most `limit` bytes for a user."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._users: dict[int, _User] = {}

    def keep(self, uid: int, keeper: Keeper, size: int) -> None:
        """`keeper` has something new of `size` bytes; what is older of its user's makes room."""
        user = self._users.setdefault(uid, _User())
        user.drop(keeper)
        user.kept[keeper] = size
        user.total += size
        while user.total > self._limit and len(user.kept) > 1:
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
