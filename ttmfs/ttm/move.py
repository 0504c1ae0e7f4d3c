"""Moves: handing a BO from one Resource to another (ttm_bo_move_*, ttm_bo_handle_move_mem).

The driver's `move` callback decides how; it ends in one of `move_null`, `move_sync_cleanup` or `move_accel_cleanup`,
which decide what becomes of the old space: freed at once, given to a ghost until the copy's fence signals, or, for a
pipelined eviction, freed now with the fence left behind at the manager for every next owner.
"""

import contextlib
import errno
from collections.abc import Awaitable
from typing import Final

import trio

from ttmfs.errors import TtmError, called
from ttmfs.observe import points
from ttmfs.sync.fence import Fence, get_stub
from ttmfs.sync.resv import Reservation, Usage
from ttmfs.ttm import lifetime
from ttmfs.ttm.advice import pages_gone, tell, want
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.defrag import Rebacking, is_defrag
from ttmfs.ttm.funcs import FaultResult, Multihop, VmFault
from ttmfs.ttm.placement import SYSTEM, Place, PlaceFlag, Placement
from ttmfs.ttm.populate import populate_all
from ttmfs.ttm.resource import Resource
from ttmfs.ttm.tt import TT
from ttmfs.ttm.unmap import unmap_virtual
from ttmfs.units import PAGE_SIZE, format_size

IDLE_TIMEOUT: Final = 15.0
"""Seconds that a move waits for a BO to become idle (ttm_bo_wait_ctx)."""


class _GhostFuncs:
    """Ghosts have no driver: evicting one means waiting for it."""

    async def fault(self, vmf: VmFault) -> FaultResult:
        raise NotImplementedError

    async def fault_reserve_notify(self, bo: BufferObject) -> None:
        raise NotImplementedError

    async def move(
        self, bo: BufferObject, resource: Resource, ctx: OperationContext, *, evict: bool, source: TT | None = None
    ) -> None:
        raise NotImplementedError

    def evict_flags(self, bo: BufferObject) -> Placement:
        raise NotImplementedError

    def eviction_valuable(self, bo: BufferObject, place: Place | None) -> bool:
        del bo, place
        return True

    def swap_notify(self, bo: BufferObject) -> None:
        raise NotImplementedError

    def delete_mem_notify(self, bo: BufferObject) -> None:
        """Nothing hangs on a ghost."""


_GHOST_FUNCS: Final = _GhostFuncs()


async def linger(wait: Awaitable[object]) -> None:
    """Wait for what decides nothing any more; whoever is cancelled meanwhile hears of it at the next wait.

    The copy is submitted and the BO has changed hands: that cannot be taken back, so it has not failed. Only the wait
    ends early.
    """
    with contextlib.suppress(trio.Cancelled):
        await wait


async def wait_ctx(bo: BufferObject, ctx: OperationContext) -> None:
    """ttm_bo_wait_ctx: until nothing uses the BO. TtmError(EBUSY) with no_wait_gpu, or after 15 s."""
    if bo.resv.test_signaled(Usage.BOOKKEEP):
        return
    if ctx.no_wait_gpu:
        raise TtmError(errno.EBUSY, f"{called(bo.name)} is in use by the device and no_wait_gpu was asked for")
    if not await bo.resv.wait(Usage.BOOKKEEP, IDLE_TIMEOUT):
        raise TtmError(errno.EBUSY, f"{called(bo.name)} did not become idle within {IDLE_TIMEOUT:g} s")


