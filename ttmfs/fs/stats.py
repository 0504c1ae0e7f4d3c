"""stats: everything countable as one JSON object (DESIGN 1.6)."""

from typing import Any

import ttmfs
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.namespace import Namespace
from ttmfs.fs.notify import PageCache
from ttmfs.ttm.managers import BuddyManager
from ttmfs.ttm.placement import SYSTEM
from ttmfs.ttm.resource import ResourceManager
from ttmfs.units import PAGE_SIZE


def region_stats(vdev: VirtualDevice, manager: ResourceManager) -> dict[str, int]:
    """size, used, visible_size, visible_used in bytes; bos."""
    size = vdev.config.memory if manager.name == SYSTEM else manager.size
    visible_size, visible_used = size, manager.usage
    if isinstance(manager, BuddyManager):
        visible_size = manager.visible_pages * PAGE_SIZE
        visible_used = manager.visible_used_pages * PAGE_SIZE
    return {
        "size": size,
        "used": manager.usage,
        "visible_size": visible_size,
        "visible_used": visible_used,
        "bos": manager.num_bos,
    }


def stats(vdev: VirtualDevice, names: Namespace, page_cache: PageCache | None) -> dict[str, Any]:
    """The whole object."""
    ttm = vdev.ttm
    pool = vdev.pool
    requests = ttm.counters.requests.as_dict()
    if page_cache is not None:
        requests["invals"] = page_cache.statistics().invals
    fences = vdev.fence_counters
    return {
        "version": ttmfs.__version__,
        "regions": {name: region_stats(vdev, manager) for name, manager in ttm.managers.items()},
        "pool": {
            "in_use_pages": pool.in_use_pages,
            "pooled_pages": pool.pooled_pages,
            "limit_pages": pool.limit_pages,
            "free_by_order": pool.free_by_order(),
        },
        "bos": {"count": len(names.files), "ghosts": ttm.num_ghosts, "zombies": ttm.num_zombies},
        "reservations": {
            "edeadlk": ttm.ww_class.edeadlk,
            "slow_locks": ttm.ww_class.slow_locks,
            "contended": ttm.ww_class.contended,
            "ticketed_waits": ttm.ww_class.ticketed_waits,
        },
        "swapout": _swapout_stats(vdev),
        "faults": ttm.counters.faults.as_dict(),
        "requests": requests,
        "moves": ttm.counters.moves.as_dict(),
        "defrag": ttm.defrag_list.as_dict(),
        "fences": {"emitted": fences.emitted, "signaled": fences.signaled, "pending": fences.pending},
    }


def _swapout_stats(vdev: VirtualDevice) -> dict[str, int]:
    """The older, whole-object mechanism: BOs swapped out so far, what failed, pages through and in its storage."""
    counters, store = vdev.ttm.counters.swap, vdev.ttm.swap_store
    return {
        "bos_out": counters.out,
        "failed": counters.failed,
        "pages_out": store.pages_out if store is not None else 0,
        "pages_in": store.pages_in if store is not None else 0,
        "pages": store.used_pages if store is not None else 0,
        "limit_pages": store.limit_pages if store is not None else 0,
        "populated_limit_pages": vdev.ttm.pages_limit,
    }
