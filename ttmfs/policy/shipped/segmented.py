"""Eviction from segments: slru."""

from collections.abc import Iterable

from ttmfs.policy.api import BO, Evict, GoneWhy, Region, Request, UseWhy
from ttmfs.policy.shipped.queue import Queue


class Slru(Evict):
    """LRU in `segments` of equal size: each use takes a BO one segment up, where there is no room the oldest goes down.

    Victims come from the lowest. While there is room, a new BO is put into the lowest segment that has some.

    Source: Karedla, Love and Wherry, "Caching strategies to improve disk system performance", IEEE Computer 1994.
    """

    def __init__(self, segments: int = 4) -> None:
        self.segments = [Queue() for _ in range(max(segments, 1))]
        self.place: dict[BO, int] = {}

    def attach(self, region: Region) -> None:
        self.most = region.size // len(self.segments)

    def _put(self, bo: BO, index: int) -> None:
        self.place[bo] = index
        self.segments[index].push(bo)

    def added(self, bo: BO) -> None:
        roomy = (index for index, queue in enumerate(self.segments) if queue.bytes + bo.size <= self.most)
        self._put(bo, next(roomy, 0))

    def used(self, bo: BO, why: UseWhy) -> None:
        index = self.place[bo]
        self.segments[index].drop(bo)
        top = min(index + 1, len(self.segments) - 1)
        self._put(bo, top)
        for above in range(top, 0, -1):
            while self.segments[above].bytes > self.most:
                oldest = self.segments[above].oldest()
                self.segments[above].drop(oldest)
                self._put(oldest, above - 1)

    def removed(self, bo: BO, why: GoneWhy) -> None:
        self.segments[self.place.pop(bo)].drop(bo)

    def victims(self, request: Request) -> Iterable[BO]:
        for queue in self.segments:
            yield from queue
