"""The texts of regions/NAME/ that are as long as its BOs or pages are many: made a few lines at a time.

Others run meanwhile, so they show no single moment: each line was so when it was made.
"""

from typing import Final

from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.namespace import Namespace
from ttmfs.driver.region_map import region_map, rows
from ttmfs.fs.commands.quoting import cell, escape
from ttmfs.svm.spaces import Svm
from ttmfs.svm.tables import owned_pages
from ttmfs.sync.breather import Breather
from ttmfs.sync.fence import Fence
from ttmfs.ttm.lru import LruItem
from ttmfs.ttm.lru_cursor import LruCursor, newer
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.units import PAGE_SIZE

FENCES_HEAD: Final = "fence\twhat\twaits_for\n"
_ROWS_AT_A_TIME: Final = 1024


async def lru_text(manager: ResourceManager) -> bytes:
    """The LRU, first victim first: priority, BO, bytes. Each BO has one line; those used meanwhile come last."""
    lines: dict[Resource, str] = {}
    breather = Breather()
    begun = manager.lru.stamp

    async def add(item: LruItem) -> None:
        assert isinstance(item, Resource)
        lines.pop(item, None)
        lines[item] = f"{item.bo.priority}\t{escape(item.bo.name) or '-'}\t{item.num_pages * PAGE_SIZE}\n"
        await breather.step()

    with LruCursor(manager.lru, until_now=True) as cursor:
        while (item := cursor.next()) is not None:
            await add(item)
    for item in sorted(newer(manager.lru, begun), key=_turn):
        if item.on_lru:
            await add(item)
    return ("priority\tbo\tbytes\n" + "".join(lines.values())).encode()


def _turn(item: LruItem) -> tuple[int, int]:
    return item.bo.priority, item._lru_stamp


async def map_text(vdev: VirtualDevice, names: Namespace, svm: Svm, manager: ResourceManager) -> bytes:
    """Whose the pages are: first page, pages, order, BO; see ttmfs.driver.region_map."""
    found = await region_map(vdev, names, manager, owned_pages(svm))
    labels = [label if index < 2 else escape(label) for index, label in enumerate(found.labels)]
    breather = Breather()
    parts = ["first\tpages\torder\tbo\n"]
    for begin in range(0, len(found.first), _ROWS_AT_A_TIME):
        parts += rows(found, begin, begin + _ROWS_AT_A_TIME, labels)
        await breather.step()
    return "".join(parts).encode()


def eviction_fences_text(manager: ResourceManager) -> str:
    """Copies out of a region that every new owner of its space waits for."""
    return FENCES_HEAD + "".join(map(fence_line, manager.eviction_fences))


def fence_line(fence: Fence) -> str:
    """The line of a fence below FENCES_HEAD; none of one that has signaled."""
    if fence.signaled:
        return ""
    return f"{fence.name}\t{cell(fence.what)}\t{' '.join(dep.name for dep in fence.deps) or '-'}\n"
