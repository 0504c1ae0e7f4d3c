"""ErrorLog: the last failed commands and faults, with why, of everybody who uses the mount.

It has room for a number of lines. When it is full, whoever has most of them loses his oldest one: a user who does
nothing but fail drives out himself. Half of it is the mount's owner's and root's whenever they need it, so that a crowd
of users does not drive out them.
"""

import errno
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final

from ttmfs import clock
from ttmfs.fs.commands.quoting import cell
from ttmfs.observe.asker import asker_name

LINES: Final = 256
OWNERS: Final = 0
"""Whose lines those of root, of who mounted, and of the daemon itself are."""


class ErrorLog:
    """`owners`: user ids whose lines are kept as the owner's."""

    def __init__(self, owners: Collection[int] = ()) -> None:
        self._owners = frozenset(owners)
        self._lines: dict[int, str] = {}
        """By a number that rises: oldest first."""
        self._of_user: dict[int, deque[int]] = {}
        self._numbers = count()

    def add(self, what: str, error: OSError, uid: int = OWNERS) -> None:
        """One line, about something that the user `uid` has asked for."""
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        number = next(self._numbers)
        when = clock.local(clock.wall_ns())
        self._lines[number] = "\t".join(
            (when, name, cell(what), cell(str(error.strerror)), cell(asker_name() or "-"))
        )
        self._of_user.setdefault(OWNERS if uid in self._owners else uid, deque()).append(number)
        if len(self._lines) > LINES:
            self._drop_one()

    def _drop_one(self) -> None:
        def lines_of(uid: int) -> int:
            lines = len(self._of_user[uid])
            return 0 if uid == OWNERS and lines <= LINES // 2 and len(self._of_user) > 1 else lines

        # Of two who have as many, whose oldest line is older.
        most = max(self._of_user, key=lambda uid: (lines_of(uid), -self._of_user[uid][0]))
        del self._lines[self._of_user[most].popleft()]
        if not self._of_user[most]:
            del self._of_user[most]

    @contextmanager
    def watching(self, what: str, uid: int = OWNERS) -> Iterator[None]:
        """Add what fails within, and let it go on."""
        try:
            yield
        except OSError as error:
            self.add(what, error, uid)
            raise

    def text(self) -> str:
        """All lines, oldest first: time, errno, what, why, who had asked (COMM-PID, or -), tab-separated."""
        return "".join(line + "\n" for line in self._lines.values())
