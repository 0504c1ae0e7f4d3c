"""Account: whose each of many numbered things is: the pages of an arena, the slots of a store. For selfcheck.

It is filled owner by owner, and others may run in between. So that this never makes a finding of what is all right:
what was handed out since it was opened is excused, an owner that is blamed for what another one has is asked again, and
so is whoever has what is free. Who keeps it must be asked before whoever it may go on to.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ttmfs.memory.runs import BoolArray, Int64Array, PageArray, Uint32Array, runs

_SHOWN = 3
"""Runs that a sentence names."""
_AT_ONCE = 64
"""Owners that are asked again between two pauses."""

Held = Callable[[Any], PageArray]
"""What an owner has: numbers, in any order."""


class Account:
    """Of `count` things called `what`, in the plural. Owners have a `name`. Nothing costs Python work per thing."""

    __slots__ = ("_excused", "_firsts", "_next", "_owners", "_tags", "what")

    def __init__(self, what: str, count: int) -> None:
        self.what = what
        # Each owner has a range of tags of its own, one for each thing; 0: nobody has named it.
        self._tags: Uint32Array = np.zeros(count, np.uint32)
        self._excused: BoolArray = np.zeros(count, np.bool_)
        self._firsts: list[int] = []
        self._owners: list[tuple[Any, Held]] = []
        self._next = 1

    def excuse(self, numbers: PageArray) -> None:
        """These have just been handed out, or are between two owners: nobody need have them."""
        self._excused[numbers] = True

    def belong(self, owner: Any, held: Held) -> Iterator[str]:
        """What `held(owner)` says is the owner's, and nobody else's; sentences about what is not."""
        numbers = held(owner)
        if not len(numbers):
            return
        tags = np.arange(self._next, self._next + len(numbers), dtype=np.uint32)
        before = self._tags[numbers]
        self._tags[numbers] = tags
        twice = self._tags[numbers] != tags
        if twice.any():
            yield f"{owner.name} has {self._named(numbers[twice])} twice"
        for tag in self._others(before):
            other, others = self._owners[tag]
            both = np.intersect1d(others(other), numbers)
            if other is not owner and len(both):
                yield f"{other.name} and {owner.name} both have {self._named(both)}"
        self._firsts.append(self._next)
        self._owners.append((owner, held))
        self._next += len(numbers)

    def _others(self, tags: Uint32Array) -> list[int]:
        """Indices of the owners that these tags are of."""
        if not tags.any():
            return []
        found = np.searchsorted(np.array(self._firsts), np.unique(tags[tags != 0]), side="right") - 1
        return np.unique(found).tolist()  # type: ignore[no-any-return]

    def without_owner(self, used: BoolArray) -> Iterator[str]:
        """A sentence when some of the things that are `used` now, bool (count,), are nobody's."""
        lost = np.flatnonzero(used & (self._tags == 0) & ~self._excused)
        if len(lost):
            yield f"{self._named(lost)} of {int(np.count_nonzero(used))} in use belong to nobody"

    def used_no_more(self, used: Callable[[], BoolArray]) -> Iterator[str | None]:
        """Sentences about owners of what is not in use; None where the caller may pause. `used` is asked anew then."""
        suspects = self._others(self._tags[(self._tags != 0) & ~used()])
        for first in range(0, len(suspects), _AT_ONCE):
            yield None
            now = used()
            for index in suspects[first : first + _AT_ONCE]:
                owner, held = self._owners[index]
                numbers = held(owner)
                free = numbers[~now[numbers]]
                if len(free):
                    yield f"{owner.name} has {self._named(free)}, not in use"

    def _named(self, numbers: PageArray) -> str:
        """`3 pages (5, 8-9)`, of the lowest."""
        ordered: Int64Array = np.unique(np.asarray(numbers).astype(np.int64))
        _, first, length = runs(ordered)
        some = [
            str(start) if count == 1 else f"{start}-{start + count - 1}"
            for start, count in zip(first[:_SHOWN].tolist(), length[:_SHOWN].tolist(), strict=True)
        ]
        more = " …" if len(first) > _SHOWN else ""
        return f"{len(ordered)} {self.what} ({', '.join(some)}{more})"

