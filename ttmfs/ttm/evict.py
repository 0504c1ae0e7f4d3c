"""Evict a region: the first of its LRU, or all of it (ttm_bo_evict_first, ttm_resource_manager_evict_all)."""

from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.ttm.space import evict_bo


async def evict_first(manager: ResourceManager, ctx: OperationContext) -> bool:
    """ttm_bo_evict_first: the first of the LRU; False when the list is empty. Waits for its reservation."""
    resource = manager.lru.first()
    if resource is None:
        return False
    assert isinstance(resource, Resource)
    bo = resource.bo
    await bo.resv.reserve(no_wait=ctx.no_wait_gpu)
    try:
        if bo.resource is resource and resource.on_lru and not bo.pin_count:
            await evict_bo(bo, ctx)
    finally:
        bo.unlock()
    return True


async def evict_all(manager: ResourceManager, ctx: OperationContext) -> None:
    """ttm_resource_manager_evict_all: until the LRU is empty, then until the last copy out of it is done."""
    while await evict_first(manager, ctx):
        pass
    for fence in list(manager.pending_eviction_fences()):
        await fence.wait()
