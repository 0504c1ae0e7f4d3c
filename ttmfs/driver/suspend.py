"""Suspend, resume, unplug: the device loses its memory for a while, or for good.

Suspend moves every BO to system, pinned ones too (a pin keeps a BO where the running device expects it; real drivers
save pinned BOs as well), oldest first; device work is refused meanwhile, CPU access goes on in system. Resume brings
each BO back to the region it came from, to the very same pages where it had one run. Unplug is for ever: READs are
zeros, WRITEs are dropped, commands fail.
"""

import errno
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from ttmfs.driver.hardware import Hardware
from ttmfs.driver.locking import reserved_dead_or_alive
from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.sync.breather import Breather
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import NoRoom
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.mem_space import UNDO_SECONDS, evict_bo, mem_space, move_to, undoing
from ttmfs.ttm.placement import SYSTEM, Place, PlaceFlag
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.ttm.turn import Turn
from ttmfs.ttm.unmap import unmap_virtual
from ttmfs.ttm.validate import validate

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Saved:
    """Where a BO was: `places` in order of preference."""

    bo: BufferObject
    region: str
    places: tuple[Place, ...]


class PowerState:
    """What suspend has moved, and whether one of its calls is under way."""

    def __init__(self, vdev: Hardware) -> None:
        self.vdev = vdev
        self.busy = False
        self._saved: deque[_Saved] = deque()

    async def suspend(self, ctx: OperationContext) -> Result:
        """Every BO to system; refuses device work. TtmError: EBUSY already, ENOMEM no memory (then nothing changed)."""
        ttm = self.vdev.ttm
        ctx.power = True
        if ttm.suspended:
            raise TtmError(errno.EBUSY, "the device is suspended already: write ctl/resume")
        with self._exclusive():
            ttm.suspended = True
            try:
                for manager in self._regions():
                    await self._empty(manager, ctx)
                await self._idle()
            except BaseException as error:
                with undoing():
                    await self._bring_back(OperationContext(power=True))
                self._give_up()
                self._back_to_work()
                code = getattr(error, "errno", None) or errno.EINTR
                points.suspend(ttm.trace, moved=0, bytes=ctx.done.bytes_moved, errno=code)
                raise
        points.suspend(ttm.trace, moved=len(self._saved), bytes=ctx.done.bytes_moved, errno=0)
        return {"suspended": len(self._saved), "bytes_moved": ctx.done.bytes_moved}

    async def resume(self, ctx: OperationContext) -> Result:
        """Bring the BOs back, then do device work again. TtmError(EINVAL) when it is not suspended.

        A BO that does not get its place back stays in system: `failed` counts those, their `last_error` says why.
        """
        ttm = self.vdev.ttm
        if not ttm.suspended:
            raise TtmError(errno.EINVAL, "the device is not suspended")
        ctx.unlimited = ctx.power = True
        with self._exclusive():
            restored, failed = await self._bring_back(ctx)
            self._back_to_work()
        points.resume(ttm.trace, restored=restored, failed=failed, bytes=ctx.done.bytes_moved)
        return {"restored": restored, "failed": failed, "bytes_moved": ctx.done.bytes_moved}

    def _give_up(self) -> None:
        """Those that there was no time to bring back stay in system."""
        for saved in self._saved:
            saved.bo.last_error = f"suspend failed, and {saved.region} was not had again within {UNDO_SECONDS:g} s"
        self._saved.clear()

    def _back_to_work(self) -> None:
        ttm = self.vdev.ttm
        ttm.suspended = False
        for bo in ttm.placed_in_suspend:
            if bo.mem_type == SYSTEM:
                bo.placed = False
        ttm.placed_in_suspend.clear()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if self.busy:
            raise TtmError(errno.EBUSY, "another suspend or resume is under way")
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def _regions(self) -> list[ResourceManager]:
        """Those that live in system pages first: the others leave through them."""
        managers = [manager for manager in self.vdev.ttm.managers.values() if manager.name != SYSTEM]
        return sorted(managers, key=lambda manager: not manager.use_tt)

    async def _empty(self, manager: ResourceManager, ctx: OperationContext) -> None:
        breather = Breather()
        while (bo := self._next(manager)) is not None:
            await breather.step()
            async with reserved_dead_or_alive(bo):
                if bo.resource is not None and bo.resource.manager is manager:
                    await self._save(bo, bo.resource, ctx)
        for fence in list(manager.pending_eviction_fences()):
            await fence.wait()

    def _next(self, manager: ResourceManager) -> BufferObject | None:
        """Who has something in the region, or will have: a move that is under way is waited for by reserving its BO."""
        item = manager.lru.first()
        if item is None:
            pinned = (item for item in self.vdev.ttm.unevictable if isinstance(item, Resource))
            item = next((resource for resource in pinned if resource.manager is manager), None)
        if item is None:
            item = next(iter(manager.unassigned), None)
        bo: BufferObject | None = None if item is None else item.bo
        return bo

    async def _save(self, bo: BufferObject, resource: Resource, ctx: OperationContext) -> None:
        if bo.deleted:
            await evict_bo(bo, ctx)
            return
        places = [Place(resource.mem_type)]
        if resource.start >= 0 and resource.num_pages:
            flags = resource.flags & PlaceFlag.CONTIGUOUS
            places.insert(0, Place(resource.mem_type, resource.start, resource.start + resource.num_pages, flags))
        with _unpinned(bo):
            home = await mem_space(bo, (Place(SYSTEM),), ctx)
            await move_to(bo, home, ctx, evict=True)
        self._saved.append(_Saved(bo, resource.mem_type, tuple(places)))

    async def _idle(self) -> None:
        """Jobs may still work on BOs in system."""
        for queue in self.vdev.all_queues:
            for fence in queue.pending():
                await fence.wait()

    async def _bring_back(self, ctx: OperationContext) -> tuple[int, int]:
        restored = failed = 0
        # Pinned ones first, each kind in the order of the LRU that it came from.
        self._saved = deque(sorted(self._saved, key=lambda saved: not saved.bo.pin_count))
        breather = Breather()
        while self._saved:
            await breather.step()
            saved = self._saved[0]
            came_back = await self._bring_one_back(saved, ctx)
            # Not before: who is interrupted goes on with it at the next resume.
            self._saved.popleft()
            restored += came_back is True
            failed += came_back is False
        return restored, failed

    async def _bring_one_back(self, saved: _Saved, ctx: OperationContext) -> bool | None:
        """Whether it is back; None when there is nothing to bring back any more."""
        with Turn(self.vdev.ttm, saved.bo.name) as turn:
            while True:
                ctx.ticket = turn.ticket()
                contended = None
                async with reserved_dead_or_alive(saved.bo):
                    try:
                        return await self._try_to_bring_back(saved, ctx)
                    except NoRoom as error:
                        contended = error.contended
                assert contended is not None
                await turn.wait(contended)

    async def _try_to_bring_back(self, saved: _Saved, ctx: OperationContext) -> bool | None:
        """One attempt, with the BO reserved. NoRoom when somebody is to be waited for."""
        bo = saved.bo
        if bo.deleted or bo.resource is None or bo.mem_type != SYSTEM or not bo.size:
            return None
        try:
            with _unpinned(bo):
                await validate(bo, saved.places, ctx)
        except TtmError as error:
            if isinstance(error, NoRoom) and error.contended is not None and not ctx.no_wait_gpu:
                raise
            bo.last_error = f"resume: not brought back to {saved.region}: {error.message}"
            return False
        return True


@contextmanager
def _unpinned(bo: BufferObject) -> Iterator[None]:
    """The pins of a reserved BO are set aside: the whole device moves."""
    pins, bo.pin_count = bo.pin_count, 0
    try:
        yield
    finally:
        bo.pin_count = 0 if bo.deleted else pins
        bo.relist()


async def unplug(vdev: Hardware, bos: Iterable[BufferObject]) -> Result:
    """The device is gone: nothing is served from it any more, and nobody keeps its pages in a cache.

    `bos` are all that have a file. One zero page that all of a mapping shares, as in the kernel, is not emulated.
    """
    vdev.ttm.unplugged = True
    points.unplug(vdev.ttm.trace)
    listed = list(bos)
    for bo in listed:
        bo.drop_vmap()
        bo.gate.wake()
    unmapped = 0
    breather = Breather()
    # To its end: what stayed cached would be seen for ever, as there is no second unplug. No request waits any more.
    with trio.CancelScope(shield=True):
        for bo in listed:
            await breather.step()
            unmapped += bo.handed_out
            await unmap_virtual(bo)
    return {"unmapped": unmapped}
