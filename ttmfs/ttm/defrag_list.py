"""DefragList: the BOs whose pages are worth re-backing, oldest first (xe's per-device defrag list).

A BO joins when populating it failed to get the beneficial order, and leaves when it was defragmented, deleted, or has
nothing left to gain. Whoever works the list off waits for `joined`.
"""

from collections.abc import Iterator
from typing import Any

import trio


class DefragList:
    """An insertion-ordered set of BOs (BufferObject, which lies above), and what was done about them."""

    __slots__ = ("_bos", "failed", "joined", "moved", "runs")

    def __init__(self) -> None:
        self._bos: dict[Any, None] = {}
        self.joined = trio.lowlevel.ParkingLot()
        """Who waits here goes on when a BO joins that was not listed."""
        self.runs = self.moved = self.failed = 0
        """Passes over the list or a part of it; BOs that were re-backed; attempts at a BO that failed."""

    def __len__(self) -> int:
        return len(self._bos)

    def __iter__(self) -> Iterator[Any]:
        """The BOs, the one that waits longest first; a snapshot."""
        return iter(list(self._bos))

    def __contains__(self, bo: Any) -> bool:
        return bo in self._bos

    def join_if_marked(self, bo: Any) -> None:
        """Its tt was populated just now: list it if that failed to get the beneficial order."""
        tt = bo.tt
        if tt is None or not tt.beneficial_order_failed or bo.deleted or bo.ghost or bo in self._bos:
            return
        self._bos[bo] = None
        self.joined.unpark_all()

    def leave(self, bo: Any) -> None:
        """Nothing is left to be done about it."""
        self._bos.pop(bo, None)

    def to_tail(self, bo: Any) -> None:
        """It failed: let the others have their turn first."""
        if bo in self._bos:
            del self._bos[bo]
            self._bos[bo] = None

    def as_dict(self) -> dict[str, int]:
        return {"runs": self.runs, "moved": self.moved, "failed": self.failed, "listed": len(self._bos)}
