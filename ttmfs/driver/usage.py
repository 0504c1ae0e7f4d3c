"""Usage: what a client has in each region, as drm fdinfo counts it (drm-usage-stats).

`total` is what the region's manager counts: over all clients it adds up to the manager's usage, at every moment. The
others are parts of what is really there: `resident` has memory (a BO in system may be a hole, and one in vram may have
its tail in system), `shared` is open more than once or imported, `active` has unsignaled fences, `purgeable` may be
dropped and is not active. All in bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ttmfs.driver.clients import Client
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.namespace import BoFile, Namespace
from ttmfs.sync.breather import Breather
from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.placement import SYSTEM
from ttmfs.ttm.resource import Resource
from ttmfs.units import PAGE_SHIFT


@dataclass(slots=True)
class RegionUsage:
    """Bytes of one client in one region."""

    total: int = 0
    shared: int = 0
    resident: int = 0
    purgeable: int = 0
    active: int = 0


Usages = dict[str, RegionUsage]
_InFlight = Mapping[int, list[Resource]]


def in_flight(vdev: VirtualDevice) -> dict[int, list[Resource]]:
    """Resources allocated for moves under way, by id() of their BO: accounted, but not the BO's yet."""
    found: dict[int, list[Resource]] = {}
    for manager in vdev.ttm.managers.values():
        for resource in manager.unassigned:
            found.setdefault(id(resource.bo), []).append(resource)
    return found


def add_bo(usages: Usages, bo: BufferObject, moving: _InFlight) -> None:
    """Account one BO."""
    resource = bo.resource
    for held in (*((resource,) if resource is not None else ()), *moving.get(id(bo), ())):
        usages[held.mem_type].total += held.num_pages << PAGE_SHIFT
    file = bo.private
    shared = bo.external or (isinstance(file, BoFile) and file.opens > 1)
    active = not bo.resv.test_signaled(Usage.BOOKKEEP)
    for region, pages in _resident(bo):
        usage, size = usages[region], pages << PAGE_SHIFT
        usage.resident += size
        usage.shared += size if shared else 0
        usage.active += size if active else 0
        usage.purgeable += size if bo.purgeable and not active else 0


def _resident(bo: BufferObject) -> list[tuple[str, int]]:
    in_tt = sum(tt.populated_pages for tt in bo.tts)
    if bo.resource is not None and not bo.resource.manager.use_tt:
        return [(bo.mem_type, bo.own_pages), (SYSTEM, in_tt)]
    return [(bo.mem_type, in_tt)]


def is_clients(names: Namespace, bo: BufferObject) -> bool:
    """Does the BO have a file, and so a client that is not the kernel?"""
    file = bo.private
    return isinstance(file, BoFile) and names.files.get(file.ino) is file


async def kernel_bos(vdev: VirtualDevice, names: Namespace) -> list[BufferObject]:
    """BOs without a file that have space somewhere: ghosts, zombies, parts of address spaces; each once."""
    breather = Breather()
    found: dict[int, BufferObject] = {}
    for manager in vdev.ttm.managers.values():
        with LruCursor(manager.lru, until_now=True) as cursor:
            while (item := cursor.next()) is not None:
                if not is_clients(names, item.bo):
                    found[id(item.bo)] = item.bo
                await breather.step()
    others = [item.bo for item in vdev.ttm.unevictable]
    others += [resource.bo for manager in vdev.ttm.managers.values() for resource in manager.unassigned]
    for bo in others:
        if not is_clients(names, bo):
            found[id(bo)] = bo
        await breather.step()
    return [bo for bo in found.values() if bo.resource is not None or bo.tt is not None]


async def bos_of(vdev: VirtualDevice, names: Namespace, client: Client) -> list[BufferObject]:
    """The BOs of a client now."""
    if client is names.clients.kernel:
        return await kernel_bos(vdev, names)
    return [file.bo for file in client.files.values()]


async def usage_of_open(vdev: VirtualDevice, client: Client) -> Usages:
    """The same of the BOs that the client has open, whoever made them."""
    return await _usage_of(vdev, [file.bo for file in client.opens])


async def usage_of(vdev: VirtualDevice, names: Namespace, client: Client) -> Usages:
    """Every region of the device, and what the client has there; lets others run every millisecond."""
    return await _usage_of(vdev, await bos_of(vdev, names, client))


async def _usage_of(vdev: VirtualDevice, bos: list[BufferObject]) -> Usages:
    usages = {name: RegionUsage() for name in vdev.ttm.managers}
    breather = Breather()
    moving = in_flight(vdev)
    for bo in bos:
        add_bo(usages, bo, moving)
        await breather.step()
    return usages
