"""Shown: what others have been shown of an inode, and that it is something else now.

Who caches attributes (the kernel, 300 s) is told when they change by other ways than its own requests: a job wrote, a
move gave memory to holes, a purge dropped content. The file notices, whoever caches them is told behind AttributeCache.
"""

from typing import Final, Protocol

NOT_SHOWN: Final = -1


class AttributeCache(Protocol):
    """Who caches attributes of inodes."""

    def changed(self, ino: int) -> None:
        """What was shown of `ino` is not true any more. Returns at once, never raises."""

    async def settle(self) -> None:
        """Until nobody shows what was reported as changed before this call."""


class NoAttributeCache:
    """Nobody caches anything: the core without a mount."""

    def changed(self, ino: int) -> None:
        """Nobody to tell."""

    async def settle(self) -> None:
        """Nothing to wait for."""


NO_ATTRIBUTE_CACHE: Final = NoAttributeCache()
