"""Eviction by order of arrival or of use: lru, fifo, mru, random."""

import random
from collections import OrderedDict
from collections.abc import Iterable

from ttmfs.policy.api import BO, Evict, GoneWhy, Request, UseWhy


class Fifo(Evict):
    """The one that came first goes first.

    Source: Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 1966.
    """

    def __init__(self) -> None:
        self.order: OrderedDict[BO, None] = OrderedDict()

    def added(self, bo: BO) -> None:
        self.order[bo] = None

    def removed(self, bo: BO, why: GoneWhy) -> None:
        del self.order[bo]

    def victims(self, request: Request) -> Iterable[BO]:
        return self.order


class Lru(Fifo):
    """The least recently used one goes first, as in TTM without a policy.

    Source: Linux, drivers/gpu/drm/ttm/ttm_resource.c (`ttm_resource_move_to_lru_tail`).
    """

    def used(self, bo: BO, why: UseWhy) -> None:
        self.order.move_to_end(bo)


class Mru(Lru):
    """The most recently used one goes first, which is best for loops that are larger than the region.

    Source: Chou and DeWitt, "An evaluation of buffer management strategies for relational database systems", VLDB 1985.
    """

    def victims(self, request: Request) -> Iterable[BO]:
        return reversed(self.order)


class Random(Evict):
    """Any one goes; the same `seed` draws the same ones.

    Source: Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 1966.
    """

    def __init__(self, seed: int = 0) -> None:
        self.draw = random.Random(seed)
        self.all: list[BO] = []
        self.place: dict[BO, int] = {}

    def _put(self, index: int, bo: BO) -> None:
        self.all[index] = bo
        self.place[bo] = index

    def added(self, bo: BO) -> None:
        self.all.append(bo)
        self.place[bo] = len(self.all) - 1

    def removed(self, bo: BO, why: GoneWhy) -> None:
        last = self.all.pop()
        index = self.place.pop(bo)
        if last is not bo:
            self._put(index, last)

    def victims(self, request: Request) -> Iterable[BO]:
        for index in range(len(self.all)):
            drawn = self.draw.randrange(index, len(self.all))
            here, there = self.all[index], self.all[drawn]
            self._put(index, there)
            self._put(drawn, here)
            yield there
