"""System memory for pages of address spaces, making room as BOs do where there is none."""

import errno

import trio

from ttmfs.errors import TtmError
from ttmfs.svm.pages import Pages, Payer, take_pages
from ttmfs.ttm.afford import afford
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import Device
from ttmfs.ttm.room import COMMAND_WAIT, FAULT_WAIT, LONGEST, below_limit, make_room
from ttmfs.ttm.tt import out_of_memory


async def alloc_pages(
    device: Device,
    payer: Payer,
    count: int,
    ctx: OperationContext,
    *,
    zero: bool,
    but: BufferObject | None = None,
    unlimited: bool = False,
) -> Pages:
    """`count` system pages for `payer`, all or TtmError(ENOMEM); EDQUOT unless `unlimited`. `zero=False`: the caller
    overwrites them whole.

    `but` is a reserved BO that is left alone.
    """
    what = payer.name if but is None else but.name
    device.inject.check("page_alloc", errno.ENOMEM, f"{count} pages for {what}", count, bo=what)
    if not unlimited:
        await afford(device, payer.account, count, ctx)
    await below_limit(device, count, but=but)
    until = trio.current_time() + LONGEST
    while True:
        try:
            pages = take_pages(payer, count, zero=zero, unlimited=unlimited)
            break
        except TtmError as error:
            if error.errno != errno.ENOMEM:
                raise
            patience = FAULT_WAIT if but is None else COMMAND_WAIT
            in_vain = count > device.pool.num_pages or trio.current_time() >= until
            if in_vain or not await make_room(device, count, ctx, but=but, patience=patience):
                raise out_of_memory(count, device.pool) from error
    device.note_pressure()
    return pages
