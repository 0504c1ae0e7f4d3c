"""Snapshot: what each page of a BO or an address space is, one letter a page and a newline at the end.

Made when and where it is read, so that a large sparse file costs nothing before. Of a BO that moves or grows meanwhile
each READ shows its own moment; one READ has up to a million pages.
"""

import errno
from typing import Final, Protocol

from ttmfs.errors import TtmError
from ttmfs.units import pages_of

_MOST: Final = 1 << 20
"""Letters for one READ."""


class Paged(Protocol):
    """What can say so of its pages. `size` is bytes."""

    @property
    def size(self) -> int: ...
    def snapshot(self, first: int, count: int) -> bytes: ...


class SnapshotHandle:
    """An open `snapshot`."""

    def __init__(self, of: Paged) -> None:
        self._of = of

    @property
    def size(self) -> int:
        """See Handle."""
        return pages_of(self._of.size) + 1

    def told(self) -> None:
        """It is read where it is: nobody is given an older one."""

    async def take(self) -> None:
        """Nothing is made before it is read."""

    async def read(self, offset: int, size: int) -> bytes:
        """Part of it, as it is now."""
        pages = pages_of(self._of.size)
        count = max(0, min(size, pages - offset, _MOST))
        letters = self._of.snapshot(offset, count) if count else b""
        return letters + b"\n" if offset <= pages == offset + count and count < size else letters

    async def write(self, offset: int, data: bytes) -> int:
        """TtmError(EACCES)."""
        raise TtmError(errno.EACCES, "this file is read-only")
