"""Eviction by how often BOs are used: lfu, gdsf."""

from collections.abc import Iterable

from ttmfs.policy.api import BO, Evict, GoneWhy, Region, Request, UseWhy
from ttmfs.policy.shipped.queue import Ranking


class Lfu(Evict):
    """The one that was used least often since it came goes first; of equals the one that is so for longest.

    Source: Aho, Denning and Ullman, "Principles of optimal page replacement", Journal of the ACM 1971.
    """

    def __init__(self) -> None:
        self.ranking = Ranking()

    def added(self, bo: BO) -> None:
        self.ranking.put(bo, 1)

    def used(self, bo: BO, why: UseWhy) -> None:
        self.ranking.put(bo, self.ranking[bo] + 1)

    def removed(self, bo: BO, why: GoneWhy) -> None:
        self.ranking.drop(bo)

    def victims(self, request: Request) -> Iterable[BO]:
        return self.ranking


class Gdsf(Evict):
    """The one with the fewest uses a byte goes first, uses long ago counting less (greedy dual size with frequency).

    Source: Cherkasova, "Improving WWW proxies performance with greedy-dual-size-frequency caching policy", HP Labs
    HPL-98-69R1, 1998; every BO costs the same to bring back.
    """

    def attach(self, region: Region) -> None:
        self.ranking = Ranking()
        self.uses: dict[BO, int] = {}
        self.age = 0.0

    def _rank(self, bo: BO, uses: int) -> None:
        self.uses[bo] = uses
        self.ranking.put(bo, self.age + uses * 1e6 / max(bo.size, 1))

    def added(self, bo: BO) -> None:
        self._rank(bo, 1)

    def used(self, bo: BO, why: UseWhy) -> None:
        self._rank(bo, self.uses[bo] + 1)

    def removed(self, bo: BO, why: GoneWhy) -> None:
        del self.uses[bo]
        rank = self.ranking.drop(bo)
        if why == "evicted" and rank is not None:
            self.age = rank

    def victims(self, request: Request) -> Iterable[BO]:
        return self.ranking