class PlainMove:
    """A move to where the driver brings the bytes; before that the target has a populated tt, if it uses one.

    `verb` says in the flight recorder what became of the BO.
    """

    verb = "moved"
    source: TT | None = None
    """Its bytes are where the BO is."""

    def __init__(self, bo: BufferObject, resource: Resource, ctx: OperationContext) -> None:
        self.bo = bo
        self.old = bo.resource
        self.resource = resource
        self.ctx = ctx

    def prepare(self) -> None:
        """All that may fail comes after the INVAL: what requests populate meanwhile need not be."""

    async def commit(self) -> None:
        """Memory for the target, and a slot for the fence of the copy. Raises what populating raises."""
        bo, resource = self.bo, self.resource
        if resource.manager.use_tt:
            bo.device.inject.check("tt_create", errno.ENOMEM, f"making a tt for {bo.name!r}", bo=bo.name)
            tt = bo.need_tt()
            # A hop of a BO without content stays without memory: its last leg is a clear.
            passing = PlaceFlag.TEMPORARY in resource.flags and _is_empty(bo)
            if resource.mem_type != SYSTEM and not passing:
                before = tt.populated_pages
                await populate_all(bo, tt, self.ctx, overwritten=bo.own_pages)
                points.populate(bo.device.trace, bo, pages=tt.populated_pages - before, why="move")
        bo.resv.reserve_fences(1)

    def undo(self) -> None:
        """It failed out of a region with memory of its own: the tt keeps only what it had to."""
        bo, old = self.bo, self.old
        if old is None or old.manager.use_tt or bo.resource is not old or bo.tt is None:
            return
        present = bo.tt.present()
        bo.tt.depopulate(present[present < old.own_pages])
        if not bo.tt.has_content:
            bo.set_tt(None)

    def done(self) -> None:
        """The driver has decided what becomes of the old space."""

    @property
    def moved_pages(self) -> int:
        """What counts as moved."""
        return self.bo.num_pages


async def handle_move_mem(bo: BufferObject, resource: Resource, ctx: OperationContext, *, evict: bool) -> None:
    """ttm_bo_handle_move_mem: unmap, give the target a populated tt, let the driver move.

    A move is plain or a re-backing. `prepare` may fail and disturbs nobody; `commit` follows the INVAL; then the driver
    moves, and it is `done`, or whatever was done `undo` takes back.
    `bo` is reserved. Raises what the driver raises; the BO is then as it was and `resource` still the caller's. So it
    is when it is cancelled, which it can be wherever it waits, but for INVAL: that is not cancelled half way, and ends
    because the BO's requests are served meanwhile (R1).
    """
    device = bo.device
    old = bo.resource
    inject = device.inject
    how = Rebacking(bo) if is_defrag(bo, resource, ctx, evict=evict) else PlainMove(bo, resource, ctx)
    src, dst, size = "-" if old is None else old.mem_type, resource.mem_type, bo.num_pages * PAGE_SIZE
    points.move_start(device.trace, bo, src=src, dst=dst, bytes=size, evict=evict, defrag=ctx.defrag)
    try:
        how.prepare()
        inject.check("unmap", errno.EIO, f"unmapping {bo.name!r}", bo=bo.name)
        if ctx.faulting is not bo:
            await unmap_virtual(bo, together=ctx.together)
        await how.commit()
        inject.check("move", errno.EIO, f"moving {bo.name!r}", bo=bo.name)
        await bo.funcs.move(bo, resource, ctx, evict=evict, source=how.source)
    except BaseException as error:
        how.undo()
        errno_or_hop = _not_moved(bo, old, resource, error)
        points.move_end(device.trace, bo, src=src, dst=dst, bytes=size, evict=evict, fence=None, errno=errno_or_hop)
        raise
    how.done()
    moved = how.moved_pages * PAGE_SIZE
    ctx.done.bytes_moved += moved
    bo.pages_moved += how.moved_pages
    bo.moves += 1
    bo.placed = True
    device.counters.moves.count += 1
    device.counters.moves.bytes += moved
    device.counters.move_bytes.observe(moved)
    fence = bo.copies[-1].fence if bo.copies else None
    points.move_end(device.trace, bo, src=src, dst=dst, bytes=size, evict=evict, fence=fence, errno=0)
    verb = "was evicted" if evict else how.verb
    way = f"{_way(old, resource)}: {verb}, {format_size(moved)}"
    bo.moved_at, bo.last_move = device.recorder.moved(bo.name, way)


