"""stats: everything countable as one JSON object."""

from typing import Any

import ttmfs
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.namespace import Namespace
from ttmfs.fs.kernel.inval import PageCache
from ttmfs.fs.tree.device_state import device_state
from ttmfs.fs.tree.stat_keys import SCHEMA
from ttmfs.svm.spaces import Svm
from ttmfs.sync.breather import Breather
from ttmfs.ttm.dmem import Group
from ttmfs.ttm.managers import BuddyManager
from ttmfs.ttm.placement import SYSTEM
from ttmfs.ttm.resource import ResourceManager
from ttmfs.units import PAGE_SIZE


def region_stats(vdev: VirtualDevice, manager: ResourceManager) -> dict[str, int]:
    """size, used, visible_size, visible_used and usage in bytes; bos.

    `used` is how full it is. The manager of system gives no pages out: it counts the sizes of the BOs there, holes
    included, and their pages come from the pool, as those of gtt do. So what is used of memory is what the pool has
    given out, and `usage` (ttm_resource_manager_usage) what the manager counts.
    """
    is_system = manager.name == SYSTEM
    size = vdev.config.memory if is_system else manager.size
    used = vdev.pool.in_use_pages * PAGE_SIZE if is_system else manager.usage
    visible_size, visible_used = size, used
    if isinstance(manager, BuddyManager):
        visible_size = manager.visible_pages * PAGE_SIZE
        visible_used = manager.visible_used_pages * PAGE_SIZE
    return {
        "size": size,
        "used": used,
        "visible_size": visible_size,
        "visible_used": visible_used,
        "usage": manager.usage,
        "bos": manager.num_bos,
    }


async def stats(vdev: VirtualDevice, names: Namespace, page_cache: PageCache | None, svm: Svm) -> dict[str, Any]:
    """The whole object, of one moment but for groups: there may be many."""
    ttm = vdev.ttm
    groups: dict[str, Any] = {}
    breather = Breather()
    for group in list(ttm.dmem.root.walk()):
        groups[group.path] = group_stats(group)
        await breather.step()
    pool = vdev.pool
    requests = ttm.counters.requests.as_dict()
    if page_cache is not None:
        requests["invals"] = page_cache.statistics().invals
    fences = vdev.fence_counters
    return {
        "version": ttmfs.__version__,
        "schema": SCHEMA,
        "state": device_state(vdev),
        "regions": {name: region_stats(vdev, manager) for name, manager in ttm.managers.items()},
        "pool": {
            "in_use_pages": pool.in_use_pages,
            "pooled_pages": pool.pooled_pages,
            "limit_pages": pool.limit_pages,
            "populated_limit_pages": ttm.pages_limit,
            "free_by_order": pool.free_by_order(),
        },
        "users": {"count": len(ttm.accounts.users()), "refused": ttm.accounts.root.refused},
        "groups": groups,
        "bos": {"count": len(names.files), "ghosts": ttm.num_ghosts, "zombies": ttm.num_zombies},
        "reservations": {
            "edeadlk": ttm.ww_class.edeadlk,
            "slow_locks": ttm.ww_class.slow_locks,
            "contended": ttm.ww_class.contended,
            "ticketed_waits": ttm.ww_class.ticketed_waits,
        },
        "swap": swap_stats(vdev),
        "swapout": {"bos_out": ttm.counters.swap.out, "failed": ttm.counters.swap.failed},
        "backup": ttm.counters.backup.as_dict(),
        "faults": ttm.counters.faults.as_dict(),
        "requests": requests,
        "moves": ttm.counters.moves.as_dict(),
        "defrag": ttm.defrag_list.as_dict(),
        "svm": svm.stats(),
        "vms": vdev.vms.stats() | vdev.userptrs.stats(),
        "fences": {"emitted": fences.emitted, "signaled": fences.signaled, "pending": fences.pending},
        "trace": {"recorded": ttm.trace.emitted, "dropped": ttm.trace.dropped, "buffered": len(ttm.trace.ring)},
    }


def group_stats(group: Group) -> dict[str, dict[str, int]]:
    """By region; bytes. A limit beyond what there is of the region, or none, is all that there is."""
    found = {}
    for region, pool in group.pools.items():
        size = group.dmem.regions[region]
        least, low = pool.effective()
        found[region] = {
            "current": pool.usage,
            "peak": pool.peak,
            "max": min(pool.max, size),
            "min": min(pool.min, size),
            "low": min(pool.low, size),
            "effective_min": min(least, size),
            "effective_low": min(low, size),
            "low_events": pool.low_events,
            "max_events": pool.max_events,
            "evictions": pool.evictions,
        }
    return found


def swap_stats(vdev: VirtualDevice) -> dict[str, Any]:
    """The swap store: `size` and `used` in stored bytes; `ratio` is the bytes of its pages by those stored."""
    store = vdev.ttm.swap_store
    if store is None:
        return {"store": "none", "size": 0, "used": 0, "pages": 0, "ratio": 1.0}
    now = store.statistics()
    return {
        "store": now.store,
        "size": now.size,
        "used": now.used,
        "pages": now.pages,
        "ratio": round(now.ratio, 3),
        "on_disk": now.on_disk,
        "waste": now.waste,
        "pages_out": now.pages_out,
        "pages_in": now.pages_in,
    }
