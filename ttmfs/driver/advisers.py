"""Advisers: what the core asks (ttmfs.ttm.advice), answered by policies (ttmfs.policy), with views between them."""

from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager

from ttmfs.driver.group_adviser import Asked, GroupAdviser
from ttmfs.driver.views import View, view_of
from ttmfs.policy import deadline
from ttmfs.policy.api import BO, Region, Request
from ttmfs.policy.evict import EvictAdviser
from ttmfs.policy.prefetch import PrefetchAdviser
from ttmfs.policy.promote import PromoteAdviser
from ttmfs.policy.registry import Prepared
from ttmfs.policy.seat import Ejection, Runner
from ttmfs.ttm.advice import FaultWhy, GoneWhy, UseWhy, gives_nothing
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.device import Device
from ttmfs.ttm.dmem import Group
from ttmfs.ttm.lru import NUM_PRIORITIES
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.placement import SYSTEM, PlaceFlag
from ttmfs.ttm.resource import Resource, ResourceManager

Protects = Callable[[BufferObject], bool]


class RegionAdviser:
    """The eviction policy of one region: an `Adviser` of the core, and the `Residents` of a policy's adviser.

    The core has it as the region's adviser only while there is a policy: `lru` is the core's own list, unasked.

    Groups may have policies of their own in it. The region's order, the LRU without a policy, says whose turn it is:
    where that is a BO of such a group, the group's policy says which of its BOs goes instead, and so on downwards.
    """

    def __init__(
        self, manager: ResourceManager, report: Callable[[Ejection], None], runner: Runner = deadline.run, size: int = 0
    ) -> None:
        """`size` in bytes is that of a region which has none of its own: system."""
        self.manager = manager
        self.region = Region(manager.name, manager.size or size)
        self._report = report
        self._runner = runner
        self.policy = EvictAdviser(self, self._ejected, runner)
        self.groups: dict[Group, GroupAdviser] = {}
        """Those that have, or had, a policy of their own."""
        self._groups_want_uses = False
        self._late: list[BufferObject] | None = None
        """Those that came while residents are handed over."""

    def install(self, prepared: Prepared, group: Group | None = None) -> Iterator[int]:
        """See EvictAdviser.install. Closing the generator before its end leaves the former policy in office.

        `group`: for what this group has, and those below it.
        """
        self.manager.adviser = self
        policy = self.policy if group is None else self._for_group(group).policy
        try:
            for done in policy.install(prepared):
                self._sync()
                yield done
        finally:
            self._sync()
            if group in self.groups and not policy.active and not policy.statistics.ejected:
                del self.groups[group]

    def _for_group(self, group: Group) -> GroupAdviser:
        pool = group.pools[self.region.name]
        region = Region(self.region.name, min(self.region.size, pool.room() or self.region.size))
        there = self.groups.get(group)
        if there is None:
            there = self.groups[group] = GroupAdviser(group, region, self, self._ejected, self._runner)
        there.region = region
        return there

    def retire(self, group: Group | None = None) -> None:
        """Back to the LRU alone, or to the order of the region for a group's."""
        if group is None:
            self.policy.retire()
        elif (there := self.groups.pop(group, None)) is not None:
            there.policy.retire()
        self._sync()

    def _ejected(self, ejection: Ejection) -> None:
        self._sync()
        self._report(ejection)

    def _sync(self) -> None:
        groups = [group.policy for group in self.groups.values() if group.policy.active]
        self._groups_want_uses = any(policy.wants_uses for policy in groups)
        self.manager.adviser = self if groups or self.policy.active else None

    def _above(self, group: Group) -> list[GroupAdviser]:
        """The advisers of a group and those above it, the nearest first."""
        if not self.groups:
            return []
        return [there for each in group.live.chain if (there := self.groups.get(each)) is not None]

    # -- what the core says and asks -----------------------------------------------------------------------------

    @property
    def wants_uses(self) -> bool:
        """See Adviser."""
        return self.policy.wants_uses or self._groups_want_uses

    def came(self, bo: BufferObject) -> None:
        """See Adviser."""
        if self._late is not None:
            self._late.append(bo)
        self.policy.added(view_of(bo))
        for there in self._above(bo.group):
            there.policy.added(view_of(bo))

    def used(self, bo: BufferObject, why: UseWhy) -> None:
        """See Adviser."""
        self.policy.used(view_of(bo), why)
        for there in self._above(bo.group):
            there.policy.used(view_of(bo), why)

    def left(self, bo: BufferObject, why: GoneWhy) -> None:
        """See Adviser."""
        self.policy.removed(view_of(bo), why)
        for there in self._above(bo.group):
            there.policy.removed(view_of(bo), why)

    def regrouped(self, bo: BufferObject, before: Group) -> None:
        """See Adviser."""
        if self._late is not None:
            self._late.append(bo)
        old, new = self._above(before), self._above(bo.group)
        for there in old:
            if there not in new:
                there.policy.removed(view_of(bo), "moved")
        for there in new:
            if there not in old:
                there.policy.added(view_of(bo))

    @contextmanager
    def victims(
        self, pages: int, for_bo: BufferObject | None, priority: int, protects: Protects
    ) -> Generator[Iterator[BufferObject]]:
        """See Adviser."""
        for_view = None if for_bo is None else view_of(for_bo)
        group = "" if for_view is None else for_view.group
        protected = Protected(self, protects)
        with Asked(Request(pages, for_view, group=group, priority=priority, protected=protected)) as asked:
            yield (self._instead_of(bo, asked) for bo in self._in_turn(asked, priority, protects))

    def _in_turn(self, asked: Asked, priority: int, protects: Protects) -> Iterator[BufferObject]:
        """Whose turn it is, for the region; nobody where the core may walk its list by itself."""
        if self.policy.in_office:
            while (named := asked.next(self.policy)) is not None:
                yield named
        if self.groups and not self.policy.in_office:
            for item in self.manager.lru.lists[priority]:
                if not protects(item.bo):
                    yield item.bo

    def _instead_of(self, bo: BufferObject, asked: Asked) -> BufferObject:
        """Whom the policies of its groups name, from above downwards."""
        there: GroupAdviser | None = None
        while not bo.ghost and not bo.deleted:
            depth = 0 if there is None else there.depth
            there = next((each for each in self._above(bo.group)[::-1] if each.asked_below(depth)), None)
            named = None if there is None else asked.next(there.policy)
            if named is None:
                break
            bo = named
        return bo

    def took(self, bo: BufferObject) -> None:
        """See Adviser. Where a group has a policy, that has named it."""
        policies = [*(there.policy for there in self._above(bo.group)), self.policy]
        policy = next((policy for policy in policies if policy.in_office), None)
        if policy is not None:
            policy.took()

    # -- what the policy's adviser asks --------------------------------------------------------------------------

    def residents(self) -> Iterator[BO]:
        """See Residents: the LRU, then what is pinned or swapped out, then who came meanwhile."""
        self._late = []
        try:
            with LruCursor(self.manager.lru) as cursor:
                for item in cursor:
                    assert isinstance(item, Resource)
                    yield from self._resident(item.bo)
            for item in list(self.manager.unevictable):
                if isinstance(item, Resource) and item.manager is self.manager:
                    yield from self._resident(item.bo)
            while self._late:
                yield from self._resident(self._late.pop(0))
        finally:
            self._late = None

    def _resident(self, bo: BufferObject) -> Iterator[BO]:
        resource = bo.resource
        # One that bounces here is nobody's, as `ttm.advice.tell` has it.
        here = resource is not None and resource.manager is self.manager and PlaceFlag.TEMPORARY not in resource.flags
        if here and not bo.ghost and not bo.deleted and not gives_nothing(bo):
            bo.adviser = self
            yield view_of(bo)

    def a_victim(self, request: Request) -> BO | None:
        """See Residents."""
        return next(self.could_go(request), None)

    def could_go(self, request: Request) -> Iterator[View]:
        """All that could go for this request, the first of the LRU first."""
        levels = range(NUM_PRIORITIES) if request.priority is None else (request.priority,)
        for level in levels:
            for item in self.manager.lru.lists[level]:
                bo = item.bo
                if bo.adviser is self and not bo.deleted and not bo.pin_count:
                    view = view_of(bo)
                    if view is not request.for_bo and view not in request.protected:
                        yield view


