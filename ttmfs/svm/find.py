"""Find: the range around a page of an address space, made where there is none (drm_gpusvm_range_find_or_insert)."""

import errno
from typing import TYPE_CHECKING

from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.svm.pages import CHUNK_PAGES
from ttmfs.svm.ranges import CHECK_PAGES_THRESHOLD, Range
from ttmfs.units import PAGE_SHIFT

if TYPE_CHECKING:
    from ttmfs.svm.space import AddressSpace


def find_or_insert(space: "AddressSpace", page: int, *, write: bool) -> Range:
    """drm_gpusvm_range_find_or_insert. TtmError: EFAULT outside, ENOENT unmapped, EPERM a write to a ro mapping."""
    address = page << PAGE_SHIFT
    if page >= space.num_pages:
        raise TtmError(errno.EFAULT, f"{address:#x} is outside the address space {space.name}")
    first, end, mode = space.mapping.interval(page, space.num_pages)
    if mode == "none":
        raise TtmError(errno.ENOENT, f"{address:#x} is not mapped in {space.name}")
    if write and mode == "ro":
        raise TtmError(errno.EPERM, f"{address:#x} is mapped read-only in {space.name}")
    found = space.table.find(page)
    if found is None:
        low, high, _advice = space.advice.interval(page, space.num_pages)
        check = CHECK_PAGES_THRESHOLD if space.svm.has_vram else 0
        held, sizes = space.held(page // CHUNK_PAGES), space.svm.policy.sizes
        found = space.table.insert(page, max(first, low), min(end, high), held, sizes=sizes, check=check)
        points.svm_range(space.vdev.ttm.trace, space, first=found.first, pages=found.num_pages)
    return found
