"""Lifetime: what happens to a BO as a whole, from its sizes to its end (ttm_bo_release and what follows).

A size takes effect at once, a release too; what that frees is given back as soon as the BO is idle: now, when its
reservation is released, or when its last fence signals. Nothing here waits.
"""

import errno

from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.sync.resv import Reservation, Usage
from ttmfs.ttm.account import Account
from ttmfs.ttm.advice import pages_gone, tell, want
from ttmfs.ttm.bo import MAX_SIZE, BufferObject
from ttmfs.ttm.copy import CopyState, zero_bytes
from ttmfs.ttm.dmem import Group, says_over
from ttmfs.ttm.placement import SYSTEM, Place
from ttmfs.ttm.resource import Resource
from ttmfs.ttm.shared import no_longer_late, put_off
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE, pages_of


def set_size(bo: BufferObject, size: int) -> None:
    """SETATTR(size) and O_TRUNC: takes effect at once and waits for nobody (rule R5).

    What was cut off reads as zeros if the file grows again. Memory behind the end is freed as soon as the BO is
    idle: now, or when its reservation is released. TtmError: EFBIG beyond MAX_SIZE, EPERM for an imported BO, whose
    size is the file's; nothing has changed then.
    """
    resize(bo, size)
    if bo.growth is not None:
        bo.growth.settled = size


def resize(bo: BufferObject, size: int) -> None:
    """As `set_size`, also of a WRITE past the end that may still fail (see ttmfs.ttm.growth)."""
    if size > MAX_SIZE:
        raise TtmError(errno.EFBIG, f"{bo.name!r} cannot have {size} bytes: a BO has at most {MAX_SIZE} (128 TiB)")
    if bo.external and size != bo.size:
        raise TtmError(errno.EPERM, f"{bo.name!r} is imported: its size is that of the file behind it")
    old_size, bo.size = bo.size, size
    if not size:
        # Nothing is left that could be lost.
        bo.unknown_state = bo.purged = False
    if size == old_size:
        return
    bo.drop_vmap()
    if bo.has_tail:
        bo.device.tails[bo] = None
    held = bo.resv.trylock()
    if size < old_size:
        # The page with the new end may be cached from when it was in the middle.
        bo.eof_page_read |= bo.handed_out
        # Whole pages that go in this very step need no zeros.
        goes_now = held and _is_idle(bo)
        _zero_tail(bo, size, min(old_size, pages_of(size) << PAGE_SHIFT) if goes_now else old_size)
        if bo.dirty is not None:
            bo.dirty.cut(pages_of(size))
    if apply_resize not in bo.when_unlocking:
        bo.when_unlocking += (apply_resize,)
    put_off(bo)
    if held:
        bo.unreserve()


def _zero_tail(bo: BufferObject, size: int, old_size: int) -> None:
    """Zero [size, old_size) where these bytes are now; copies that have not begun carry the zeros on.

    Nowhere else: the target of a queued copy may still be read by the one that empties it for its former owner.
    In one step: a move that began in between would carry along what is not zeroed yet.
    """
    end_page = pages_of(old_size)
    for copy in bo.copies:
        if copy.state is CopyState.RUNNING:
            copy.zero_from = size if copy.zero_from is None else min(copy.zero_from, size)
    offset = size
    while (index := offset >> PAGE_SHIFT) < end_page:
        backing, copy_of, stop = bo.truth(index)
        stop = min(stop, end_page)
        if copy_of is None and backing is not None:
            stop = min(stop, backing.num_pages)
        if stop <= index:
            break
        if backing is not None:
            zero_bytes(backing, offset, stop)
            if backing is bo.tt and bo.tt is not None:
                bo.tt.cut(offset, stop)
        offset = stop << PAGE_SHIFT


def apply_resize(bo: BufferObject) -> None:
    """Bring resource and tt of a reserved BO in line with its size if it is idle; else the next unlock comes here."""
    if not _is_idle(bo):
        return
    bo.when_unlocking = tuple(work for work in bo.when_unlocking if work is not apply_resize)
    bo.drop_vmap()
    pages, swapped = bo.num_pages, bo.swapped
    resource = bo.resource
    if bo.tt is not None:
        pages_gone(bo.device.prefetcher, bo, pages, bo.tt.num_pages - pages)
    if resource is not None and (resource.mem_type == SYSTEM or pages < resource.num_pages):
        resource.manager.trim(resource, pages)
    if bo.tt is not None:
        bo.tt.resize(pages)
    if not pages and resource is not None and resource.mem_type != SYSTEM and not bo.pin_count:
        # Nothing is left of it: back to a new file's state, so that its next content goes to its placement.
        bo.assign(None)
        resource.manager.free(resource)
        bo.assign(bo.device.managers[SYSTEM].alloc(bo, Place(SYSTEM)))
        bo.placed = False
        want(bo, ())
    elif swapped != bo.swapped:
        # What was in the store, or all that was not, has been cut off.
        bo.relist()


def set_account(bo: BufferObject, account: Account) -> None:
    """`account` pays for the BO from now on, also for what it has; ghosts of it stay whose they are, and the second
    copy of a defrag stays the device's.
    """
    bo.account = account
    for resource in _resources(bo):
        resource.pay(account)
    if bo.tt is not None:
        bo.tt.pay(account)


