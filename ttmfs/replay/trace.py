"""A trace in memory: which buffer objects there are, how large, and which is used when.

Columns of numpy arrays, so that a trace of millions of requests is small, goes to other processes quickly, and is the
same for every engine. A request names a whole BO or, in traces of faults, some of its pages.
"""

import errno
from array import array
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ttmfs.errors import TtmError
from ttmfs.units import PAGE_SIZE, pages_of

USE: Final = 0
GONE: Final = 1
"""The last reference to the BO is gone."""

NEVER: Final = (1 << 63) - 1
"""The number of a request that does not come."""


@dataclass(frozen=True, slots=True)
class Trace:
    """`objects[i]` is the BO that request i names; `names` and `sizes` (bytes) are by BO.

    `first` and `count` are pages of the BO, None where every request names a whole one. `gone` is None where no BO is
    destroyed. `clients` (by BO) says who made it. `skipped` lines of the file were no requests.

    `calls` is None where each request is a call of its own; else those with the same number (not 0) in a row are one
    call, negative where it places its BOs one after the other, as a job does. `moves` are those that were recorded, but
    within system memory, in order, as `BO FROM TO`; None where none were.
    """

    name: str
    format: str
    objects: npt.NDArray[np.int32]
    names: list[str]
    sizes: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64] | None = None
    count: npt.NDArray[np.int64] | None = None
    gone: npt.NDArray[np.bool_] | None = None
    clients: list[str] | None = None
    calls: npt.NDArray[np.int64] | None = None
    moves: list[str] | None = None
    skipped: int = 0

    @property
    def requests(self) -> int:
        """Uses of BOs."""
        return len(self.objects) - (0 if self.gone is None else int(np.count_nonzero(self.gone)))

    @property
    def footprint(self) -> int:
        """Bytes of all BOs together: in a region of this size nothing is ever evicted."""
        return int(self.sizes.sum())

    def next_uses(self) -> npt.NDArray[np.int64]:
        """For each request the number of the next one that uses the same BO; NEVER where there is none.

        Requests are numbered as the device's clock counts them: from 0, uses only.
        """
        uses = self.objects if self.gone is None else self.objects[~self.gone]
        order = np.argsort(uses, kind="stable")
        found = np.full(len(uses), NEVER, dtype=np.int64)
        same = uses[order[1:]] == uses[order[:-1]]
        found[order[:-1][same]] = order[1:][same]
        return found


class Builder:
    """Collects the requests of a file. A BO is known by any key; its size is the largest that is said of it."""

    def __init__(self, name: str, format_name: str) -> None:
        self.name = name
        self.format = format_name
        self.skipped = 0
        self._index: dict[Hashable, int] = {}
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._clients: list[str] = []
        self._objects = array("i")
        self._first = array("q")
        self._count = array("q")
        self._gone = array("b")
        self._calls = array("q")
        self._moves: list[str] = []

    def bo(self, key: Hashable, size: int = 0, client: str = "") -> int:
        """The number of a BO, which has at least `size` bytes."""
        index = self._index.get(key)
        if index is None:
            index = self._index[key] = len(self._names)
            self._names.append(str(key))
            self._sizes.append(size)
            self._clients.append(client)
        elif size > self._sizes[index]:
            self._sizes[index] = size
        return index

    def use(
        self,
        key: Hashable,
        size: int = 0,
        first: int = 0,
        count: int = 0,
        *,
        call: int = 0,
        one_by_one: bool = False,
    ) -> None:
        """It is used; `count` pages from `first` on, or (0) all of it. See Trace for `calls`."""
        index = self.bo(key, max(size, (first + count) * PAGE_SIZE if count else 0))
        self._request(index, first, count, USE, -call if one_by_one else call)

    def move(self, text: str) -> None:
        """`BO FROM TO` was recorded."""
        self._moves.append(text)

    def destroy(self, key: Hashable, size: int = 0) -> None:
        """It is gone. What comes under the same name later is another one."""
        if key in self._index:
            self._request(self.bo(key, size), 0, 0, GONE, 0)
            del self._index[key]

    def _request(self, index: int, first: int, count: int, what: int, call: int) -> None:
        self._objects.append(index)
        self._first.append(first)
        self._count.append(count)
        self._gone.append(what)
        self._calls.append(call)

    def build(self) -> Trace:
        """The trace. TtmError(EINVAL) when it has no request."""
        gone = np.array(self._gone, dtype=np.bool_)
        if not len(gone) - int(gone.sum()):
            raise TtmError(errno.EINVAL, f"{self.name} looks like {self.format}, but has no request")
        objects = np.array(self._objects, dtype=np.int32)
        # A BO of which nothing but its name is known has one page.
        sizes = np.array([size or PAGE_SIZE for size in self._sizes], dtype=np.int64)
        first, count = np.array(self._first, dtype=np.int64), np.array(self._count, dtype=np.int64)
        whole = count == 0
        if not whole.all():
            pages = np.array([pages_of(int(size)) for size in sizes], dtype=np.int64)
            count = np.where(whole, pages[objects], count)
        return Trace(
            self.name,
            self.format,
            objects,
            self._names,
            sizes,
            None if whole.all() else first,
            None if whole.all() else count,
            gone if gone.any() else None,
            self._clients if any(self._clients) else None,
            np.array(self._calls, dtype=np.int64) if any(self._calls) else None,
            self._moves or None,
            self.skipped,
        )