class Protected(Collection[BO]):
    """BOs that cannot go for a request, asked one by one: there may be many in the region."""

    __slots__ = ("_adviser", "_protects")

    def __init__(self, adviser: RegionAdviser, protects: Protects) -> None:
        self._adviser = adviser
        self._protects = protects

    def __contains__(self, view: object) -> bool:
        return isinstance(view, View) and self._protects(view.bo)

    def __iter__(self) -> Iterator[BO]:
        for item in self._adviser.manager.lru:
            if item.bo.adviser is self._adviser and self._protects(item.bo):
                yield view_of(item.bo)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class HomeKeeper:
    """`Homes` of the core: which BOs are displaced is kept with a promotion policy's adviser."""

    def __init__(self, policy: PromoteAdviser) -> None:
        self._policy = policy

    def placed(self, bo: BufferObject) -> None:
        """See Homes. A BO whose home is system cannot lie lower."""
        home = "" if bo.home in (SYSTEM, bo.mem_type) or bo.deleted else bo.home
        if not home and bo.view is None:
            return
        view = view_of(bo)
        known = self._policy.home_of(view)
        if known and known != home:
            self._policy.settled(view)
        if home and known != home:
            self._policy.displaced(view, home)


class FaultAdviser:
    """`Prefetcher` of the core, which has it only while there is a policy."""

    def __init__(self, device: Device, report: Callable[[Ejection], None]) -> None:
        self._device = device
        self._report = report
        self.policy = PrefetchAdviser(self._ejected)

    def install(self, prepared: Prepared) -> None:
        """See PrefetchAdviser."""
        self.policy.install(prepared)
        self._device.prefetcher = self

    def retire(self) -> None:
        """The BO's own prefault counts again."""
        self.policy.retire()
        self._device.prefetcher = None

    def _ejected(self, ejection: Ejection) -> None:
        self._device.prefetcher = None
        self._report(ejection)

    def around(self, bo: BufferObject | BO, first: int, count: int, why: FaultWhy) -> tuple[int, int]:
        """See Prefetcher."""
        return self.policy.fault(bo if isinstance(bo, BO) else view_of(bo), first, count, why)

    def removed(self, bo: BufferObject | BO, first: int, count: int) -> None:
        """See Prefetcher."""
        self.policy.removed(bo if isinstance(bo, BO) else view_of(bo), first, count)
