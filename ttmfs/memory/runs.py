"""Arrays of page numbers and the runs in them.

All memory of ttmfs is `(arena, page-number array)`. What makes that fast is that such an array usually consists
of few *runs*, maximal stretches of consecutive page numbers. Everything here is vectorised: no Python work per page.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ttmfs.units import PAGE_SIZE

Int64Array: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Uint8Array: TypeAlias = npt.NDArray[np.uint8]
Uint32Array: TypeAlias = npt.NDArray[np.uint32]
PageArray: TypeAlias = npt.NDArray[Any]
"""Page numbers, one-dimensional, any integer dtype (uint32 where they are stored)."""

STEP_PAGES = 64
"""Pages that one step of a long copy moves at most: 256 KiB, tens of microseconds."""

_ZERO = np.zeros(1, np.int64)


def runs(pages: PageArray) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Maximal runs of consecutive page numbers: `(index, page, length)`, three int64 arrays of the same length.

    `index` is where the run starts in `pages`, `page` its first page number, `length` its pages.
    """
    numbers = np.asarray(pages).astype(np.int64, copy=False)
    if numbers.size == 0:
        return _ZERO[:0], _ZERO[:0], _ZERO[:0]
    index = np.concatenate((_ZERO, np.flatnonzero(numbers[1:] - numbers[:-1] != 1) + 1))
    return index, numbers[index], np.diff(index, append=numbers.size)


def common_runs(first: PageArray, second: PageArray) -> tuple[Int64Array, Int64Array]:
    """Where both arrays (same length) run on together: `(index, length)` of the maximal common runs, int64."""
    a = np.asarray(first).astype(np.int64, copy=False)
    b = np.asarray(second).astype(np.int64, copy=False)
    if a.size == 0:
        return _ZERO[:0], _ZERO[:0]
    breaks = (a[1:] - a[:-1] != 1) | (b[1:] - b[:-1] != 1)
    index = np.concatenate((_ZERO, np.flatnonzero(breaks) + 1))
    return index, np.diff(index, append=a.size)


def is_run(pages: PageArray) -> bool:
    """Whether `pages` is one run (also when it is empty)."""
    size = len(pages)
    if size <= 1:
        return True
    if int(pages[-1]) - int(pages[0]) != size - 1:
        return False
    numbers = np.asarray(pages).astype(np.int64, copy=False)
    return bool((numbers[1:] - numbers[:-1] == 1).all())


def expand(starts: PageArray, lengths: PageArray) -> Int64Array:
    """The numbers of all stretches `[start, start + length)`, one after the other, int64."""
    begin = np.asarray(starts).astype(np.int64, copy=False)
    sizes = np.asarray(lengths).astype(np.int64, copy=False)
    total = int(sizes.sum())
    if total == begin.size:  # all of length one, or nothing
        return begin.copy() if bool((sizes == 1).all()) else _expand(begin, sizes, total)
    return _expand(begin, sizes, total)


def _expand(begin: Int64Array, sizes: Int64Array, total: int) -> Int64Array:
    if begin.size == 1:
        return np.arange(int(begin[0]), int(begin[0]) + total, dtype=np.int64)
    length = sizes.item(0)
    if length * sizes.size == total and bool((sizes == length).all()):
        # As blocks of one order are: one pass instead of three.
        return (begin[:, None] + np.arange(length)).reshape(-1)
    ends = np.cumsum(sizes)
    return np.repeat(begin - (ends - sizes), sizes) + np.arange(total, dtype=np.int64)


def ascending(values: Int64Array) -> Int64Array:
    """`values` sorted; itself when it is already, which page arrays usually are."""
    if values.size < 2 or bool((values[1:] >= values[:-1]).all()):
        return values
    # Timsort: linear where there are a few ascending or descending stretches.
    return np.sort(values, kind="stable")


def unique_sorted(values: Int64Array) -> Int64Array:
    """`values` (ascending) without repetitions; np.unique without its sort."""
    if values.size < 2:
        return values
    keep = np.empty(values.size, np.bool_)
    keep[0] = True
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]


def iter_steps(num_pages: int, step_pages: int = STEP_PAGES) -> Iterator[slice]:
    """Slices that cover `range(num_pages)` in steps of at most `step_pages`.

    A long copy runs inline in the event loop, one step at a time with a checkpoint between:

    >>> [(s.start, s.stop) for s in iter_steps(150)]
    [(0, 64), (64, 128), (128, 150)]
    """
    for begin in range(0, num_pages, step_pages):
        yield slice(begin, min(begin + step_pages, num_pages))


assert STEP_PAGES * PAGE_SIZE == 256 << 10
