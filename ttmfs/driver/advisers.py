"""Advisers: what the core asks (ttmfs.ttm.advice), answered by policies (ttmfs.policy), with views between them."""

from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import Self

from ttmfs.driver.views import View, view_of
from ttmfs.policy import deadline
from ttmfs.policy.api import BO, Region, Request
from ttmfs.policy.evict import Answer, EvictAdviser
from ttmfs.policy.prefetch import PrefetchAdviser
from ttmfs.policy.promote import PromoteAdviser
from ttmfs.policy.registry import Prepared
from ttmfs.policy.seat import Ejection, Runner
from ttmfs.ttm.advice import FaultWhy, GoneWhy, UseWhy, gives_nothing
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.device import Device
from ttmfs.ttm.lru import NUM_PRIORITIES
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.placement import SYSTEM
from ttmfs.ttm.resource import Resource, ResourceManager

Protects = Callable[[BufferObject], bool]


class RegionAdviser:
    """The eviction policy of one region: an `Adviser` of the core, and the `Residents` of a policy's adviser.

    The core has it as the region's adviser only while there is a policy: `lru` is the core's own list, unasked.
    """

    def __init__(
        self, manager: ResourceManager, report: Callable[[Ejection], None], runner: Runner = deadline.run, size: int = 0
    ) -> None:
        """`size` in bytes is that of a region which has none of its own: system."""
        self.manager = manager
        self.region = Region(manager.name, manager.size or size)
        self._report = report
        self.policy = EvictAdviser(self, self._ejected, runner)
        self._late: list[BufferObject] | None = None
        """Those that came while residents are handed over."""

    def install(self, prepared: Prepared) -> Iterator[int]:
        """See EvictAdviser.install. Closing the generator before its end leaves the former policy in office."""
        self.manager.adviser = self
        try:
            yield from self.policy.install(prepared)
        finally:
            self._sync()

    def retire(self) -> None:
        """Back to the LRU alone."""
        self.policy.retire()
        self._sync()

    def _ejected(self, ejection: Ejection) -> None:
        self._sync()
        self._report(ejection)

    def _sync(self) -> None:
        self.manager.adviser = self if self.policy.active else None

    # -- what the core says and asks -----------------------------------------------------------------------------

    @property
    def wants_uses(self) -> bool:
        """See Adviser."""
        return self.policy.wants_uses

    def came(self, bo: BufferObject) -> None:
        """See Adviser."""
        if self._late is not None:
            self._late.append(bo)
        self.policy.added(view_of(bo))

    def used(self, bo: BufferObject, why: UseWhy) -> None:
        """See Adviser."""
        self.policy.used(view_of(bo), why)

    def left(self, bo: BufferObject, why: GoneWhy) -> None:
        """See Adviser."""
        self.policy.removed(view_of(bo), why)

    def victims(self, pages: int, for_bo: BufferObject | None, priority: int, protects: Protects) -> "Named":
        """See Adviser."""
        for_view = None if for_bo is None else view_of(for_bo)
        group = "" if for_view is None else for_view.group
        protected = Protected(self, protects)
        return Named(self.policy.ask(Request(pages, for_view, group=group, priority=priority, protected=protected)))

    def took(self) -> None:
        """See Adviser."""
        self.policy.took()

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
        here = resource is not None and resource.manager is self.manager
        if here and not bo.ghost and not bo.deleted and not gives_nothing(bo):
            bo.adviser = self
            yield view_of(bo)

    def a_victim(self, request: Request) -> BO | None:
        """See Residents."""
        levels = range(NUM_PRIORITIES) if request.priority is None else (request.priority,)
        for level in levels:
            for item in self.manager.lru.lists[level]:
                bo = item.bo
                if bo.adviser is self and not bo.deleted and not bo.pin_count:
                    view = view_of(bo)
                    if view is not request.for_bo and view not in request.protected:
                        return view
        return None


class Named:
    """The BOs that an answer names."""

    __slots__ = ("_answer",)

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answer.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> BufferObject:
        view = next(self._answer)
        assert isinstance(view, View)
        return view.bo


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
