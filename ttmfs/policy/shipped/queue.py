"""Queue, Memory and Ranking: the lists that most eviction policies are made of."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import count

from sortedcontainers import SortedDict

from ttmfs.policy.api import BO


class Queue:
    """BOs in order, the oldest first, and how many bytes they have together. All in constant time."""

    __slots__ = ("_sizes", "bytes")

    def __init__(self) -> None:
        self._sizes: OrderedDict[BO, int] = OrderedDict()
        self.bytes = 0

    def push(self, bo: BO) -> None:
        """Put it at the young end, from wherever it is in this queue."""
        size = self._sizes.get(bo)
        if size is None:
            self._sizes[bo] = size = bo.size
            self.bytes += size
        else:
            self._sizes.move_to_end(bo)

    def drop(self, bo: BO) -> bool:
        """Take it out; False when it was not in it."""
        size = self._sizes.pop(bo, None)
        if size is None:
            return False
        self.bytes -= size
        return True

    def oldest(self) -> BO:
        """The one at the old end. StopIteration when there is none."""
        return next(iter(self._sizes))

    def pop(self) -> BO:
        """Take the oldest out. StopIteration when there is none."""
        bo = self.oldest()
        self.drop(bo)
        return bo

    def turn(self) -> BO:
        """The oldest, which is the youngest from now on. StopIteration when there is none."""
        bo = self.oldest()
        self._sizes.move_to_end(bo)
        return bo

    def shrink(self, limit: int) -> None:
        """Take the oldest out until at most `limit` bytes are left."""
        while self._sizes and self.bytes > limit:
            self.pop()

    def __contains__(self, bo: object) -> bool:
        return bo in self._sizes

    def __iter__(self) -> Iterator[BO]:
        return iter(self._sizes)

    def __reversed__(self) -> Iterator[BO]:
        return reversed(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)


class Memory(Queue):
    """BOs that were evicted lately, and whether one that comes was among them.

    A policy learns that a BO comes back twice: when room is made for it (`expect`), and when it is there (`came_back`).
    It is taken out the first time, so that those evicted for it find the room in here.
    """

    __slots__ = ("_expected",)

    def __init__(self) -> None:
        super().__init__()
        self._expected: BO | None = None

    def remember(self, bo: BO, limit: int) -> None:
        """It was evicted; of the others the oldest are forgotten, down to `limit` bytes together."""
        self.push(bo)
        self.shrink(limit)

    def expect(self, bo: BO | None) -> None:
        """Room is made for this one."""
        if bo is not None and self.drop(bo):
            self._expected = bo

    def came_back(self, bo: BO) -> bool:
        """It is there: was it evicted lately?"""
        self.expect(bo)
        known, self._expected = bo is self._expected, None
        return known


class Ranking:
    """BOs by a number, the lowest first; of equal ones the one that got it first."""

    __slots__ = ("_keys", "_order", "_turn")

    def __init__(self) -> None:
        self._keys: dict[BO, tuple[float, int]] = {}
        self._order: SortedDict[tuple[float, int], BO] = SortedDict()
        self._turn = count()

    def put(self, bo: BO, rank: float) -> None:
        """Give it this rank, instead of what it had."""
        self.drop(bo)
        self._keys[bo] = key = (rank, next(self._turn))
        self._order[key] = bo

    def drop(self, bo: BO) -> float | None:
        """Take it out; its rank, None when it was not in it."""
        key = self._keys.pop(bo, None)
        if key is None:
            return None
        del self._order[key]
        return key[0]

    def __getitem__(self, bo: BO) -> float:
        return self._keys[bo][0]

    def __iter__(self) -> Iterator[BO]:
        return iter(self._order.values())

    def __len__(self) -> int:
        return len(self._keys)
