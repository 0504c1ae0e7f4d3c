"""Evict a region: the first of its LRU, or all of it (ttm_bo_evict_first, ttm_resource_manager_evict_all)."""

from collections.abc import Callable

from ttmfs.sync.breather import Breather
from ttmfs.ttm.advised import first_named
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import Contended, NoRoom
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.mem_space import evict_bo
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.ttm.turn import Turn


async def evict_first(manager: ResourceManager, ctx: OperationContext) -> bool:
    """ttm_bo_evict_first: the first of the LRU; False when the list is empty. Waits for its reservation.

    Where it has to go but finds no room for the moment's reasons, who is the first then is tried again. TtmError:
    NoRoom there is none to be had; EBUSY a wait that `ctx` forbids.
    """
    resource = _first(manager)
    if resource is None:
        return False
    bo: BufferObject = resource.bo
    with Turn(bo.device, bo.name) as turn:
        while (contended := await evict_one(resource, ctx, turn)) is not None:
            await turn.wait(contended)
            first = _first(manager)
            if first is None:
                return True
            resource, bo = first, first.bo
    if manager.adviser is not None:
        manager.adviser.took(bo)
    return True


def _first(manager: ResourceManager) -> Resource | None:
    """Who goes first: whom its adviser names, if it has one, else the first of the LRU."""
    named = None if manager.adviser is None else first_named(manager, manager.adviser, lambda bo: not bo.external)
    first = manager.lru.first() if named is None else named
    assert first is None or isinstance(first, Resource)
    return first


async def evict_one(resource: Resource, ctx: OperationContext, turn: Turn) -> Contended | None:
    """Evict its BO if it is still there; what to wait for before that is tried again."""
    bo: BufferObject = resource.bo
    ctx.done.contended = None
    ctx.ticket = None if ctx.no_wait_gpu else turn.need_ticket()
    await bo.resv.reserve(no_wait=ctx.no_wait_gpu, ticket=ctx.ticket)
    try:
        if bo.resource is resource and resource.on_lru and not bo.pin_count:
            await evict_bo(bo, ctx)
    except NoRoom as error:
        if error.contended is None or ctx.no_wait_gpu:
            raise
        return error.contended
    finally:
        bo.unlock()
    return None


async def evict_until(manager: ResourceManager, ctx: OperationContext, done: Callable[[], bool]) -> None:
    """evict_first until `done`, or the LRU is empty, as often at most as there are items when it begins.

    What comes back all the time (for an atomic access of the device, say) and is evicted all the time would keep both
    from ever coming to an end.
    """
    breather = Breather()
    for _ in range(manager.lru.count):
        if done() or not await evict_first(manager, ctx):
            return
        await breather.step()


async def evict_all(manager: ResourceManager, ctx: OperationContext) -> None:
    """ttm_resource_manager_evict_all: what is on the LRU; then until the last copy out of it is done."""
    await evict_until(manager, ctx, lambda: False)
    for fence in list(manager.pending_eviction_fences()):
        await fence.wait()
