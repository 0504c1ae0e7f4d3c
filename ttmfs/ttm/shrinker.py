"""Shrinker: system pages of BOs that nobody needs just now go to the swap store (ttm_bo_shrink; policy of xe_shrinker).

In passes: what is purgeable first, without and then with waiting; then backup of idle BOs, least recently used first,
or as the adviser of their region says; then of busy ones; then the store writes back what it holds in memory. Trylock
only: it waits for nobody's reservation. Who else has pages that may go, the address spaces, gives its share of what is
asked for, as do_shrink_slab has it: the part of it that it has of all that is in memory.

A BO larger than what is wanted goes piece by piece, from where the last visit ended (`TT.hand`), and only the pages of
a piece are unmapped. So a BO that is larger than memory makes room for its own next fault (`shrink_self`).
"""

import errno
from dataclasses import dataclass
from typing import Final

import numpy as np
import trio

from ttmfs.errors import TtmError, called
from ttmfs.observe import points
from ttmfs.sync.resv import Usage
from ttmfs.ttm.advice import pages_gone
from ttmfs.ttm.advised import first_named
from ttmfs.ttm.ahead import give_all_back
from ttmfs.ttm.backup import BackupFlags, tt_backup
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import Device, Need, Shrinkable
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.mem_space import mem_space, move_to
from ttmfs.ttm.move import pipeline_gutting, wait_ctx
from ttmfs.ttm.page_vector import Index
from ttmfs.ttm.placement import SYSTEM, Place
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.ttm.store_io import flush_store
from ttmfs.ttm.tt import TT
from ttmfs.ttm.unmap import unmap_virtual

WINDOW_PAGES: Final = 2048
"""Pages of a BO that go at a time when not all of it has to: 8 MiB."""
EVERYTHING: Final = 1 << 62
_LEAST_SHARE: Final = 128
"""Pages that a Shrinkable is asked for at the least; less is owed until it comes to so many (SHRINK_BATCH)."""


@dataclass(slots=True)
class Shrunk:
    """Pages that left memory: `stored` in the swap store, `purged` for good, `released` by who only held them.

    Those are restores that had stopped, and blocks for what is written next. `failed`: BOs that could not go.
    """

    stored: int = 0
    purged: int = 0
    released: int = 0
    failed: int = 0

    @property
    def pages(self) -> int:
        """All of them."""
        return self.stored + self.purged + self.released


def shrink_suitable(bo: BufferObject, ctx: OperationContext) -> bool:
    """ttm_bo_shrink_suitable: has it pages in memory that may go, without a wait if the ctx says so?"""
    tt = bo.tt
    return (
        tt is not None
        and tt.populated_pages > 0
        and not tt.external
        and not bo.pin_count
        and not bo.deleted
        and not bo.unknown_state
        and not bo.unmapping
        and (not ctx.no_wait_gpu or (not bo.copies and bo.resv.test_signaled(Usage.BOOKKEEP)))
    )


def store_has_room(device: Device) -> bool:
    """Is there a swap store with room for a page (ttm_backup_bytes_avail)?"""
    return device.swap_store is not None and device.swap_store.available_pages > 0


async def bo_shrink(
    bo: BufferObject, ctx: OperationContext, flags: BackupFlags, *, pages: int = EVERYTHING
) -> int:
    """ttm_bo_shrink on a reserved BO: about `pages` of its pages leave memory; returns how many did.

    TtmError: EBUSY when it is not possible (imported, pinned, in use with no_wait_gpu, no store or
    no room in it, no room to move it to system); otherwise the medium's error. Fewer pages than it has: partly backed
    up, and `ctx.done.why` says why; the next one goes on with the rest.
    """
    _check_possible(bo, flags)
    if flags.purge:
        return await purge(bo, ctx)
    if bo.mem_type != SYSTEM:
        await _move_to_system(bo, ctx, flags)
    await wait_ctx(bo, ctx)
    tt = bo.tt
    if tt is None or not tt.populated_pages:
        return 0
    if tt.populated_pages <= pages:
        return await tt_backup(bo, 0, tt.num_pages, flags, ctx)
    return await _backup_windows(bo, tt, pages, flags, ctx, range(0))


