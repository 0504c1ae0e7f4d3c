"""Prefetch of address spaces: ranges that go to VRAM along with one that the device has faulted on.

As with BOs it is worth nothing that others have: a range goes only where VRAM has room for it without an eviction.
"""

from typing import TYPE_CHECKING

from ttmfs.errors import TtmError
from ttmfs.svm.find import find_or_insert
from ttmfs.svm.migrate import FaultTally, alloc_vram, inside_one
from ttmfs.svm.ranges import Range
from ttmfs.ttm.advice import Prefetcher
from ttmfs.units import PAGE_SIZE

if TYPE_CHECKING:
    from ttmfs.svm.space import AddressSpace


async def prefetch(
    space: "AddressSpace", faulted: Range, region: str, prefetcher: Prefetcher, tally: FaultTally
) -> None:
    """What the policy wants around a range that has just migrated to `region`. What fails is left where it is."""
    first, count = prefetcher.around(space.view, faulted.first, faulted.num_pages, "svm")
    page, end = max(first, 0), min(first + count, space.num_pages)
    manager = space.vdev.ttm.managers[region]
    while page < end:
        _first, stop, mode = space.mapping.interval(page, end)
        if mode == "none":
            page = stop
            continue
        try:
            found = find_or_insert(space, page, write=False)
            page = found.end
            if not _wanted(space, found, faulted, region):
                continue
            if manager.size - manager.usage < found.num_pages * PAGE_SIZE:
                return
            found.skip_migrate = space.svm.policy.migrate == "once"
            await alloc_vram(space, found, tally, "prefetch", region)
        except TtmError:
            return


def _wanted(space: "AddressSpace", found: Range, faulted: Range, region: str) -> bool:
    """Could it go, and is it not there?"""
    there = inside_one(space.chunks.get(found.chunk), found.mask) is not None
    elsewhere = space.advice.get(found.first).preferred not in ("fault", region)
    large = found.num_pages >= space.svm.policy.threshold_pages
    return found is not faulted and large and not there and not elsewhere
