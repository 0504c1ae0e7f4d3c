"""The page with the end of the file, while the file is appended to.

Writeback of that page zeroes what lies behind the kernel's idea of the size (Linux 6.17 and newer). An appending
write(2) has put its bytes into the cached page already when its WRITE comes here, but the kernel moves the size only
after the reply: if a client had stored into the page through a mapping, writeback in between zeroes the appended bytes
in the cache. The bytes that the WRITE brought are right, so the cached page is dropped before the reply and read again
by whoever needs it.

What cannot be mended here: writeback that zeroes them before the kernel has handed the WRITE over. A client that
appends to a page that it has dirtied through a mapping must msync it first.
"""

from typing import Final

import trio

from ttmfs.ttm.bo import BufferObject
from ttmfs.units import PAGE_SHIFT

LONGEST_WAIT: Final = 0.005
"""Seconds. A page that was not up to date is locked by the very write being served: the INVAL ends after the reply."""


async def drop_cached_eof_page(bo: BufferObject, old_size: int) -> None:
    """After the bytes of a WRITE that grew the file from `old_size` are in place, before it is answered."""
    if not bo.eof_page_read:
        return
    bo.eof_page_read = False
    done = trio.Event()

    async def drop() -> None:
        bo.gate.begin_unmapping()
        try:
            await bo.device.unmapper.invalidate(bo, old_size >> PAGE_SHIFT, 1)
        finally:
            bo.gate.end_unmapping()
            done.set()

    trio.lowlevel.spawn_system_task(drop)
    with trio.CancelScope(shield=True), trio.move_on_after(LONGEST_WAIT):
        await done.wait()