def set_group(bo: BufferObject, group: Group) -> None:
    """`group` is charged for the BO from now on, also for what it has; ghosts of it stay whose they are.

    TtmError(ENOMEM): the group, or one above it, may not have so much; nothing has changed then.
    """
    group = group.live
    resources = _resources(bo)
    more: dict[str, int] = {}
    for resource in resources:
        more[resource.mem_type] = more.get(resource.mem_type, 0) + resource.num_pages * PAGE_SIZE
    for region, size in more.items():
        pool = group.pools.get(region)
        limit = None if pool is None else pool.over(size, but=bo.group.live.pools[region])
        if limit is not None:
            raise TtmError(errno.ENOMEM, says_over(limit, size))
    for resource in resources:
        resource.charge_to(group.pools.get(resource.mem_type))
    before, bo.group = bo.group.live, group
    if bo.adviser is not None and before is not group:
        bo.adviser.regrouped(bo, before)


def _resources(bo: BufferObject) -> list[Resource]:
    """What it has, and what is allocated for its moves."""
    found = [] if bo.resource is None else [bo.resource]
    for manager in bo.device.managers.values():
        found += [resource for resource in manager.unassigned if resource.bo is bo]
    return found


def release(bo: BufferObject) -> None:
    """The last reference is gone (ttm_bo_release): free now if idle, else when the last fence signals.

    A busy BO becomes a zombie: it keeps its space, stays on its LRU and can be reclaimed by eviction.
    """
    device = bo.device
    if not bo.ghost:
        zombie = not bo.resv.test_signaled(Usage.BOOKKEEP)
        points.bo_destroy(device.trace, bo, bytes=bo.size, region=bo.mem_type, zombie=zombie)
    bo.deleted = bo.zombie = True
    tell(bo)
    want(bo, ())
    bo.view = None
    bo.when_unlocked = (cleanup_when_idle,)
    device.placed_in_suspend.pop(bo, None)
    device.defrag_list.leave(bo)
    device.purgeable_bos.pop(bo, None)
    device.tails.pop(bo, None)
    device.aheads.pop(bo, None)
    device.unfinished_restores.pop(bo, None)
    bo.pin_count = 0
    _leave_bulk(bo)
    put_off(bo)
    bo.relist()
    if not bo.ghost:
        device.num_zombies += 1
    cleanup_when_idle(bo)


def _leave_bulk(bo: BufferObject) -> None:
    """Out of its bulk move."""
    if bo.bulk is not None:
        if bo.resource is not None:
            bo.bulk.remove(bo.resource)
        bo.bulk = None


def _individualize(bo: BufferObject) -> None:
    """ttm_bo_individualize_resv: a reservation of its own, with all fences of the shared one.

    Not while that is held: who holds it, or waits for it, may do so for this BO, and unlocks what the BO has. Then,
    and where there is no memory (injected), the BO keeps the shared one, until it goes or this is tried again.
    """
    if not bo.shares_resv or bo.ghost or bo.resv.locked:
        return
    own = Reservation(bo.device.ww_class)
    own.trylock()
    try:
        own.copy_fences(bo.resv)
    except TtmError:
        return
    finally:
        own.unlock()
    no_longer_late(bo)
    bo.resv = own
    bo.shares_resv = False


def cleanup_when_idle(bo: BufferObject) -> None:
    """Free a deleted BO if nobody uses it; otherwise the last fence, or the holder's unreserve, comes back here."""
    if not bo.zombie:
        return
    _individualize(bo)
    for fence in bo.resv.fences(Usage.BOOKKEEP):
        if fence.add_callback(lambda _fence: cleanup_when_idle(bo)):
            return
    if bo.resv.trylock():
        cleanup(bo)
        bo.resv.unlock()


def cleanup(bo: BufferObject) -> None:
    """ttm_bo_cleanup_memtype_use: free tt and resource of an idle, reserved BO for good."""
    if not bo.zombie:
        return
    bo.funcs.delete_mem_notify(bo)
    if bo.tt is not None:
        bo.tt.fini()
        bo.set_tt(None)
    resource = bo.resource
    bo.assign(None)
    if resource is not None:
        resource.manager.free(resource)
    bo.zombie = False
    bo.when_unlocked = ()
    no_longer_late(bo)
    # Whose it was refers to it, too: a circle would outlive it until somebody collects garbage.
    bo.named = bo.name
    bo.private = bo.watcher = None
    device = bo.device
    device.bos.pop(bo, None)
    if bo.ghost:
        device.num_ghosts -= 1
        device.ghost_gone.unpark_all()
    else:
        device.num_zombies -= 1


def set_madvise(bo: BufferObject, advice: str) -> None:
    """`dontneed` makes it purgeable; whatever else is advised then, it is wanted again."""
    bo.madvise = advice
    if bo.purgeable:
        bo.device.purgeable_bos[bo] = None
    else:
        bo.device.purgeable_bos.pop(bo, None)
        bo.purged = bo.gone


def _is_idle(bo: BufferObject) -> bool:
    """Does nothing use the pages of a reserved BO, so that they may go?"""
    return not bo.copies and not bo.unmapping and bo.resv.test_signaled(Usage.BOOKKEEP)
