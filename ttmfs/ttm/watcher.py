"""Watcher: the file of a BO or an address space, which shows others when its content was changed.

What clients change they know by themselves; it hears of the rest.
"""

from typing import Protocol


class Watcher(Protocol):
    """Who shows others when content was changed."""

    def content_changed(self) -> None:
        """Somebody else than a client has changed it, or dropped it."""

    async def settle(self) -> None:
        """Until nobody shows what was before."""
