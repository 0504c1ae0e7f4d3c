"""The Unmappers of BOs and of address spaces (see ttmfs.ttm.funcs), made of INVAL messages (R6, R10)."""

from typing import Final

from ttmfs.driver.namespace import BoFile
from ttmfs.fs.kernel.inval import PageCache
from ttmfs.svm.names import SpaceFile
from ttmfs.svm.space import AddressSpace
from ttmfs.ttm.bo import BufferObject
from ttmfs.units import PAGE_SHIFT

FLUSH_WORTH_PAGES: Final = 32
"""A BO or range smaller than this is written back page by page as fast as with a flush through the mount first."""


class BoPageCache:
    """Invalidates BOs of a mount. BOs without a file (ghosts) are cached by nobody."""

    def __init__(self, page_cache: PageCache) -> None:
        self._page_cache = page_cache

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        """Dirty pages are possible only while somebody has the BO open for writing."""
        file = bo.private
        if not isinstance(file, BoFile):
            return
        # Looking up the alias may drop the whole file (its mtime has moved), and then waits for requests of any page.
        # Those of pages that are not unmapped are not woken, and may wait for this very INVAL.
        whole = not first_page and not num_pages
        flush = whole and file.write_opens > 0 and bo.num_pages >= FLUSH_WORTH_PAGES
        await self._page_cache.invalidate(
            file.ino, first_page << PAGE_SHIFT, num_pages << PAGE_SHIFT, flush=flush
        )


class SpacePageCache:
    """Invalidates parts of svm files, also of those that are unlinked but still open or mapped."""

    def __init__(self, page_cache: PageCache) -> None:
        self._page_cache = page_cache

    async def invalidate(self, space: AddressSpace, first_page: int, num_pages: int) -> None:
        """See ttmfs.ttm.funcs.Unmapper. Other parts of the file stay cached."""
        file = space.private
        if not isinstance(file, SpaceFile):
            return
        # Never through the alias: see above, and other ranges would lose what is cached of them.
        await self._page_cache.invalidate(file.ino, first_page << PAGE_SHIFT, num_pages << PAGE_SHIFT, flush=False)
