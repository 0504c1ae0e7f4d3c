"""Belady's MIN: the bound that no policy without knowledge of the future can beat, where all BOs are of one size."""

from collections.abc import Iterable, Sequence

from ttmfs.policy import BO, Evict, GoneWhy, Request, UseWhy
from ttmfs.policy.shipped.queue import Ranking


class Belady(Evict):
    """The one whose next use is farthest away goes first; only in replay, where the future is known.

    Source: Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 1966.
    """

    def __init__(self, next_uses: Sequence[int]) -> None:
        self.next_uses = next_uses
        self.ranking = Ranking()

    def added(self, bo: BO) -> None:
        # The device's clock ticks once for each use, and has just ticked for this one.
        self.ranking.put(bo, -self.next_uses[bo.last_use - 1])

    def used(self, bo: BO, why: UseWhy) -> None:
        self.added(bo)

    def removed(self, bo: BO, why: GoneWhy) -> None:
        self.ranking.drop(bo)

    def victims(self, request: Request) -> Iterable[BO]:
        return self.ranking


def with_future(next_uses: Sequence[int]) -> type[Belady]:
    """The policy for one trace, as a class that needs no arguments, as all others."""

    class Foreseeing(Belady):
        def __init__(self) -> None:
            super().__init__(next_uses)

    return Foreseeing
