"""Defrag policy: one BO on request, a list in the background (what xe does on top of ctx->defrag).

The worker runs while the device's defrag list is not empty: at most `limit` BOs a pass, trylock only, never evicting.
After a pass with a failure it waits twice as long as before, up to a maximum, and until the next pass populating does
not reclaim for the beneficial order either; a BO that joins starts it over at the shortest interval.
"""

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import trio

from ttmfs.driver.hardware import Hardware
from ttmfs.driver.locking import reserved, with_all_reserved
from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.defrag import improvable, nothing_to_gain
from ttmfs.ttm.placement import Place, PlaceFlag, Placement
from ttmfs.ttm.validate import validate

Result = dict[str, Any]

_LOOKS: Final = 64
"""Listed BOs that one pass looks at for each that it may move."""


@dataclass(slots=True)
class PassTally:
    """What a pass did: BOs moved, attempts that failed, bytes moved, the last failure's reason."""

    moved: int = 0
    failed: int = 0
    bytes_moved: int = 0
    why: str = ""

    def as_result(self) -> Result:
        """For the result of a command."""
        result: Result = {"moved": self.moved, "failed": self.failed, "bytes_moved": self.bytes_moved}
        return {**result, "why": self.why} if self.why else result


def idle(vdev: Hardware) -> bool:
    """Does the device no work now: unplugged, suspended or closing?"""
    ttm = vdev.ttm
    return ttm.unplugged or ttm.suspended or ttm.closing


def _placement(bo: BufferObject, *, evicting: bool) -> Placement:
    """Where it is, once more; in a region with memory of its own in one run. DESIRED: not by evicting anybody."""
    resource = bo.resource
    assert resource is not None
    flags = PlaceFlag(0) if evicting else PlaceFlag.DESIRED
    if not resource.manager.use_tt:
        flags |= PlaceFlag.CONTIGUOUS
    return (Place(bo.mem_type, flags=flags),)


async def re_back(vdev: Hardware, bo: BufferObject, ctx: OperationContext, *, evicting: bool) -> bool:
    """Validate a reserved BO to where it is with ctx.defrag; did it move?

    TtmError: EINVAL pinned or imported; ENOMEM the beneficial order, or room for a second copy, is not to be had; what
    the move raises. The BO is as it was then.
    """
    if bo.pin_count or bo.external:
        raise TtmError(errno.EINVAL, f"{bo.name!r} is {'pinned' if bo.pin_count else 'imported'}: it cannot be moved")
    if bo.resource is None:
        return False
    ctx.defrag = True
    ctx.resv = bo.resv
    before = bo.moves
    listed = vdev.ttm.defrag_list
    trace = vdev.ttm.trace
    try:
        await validate(bo, _placement(bo, evicting=evicting), ctx)
    except BaseException as error:
        listed.failed += 1
        code = getattr(error, "errno", None) or 0
        points.defrag(trace, bo, result="error", errno=code, listed=len(listed))
        raise
    moved = bo.moves > before
    points.defrag(trace, bo, result="moved" if moved else "nothing", errno=0, listed=len(listed))
    listed.moved += moved
    if not improvable(bo):
        listed.leave(bo)
    return moved


async def defrag_bo(vdev: Hardware, bo: BufferObject, ctx: OperationContext) -> Result:
    """objects/NAME/defrag: re-back one BO, evicting others from its region for a second copy if it must.

    Success with nothing moved when fresh pages cannot be better: unpopulated, partly in the store, no whole piece of
    the beneficial order; or, in vram, one run already. TtmError as `re_back`.

    The pool is emptied first: what it keeps is free memory that cannot merge.
    """

    async def work() -> Result:
        if not nothing_to_gain(bo):
            vdev.pool.leftovers.settle()
            vdev.pool.shrink(vdev.pool.pooled_pages)
        moved = await re_back(vdev, bo, ctx, evicting=True)
        result: Result = {"moved": int(moved), "bytes_moved": ctx.done.bytes_moved, "mem_type": bo.mem_type}
        fence = bo.moving_fence()
        return {**result, "fence": fence.name} if fence is not None else result

    return await with_all_reserved([bo], ctx, work)