def _check_possible(bo: BufferObject, flags: BackupFlags) -> None:
    if bo.external:
        raise TtmError(errno.EBUSY, f"{called(bo.name)} is imported: its memory is somebody else's")
    if bo.pin_count:
        raise TtmError(errno.EBUSY, f"{called(bo.name)} is pinned: unpin it first")
    if bo.unknown_state and not flags.purge:
        raise TtmError(errno.EBUSY, f"{called(bo.name)} has lost its content: there is nothing to back up")
    if flags.purge:
        return
    store = bo.device.swap_store
    if store is None:
        raise TtmError(errno.EBUSY, "this device has no swap store: mount with --swap SIZE")
    if not store.available_pages:
        raise TtmError(errno.EBUSY, store.full_because)


async def _move_to_system(bo: BufferObject, ctx: OperationContext, flags: BackupFlags) -> None:
    resource = bo.resource
    if resource is not None and not resource.manager.use_tt and not flags.allow_move:
        raise TtmError(errno.EBUSY, f"{called(bo.name)} is in {bo.mem_type}: evict it first")
    try:
        await move_to(bo, await mem_space(bo, (Place(SYSTEM),), ctx), ctx, evict=True)
    except TtmError as error:
        if error.errno in (errno.ENOMEM, errno.ENOSPC):
            raise TtmError(errno.EBUSY, f"{called(bo.name)} cannot go to system first: {error.message}") from None
        raise


async def purge(bo: BufferObject, ctx: OperationContext) -> int:
    """Drop the content of a reserved BO, in memory and in the store, past the pool; returns the pages of both.

    It reads as zeros afterwards, or not at all (`--purgeable strict`). TtmError(EBUSY) when it is in use and may not be
    waited for.
    """
    await wait_ctx(bo, ctx)
    pages = 0 if bo.tt is None else bo.tt.populated_pages + bo.tt.backed_up_pages
    if bo.resource is not None and not bo.resource.manager.use_tt:
        pages += bo.resource.num_pages
        await pipeline_gutting(bo, ctx, purge=True)
    elif bo.tt is not None:
        await unmap_virtual(bo)
        bo.drop_vmap()
        bo.purged |= bool(bo.held_pages)
        bo.tt.unpopulate(to_pool=False)
        pages_gone(bo.device.prefetcher, bo, 0, bo.tt.num_pages)
        if pages:
            bo.content_changed()
        # Published; whoever read old bytes meanwhile must see the zeros.
        await unmap_virtual(bo)
    bo.unknown_state = False
    bo.device.counters.backup.purged_pages += pages
    points.purge(bo.device.trace, bo, pages=pages)
    return pages


async def shrink_for(device: Device, need: Need) -> int:
    """What a device has as its shrinker: others give memory up, then other parts of the BO that needs it."""
    ctx = OperationContext(no_wait_gpu=True)
    freed = (await shrink(device, need.pages, ctx, but=need.but)).pages
    if freed < need.pages and need.but is not None and need.keep is not None:
        freed += await shrink_self(need.but, need.pages - freed, need.keep)
    return freed


async def shrink_self(bo: BufferObject, pages: int, keep: range) -> int:
    """Back up about `pages` other pages of a BO whose fault needs room; returns how many went.

    The BO is reserved. `keep` are the pages that the request being served has locked: they are neither unmapped nor
    moved (H30).
    """
    tt = bo.tt
    ctx = OperationContext(no_wait_gpu=True)
    if not (bo.mem_type == SYSTEM or bo.has_tail) or tt is None or not shrink_suitable(bo, ctx):
        return 0
    if not store_has_room(bo.device):
        return 0
    try:
        return await _backup_windows(bo, tt, pages, BackupFlags(), ctx, keep)
    except TtmError:
        return 0


