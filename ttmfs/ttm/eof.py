"""The page with the end of the file, while the file is appended to.

Writeback of that page zeroes what lies behind the kernel's idea of the size (Linux 6.17 and newer). An appending
write(2) has put its bytes into the cached page already when its WRITE comes here, but the kernel moves the size only
after the reply: if a client had stored into the page through a mapping, writeback in between zeroes the appended bytes
in the cache. The bytes that the WRITE brought are right, so the cached page is dropped before the reply and read again
by whoever needs it.

What cannot be mended here: writeback that zeroes them before the kernel has handed the WRITE over. A client that
appends to a page that it has dirtied through a mapping must msync it first.
"""

import contextlib
from typing import Final, Protocol, TypeVar

import trio

from ttmfs.errors import TtmError
from ttmfs.ttm.funcs import Unmapper
from ttmfs.ttm.gate import Gate
from ttmfs.units import PAGE_SHIFT

LONGEST_WAIT: Final = 0.005
"""Seconds. A page that was not up to date is locked by the very write being served: the INVAL ends after the reply."""


class Appended(Protocol):
    """A BO or an address space."""

    gate: Gate
    eof_page_read: bool
    """A client may have the page with the end of the file cached and up to date."""


Owner = TypeVar("Owner", bound=Appended)


async def drop_cached_eof_page(owner: Owner, unmapper: Unmapper[Owner], old_size: int, unmapped: range) -> None:
    """After the bytes of a WRITE that grew the file from `old_size` are in place, before it is answered.

    Requests of the pages `unmapped` are served at once while the page is dropped.
    """
    if not owner.eof_page_read:
        return
    owner.eof_page_read = False
    done = trio.Event()

    async def drop() -> None:
        owner.gate.begin_unmapping(unmapped)
        try:
            # Nobody is left to hear of an error: what the kernel refuses to drop it keeps.
            with contextlib.suppress(TtmError):
                await unmapper.invalidate(owner, old_size >> PAGE_SHIFT, 1)
        finally:
            owner.gate.end_unmapping(unmapped)
            done.set()

    trio.lowlevel.spawn_system_task(drop)
    with trio.CancelScope(shield=True), trio.move_on_after(LONGEST_WAIT):
        await done.wait()
