"""Promotion: none, moverate."""

from collections.abc import Collection, Iterable

from ttmfs.policy.api import BO, Promote


class NoPromotion(Promote):
    """Nobody comes home by itself: a BO that was evicted stays out until it is validated."""


class MoveRate(Promote):
    """What a job uses comes home at once, the others the last used first, at most `rate` bytes a second.

    Source: Linux, drivers/gpu/drm/amd/amdgpu/amdgpu_cs.c (`amdgpu_cs_get_threshold_for_moves`), the module parameter
    `moverate`, whose default is 8 MiB/s.
    """

    def __init__(self, rate: int = 8 << 20) -> None:
        self.rate = rate
        self.homes: dict[BO, str] = {}

    def displaced(self, bo: BO, home: str) -> None:
        self.homes[bo] = home

    def settled(self, bo: BO) -> None:
        del self.homes[bo]

    def submitted(self, bos: Collection[BO]) -> Iterable[tuple[BO, str]]:
        return [(bo, self.homes[bo]) for bo in bos if bo in self.homes]

    def tick(self, budget: int) -> Iterable[tuple[BO, str]]:
        return sorted(self.homes.items(), key=lambda item: item[0].last_use, reverse=True)
