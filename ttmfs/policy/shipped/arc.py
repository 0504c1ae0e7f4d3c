"""Eviction that balances recency and frequency by itself: arc."""

from collections.abc import Iterable
from itertools import chain

from ttmfs.policy.api import BO, Evict, GoneWhy, Region, Request, UseWhy
from ttmfs.policy.shipped.queue import Queue


class Arc(Evict):
    """Two LRU lists, of BOs used once and of others; what comes back soon after its eviction moves the border.

    `once_gone` and `often_gone` remember those evicted (the paper's B1 and B2), `target` is the bytes that `once` may
    have (p). It moves by `step` bytes, or as the paper says by one BO: 0 is the size of the one that came back.

    Source: Megiddo and Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003.
    """

    def __init__(self, step: int = 0) -> None:
        self.step = step
        self.once, self.often, self.once_gone, self.often_gone = Queue(), Queue(), Queue(), Queue()
        self.back: tuple[BO | None, Queue | None] = None, None

    def attach(self, region: Region) -> None:
        self.size, self.target = region.size, 0.0

    def _came_back(self, bo: BO | None) -> bool:
        for gone, other, sign in ((self.once_gone, self.often_gone, 1), (self.often_gone, self.once_gone, -1)):
            if bo is not None and bo in gone:
                step = max(other.bytes / max(gone.bytes, 1), 1) * (self.step or bo.size)
                self.target = min(max(self.target + sign * step, 0), self.size)
                self.back = bo, gone if gone.drop(bo) else None
        return bo is not None and bo is self.back[0]

    def added(self, bo: BO) -> None:
        (self.often if self._came_back(bo) else self.once).push(bo)
        self.back = None, None
        self.once_gone.shrink(self.size - self.once.bytes)
        self.often_gone.shrink(2 * self.size - self.once.bytes - self.often.bytes - self.once_gone.bytes)

    def used(self, bo: BO, why: UseWhy) -> None:
        self.once.drop(bo)
        self.often.push(bo)

    def removed(self, bo: BO, why: GoneWhy) -> None:
        gone = self.once_gone if self.once.drop(bo) or not self.often.drop(bo) else self.often_gone
        if why == "evicted":
            gone.push(bo)

    def victims(self, request: Request) -> Iterable[BO]:
        even = self._came_back(request.for_bo) and self.back[1] is self.often_gone and self.once.bytes == self.target
        shorten = even or self.once.bytes > self.target
        return chain(self.once, self.often) if shorten else chain(self.often, self.once)