async def _backup_windows(
    bo: BufferObject, tt: TT, pages: int, flags: BackupFlags, ctx: OperationContext, keep: range
) -> int:
    """Back up windows of present pages from the hand on, none that meets `keep`, until `pages` went or all were seen.

    TtmError when nothing went.
    """
    out = 0
    present = tt.present()
    # Below it the region has them, and the tt only for a move.
    present = present[present >= bo.own_pages]
    present = present[(present < keep.start) | (present >= keep.stop)]
    at = int(np.searchsorted(present, tt.hand))
    present = np.concatenate((present[at:], present[:at]))
    start = 0
    while start < len(present) and out < pages:
        low = int(present[start])
        length = _window(present, start, min(WINDOW_PAGES, pages - out), keep)
        count = int(present[start + length - 1]) + 1 - low
        try:
            out += await tt_backup(bo, low, count, flags, ctx)
        except TtmError:
            if not out:
                raise
            break
        tt.hand = low + count
        start += length
    return out


def _window(present: Index, start: int, most: int, keep: range) -> int:
    """How many of `present` from `start` on, at most `most`, lie in one ascending stretch that does not meet `keep`."""
    part = present[start : start + most]
    falls = np.flatnonzero(np.diff(part) < 0)
    length = int(falls[0]) + 1 if len(falls) else len(part)
    if part[0] < keep.start:
        length = min(length, int(np.searchsorted(part[:length], keep.start)))
    # Not across a wide gap: what lies in it would be unmapped for nothing.
    gaps = np.flatnonzero(np.diff(part[:length]) > WINDOW_PAGES)
    return int(gaps[0]) + 1 if len(gaps) else length


async def shrink(
    device: Device,
    pages: int,
    ctx: OperationContext,
    *,
    purge_only: bool = False,
    writeback: bool = False,
    but: BufferObject | None = None,
) -> Shrunk:
    """Make BOs other than `but` give up about `pages` pages; waits for busy ones unless `ctx.no_wait_gpu`.

    TtmError only with `writeback`, for what the medium says.
    """
    done = Shrunk()
    device.counters.backup.shrinks += 1
    quick = OperationContext(no_wait_gpu=True)
    passes = [quick] if ctx.no_wait_gpu else [quick, ctx]
    done.released = give_all_back(device) + _drop_restores(device, but)
    for how in passes:
        if device.purgeable_bos:
            await _purge_pass(device, pages, how, done, but)
    for how in passes:
        if not purge_only and store_has_room(device):
            await _shares_pass(device, pages, how, done)
            await _backup_pass(device, pages, how, done, but)
            await _tails_pass(device, pages, how, done, but)
            for each in device.shrinkables:
                # What the BOs had not.
                await _scan(device, each, pages - done.pages, how, done)
    if writeback and not purge_only:
        await flush_store(device)
    points.shrink(device.trace, pages=pages, stored=done.stored, purged=done.purged, failed=done.failed)
    return done


def _drop_restores(device: Device, but: BufferObject | None) -> int:
    """Take back the pages that unfinished restores were going on with, or they could fill memory; how many."""
    released = 0
    for bo in tuple(device.unfinished_restores):
        if bo is but or not bo.resv.trylock():
            continue
        try:
            del device.unfinished_restores[bo]
            released += 0 if bo.tt is None else bo.tt.drop_restore()
        finally:
            bo.unlock()
    return released


async def _purge_pass(
    device: Device, pages: int, ctx: OperationContext, done: Shrunk, but: BufferObject | None
) -> None:
    for bo in tuple(device.purgeable_bos):
        if done.pages >= pages:
            return
        if bo is but or not shrink_suitable(bo, ctx) or not bo.purgeable or not bo.resv.trylock():
            continue
        try:
            if bo.resource is not None and bo.resource.manager.use_tt:
                done.purged += await purge(bo, ctx)
        except TtmError:
            done.failed += 1
        finally:
            bo.unlock()


