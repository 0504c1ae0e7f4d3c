"""Advice: what the core asks outside about victims, prefetch and homes, and how a BO is used.

TTM decides which BO goes by its LRU alone. Here a region may have an adviser, which is told what comes, is used and
goes, and names victims in an order of its own. The core knows no policy: whoever has one registers it behind these
protocols. It takes each answer as advice: what is pinned, held by the same ticket, of another priority or of no use for
the place is passed over, passes, tickets and fences are as ever, and the LRU is kept all the same.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from ttmfs.observe import points
from ttmfs.ttm.dmem import Group
from ttmfs.ttm.placement import SYSTEM, PlaceFlag, Placement
from ttmfs.units import PAGE_SHIFT, pages_of

UseWhy = Literal["fault", "write", "read", "job", "validate"]
FaultWhy = Literal["fault", "svm"]
GoneWhy = Literal["evicted", "moved", "destroyed"]


class Adviser(Protocol):
    """Who advises about one region. A BO here is a BufferObject."""

    @property
    def wants_uses(self) -> bool:
        """Must READs that are answered from a view be told?"""

    def came(self, bo: Any) -> None:
        """It is in the region now; with its first use there, if somebody used it."""

    def used(self, bo: Any, why: UseWhy) -> None:
        """It was used again."""

    def left(self, bo: Any, why: GoneWhy) -> None:
        """It is in the region no more."""

    def regrouped(self, bo: Any, before: Group) -> None:
        """It is of another group than `before`, in the region as it was."""

    def victims(
        self, pages: int, for_bo: Any, priority: int, protects: Callable[[Any], bool]
    ) -> AbstractContextManager[Iterator[Any]]:
        """BOs of this priority in the order in which they may go, so that `pages` get free for `for_bo` (or None).

        What `protects` says cannot go. The answer holds until the next await.
        """

    def took(self, bo: Any) -> None:
        """It was evicted, having been named."""


class Homes(Protocol):
    """Who remembers the BOs that are not where they are wanted."""

    def placed(self, bo: Any) -> None:
        """Its place, or its home, is another now; it is gone when it is deleted."""


class Prefetcher(Protocol):
    """Who says what comes along with a fault."""

    def around(self, bo: Any, first: int, count: int, why: FaultWhy) -> tuple[int, int]:
        """Pages [first, first + count) had no memory where they are wanted: (first, count) of what shall have some.

        `bo` is a BO, or, for a fault of the device (`svm`), what an address space is known by.
        """

    def removed(self, bo: Any, first: int, count: int) -> None:
        """These pages have no memory any more."""


def tell(bo: Any, adviser: Adviser | None = None) -> None:
    """The region of a BO has another adviser, or none: the one that knew it is told that it left.

    From system it has left as well when no page of it is in memory, until it is used again.
    """
    _known_to(bo, None if gives_nothing(bo) else adviser)


def gives_nothing(bo: Any) -> bool:
    """Is it in system, with no page there?"""
    return bo.mem_type == SYSTEM and (bo.tt is None or not bo.tt.populated_pages)


def _known_to(bo: Any, adviser: Adviser | None) -> None:
    old, resource = bo.adviser, bo.resource
    if bo.ghost or bo.deleted or (resource is not None and PlaceFlag.TEMPORARY in resource.flags):
        adviser = None
    if old is adviser:
        return
    bo.adviser = adviser
    if old is not None:
        went = bo.evicting or (bo.swapped and not bo.deleted)
        old.left(bo, "evicted" if went else "destroyed" if bo.deleted else "moved")
    if adviser is not None:
        adviser.came(bo)


def want(bo: Any, placement: Placement) -> None:
    """Somebody has said where it shall be: the first place is its home from now on; none, and it has none."""
    bo.home = placement[0].mem_type if placement else ""
    compare_home(bo)


def compare_home(bo: Any) -> None:
    """Whoever remembers who is displaced looks at it."""
    homes, resource = bo.device.homes, bo.resource
    if homes is not None and (resource is None or PlaceFlag.TEMPORARY not in resource.flags):
        homes.placed(bo)


def used(bo: Any, why: UseWhy, *, came: bool = False) -> None:
    """Somebody uses the BO. To be called before what moves it for that, so that coming in is told as one use.

    `came`: it has come for this use already.
    """
    device = bo.device
    device.uses += 1
    bo.uses += 1
    bo.last_use = device.uses
    if bo.adviser is not None:
        if not came:
            bo.adviser.used(bo, why)
    elif bo.resource is not None and bo.resource.manager.adviser is not None:
        # Its pages come with this use.
        _known_to(bo, bo.resource.manager.adviser)


def trace_use(bo: Any, why: UseWhy, call: int, first: int = 0, pages: int = 0) -> None:
    """Record a use, when it is over: where the BO is then. All uses of one call have its number. No pages: all."""
    trace, pages = bo.device.trace, pages or bo.num_pages
    points.use(trace, bo, why=why, region=bo.mem_type, bytes=bo.size, first=first, pages=pages, call=call)


def used_at_once(bo: Any, why: UseWhy, offset: int, length: int) -> None:
    """A READ or WRITE of these bytes was answered with no wait: a use where the region's adviser cares for uses.

    Else a READ is none. A WRITE is always one; it is recorded only here, where a policy may have counted it.
    """
    wanted = bo.adviser is not None and bo.adviser.wants_uses
    if wanted or why == "write":
        used(bo, why)
    if wanted and length:
        first = offset >> PAGE_SHIFT
        trace_use(bo, why, bo.last_use, first, pages_of(offset + length) - first)


def pages_gone(prefetcher: Prefetcher | None, bo: Any, first: int, count: int) -> None:
    """Pages of a BO, or of a space, have no memory any more where they were."""
    if prefetcher is not None and count > 0:
        prefetcher.removed(bo, first, count)
