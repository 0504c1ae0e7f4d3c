"""A policy of your own: what was used once only goes first.

    ttmfs replay TRACE --evict lru,probation.py:Probation
"""

from collections import OrderedDict
from collections.abc import Iterable

from ttmfs.policy import BO, Evict, GoneWhy, Region, Request, UseWhy


class Probation(Evict):
    """What was used once only goes before what was used again, the oldest of each first.

    What was used again may hold a part `keep` of the region. Beyond that its oldest goes first.
    """

    def __init__(self, keep: float = 0.8) -> None:
        self.keep = keep
        self.once: OrderedDict[BO, int] = OrderedDict()
        self.again: OrderedDict[BO, int] = OrderedDict()
        self.held = 0  # bytes of `again`: each with the size that it had when it came there

    def attach(self, region: Region) -> None:
        self.most = region.size * self.keep

    def added(self, bo: BO) -> None:
        self.once[bo] = bo.size

    def used(self, bo: BO, why: UseWhy) -> None:
        self.removed(bo, "moved")
        self.again[bo] = bo.size
        self.held += bo.size

    def removed(self, bo: BO, why: GoneWhy) -> None:
        self.once.pop(bo, None)
        self.held -= self.again.pop(bo, 0)

    def victims(self, request: Request) -> Iterable[BO]:
        if self.held > self.most:
            yield from self.again
        yield from self.once
        yield from self.again
