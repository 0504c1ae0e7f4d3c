"""BlockStack: pooled blocks of one caching type and order, last in, first out, in one growing integer array."""

import numpy as np

from ttmfs.memory.runs import Int64Array


class BlockStack:
    """An empty stack of block starts (page numbers). Bulk push and pop cost no Python per block."""

    __slots__ = ("_starts", "size")

    def __init__(self) -> None:
        self._starts: Int64Array = np.empty(16, np.int64)
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def push(self, starts: Int64Array) -> None:
        """Put these on top."""
        need = self.size + starts.size
        if need > self._starts.size:
            grown = np.empty(max(need, 2 * self._starts.size), np.int64)
            grown[: self.size] = self._starts[: self.size]
            self._starts = grown
        self._starts[self.size : need] = starts
        self.size = need

    def pop(self, count: int) -> Int64Array:
        """Take the `count` (or as many as there are) on top; int64, a copy."""
        left = max(0, self.size - count)
        taken = self._starts[left : self.size].copy()
        self.size = left
        if left * 4 < self._starts.size > 1024:
            self._starts = self._starts[: 2 * left + 16].copy()
        return taken

    def pop_one(self) -> int:
        """Take the one on top, -1 when there is none."""
        if not self.size:
            return -1
        self.size -= 1
        return int(self._starts[self.size])

    def starts(self) -> Int64Array:
        """All of them, oldest first; int64, a copy."""
        return self._starts[: self.size].copy()
