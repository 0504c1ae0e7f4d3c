"""Dropping cached pages of a file before a WRITE of these very pages is answered.

write(2) has put its bytes into the page cache already when its WRITE comes here. Two things go wrong with such pages,
and both are mended by dropping them, dirty ones written back first, so that whoever needs them reads them again:

* The end of the file (H32): writeback zeroes what lies behind the kernel's idea of the size (Linux 6.17 and newer),
  which it moves only after the reply. If a client had stored into the page through a mapping, writeback in between
  zeroes the appended bytes in the cache. What cannot be mended here: writeback that zeroes them before the kernel has
  handed the WRITE over. A client that appends to a page that it has dirtied through a mapping must msync it first.
* A WRITE that fails (H33): the kernel takes "up to date" from its pages and no more. Mappings go on showing its bytes,
  and what was stored into one of them through a mapping, and not written back, is read over.
"""

import contextlib
import errno
from typing import Final, Protocol, TypeVar

import trio

from ttmfs.errors import TtmError
from ttmfs.ttm.funcs import Unmapper
from ttmfs.ttm.gate import Gate
from ttmfs.units import PAGE_MASK, PAGE_SHIFT, pages_of

LONGEST_WAIT: Final = 0.005
"""Seconds for the last page, which is locked by the very WRITE that is served if it was not up to date: then the INVAL
ends after the reply."""
WRITEBACK_SECONDS: Final = 0.25
"""Seconds for pages that no WRITE keeps locked, but where others of them may come."""
_NO_MEMORY: Final = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)
"""What only write(2) meets: pages that were handed out have memory, so that writeback of a mapping does not fail."""


class Written(Protocol):
    """A BO or an address space."""

    gate: Gate
    eof_page_read: bool
    """A client may have the page with the end of the file cached and up to date."""


Owner = TypeVar("Owner", bound=Written)


async def drop_cached_eof_page(owner: Owner, unmapper: Unmapper[Owner], old_size: int, unmapped: range) -> None:
    """After the bytes of a WRITE that grew the file from `old_size` are in place, before it is answered.

    Requests of the pages `unmapped` are served at once while the page is dropped.
    """
    if owner.eof_page_read:
        owner.eof_page_read = False
        page = old_size >> PAGE_SHIFT
        await _drop(owner, unmapper, range(page, page + 1), unmapped, LONGEST_WAIT)


async def drop_unwritten(owner: Owner, unmapper: Unmapper[Owner], offset: int, size: int, error: TtmError) -> None:
    """After a WRITE of `size` bytes at `offset` failed, before that is told."""
    if error.errno not in _NO_MEMORY:
        return
    end = offset + size
    parts = [(range(offset >> PAGE_SHIFT, end >> PAGE_SHIFT), WRITEBACK_SECONDS)]
    if end & PAGE_MASK:
        parts.append((range(end >> PAGE_SHIFT, pages_of(end)), LONGEST_WAIT))
    for pages, patience in parts:
        if pages:
            await _drop(owner, unmapper, pages, pages, patience)


async def _drop(owner: Owner, unmapper: Unmapper[Owner], pages: range, unmapped: range, patience: float) -> None:
    """Drop them; returns when they are, or after `patience` seconds."""
    done = trio.Event()

    async def drop() -> None:
        owner.gate.begin_unmapping(unmapped)
        try:
            # Nobody is left to hear of an error: what the kernel refuses to drop it keeps.
            with contextlib.suppress(TtmError):
                await unmapper.invalidate(owner, pages.start, len(pages))
        finally:
            owner.gate.end_unmapping(unmapped)
            done.set()

    trio.lowlevel.spawn_system_task(drop)
    with trio.CancelScope(shield=True), trio.move_on_after(patience):
        await done.wait()