def _not_moved(bo: BufferObject, old: Resource | None, resource: Resource, error: BaseException) -> int | str:
    """A move has failed, or needs a hop first, which is no failure: its errno, or "multihop"."""
    if isinstance(error, Multihop):
        return "multihop"
    device = bo.device
    device.counters.moves.failed += 1
    why = error.message if isinstance(error, TtmError) else "it was given up"
    device.recorder.note("move", bo.name, f"{bo.name!r} {_way(old, resource)}: failed, {why}")
    return getattr(error, "errno", None) or errno.EINTR


def _way(old: Resource | None, new: Resource) -> str:
    return f"{'nowhere' if old is None else old.mem_type} to {new.mem_type}"


def _is_empty(bo: BufferObject) -> bool:
    return not bo.own_pages and (bo.tt is None or not (bo.tt.populated_pages or bo.tt.backed_up_pages))


def move_null(bo: BufferObject, resource: Resource) -> None:
    """ttm_bo_move_null: take `resource`; the bytes are where they were."""
    old = bo.resource
    bo.assign(resource)
    if old is not None:
        old.manager.free(old)


def move_to_ghost(bo: BufferObject, *, take_tt: bool, kept_pages: int = 1 << 62) -> None:
    """ttm_bo_move_to_ghost: a ghost takes the old resource, and the tt when the BO does not keep it.

    Of a defrag move it takes the old tt, whatever `take_tt` says.

    `kept_pages` is what the copy covers: pages of the tt from there on stay with the BO. The ghost inherits all
    fences of the BO, readers included, and goes when the last one signals.
    """
    # A reservation of no device: what was submitted must be guarded, so this must not fail.
    name, own = f"{bo.name} (ghost)", Reservation()
    ghost = BufferObject(bo.device, _GHOST_FUNCS, name=name, resv=own, account=bo.account, group=bo.group)
    ghost.ghost = True
    ghost.size = bo.size
    ghost.priority = bo.priority
    locked = ghost.resv.trylock()
    assert locked
    ghost.resv.copy_fences(bo.resv)
    ghost.resv.unlock()
    bo.device.num_ghosts += 1
    old = bo.resource
    if old is not None:
        old.manager.lru_remove(old)
        bo.assign(None)
        ghost.assign(old)
    if bo.defrag_old_tt is not None:
        # The BO is on its fresh tt already; the copy reads the old one.
        ghost.set_tt(bo.defrag_old_tt)
        bo.defrag_old_tt = None
    elif take_tt:
        tt = bo.tt
        ghost.set_tt(tt)
        # The file may have grown while its new home was sought: what was appended stays behind the new resource.
        bo.set_tt(tt.cut_tail(kept_pages) if tt is not None and bo.num_pages > kept_pages else None)
    lifetime.release(ghost)


async def move_accel_cleanup(
    bo: BufferObject, fence: Fence, resource: Resource, *, evict: bool, pipeline: bool
) -> None:
    """ttm_bo_move_accel_cleanup: the copy that `fence` announces was submitted; `resource` is the BO's from now on.

    A slot for the fence was reserved by handle_move_mem.

    The BO changes hands in the step that comes here, and only then is anything waited for: a WRITE that came between
    the end of the copy and the change would go to the old space, and be lost with it.
    """
    bo.resv.add_fence(fence, Usage.KERNEL)
    old = bo.resource
    wait = False
    if bo.device.inject["ghost"].should_fail(bo=bo.name):
        # No memory for a ghost: what the move returns with has nothing that must outlive it.
        wait = True
        move_sync_cleanup(bo, resource)
    elif evict and old is not None and pipeline and not old.manager.use_tt:
        wait = not _pipeline_evict(bo, old)
        bo.assign(resource)
    else:
        # ttm_bo_wait_free_node where it is an eviction.
        wait = evict and old is not None
        move_sync_cleanup(bo, resource)
    if wait:
        # If it does not end in time, a ghost frees the space when it does.
        await linger(bo.resv.wait(Usage.BOOKKEEP, IDLE_TIMEOUT))


