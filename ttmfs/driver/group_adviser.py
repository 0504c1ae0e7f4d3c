"""Group adviser: the eviction policy of one group in one region, which knows what it and those below it have there.

It is never asked whether the group has to give something: the region's order and the limits say that (see
`ttmfs.driver.advisers.RegionAdviser`). It says which of its BOs that is.
"""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self

from ttmfs.driver.views import View
from ttmfs.policy.api import BO, Region, Request
from ttmfs.policy.evict import Answer, EvictAdviser
from ttmfs.policy.seat import Ejection, Runner
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.dmem import Group


class OfRegion(Protocol):
    """What all BOs of the region are known by."""

    def residents(self) -> Iterator[BO]:
        """See Residents."""

    def could_go(self, request: Request) -> Iterator[View]:
        """All that could go for this request."""


class GroupAdviser:
    """`Residents` of a policy's adviser, for a group. `region` has the size that the group may have when it begins."""

    def __init__(
        self, group: Group, region: Region, whole: OfRegion, report: Callable[[Ejection], None], runner: Runner
    ) -> None:
        self.group = group
        self.region = region
        self._whole = whole
        self.depth = group.path.count("/")
        """How far below the root: 1 is right below it."""
        self.policy = EvictAdviser(self, report, runner, part=self.name)

    @property
    def name(self) -> str:
        """As it is written in policies/evict: `game:vram`."""
        return f"{self.group.name}:{self.region.name}"

    def asked_below(self, depth: int) -> bool:
        """Does its policy answer for what one at that depth has named?"""
        return self.depth > depth and self.policy.in_office

    def _has(self, view: BO) -> bool:
        return isinstance(view, View) and self.group in view.bo.group.live.chain

    def residents(self) -> Iterator[BO]:
        """See Residents."""
        return (view for view in self._whole.residents() if self._has(view))

    def a_victim(self, request: Request) -> BO | None:
        """See Residents."""
        return next((view for view in self._whole.could_go(request) if self._has(view)), None)


class Asked:
    """One request, and the answers of all policies that were asked for it, each as far as it was needed."""

    __slots__ = ("_answers", "_request")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._answers: dict[EvictAdviser, Answer] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for answer in self._answers.values():
            answer.close()

    def next(self, policy: EvictAdviser) -> BufferObject | None:
        """Whom it names next; None: nobody any more."""
        answer = self._answers.get(policy)
        if answer is None:
            answer = self._answers[policy] = policy.ask(self._request)
        view = next(answer, None)
        assert view is None or isinstance(view, View)
        return None if view is None else view.bo
