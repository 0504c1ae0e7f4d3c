"""System memory for pages of address spaces, making room as BOs do where there is none."""

import errno
from typing import TYPE_CHECKING

from ttmfs.errors import TtmError
from ttmfs.svm.pages import Pages, Payer, take_pages
from ttmfs.ttm.afford import afford
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import Device, Need
from ttmfs.ttm.reclaim import COMMAND_WAIT, FAULT_WAIT, Attempts, below_limit

if TYPE_CHECKING:
    from ttmfs.svm.space import AddressSpace


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
    need = Need(count, but, patience=FAULT_WAIT if but is None else COMMAND_WAIT, no_wait_gpu=ctx.no_wait_gpu)
    await below_limit(device, need)
    attempts = Attempts(device, need)
    while True:
        try:
            pages = take_pages(payer, count, zero=zero, unlimited=unlimited)
            break
        except TtmError as error:
            await attempts.after(error, count)
    device.note_pressure()
    return pages


def give_pages(space: "AddressSpace", number: int, holes: int) -> None:
    """Zeroed free pages to these holes of chunk `number`, none of which is on its way. TtmError: ENOMEM, EDQUOT."""
    pages = take_pages(space, holes.bit_count())
    chunk = space.need_chunk(number)
    chunk.pages.put(holes, pages)
    chunk.changed()
    space.used(chunk)
