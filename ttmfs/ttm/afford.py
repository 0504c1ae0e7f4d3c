"""Afford: may somebody have more? Asked before anybody else has to give something up for what is refused then.

What a move has left behind is its owner's until the copy has ended, so a limit that is only in the way for that moment
is waited for, in bounded time.
"""

import trio

from ttmfs.errors import TtmError
from ttmfs.ttm.account import MEMORY, Account
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import Device
from ttmfs.ttm.placement import Placement
from ttmfs.ttm.reclaim import GHOST_WAIT
from ttmfs.ttm.resource import ResourceManager


async def afford(device: Device, account: Account, count: int, ctx: OperationContext, what: str = MEMORY) -> None:
    """Until `account` may have `count` more of `what`. TtmError(EDQUOT) when that does not come.

    With `no_wait_gpu` it is not waited for; with `unlimited` it is not asked.
    """
    if ctx.unlimited or account.room(what) >= count:
        return
    if not ctx.no_wait_gpu and account.most(what) >= count:
        with trio.move_on_after(GHOST_WAIT):
            while device.num_ghosts and account.room(what) < count:
                await device.ghost_gone.park()
    account.check(what, count)


def more_space(bo: BufferObject, manager: ResourceManager) -> int:
    """Pages of a region that the BO takes, beside those that it gives up for them."""
    old = bo.resource
    return bo.num_pages - (old.num_pages if old is not None and old.manager is manager else 0)


def check_space(bo: BufferObject, manager: ResourceManager, ctx: OperationContext) -> None:
    """TtmError(EDQUOT) when who pays for the BO may not have so much of the region; no wait.

    Who is over the limit of memory, since others had his BOs evicted, gets no region's memory for new content either.
    """
    if ctx.unlimited:
        return
    bo.account.check(manager.name, more_space(bo, manager))
    if not manager.use_tt and bo.num_pages > bo.held_pages:
        bo.account.check(MEMORY, 0)


def limit_met(bo: BufferObject, placement: Placement, ctx: OperationContext) -> TtmError | None:
    """The limit that is in the way in one of these places: the reason why the BO finds no room.

    None where none is, or where what others have just now may soon be had.
    """
    for place in placement if ctx.contended is None else ():
        try:
            check_space(bo, bo.device.managers[place.mem_type], ctx)
        except TtmError as error:
            return error
    return None
