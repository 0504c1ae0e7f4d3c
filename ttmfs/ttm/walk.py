"""Walk: one allocation's search for victims in a region (ttm_lru_walk), as far as it evicts nobody itself.

Who is a victim, how it is locked, and what is left when all have been looked at. A first walk only trylocks. With a
ticket each further one may wait for one victim, under the rules of ttmfs.ttm.contention; EDEADLK never leaves it.
"""

import errno
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.sync.breather import Breather
from ttmfs.sync.ww_mutex import AcquireContext
from ttmfs.ttm.account import MEMORY
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import HOLD_SECONDS, Changed, Contended, Held
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lru import LruItem
from ttmfs.ttm.lru_cursor import LruCursor, newer
from ttmfs.ttm.placement import Place
from ttmfs.ttm.protection import Search, Spared
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.ttm.shared import put_off

_CHANGED: Final = Changed()

Evict = Callable[["Walk", Resource, int], Awaitable[bool]]
"""Evict the locked BO of a resource, at that position of the walk; True when it went."""


class Walk:
    """Who evicts, for what place, whom limits and groups let him, and what it met."""

    __slots__ = (
        "_told",
        "bo",
        "breather",
        "ctx",
        "evict",
        "evicted",
        "looked",
        "manager",
        "place",
        "refused",
        "search",
    )

    def __init__(
        self,
        bo: BufferObject,
        manager: ResourceManager,
        place: Place,
        ctx: OperationContext,
        search: Search,
        evict: Evict,
    ) -> None:
        self.search = search
        self.evict = evict
        self.breather = Breather()
        """Others run between one BO and the next: they may be many, and to evict one may await nothing at all."""
        self._told: dict[tuple[object, Spared], None] = {}
        self.bo = bo
        self.manager = manager
        self.place = place
        self.ctx = ctx
        self.evicted = 0
        """BOs that went, in all walks."""
        self.looked = 0
        """BOs of the LRU that this walk has come past: the position of the one it is at."""
        self.refused: dict[Resource, None] = {}
        """What could not go anywhere, and is not asked again."""

    @property
    def ticket(self) -> AcquireContext | None:
        """That under which a victim may be waited for."""
        return self.bo.resv.holder

    def is_own(self, victim: BufferObject) -> bool:
        """Is it named in the same call (EALREADY), and so never its victim, nor its victims'?

        Nor is one that shares the reservation of such a BO, unless the call says that those may go.
        """
        if victim is self.bo or self.shares_held(victim):
            return victim is self.bo
        holder = victim.resv.holder
        return victim.resv is self.bo.resv or (
            holder is not None and (holder is self.ticket or holder is self.ctx.ticket)
        )

    def spares(self, victim: BufferObject) -> bool:
        """Is it nobody who may go for this, whoever names it: its own, elsewhere, or kept by limits or groups?"""
        resource = victim.resource
        elsewhere = resource is not None and resource.manager is not self.manager
        return self.is_own(victim) or elsewhere or (resource is not None and self.keeps(resource))

    def keeps(self, resource: Resource) -> bool:
        """Do limits or groups keep it from being evicted for this?"""
        pool = resource.pool
        spared = self.search.spares(pool, resource.account)
        if spared and pool is not None and self.bo.device.trace.on and (pool, spared) not in self._told:
            self._told[pool, spared] = None
            for_bo, trace = self.bo.name, self.bo.device.trace
            points.dmem_spared(trace, resource.bo, region=pool.region, group=pool.group.name, for_bo=for_bo, why=spared)
        return bool(spared)

    def shares_held(self, victim: BufferObject) -> bool:
        """Is the victim's reservation one that the caller holds, and allows to be evicted from?"""
        ctx = self.ctx
        return ctx.allow_res_evict and ctx.resv is victim.resv and victim not in ctx.keep

    def trylock(self, victim: BufferObject) -> bool:
        """Reserve a victim that is free."""
        return self.shares_held(victim) or victim.resv.trylock()

    async def wait_for(self, victim: BufferObject, ticket: AcquireContext) -> bool:
        """Reserve a victim that somebody holds, waiting a while for it; False: it is not to be had so."""
        locked = False
        with trio.move_on_after(HOLD_SECONDS):
            try:
                await victim.resv.lock(ticket)
                locked = True
            except TtmError as error:
                if error.errno not in (errno.EDEADLK, errno.EALREADY):
                    raise
        return locked

    def unlock(self, victim: BufferObject) -> None:
        """Let it go. What shares a reservation that the caller holds stays reserved."""
        if self.shares_held(victim):
            put_off(victim)
        else:
            victim.unlock()

    def wants(self, resource: Resource) -> bool:
        """May its BO be evicted, and would that be of use? Asked again when it is reserved: all may have changed."""
        victim = resource.bo
        return (
            victim.resource is resource
            and resource.on_lru
            and not victim.pin_count
            and resource not in self.refused
            and victim.funcs.eviction_valuable(victim, self.place)
            and self.manager.intersects(resource, self.place)
            and not self.keeps(resource)
        )

    def affords(self, resource: Resource) -> bool:
        """May who pays for a victim have its content elsewhere? Not asked for where others need the space."""
        bo = resource.bo
        if self.search.payer is None or bo.deleted or not bo.funcs.evict_flags(bo):
            return True
        return bool(resource.account.room(MEMORY) >= resource.own_pages)

    async def left(self) -> Contended | None:
        """What might still make room, after a walk that did not: somebody who is reserved, or on his way here, or who
        came while it was walked. None: nobody, which holds until the next await."""
        begun = self.manager.lru.stamp
        held: Contended | None = None
        with LruCursor(self.manager.lru, until_now=True) as cursor:
            while (item := cursor.next()) is not None:
                if (hope := self._hope(item)) is _CHANGED:
                    return hope
                held = held or hope
                await self.breather.step()
        for item in newer(self.manager.lru, begun):
            if (hope := self._hope(item)) is _CHANGED:
                return hope
            held = held or hope
        for resource in self.manager.unassigned:
            # Allocated, but not assigned yet: nobody can evict it, for the moment.
            victim = resource.bo
            if held is None and victim.resv.locked and not self.is_own(victim) and not self.keeps(resource):
                held = Held(victim)
        return held

    def _hope(self, item: LruItem) -> Contended | None:
        """What one on the list says to that: nothing, that it is free, or held."""
        assert isinstance(item, Resource)
        victim = item.bo
        if self.spares(victim) or not self.wants(item):
            return None
        return _CHANGED if not victim.resv.locked or self.shares_held(victim) else Held(victim)