async def _shares_pass(device: Device, pages: int, ctx: OperationContext, done: Shrunk) -> None:
    """What others than BOs owe of what is wanted still."""
    wanted, in_use = pages - done.pages, max(device.pool.in_use_pages, 1)
    if wanted <= 0:
        return
    for each in device.shrinkables:
        each.owed = min(each.owed + wanted * each.count() // in_use, wanted)
        if each.owed >= _LEAST_SHARE:
            owed, each.owed = each.owed, 0
            await _scan(device, each, owed, ctx, done)


async def _scan(device: Device, each: Shrinkable, pages: int, ctx: OperationContext, done: Shrunk) -> None:
    if pages > 0 and store_has_room(device):
        done.stored += await each.scan(pages, ctx)


async def _backup_pass(
    device: Device, pages: int, ctx: OperationContext, done: Shrunk, but: BufferObject | None
) -> None:
    for manager in device.managers.values():
        if not manager.use_tt:
            continue
        if manager.adviser is not None:
            await _advised_pass(device, manager, pages, ctx, done, but)
        with LruCursor(manager.lru, until_now=True) as cursor:
            while done.pages < pages and store_has_room(device) and (item := cursor.next()) is not None:
                assert isinstance(item, Resource)
                await _backup_one(item, pages - done.pages, ctx, done, but)


async def _advised_pass(
    device: Device, manager: ResourceManager, pages: int, ctx: OperationContext, done: Shrunk, but: BufferObject | None
) -> None:
    """Those of a region whom its adviser names, as many as are there and none of them twice."""
    tried: dict[BufferObject, None] = {}

    def fits(bo: BufferObject) -> bool:
        return bo is not but and bo not in tried and not bo.ghost and shrink_suitable(bo, ctx) and not bo.resv.locked

    for _ in range(manager.lru.count):
        # It may have been ejected, or another one installed, while the last one went.
        adviser = manager.adviser
        if adviser is None or done.pages >= pages or not store_has_room(device):
            return
        item = first_named(manager, adviser, fits, pages=pages - done.pages, for_bo=but)
        if item is None:
            return
        tried[item.bo] = None
        stored = done.stored
        await _backup_one(item, pages - done.pages, ctx, done, but)
        if done.stored > stored:
            adviser.took(item.bo)


async def _tails_pass(
    device: Device, pages: int, ctx: OperationContext, done: Shrunk, but: BufferObject | None
) -> None:
    """What stands behind the resources of regions with memory of their own: these BOs are on no LRU of system's."""
    for bo in tuple(device.tails):
        if done.pages >= pages or not store_has_room(device):
            return
        if not bo.has_tail:
            device.tails.pop(bo, None)
        if bo is but or not bo.has_tail or not shrink_suitable(bo, ctx) or not bo.resv.trylock():
            continue
        try:
            await wait_ctx(bo, ctx)
            if bo.has_tail and bo.tt is not None and shrink_suitable(bo, ctx):
                done.stored += await _backup_windows(bo, bo.tt, pages - done.pages, BackupFlags(), ctx, range(0))
        except TtmError:
            done.failed += 1
        finally:
            bo.unlock()
        await trio.lowlevel.checkpoint()


async def _backup_one(
    item: Resource, pages: int, ctx: OperationContext, done: Shrunk, but: BufferObject | None
) -> None:
    """One step of the walk: the BO of `item`, if it may go and nobody holds it."""
    bo = item.bo
    if bo is but or bo.ghost or not shrink_suitable(bo, ctx) or not bo.resv.trylock():
        return
    try:
        if bo.resource is item and shrink_suitable(bo, ctx):
            done.stored += await bo_shrink(bo, ctx, BackupFlags(), pages=pages)
    except TtmError:
        done.failed += 1
    finally:
        bo.unlock()
    await trio.lowlevel.checkpoint()
