"""LruCursor: a walk over a PriorityLru that survives any change of it (`ttm_resource_cursor`).

The place in the list is a node of its own, the *hitch*, parked behind the item returned last. A walk among others that
bump, evict and free copies nothing, and pays a step for each node that it meets.

How a bounded walk ends: the manager numbers every insertion (`PriorityLru.stamp`), and since all insertion is at a tail
the stamps rise along every list. A cursor made with `until_now=True` remembers the stamp of its birth and takes the
first newer node for the end of that list. A walk that puts what it failed on back at the tail (the kernel's endless
swapout walk, CVE-2026-52965) therefore ends.
"""

import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from ttmfs.ttm.lru import (
    HEAD,
    HITCH,
    NOWHERE,
    NUM_PRIORITIES,
    BulkGroup,
    BulkMarker,
    LruItem,
    LruList,
    LruNode,
    PriorityLru,
    link_after,
    unlink,
)


class LruCursor:
    """A walk over a PriorityLru that may be changed in any way between two steps (`ttm_resource_cursor`).

    It goes on behind its hitch: items that did not move are returned once each, in order; items that were bumped
    to a tail ahead of it are returned (again) there; items of a priority already left are not. Into a bulk move
    it descends with a second hitch, the first waiting behind the marker. When the bulk moves to the tail, or
    loses its last member, the place inside is given up: the walk goes on where the marker stood, and meets the
    members at the tail as it meets all that was bumped (the kernel moves such cursors to the end of the range
    before it splices the range away: the same).

    `until_now`: leave out everything added or bumped since the cursor was made, so that the walk ends whatever
    is done to the items it returns.

    A hitch costs others a step each time they pass: use it as a context manager or call `fini`.
    """

    __slots__ = ("_epoch", "_group", "_hitch", "_inner", "_limit", "_lru", "_priority")

    def __init__(self, lru: PriorityLru, *, until_now: bool = False) -> None:
        self._lru = lru
        self._limit = lru.stamp if until_now else sys.maxsize
        self._priority = 0
        self._hitch = LruNode()
        self._inner = LruNode()
        self._group: BulkGroup | None = None
        self._epoch = 0

    def next(self) -> LruItem | None:
        """The next item, or None at the end; after that and after `fini` always None."""
        if self._group is not None:
            item = self._advance(self._inner) if self._group.epoch == self._epoch else None
            if isinstance(item, LruItem):
                return item
            self._ascend()
        while self._priority < NUM_PRIORITIES:
            if self._hitch._lru_prev is NOWHERE:
                link_after(self._hitch, self._lru.lists[self._priority])
            node = self._advance(self._hitch)
            if node is None:
                unlink(self._hitch)
                self._priority += 1
            elif isinstance(node, BulkMarker):
                self._group = node.group
                self._epoch = node.group.epoch
                link_after(self._inner, node.group)
                item = self._advance(self._inner)
                if isinstance(item, LruItem):
                    return item
                self._ascend()
            elif isinstance(node, LruItem):
                return node
        return None

    def fini(self) -> None:
        """End the walk and take the hitches out (`ttm_resource_cursor_fini`). May be called again."""
        self._ascend()
        unlink(self._hitch)
        self._priority = NUM_PRIORITIES

    def __iter__(self) -> Iterator[LruItem]:
        """The rest of the walk; the lists may change meanwhile."""
        while (item := self.next()) is not None:
            yield item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.fini()

    def _ascend(self) -> None:
        unlink(self._inner)
        self._group = None

    def _advance(self, hitch: LruNode) -> LruNode | None:
        """Park the hitch behind the item or marker that follows it, and return that; None at the end."""
        node = hitch._lru_next
        steps = 1
        while node._lru_kind == HITCH:
            node = node._lru_next
            steps += 1
        self._lru.steps += steps
        if node._lru_kind == HEAD or node._lru_stamp > self._limit:
            return None
        unlink(hitch)
        link_after(hitch, node)
        return node


def newer(lru: PriorityLru, stamp: int) -> Iterator[LruItem]:
    """Those that came, or moved to a tail, since `lru.stamp` was `stamp`: what a cursor made then with `until_now`
    leaves out. In no order; passes none of the others, and one node a bulk move. The lists must not change meanwhile.
    """
    for lru_list in lru.lists:
        for node in _newer_nodes(lru_list, stamp):
            if isinstance(node, BulkMarker):
                yield from node.group
            elif isinstance(node, LruItem):
                yield node
    for group in lru.groups:
        if group.marker._lru_stamp <= stamp:
            for node in _newer_nodes(group, stamp):
                assert isinstance(node, LruItem)
                yield node


def _newer_nodes(lru_list: LruList, stamp: int) -> Iterator[LruNode]:
    node = lru_list._lru_prev
    while node is not lru_list and (node._lru_kind == HITCH or node._lru_stamp > stamp):
        if node._lru_kind != HITCH:
            yield node
        node = node._lru_prev
