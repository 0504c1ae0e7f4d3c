"""Eviction with a hand that passes over what was used since it came by: clock, sieve."""

from collections import OrderedDict
from collections.abc import Iterable

from ttmfs.policy.api import BO, Evict, GoneWhy, Request, UseWhy
from ttmfs.policy.shipped.queue import Queue


class Clock(Evict):
    """The oldest one goes, but each use since its last turn (up to 2**bits - 1) gives it one more turn.

    Source: Corbato, "A paging experiment with the Multics system", MIT Project MAC report MAC-M-384, 1968.
    """

    def __init__(self, bits: int = 1) -> None:
        self.most = (1 << bits) - 1
        self.queue = Queue()
        self.turns: dict[BO, int] = {}

    def added(self, bo: BO) -> None:
        self.queue.push(bo)
        self.turns[bo] = 0

    def used(self, bo: BO, why: UseWhy) -> None:
        self.turns[bo] = min(self.turns[bo] + 1, self.most)

    def removed(self, bo: BO, why: GoneWhy) -> None:
        self.queue.drop(bo)
        del self.turns[bo]

    def victims(self, request: Request) -> Iterable[BO]:
        for _ in range(len(self.queue) * (self.most + 1)):
            bo = self.queue.turn()
            if self.turns[bo]:
                self.turns[bo] -= 1
            else:
                yield bo


class Sieve(Evict):
    """A hand goes from old to young over BOs that keep their order, and takes the first that was not used.

    What it passes it forgets the uses of. New ones come in before it, at the young end.

    Source: Zhang et al., "SIEVE is simpler than LRU: an efficient turn-key eviction algorithm for web caches",
    NSDI 2024.
    """

    def __init__(self) -> None:
        self.ahead: OrderedDict[BO, bool] = OrderedDict()
        self.passed: OrderedDict[BO, bool] = OrderedDict()

    def added(self, bo: BO) -> None:
        self.ahead[bo] = False

    def used(self, bo: BO, why: UseWhy) -> None:
        (self.ahead if bo in self.ahead else self.passed)[bo] = True

    def removed(self, bo: BO, why: GoneWhy) -> None:
        del (self.ahead if bo in self.ahead else self.passed)[bo]
        self._wrap()

    def victims(self, request: Request) -> Iterable[BO]:
        for _ in range(2 * (len(self.ahead) + len(self.passed))):
            bo, used = self.ahead.popitem(last=False)
            self.passed[bo] = False
            self._wrap()
            if not used:
                yield bo

    def _wrap(self) -> None:
        if not self.ahead:
            self.ahead, self.passed = self.passed, self.ahead
