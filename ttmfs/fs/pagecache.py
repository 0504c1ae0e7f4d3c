"""BoPageCache: the core's Unmapper, made of INVAL messages (R6)."""

from typing import Final

from ttmfs.driver.namespace import BoFile
from ttmfs.fs.notify import PageCache
from ttmfs.ttm.bo import BufferObject
from ttmfs.units import PAGE_SHIFT

FLUSH_WORTH_PAGES: Final = 32
"""A BO smaller than this is written back page by page as fast as with a flush through the mount first."""


class BoPageCache:
    """Invalidates BOs of a mount. BOs without a file (ghosts) are cached by nobody."""

    def __init__(self, page_cache: PageCache) -> None:
        self._page_cache = page_cache

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        """See ttmfs.ttm.device.Unmapper. Dirty pages are possible only while somebody has the BO open for writing."""
        file = bo.private
        if not isinstance(file, BoFile):
            return
        flush = file.write_opens > 0 and bo.num_pages >= FLUSH_WORTH_PAGES
        await self._page_cache.invalidate(
            file.ino, first_page << PAGE_SHIFT, num_pages << PAGE_SHIFT, flush=flush
        )
