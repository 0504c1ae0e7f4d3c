"""Eviction by the distance between two uses: lirs."""

from collections.abc import Iterable
from itertools import chain

from ttmfs.policy.api import BO, Evict, GoneWhy, Region, Request, UseWhy
from ttmfs.policy.shipped.queue import Queue


class Lirs(Evict):
    """What was used twice within a short while stays (LIR); the others (HIR) go, in the order of their last use.

    `stack` (the paper's S) has BOs by last use, those that are gone too, down to the oldest LIR one; a HIR one that is
    used while it is in there becomes LIR, and the oldest LIR one becomes HIR. `hir` is the part of the region that HIR
    BOs are sure of. The stack is bounded: names of gone ones are forgotten while it is over twice the region.

    Source: Jiang and Zhang, "LIRS: an efficient low inter-reference recency set replacement policy", SIGMETRICS 2002.
    """

    def __init__(self, hir: float = 0.01) -> None:
        self.part = hir
        self.stack, self.lir, self.hir, self.gone = Queue(), Queue(), Queue(), Queue()

    def attach(self, region: Region) -> None:
        self.size, self.most = region.size, region.size - max(int(region.size * self.part), 1)

    def added(self, bo: BO) -> None:
        low = bo in self.stack or self.lir.bytes + bo.size <= self.most
        self.hir.drop(bo)
        self.gone.drop(bo)
        (self.lir if low else self.hir).push(bo)
        self.stack.push(bo)
        while self.lir.bytes > self.most:
            self.hir.push(self.lir.pop())
        self._prune()
        while self.stack.bytes > 2 * self.size and self.gone:
            self.stack.drop(self.gone.pop())

    def used(self, bo: BO, why: UseWhy) -> None:
        self.added(bo)

    def removed(self, bo: BO, why: GoneWhy) -> None:
        if not self.lir.drop(bo) and self.hir.drop(bo) and why == "evicted" and bo in self.stack:
            self.gone.push(bo)
        else:
            self.stack.drop(bo)
        self._prune()

    def _prune(self) -> None:
        while self.stack and self.stack.oldest() not in self.lir:
            self.gone.drop(self.stack.pop())

    def victims(self, request: Request) -> Iterable[BO]:
        return chain(self.hir, self.lir)
