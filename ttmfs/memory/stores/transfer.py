"""What goes between a store and its user: transfers under way, their errors, and statistics."""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.runs import BoolArray, Int64Array, PageArray, Uint32Array

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a medium without room says: the pages before it are kept. Any other error undoes the whole store."""

FailHook = Callable[[int], int]
"""Called with the number of a page, counted from 0 over the store's life: 0 or False no failure, True an I/O error,
an errno that error."""


class LoadError(TtmError):
    """A page did not come back. `loaded`: pages before it, which are right; those after it are not defined."""

    def __init__(self, code: int, message: str, loaded: int) -> None:
        super().__init__(code, message)
        self.loaded = loaded


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """What `swap/` and `stats` show. `size`, `used` in stored bytes; `pages` are in the store now; `ratio` is the
    bytes of those pages by the stored bytes (1.0 for an empty store); `pages_out` and `pages_in` went through it
    since it was made; `waste` are bytes of the medium that no page uses and that are not given back yet, and
    `on_disk` those stored bytes that are on a disk."""

    store: str
    size: int
    used: int
    pages: int
    ratio: float
    pages_out: int
    pages_in: int
    waste: int
    on_disk: int


@dataclass(slots=True)
class StoreTransfer:
    """One store on its way: the reserved slots, and how many pages (a prefix) the middle part has written.

    `gives`: the caller has no use for the pages afterwards, so that their memory may go to the store as it is.
    `unchanged`, bool per page: whether it is still what was written; the others are not stored.
    """

    slots: Uint32Array
    checksums: Uint32Array
    fail_at: int = -1
    fail_errno: int = 0
    written: int = 0
    error: Exception | None = None
    gives: bool = False
    unchanged: BoolArray | None = None
    payload: list[Any] = field(default_factory=list)
    ended: bool = False


@dataclass(slots=True)
class LoadTransfer:
    """One load on its way: where the pages are, and how many (a prefix) have come back right.

    `takes`: what comes back is dropped from the store next, so that its memory may go to the arena as it is.
    """

    slots: Int64Array
    fail_at: int = -1
    fail_errno: int = 0
    loaded: int = 0
    error: Exception | None = None
    takes: bool = False
    payload: Any = None
    ended: bool = False


def check_pages(arena: Arena, pages: PageArray) -> None:
    """Raise TtmError(EINVAL) when a page is not in the arena."""
    if len(pages) and (int(pages.max()) >= arena.num_pages or int(pages.min()) < 0):
        raise TtmError(errno.EINVAL, f"a page is not in {arena.name!r}, which has {arena.num_pages}")
