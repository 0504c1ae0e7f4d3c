"""In the way: why a region has no room for a BO, in words that name who is to be unpinned, waited for or made smaller.

Asked after a search for room was in vain. Nothing is awaited, and no more than some thousand BOs are looked at.
"""

from itertools import islice
from typing import Final

from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import Contended, Held
from ttmfs.ttm.dmem import says_over
from ttmfs.ttm.placement import SYSTEM, Placement, format_placement
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.ttm.shared import SharedReservation
from ttmfs.units import PAGE_SIZE, format_size

_MOST_LOOKED_AT: Final = 4096
_MOST_NAMED: Final = 3


def in_the_way(bo: BufferObject, placement: Placement, contended: Contended | None) -> str:
    """A clause for each region of `placement` that is known to this device; "" when there is nothing to say."""
    device = bo.device
    said = []
    for name in dict.fromkeys(place.mem_type for place in placement):
        manager = device.managers.get(name)
        if manager is None or name == SYSTEM:
            continue
        pool = bo.group.live.pools.get(name)
        limit = None if pool is None else pool.over(bo.num_pages * PAGE_SIZE)
        if limit is not None:
            said.append(says_over(limit, bo.num_pages * PAGE_SIZE))
        elif not manager.size:
            said.append(f"this device has no {name}")
        elif bo.num_pages * PAGE_SIZE > manager.size:
            said.append(f"all of {name} is {format_size(manager.size)}")
        elif (narrow := _too_narrow(bo, placement, manager)) is not None:
            said.append(narrow)
        else:
            said.append(_full(bo, manager))
    if isinstance(contended, Held) and isinstance(contended.bo, BufferObject) and contended.bo.name:
        said.append(f"{contended.bo.name!r} is in use by another call")
    return "; ".join(said)


def _too_narrow(bo: BufferObject, placement: Placement, manager: ResourceManager) -> str | None:
    """When every range of the region that may be taken is smaller than the BO: the widest of them."""
    pages = manager.size // PAGE_SIZE
    widths = [
        (min(place.end or pages, pages) - place.first, place) for place in placement if place.mem_type == manager.name
    ]
    widest, where = max(widths, key=lambda found: found[0])
    if widest >= bo.num_pages:
        return None
    return f"all of {format_placement((where,))} is {format_size(max(0, widest) * PAGE_SIZE)}"


def _full(bo: BufferObject, manager: ResourceManager) -> str:
    """What of a region cannot be evicted, else who is still copied out of it, else how much is in use."""
    of = f"of the {format_size(manager.size)} of {manager.name}"
    pinned = _pinned(bo, manager)
    if pinned:
        size = format_size(sum(resource.num_pages for resource in pinned) * PAGE_SIZE)
        return f"{size} {of} is pinned ({_names(pinned)})"
    fences = [fence.name for fence in manager.eviction_fences if not fence.signaled]
    if fences:
        return f"{manager.name} is still copied out of: fence {' '.join(fences[:_MOST_NAMED])}"
    kept = bo.device.dmem.root.pools[manager.name].children_min
    by_min = f", {format_size(kept)} of that is protected by dmem.min" if kept else ""
    return f"{format_size(manager.usage)} {of} is in use{by_min}{_of_its_vm(bo, manager)}"


def _of_its_vm(bo: BufferObject, manager: ResourceManager) -> str:
    """What cannot go for it because it shares its reservation."""
    if not isinstance(bo.resv, SharedReservation):
        return ""
    others = (item for item in islice(manager.lru, _MOST_LOOKED_AT) if item.bo.resv is bo.resv and item.bo is not bo)
    pages = sum(item.num_pages for item in others if isinstance(item, Resource))
    said = "that is BOs local to its VM, which go for it only with allow_res_evict"
    return f", {format_size(pages * PAGE_SIZE)} of {said}" if pages else ""


def _pinned(bo: BufferObject, manager: ResourceManager) -> list[Resource]:
    found = []
    for item in islice(bo.device.unevictable, _MOST_LOOKED_AT):
        if isinstance(item, Resource) and item.manager is manager and item.bo.pin_count:
            found.append(item)
    return found


def _names(resources: list[Resource]) -> str:
    names = [repr(resource.bo.name) for resource in resources[:_MOST_NAMED]]
    more = len(resources) - _MOST_NAMED
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
