"""Eviction by who holds how much: quota."""

from collections import Counter
from collections.abc import Iterable

from ttmfs.policy.api import BO, Evict, GoneWhy, Region, Request, UseWhy
from ttmfs.policy.shipped.queue import Queue


class Quota(Evict):
    """LRU, but whoever holds no more than a share of the region keeps it while others hold more than theirs.

    `by` is client or group, `share` a part of the region's size; 0 divides it evenly among those that hold something.

    Source: Linux, kernel/cgroup/dmem.c (`dmem_cgroup_state_evict_valuable`: what is below `low` goes in the last pass).
    """

    def __init__(self, by: str = "client", share: float = 0.0) -> None:
        if by not in ("client", "group"):
            raise ValueError(f"by={by}: say client or group")
        self.by, self.share = by, share
        self.queue = Queue()
        self.owner: dict[BO, tuple[str, int]] = {}
        self.held: Counter[str] = Counter()

    def attach(self, region: Region) -> None:
        self.size = region.size

    def added(self, bo: BO) -> None:
        self.queue.push(bo)
        owner, size = self.owner[bo] = getattr(bo, self.by), bo.size
        self.held[owner] += size

    def used(self, bo: BO, why: UseWhy) -> None:
        self.queue.push(bo)

    def removed(self, bo: BO, why: GoneWhy) -> None:
        self.queue.drop(bo)
        owner, size = self.owner.pop(bo)
        self.held[owner] -= size

    def victims(self, request: Request) -> Iterable[BO]:
        coming = request.for_bo
        held = self.held + Counter({getattr(coming, self.by): coming.size} if coming else {})
        share = self.size * self.share or self.size / max(len(held), 1)
        yield from (bo for bo in self.queue if held[self.owner[bo][0]] > share)
        yield from self.queue
