"""An offloader without threads: the work of all lanes runs on the loop, at the turns that a schedule chooses."""

from collections.abc import Callable
from typing import TypeVar

import trio

from ttmfs.sync.offload import Lane

_T = TypeVar("_T")


class Inline:
    """`turns(lane, when)` says how often others run "before" the work begins, and "after" it, before it is known done.

    `log`: what has begun and ended, in order.
    """

    def __init__(self, turns: Callable[[str, str], int]) -> None:
        self.turns = turns
        self.log: list[tuple[str, str]] = []

    async def run(self, lane: Lane, work: Callable[[], _T]) -> _T:
        """As `Offloader.run`."""
        async with lane.limiter:
            await self._others(lane, "before")
            with trio.CancelScope(shield=True):
                self.log.append((lane.name, "begun"))
                try:
                    result = work()
                finally:
                    await self._others(lane, "after")
                    self.log.append((lane.name, "done"))
        return result

    async def _others(self, lane: Lane, when: str) -> None:
        for _ in range(self.turns(lane.name, when)):
            await trio.lowlevel.checkpoint()
