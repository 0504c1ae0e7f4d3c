"""The three resource managers: system, range (GTT) and buddy (VRAM).

Contract of `alloc`: TtmError(ENOSPC) means full and worth evicting for; E2BIG and EINVAL can never work. A manager
of size 0 is a region that this device has not: validate skips it.
"""

import errno
from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.buddy import Blocks, Buddy
from ttmfs.memory.range_allocator import Mode, RangeAllocator, RangeNode
from ttmfs.ttm.placement import SYSTEM, Place, PlaceFlag
from ttmfs.ttm.resource import Owner, Resource, ResourceManager, never_fits, no_space
from ttmfs.units import PAGE_SIZE


class SystemManager(ResourceManager):
    """ttm_sys_manager: no addresses and no limit; the pages are the tt's and are limited by the arena."""

    def __init__(self) -> None:
        super().__init__(SYSTEM, 0, use_tt=True)

    def alloc(self, bo: Owner, place: Place) -> Resource:
        """Never fails."""
        return self.account(Resource(self, bo, bo.num_pages, -1, place.flags))

    def free_space(self, resource: Resource) -> None:
        """Nothing is held."""


class RangeManager(ResourceManager):
    """ttm_range_manager: an address range (the GPU's page table); the bytes are in the BO's tt."""

    def __init__(self, name: str, size: int, *, use_tt: bool = True, arena: Arena | None = None) -> None:
        super().__init__(name, size, use_tt=use_tt, arena=arena)
        self.ranges = RangeAllocator(size // PAGE_SIZE)

    def alloc(self, bo: Owner, place: Place) -> Resource:
        """Best fit from low addresses, or from the high end with TOPDOWN. Always contiguous."""
        pages = bo.num_pages
        mode: Mode = "high" if PlaceFlag.TOPDOWN in place.flags else "best"
        node = None
        if pages:
            end = min(place.end, self.num_pages) if place.end else self.num_pages
            if place.first + pages > end:
                raise never_fits(self, pages, place)
            try:
                node = self.ranges.insert(pages, alignment=bo.page_alignment, first=place.first, last=end, mode=mode)
            except TtmError as error:
                raise no_space(self, pages, place) if error.errno == errno.ENOSPC else error from None
        resource = Resource(self, bo, pages, node.start if node else 0, place.flags)
        resource.private = node
        return self.account(resource)

    def free_space(self, resource: Resource) -> None:
        """Remove the node."""
        if resource.private is not None:
            self.ranges.remove(cast(RangeNode, resource.private))
            resource.private = None

    def trim(self, resource: Resource, num_pages: int) -> None:
        """Keep the front of the range."""
        node = cast("RangeNode | None", resource.private)
        if node is not None:
            start = node.start
            self.ranges.remove(node)
            resource.private = self.ranges.reserve_exact(start, num_pages) if num_pages else None
        super().trim(resource, num_pages)

    def intersects(self, resource: Resource, place: Place) -> bool:
        """ttm_range_man_intersects."""
        end = resource.start + resource.num_pages
        return not (place.first >= end or (place.end and place.end <= resource.start))

    def compatible(self, resource: Resource, place: Place) -> bool:
        """ttm_range_man_compatible."""
        end = resource.start + resource.num_pages
        return resource.start >= place.first and (not place.end or end <= place.end)

    def check_steps(self) -> Iterator[None]:
        """The ranges, and that they add up to the usage."""
        yield from super().check_steps()
        for wrong in self.ranges.check_steps():
            assert not wrong, "; ".join(wrong)
            yield
        assert self.ranges.used_pages * PAGE_SIZE == self.usage, (
            f"{self.ranges.used_pages} pages are taken, usage says {self.usage} bytes"
        )

    def debug_lines(self) -> list[str]:
        """drm_mm_print."""
        return self.ranges.dump().splitlines()


class BuddyManager(ResourceManager):
    """xe_ttm_vram_mgr: memory of its own, handed out by a buddy allocator, part of it visible to the CPU."""

    def __init__(self, name: str, size: int, visible_size: int, arena: Arena) -> None:
        super().__init__(name, size, use_tt=False, arena=arena)
        # The arena is fresh.
        self.buddy = Buddy(size // PAGE_SIZE, clear=True)
        self.visible_pages = min(visible_size, size) // PAGE_SIZE
        self.visible_used_pages = 0

    def alloc(self, bo: Owner, place: Place) -> Resource:
        """Blocks within the place. CONTIGUOUS is set whenever the blocks happen to be one run, as xe does."""
        pages = bo.num_pages
        end = min(place.end, self.num_pages) if place.end else self.num_pages
        if pages > max(end - place.first, 0):
            raise never_fits(self, pages, place)
        blocks: Blocks | None = None
        if pages:
            ranged = place.first > 0 or end < self.num_pages
            contiguous = PlaceFlag.CONTIGUOUS in place.flags
            try:
                blocks = self.buddy.alloc(
                    pages,
                    first=place.first if ranged else 0,
                    last=end if ranged else None,
                    contiguous=contiguous,
                    topdown=PlaceFlag.TOPDOWN in place.flags,
                )
            except TtmError as error:
                if error.errno == errno.ENOSPC:
                    raise no_space(self, pages, place) from None
                # One run that is longer than the largest block, within a window: no eviction makes it possible.
                raise never_fits(self, pages, place) from None
        resource = Resource(self, bo, pages, -1, place.flags)
        self._take(resource, blocks)
        return self.account(resource)

    def _take(self, resource: Resource, blocks: Blocks | None) -> None:
        # One block, as most of them are, is its first page and its order: an array would cost as much as the rest.
        resource.private = int(blocks.order[0]) if blocks is not None and len(blocks) == 1 else blocks
        one_run = blocks is None or blocks.contiguous
        resource.scattered = None if blocks is None or one_run else blocks.pages()
        if one_run:
            resource.start = 0 if blocks is None else int(blocks.start[0])
            resource.flags |= PlaceFlag.CONTIGUOUS
        else:
            resource.start = -1
        self.visible_used_pages += self._visible_pages(resource)

    def _blocks(self, resource: Resource) -> Blocks | None:
        kept = resource.private
        if isinstance(kept, int):
            return Blocks(np.array([resource.start], np.int64), np.array([kept], np.uint8), resource.num_pages)
        return cast("Blocks | None", kept)

    def _visible_pages(self, resource: Resource) -> int:
        return resource.pages_between(0, self.visible_pages)

    def free_space(self, resource: Resource) -> None:
        """Blocks go back dirty: the next owner clears what it does not overwrite, unless it was cleared meanwhile."""
        self.visible_used_pages -= self._visible_pages(resource)
        blocks = self._blocks(resource)
        if blocks is not None:
            self.buddy.free(blocks)
            resource.private = None

    def to_clear(self, pages: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Those that were dirty when they were handed out."""
        return pages[self.buddy.dirty_of(pages)]

    def trim(self, resource: Resource, num_pages: int) -> None:
        """Free the blocks behind `num_pages`."""
        self.visible_used_pages -= self._visible_pages(resource)
        blocks = self._blocks(resource)
        if blocks is not None:
            if num_pages:
                blocks = self.buddy.trim_tail(blocks, num_pages)
            else:
                self.buddy.free(blocks)
                blocks = None
        super().trim(resource, num_pages)
        self._take(resource, blocks)

    def intersects(self, resource: Resource, place: Place) -> bool:
        """Does any page of `resource` lie in the place?"""
        if not place.first and not place.end:
            return True
        return resource.pages_between(place.first, place.end or self.num_pages) > 0

    def compatible(self, resource: Resource, place: Place) -> bool:
        """Do all pages of `resource` lie in the place?"""
        if not place.first and not place.end:
            return True
        return resource.pages_between(place.first, place.end or self.num_pages) == resource.num_pages

    def visible(self, resource: Resource) -> bool:
        """All pages within the CPU-visible part?"""
        return self.visible_pages >= self.num_pages or self._visible_pages(resource) == resource.num_pages

    def check_steps(self) -> Iterator[None]:
        """The buddy, and that it adds up to the usage."""
        yield from super().check_steps()
        yield from self.buddy.check_steps()
        taken = (self.num_pages - self.buddy.free_pages) * PAGE_SIZE
        assert taken == self.usage, f"{taken} bytes are taken, usage says {self.usage}"

    def debug_lines(self) -> list[str]:
        """xe_ttm_vram_mgr_debug: page size, visible part, drm_buddy_print."""
        avail = (self.visible_pages - self.visible_used_pages) * PAGE_SIZE >> 20
        head = [
            f"default_page_size: {PAGE_SIZE >> 10}KiB",
            f"visible_avail: {avail}MiB",
            f"visible_size: {self.visible_pages * PAGE_SIZE >> 20}MiB",
        ]
        return [*head, *self.buddy.dump().splitlines()]