async def try_one(vdev: Hardware, bo: BufferObject, tally: PassTally, *, wait: bool, compact: bool = False) -> bool:
    """Defrag one BO of a pass, counting it; False when that failed. With `wait`, for its lock and then its copy."""
    ctx = OperationContext(no_wait_gpu=not wait, compact=compact)
    try:
        if wait:
            async with reserved(bo):
                moved = await re_back(vdev, bo, ctx, evicting=False)
            await bo.resv.wait(Usage.KERNEL, vdev.config.fault_timeout)
        else:
            try:
                moved = await re_back(vdev, bo, ctx, evicting=False)
            finally:
                # Not `unreserve`: that the worker was here makes nobody recently used.
                bo.unlock()
    except TtmError as error:
        tally.failed += 1
        tally.why = error.message
        vdev.ttm.defrag_list.to_tail(bo)
        return False
    tally.moved += moved
    tally.bytes_moved += ctx.done.bytes_moved
    return True


async def listed_pass(vdev: Hardware, limit: int) -> PassTally:
    """One pass over the defrag list: at most `limit` BOs, none waited for."""
    tally = PassTally()
    listed = vdev.ttm.defrag_list
    listed.runs += 1
    tried = 0
    for looks, bo in enumerate(listed):
        if tried >= limit or looks >= limit * _LOOKS or idle(vdev):
            break
        if bo not in listed:
            continue
        if not improvable(bo):
            listed.leave(bo)
        elif bo.pin_count or not bo.resv.trylock():
            listed.to_tail(bo)
        else:
            tried += 1
            await try_one(vdev, bo, tally, wait=False)
        await trio.lowlevel.checkpoint()
    return tally


async def named_pass(vdev: Hardware, bos: Iterable[BufferObject], limit: int) -> PassTally:
    """One pass over these BOs in this order, each waited for; failures are counted, not raised."""
    tally = PassTally()
    vdev.ttm.defrag_list.runs += 1
    for bo in list(dict.fromkeys(bos))[:limit]:
        await try_one(vdev, bo, tally, wait=True)
    return tally


class DefragWorker:
    """The background task of one device. `limit`, `interval` and `interval_max` (seconds) may be changed any time."""

    def __init__(self, vdev: Hardware) -> None:
        self.vdev = vdev
        self.limit = 8
        self.interval = 0.5
        self.interval_max = 30.0
        self.delay = self.interval
        """Seconds before the next pass."""

    async def run(self) -> None:
        """For ever."""
        listed = self.vdev.ttm.defrag_list
        self.delay = self.interval
        while True:
            if not len(listed):
                await listed.joined.park()
                self.delay = self.interval
            await self._pause()
            if len(listed) and not idle(self.vdev):
                await self.one_pass()

    async def one_pass(self) -> None:
        """A pass, and what follows from how it went."""
        pool = self.vdev.pool
        tally = await listed_pass(self.vdev, self.limit)
        if tally.failed or not tally.moved:
            self.delay = min(max(self.delay * 2, self.interval), self.interval_max)
        else:
            self.delay = self.interval
        # There may be no next pass to end it: what failed was deleted meanwhile.
        pool.reclaim_backoff = tally.failed > 0 and len(self.vdev.ttm.defrag_list) > 0

    async def _pause(self) -> None:
        """`delay` seconds, or `interval` from when a BO joins, whichever ends first."""
        listed = self.vdev.ttm.defrag_list
        deadline = trio.current_time() + self.delay
        try:
            while True:
                with trio.move_on_at(deadline) as scope:
                    await listed.joined.park()
                if scope.cancelled_caught:
                    return
                self.delay = self.interval
                deadline = min(deadline, trio.current_time() + self.interval)
        finally:
            self.vdev.pool.reclaim_backoff = False