def _pipeline_evict(bo: BufferObject, old: Resource) -> bool:
    """ttm_bo_move_pipeline_evict: the space is free now; whoever gets it waits for the copy and for the readers.

    False when there was no slot for all of them: a ghost keeps the space until they have signaled.
    """
    for fence in list(bo.resv.fences(Usage.BOOKKEEP)):
        if not fence.signaled and not old.manager.add_eviction_fence(fence):
            move_to_ghost(bo, take_tt=False)
            return False
    bo.assign(None)
    old.manager.free(old)
    return True


def move_sync_cleanup(bo: BufferObject, resource: Resource) -> None:
    """ttm_bo_move_sync_cleanup: free the old space as soon as the BO is idle, and take `resource`; synchronous.

    Nothing may be awaited between the end of a copy and this call, or WRITEs that came between would be lost.
    """
    old = bo.resource
    take_tt = not resource.manager.use_tt and (old is None or old.manager.use_tt)
    # With nothing to wait for, the ghost goes at once.
    move_to_ghost(bo, take_tt=take_tt, kept_pages=resource.num_pages)
    bo.assign(resource)


async def pipeline_gutting(bo: BufferObject, ctx: OperationContext, *, purge: bool = False) -> None:
    """ttm_bo_pipeline_gutting: drop content and resource; the BO reads as zeros and is placed anew by its next use.

    `purge`: its content goes because somebody wants the memory, and its owner is to know.

    Unlike the kernel, which guts pinned BOs, a pinned one is refused with EINVAL.
    """
    if bo.pin_count:
        raise TtmError(errno.EINVAL, f"{bo.name!r} is pinned {bo.pin_count} times: unpin it before it is gutted")
    if ctx.faulting is not bo:
        await unmap_virtual(bo)
    if bo.held_pages:
        bo.purged |= purge
        bo.content_changed()
    if bo.resv.test_signaled(Usage.BOOKKEEP):
        if bo.tt is not None:
            bo.tt.unpopulate()
        resource = bo.resource
        bo.assign(None)
        if resource is not None:
            resource.manager.free(resource)
    else:
        move_to_ghost(bo, take_tt=True)
        bo.forget_copies()
    tell(bo)
    want(bo, ())
    pages_gone(bo.device.prefetcher, bo, 0, bo.num_pages)
    bo.placed = False
    bo.unknown_state = False
    # Published; whoever cached old bytes meanwhile must see the zeros.
    if ctx.faulting is not bo:
        await unmap_virtual(bo)


def retreat_to_system(bo: BufferObject) -> bool:
    """Put a BO whose clear cannot start into system (rule R4): it is fresh, so holes say all there is to say.

    The space it was given stays with a ghost until the clear has run, and so does a tt that copies of what is cleared
    go to, or come from. False when somebody holds the reservation, or when it is not fresh: a job may write to it.
    """
    copies = bo.copies
    if not copies or copies[0].src is not None or any(copy.covers > copies[0].covers for copy in copies):
        return False
    jobs_write = len(bo.resv.get_fences(Usage.WRITE)) > len(bo.resv.get_fences(Usage.KERNEL))
    if jobs_write or not bo.resv.trylock():
        return False
    try:
        take_tt = any(bo.tt in (copy.src, copy.dst) for copy in copies)
        move_to_ghost(bo, take_tt=take_tt, kept_pages=copies[0].covers)
        bo.forget_copies()
        for fence in bo.resv.get_fences(Usage.KERNEL):
            bo.resv.replace_fences(fence.context, get_stub(), Usage.KERNEL)
        bo.assign(bo.device.managers[SYSTEM].alloc(bo, Place(SYSTEM)))
    finally:
        bo.unlock()
    return True
