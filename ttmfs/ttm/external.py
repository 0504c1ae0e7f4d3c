"""ExternalTT: the pages of a BO whose memory is somebody else's (the sg type, an imported dma-buf).

It has no pages of the device and no page vector: every page counts as populated, none has a number. The bytes are had
by `read` and `write`, which go to the exporter, as its own mmap and its vmap do in the kernel. Such a BO is never
moved, evicted, backed up, swapped out or resized, so nothing else asks where its pages are. Its READs and WRITEs wait
for the exporter and for nothing of the BO.
"""

import errno

import numpy as np
from numpy.typing import NDArray

from ttmfs.errors import TtmError
from ttmfs.memory.pool import PagePool
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.page_vector import Vector
from ttmfs.ttm.request import Request
from ttmfs.ttm.tt import TT


class ExternalTT(TT):
    """`num_pages` pages of an exporter. What a kind of exporter does is its subclass's."""

    __slots__ = ("mappable",)

    def __init__(self, pool: PagePool, num_pages: int, *, mappable: bool) -> None:
        # Nothing is proportional to a size that is only somebody's word.
        super().__init__(pool, 0)
        self.num_pages = self.populated_pages = num_pages
        self.external = True
        self.mappable = mappable
        """May the CPU touch it?"""

    async def read(self, offset: int, size: int) -> bytes | bytearray:
        """Exactly `size` bytes, all within the BO. Bounded in time. TtmError(EIO), or what the exporter says."""
        raise NotImplementedError

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """All of `data`, within the BO. Bounded in time. TtmError(EIO), or what the exporter says."""
        raise NotImplementedError

    async def check_whole(self) -> None:
        """TtmError(EIO) when the exporter has not all of it any more."""
        raise NotImplementedError

    def check_mappable(self, name: str) -> None:
        """TtmError(EIO) when the CPU may not touch it, that says what to do instead; `name` is the BO's."""
        if not self.mappable:
            raise TtmError(errno.EIO, f"{name!r} is imported and not mappable: use the exporter's own file")

    def has_memory(self, index: int, count: int) -> bool:
        """The exporter's word."""
        del index, count
        return True

    def extent(self, index: int, count: int) -> tuple[int, int]:
        """No page of it has a number."""
        del index
        return -1, count

    def numbers(self, index: int, count: int) -> Vector:
        """Nobody may ask."""
        raise AssertionError(f"pages {index}+{count} of imported memory have no numbers")

    def letters(self, first: int, count: int) -> NDArray[np.uint8]:
        """All of it is in somebody's memory."""
        del first
        return np.full(count, ord("s"), np.uint8)

    def page_orders(self) -> dict[int, int]:
        """The exporter's business."""
        return {}

    def runs(self) -> int:
        """As far as the device knows."""
        return 1


async def read_external(bo: BufferObject, offset: int, size: int, request: Request) -> bytes | bytearray:
    """Serve a READ of an imported BO. TtmError: EIO, ESHUTDOWN."""
    del request
    size = max(0, min(size, bo.size - offset))
    if bo.device.unplugged:
        return bytes(size)
    return await _exporter(bo).read(offset, size)


async def write_external(bo: BufferObject, offset: int, data: bytes, request: Request) -> None:
    """Serve a WRITE of an imported BO, within it. TtmError: EIO, or what the exporter says; ESHUTDOWN."""
    del request
    await _exporter(bo).write(offset, data)


def _exporter(bo: BufferObject) -> ExternalTT:
    """TtmError(EIO) when the CPU may not touch it, ESHUTDOWN."""
    if bo.device.closing:
        raise TtmError(errno.ESHUTDOWN, f"access to {bo.name!r}: the mount is being taken down")
    assert isinstance(bo.tt, ExternalTT)
    bo.tt.check_mappable(bo.name)
    return bo.tt
