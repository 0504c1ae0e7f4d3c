"""One pass of defrag on request (`ctl/defrag`): over the worker's list, over named BOs, or over all by a plan."""

from collections.abc import Sequence

from ttmfs.driver.defrag import PassTally, Result, idle, listed_pass, named_pass, try_one
from ttmfs.driver.defrag_plan import Counts, make_plan, obtainable
from ttmfs.driver.device import VirtualDevice
from ttmfs.ttm.bo import BufferObject


async def defrag_pass(
    vdev: VirtualDevice, bos: Sequence[BufferObject] | None, *, planned: bool, limit: int | None
) -> Result:
    """ctl/defrag: one pass over the list (`bos` None), over these BOs in this order, or over them as planned.

    `obtainable` in the result is how many blocks of each order 0..10 can be had afterwards, `gained` what that is more
    than before.
    """
    pool = vdev.pool
    before = obtainable(pool.free_by_order())
    if bos is None:
        tally = await listed_pass(vdev, vdev.defrag.limit if limit is None else limit)
    elif planned:
        tally, before = await _planned_pass(vdev, bos, 1 << 62 if limit is None else limit)
    else:
        tally = await named_pass(vdev, bos, len(bos) if limit is None else limit)
    after = obtainable(pool.free_by_order())
    return {**tally.as_result(), "obtainable": after.tolist(), "gained": (after - before).tolist()}


async def _planned_pass(vdev: VirtualDevice, bos: Sequence[BufferObject], limit: int) -> tuple[PassTally, Counts]:
    """Plan and move; what was done, and what could be had of each order before.

    The pool is emptied first: what it keeps is free memory that cannot merge. What fails is left out, and the rest
    planned anew from how things are then.
    """
    pool = vdev.pool
    tally = PassTally()
    vdev.ttm.defrag_list.runs += 1
    pool.leftovers.settle()
    pool.shrink(pool.pooled_pages)
    before = obtainable(pool.free_by_order())
    left = list(bos)
    again = pool.beneficial_order > 0
    while again and not idle(vdev):
        plan = await make_plan(pool, left, limit - tally.moved - tally.failed, before)
        again = False
        for step in plan:
            # The plan has each take what is free by then, merged with all that the one before it gave up.
            pool.leftovers.settle()
            if not await try_one(vdev, step.bo, tally, wait=True, compact=step.compact):
                left = [bo for bo in left if bo is not step.bo]
                again = True
                break
    return tally, before
