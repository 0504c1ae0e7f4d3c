"""LookedAt: holes of an address space that READs were answered with where no chunk is, as runs.

Clients may have such zeros cached, so they are invalidated like all that was handed out; where a chunk is, it knows
(`Chunk.handed`). A program that reads all of a large empty space in order leaves one run.
"""

from typing import Final

from ttmfs.svm.intervals import IntervalMap

_MOST: Final = 2048
"""Boundaries of runs; with more of them all of the space counts as looked at."""


class LookedAt:
    """All numbers are pages, ends exclusive."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: IntervalMap[bool] = IntervalMap(False)

    def note(self, first: int, end: int, num_pages: int) -> None:
        """[first, end) of a space of `num_pages` pages are answered with zeros."""
        if len(self._runs) > _MOST:
            # What is said too much of costs an INVAL for nothing.
            first, end = 0, num_pages
        self._runs.set(first, end, True)

    def any(self, first: int, end: int) -> bool:
        """Is one of [first, end) among them?"""
        return bool(len(self._runs)) and any(looked for _start, _stop, looked in self._runs.pieces(first, end))

    def take(self, first: int, end: int) -> tuple[int, int]:
        """(low, high) around those of [first, end), which are forgotten; (end, first) when there are none."""
        if not len(self._runs):
            return end, first
        found = [(start, stop) for start, stop, looked in self._runs.pieces(first, end) if looked]
        self._runs.set(first, end, False)
        return (found[0][0], found[-1][1]) if found else (end, first)
