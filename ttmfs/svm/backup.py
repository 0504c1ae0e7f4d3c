"""Backup and restore of a whole address space: all its pages to the swap store, and all of them back."""

import errno
from typing import TYPE_CHECKING, Any

import trio

from ttmfs.driver.calls import check_plugged
from ttmfs.errors import TtmError
from ttmfs.svm.chunk import Chunk
from ttmfs.svm.cpu import migrate_to_ram
from ttmfs.svm.pages import CHUNK_PAGES, FULL
from ttmfs.svm.swap import idle, load_stored, store_chunk
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.store_io import flush_store

if TYPE_CHECKING:
    from ttmfs.svm.space import AddressSpace

Result = dict[str, Any]


async def backup(space: "AddressSpace", *, writeback: bool = False) -> Result:
    """Ranges in VRAM go to system first. "pages_out" is how many went; with "partial" and "why" when some stayed.

    TtmError: EBUSY without a store or room in it, and when nothing could go; ENODEV, EFAULT as `svm.calls`.
    """
    _check(space)
    store = space.vdev.ttm.swap_store
    if store is None:
        raise TtmError(errno.EBUSY, "this device has no swap store: mount with --swap SIZE")
    if not store.available_pages and space.held_pages:
        raise TtmError(errno.EBUSY, store.full_because)
    ctx, out, why = OperationContext(), 0, ""
    for chunk in list(space.chunks.values()):
        try:
            out += await _backup_chunk(space, chunk, ctx, writeback=writeback)
        except TtmError as error:
            space.vdev.ttm.counters.backup.failed += 1
            why = error.message
            if not out:
                raise
            break
        await trio.lowlevel.checkpoint()
    result: Result = {"pages_out": out, "populated_pages": space.num_blocks() - space.stored_pages}
    result["bytes_moved"] = ctx.done.bytes_moved
    if result["populated_pages"] and not out:
        raise TtmError(errno.EBUSY, f"{space.name} stays in memory: clients or the device go on using it")
    if result["populated_pages"]:
        used = f"{space.name} was used while it was backed up"
        result |= {"partial": True, "why": why or (used if store.available_pages else store.full_because)}
    if writeback and out:
        await flush_store(space.vdev.ttm)
    return result


async def _backup_chunk(space: "AddressSpace", chunk: Chunk, ctx: OperationContext, *, writeback: bool) -> int:
    while (devmem := chunk.alloc_of(FULL)) is not None:
        await migrate_to_ram(devmem, "backup", ctx)
    await idle(chunk)
    return await store_chunk(space, chunk, CHUNK_PAGES, writeback=writeback)


async def restore(space: "AddressSpace") -> Result:
    """All that is in the store comes back: "pages_in" is how many. What is there already stays where it is.

    TtmError: ENOMEM when memory does not hold all of it, or what the store says; what has come stays.
    """
    _check(space)
    pages_in = 0
    for number, chunk in list(space.chunks.items()):
        away = (chunk.in_store & FULL).bit_count()
        await load_stored(space, number, FULL)
        pages_in += max(away - (chunk.in_store & FULL).bit_count(), 0)
        await trio.lowlevel.checkpoint()
    space.check_alive()
    if space.stored_pages:
        message = f"{space.stored_pages} pages of {space.name} are in the store again: memory does not hold all of it"
        raise TtmError(errno.ENOMEM, message)
    return {"populated_pages": space.num_blocks(), "pages_in": pages_in}


def _check(space: "AddressSpace") -> None:
    check_plugged(space.vdev)
    space.check_alive()
