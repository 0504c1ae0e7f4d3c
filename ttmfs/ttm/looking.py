"""Looking: a READ of a hole takes no memory while nobody can store into what it hands out.

Clients keep what a READ was answered with, and a page that they may store into must have memory, or the WRITE that
brings the store could fail (rule R4). While a file is open for writing nowhere, they cannot: a hole is answered with
zeros and stays a hole, and a BO that was never placed stays so. A mapping holds its file open, so it counts.

The first who opens it for writing after that counts at once, so that READs give memory from then on; then the zeros are
dropped from the caches; only then is the open answered. So is every other one that comes meanwhile.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol


class Looked(Protocol):
    """A BO or an address space."""

    looks_only: bool
    """Nobody has it open for writing."""
    looked: bool
    """Zeros without memory were handed out, and perhaps are cached still."""


async def before_stores(of: Looked, drop: Callable[[], Awaitable[object]]) -> None:
    """Somebody opens it for writing, who counts until `after_stores`. `drop` makes every cache give up its pages."""
    of.looks_only = False
    while of.looked:
        # Not before: another one that opens it must wait for that too.
        await drop()
        of.looked = False


def after_stores(of: Looked) -> None:
    """The last who had it open for writing is gone, mappings included."""
    of.looks_only = True
