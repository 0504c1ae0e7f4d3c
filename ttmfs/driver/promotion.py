"""Promotion: BOs that are not where they are wanted come home when there is room (amdgpu's moverate).

Without it a BO that was evicted, or found its place taken, stays out until somebody validates it. Who is displaced is
always remembered; a policy says who comes home, and how many bytes a second may. For that nobody is evicted and nothing
is swapped out: home is taken only from what is free.
"""

from collections.abc import Sequence
from typing import Final, Literal

import trio

from ttmfs.driver.hardware import Hardware
from ttmfs.driver.views import View, view_of
from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.policy.api import BO
from ttmfs.policy.promote import PromoteAdviser
from ttmfs.sync.bell import Bell
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.placement import GTT, Place, PlaceFlag
from ttmfs.ttm.resource import ResourceManager
from ttmfs.ttm.validate import validate
from ttmfs.units import PAGE_SIZE

TICK_SECONDS: Final = 0.05
"""How often a policy is asked while somebody is displaced."""

Why = Literal["tick", "job"]


class Promoter:
    """Brings them home: `run` as time passes, `submitted` for a job."""

    def __init__(self, vdev: Hardware, policy: PromoteAdviser) -> None:
        self.vdev = vdev
        self.policy = policy
        self._in_office = Bell()

    def begin(self) -> None:
        """A policy is in office."""
        self._in_office.ring()

    async def run(self) -> None:
        """Background; runs until cancelled."""
        while True:
            while not self.policy.active:
                await self._in_office.heard()
            await trio.sleep(TICK_SECONDS)
            if self.policy.active and self.policy.displaced_bos and self._works:
                for view, home in self.policy.tick(trio.current_time()):
                    await self._try(view, home)

    @property
    def _works(self) -> bool:
        ttm = self.vdev.ttm
        return not (ttm.suspended or ttm.unplugged or ttm.closing)

    async def _try(self, view: BO, home: str) -> None:
        """One BO, unless somebody holds it: that one uses it, and is not to be kept waiting."""
        assert isinstance(view, View)
        bo = view.bo
        if not self._works or not bo.resv.trylock():
            return
        try:
            if bo.home == home and not bo.deleted and not bo.pin_count:
                await self._bring(bo, "tick")
        finally:
            # Not bumped: coming home is no use.
            bo.unlock()

    async def submitted(self, bos: Sequence[BufferObject], ctx: OperationContext) -> None:
        """A job over these reserved BOs: who is displaced comes home now, as far as the policy says so."""
        displaced = self.policy.displaced_bos
        if not self.policy.active or not any(view_of(bo) in displaced for bo in bos):
            return
        views = [view_of(bo) for bo in bos]
        for view, _home in self.policy.submitted(views, trio.current_time()):
            assert isinstance(view, View)
            if view in views:
                await self._bring(view.bo, "job", ctx)

    async def _bring(self, bo: BufferObject, why: Why, ctx: OperationContext | None = None) -> None:
        """A reserved BO to its home, if there is room; no harm is done if there is not."""
        ttm = self.vdev.ttm
        home = ttm.managers.get(bo.home)
        if home is None or not self._has_room(bo, home):
            return
        own = OperationContext(resv=bo.resv)
        if ctx is not None:
            own.ticket, own.no_wait_gpu = ctx.ticket, ctx.no_wait_gpu
        before = bo.mem_type
        # Only idle space of its home, or it stays.
        wanted = (Place(home.name, flags=PlaceFlag.DESIRED), Place(before, flags=PlaceFlag.FALLBACK))
        try:
            await validate(bo, wanted, own)
        except TtmError as error:
            bo.last_error = f"did not come home to {home.name}: {error.message}"
        if ctx is not None:
            ctx.done.bytes_moved += own.done.bytes_moved
        if bo.mem_type == home.name:
            self.policy.spent(bo.size)
            ttm.counters.moves.promotions += 1
            points.promote(ttm.trace, bo, src=before, dst=home.name, bytes=bo.size, why=why)

    def _has_room(self, bo: BufferObject, home: ResourceManager) -> bool:
        """There, on the way, and for what has to come back from the store."""
        ttm = self.vdev.ttm
        need = bo.num_pages * PAGE_SIZE
        gtt = ttm.managers[GTT]
        hop = bo.mem_type != GTT and home is not gtt and gtt.size - gtt.usage < need
        if hop or not home.used or home.size - home.usage < need:
            return False
        tt = bo.tt
        missing = 0 if tt is None else tt.num_pages - tt.populated_pages
        return not missing or (missing <= ttm.pool.free_pages and ttm.over_limit(missing) <= 0)
