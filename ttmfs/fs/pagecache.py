"""The core's Unmapper and the address spaces' SpaceUnmapper, made of INVAL messages (R6, R10)."""

from typing import Final

from ttmfs.driver.namespace import BoFile
from ttmfs.fs.notify import PageCache
from ttmfs.fs.svmnames import SpaceFile
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
        """See ttmfs.ttm.device.Unmapper. Dirty pages are possible only while somebody has the BO open for writing."""
        file = bo.private
        if not isinstance(file, BoFile):
            return
        flush = file.write_opens > 0 and (num_pages or bo.num_pages) >= FLUSH_WORTH_PAGES
        await self._page_cache.invalidate(
            file.ino, first_page << PAGE_SHIFT, num_pages << PAGE_SHIFT, flush=flush
        )


class SpacePageCache:
    """Invalidates parts of svm files, also of those that are unlinked but still open or mapped."""

    def __init__(self, page_cache: PageCache) -> None:
        self._page_cache = page_cache

    async def invalidate(self, space: AddressSpace, first_byte: int, num_bytes: int) -> None:
        """See ttmfs.svm.svm.SpaceUnmapper. Other parts of the file stay cached; nothing is done for no bytes."""
        file = space.private
        if not isinstance(file, SpaceFile) or num_bytes <= 0:
            return
        flush = file.write_opens > 0 and num_bytes >= FLUSH_WORTH_PAGES << PAGE_SHIFT
        await self._page_cache.invalidate(file.ino, first_byte, num_bytes, flush=flush)
