"""Eviction by three FIFO queues: s3fifo."""

from collections.abc import Iterable
from itertools import chain

from ttmfs.policy.api import BO, Evict, GoneWhy, Region, Request, UseWhy
from ttmfs.policy.shipped.clock import Clock
from ttmfs.policy.shipped.queue import Memory


class S3Fifo(Evict):
    """A small FIFO filters what is used once, the main one gives what is used more turns, a third remembers names.

    `small` and `ghost` are parts of the region's size, `promote_at` the uses in the small queue that lead into the
    main one, a clock. Until the region was full once, what finds the small queue full goes into the main one.

    Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
    """

    def __init__(self, small: float = 0.1, ghost: float = 0.9, promote_at: int = 2) -> None:
        self.parts, self.promote_at = (small, ghost), min(promote_at, 3)
        self.small, self.main, self.ghost = Clock(bits=2), Clock(bits=2), Memory()
        self.was_full = False

    def attach(self, region: Region) -> None:
        self.small_size, self.ghost_size = (int(region.size * part) for part in self.parts)
        self.main_size = region.size - self.small_size

    def added(self, bo: BO) -> None:
        roomy = self.was_full or self.small.queue.bytes < self.small_size
        (self.small if roomy and not self.ghost.came_back(bo) else self.main).added(bo)

    def used(self, bo: BO, why: UseWhy) -> None:
        (self.small if bo in self.small.turns else self.main).used(bo, why)

    def removed(self, bo: BO, why: GoneWhy) -> None:
        place = self.small if bo in self.small.turns else self.main
        place.removed(bo, why)
        if place is self.small and why == "evicted":
            self.ghost.remember(bo, self.ghost_size)

    def victims(self, request: Request) -> Iterable[BO]:
        self.ghost.expect(request.for_bo)
        self.was_full = True
        for _ in range(len(self.small.queue) if self.main.queue.bytes <= self.main_size else 0):
            bo = self.small.queue.turn()
            if self.small.turns[bo] < self.promote_at:
                yield bo
            else:
                self.small.removed(bo, "moved")
                self.main.added(bo)
        yield from chain(self.main.victims(request), self.small.queue)
