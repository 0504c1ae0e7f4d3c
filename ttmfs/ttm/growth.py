"""Growth: a WRITE beyond the end of a file moves the end for good only when its bytes are in place (i_size_write).

While such WRITEs are under way the file is already as long as the longest of them, so that there is something to put
the bytes into. One that fails takes its part of that back: the file ends where it did, or where the others end.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Growth:
    """The WRITEs that are making one file longer. All numbers are bytes."""

    __slots__ = ("ends", "settled")

    def __init__(self, settled: int) -> None:
        self.settled = settled
        """The size without any of them: what was written or truncated last, and not only begun."""
        self.ends: list[int] = []
        """Where each of them ends."""


class Growable(Protocol):
    """A file with bytes: a BO or an address space. `growth` is None while no WRITE makes it longer."""

    size: int
    growth: Growth | None


def settled_size(file: Growable) -> int:
    """The size as clients may see it: a WRITE that may still fail does not count."""
    return file.size if file.growth is None else file.growth.settled


@contextmanager
def growing(file: Growable, end: int, resize: Callable[[int], None]) -> Iterator[None]:
    """Around a WRITE that ends at byte `end`, beyond the end of `file`; `resize` sets its size.

    Raises what `resize` raises (EFBIG, say), before anything has changed. If the block raises, the file is as long as
    without this WRITE.
    """
    growth = file.growth
    if growth is None:
        growth = file.growth = Growth(file.size)
    growth.ends.append(end)
    try:
        resize(max(end, file.size))
        yield
        growth.settled = max(growth.settled, end)
    finally:
        growth.ends.remove(end)
        if not growth.ends:
            file.growth = None
        size = max([growth.settled, *growth.ends])
        if size < file.size:
            resize(size)
