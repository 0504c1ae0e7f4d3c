"""Watcher: the file of a BO or an address space, which shows others when its content was changed.

What clients change they know by themselves; it hears of the rest. Here are also who knows what a BO is called, and who
wants to know what clients write to it.
"""

from typing import Protocol


class Watcher(Protocol):
    """Who shows others when content was changed."""

    def content_changed(self) -> None:
        """Somebody else than a client has changed it, or dropped it."""

    async def settle(self) -> None:
        """Until nobody shows what was before."""


class WriteObserver(Protocol):
    """Who wants to know what clients write. All numbers are pages, `end` is exclusive."""

    def wrote(self, first: int, end: int) -> None:
        """A WRITE changed pages [first, end)."""

    def cut(self, num_pages: int) -> None:
        """A truncate took the pages from `num_pages` on away."""


class Named(Protocol):
    """Whoever knows what a BO is called now."""

    @property
    def path(self) -> str:
        """Its name."""
