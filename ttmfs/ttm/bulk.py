"""Bulk moves: many resources that are used together move through the LRU as one (`ttm_lru_bulk_move`).

What it is: one `LruBulkMove` for, say, all objects of a virtual address space that share one reservation. In each
(manager, priority) its members are in a private sublist (`ttmfs.ttm.lru.BulkGroup`), for which one marker stands
on the manager's list.

What it promises: `move_tail` costs a step for each group, whatever the number of members, and keeps their order;
all else costs a constant number of steps. A member that is pinned or swapped out leaves the bulk, simply by being
moved to another list (`unevictable.move_to_tail`) or removed; the owner adds it again when it comes back.
"""

from collections.abc import Iterator
from typing import Any

from ttmfs.ttm.lru import BulkGroup, LruItem, PriorityLru


class LruBulkMove:
    """A set of items of any number of managers and priorities, bumped together.

    `count`: its members. The caller holds their one reservation across every call.
    """

    __slots__ = ("_groups", "_resv", "count")

    def __init__(self) -> None:
        self.count = 0
        self._groups: dict[tuple[PriorityLru, int], BulkGroup] = {}
        self._resv: Any = None

    def add(self, item: LruItem) -> None:
        """Move an item from its manager's list to the tail of the group there (`ttm_resource_add_bulk_move`).

        A member of another bulk leaves that one; for a member of this one nothing happens. The first member
        brings the group's marker to the tail of the list. Asserts that the item is on a manager's list (not on
        `unevictable`: pinned and swapped items are no members) and shares the members' reservation.
        """
        where = item.lru_list
        assert where is not None, "the item is on no list: add it to its manager's first"
        assert where.owner is not None, "the item is not evictable: it belongs to no bulk move"
        resv = item.bo.resv
        assert not self.count or resv is self._resv, "all members of a bulk move share one reservation"
        if item.bulk is self:
            return
        self.group(where.owner, where.priority).move_to_tail(item)

    def remove(self, item: LruItem) -> None:
        """Move a member to the tail of its manager's own list (`ttm_resource_del_bulk_move`).

        Nothing happens to an item that is no member, as one that is pinned.
        """
        where = item.lru_list
        if isinstance(where, BulkGroup) and where.bulk is self:
            where.home.move_to_tail(item)

    def move_tail(self) -> None:
        """All groups to the tails of their lists, members in their order (`ttm_lru_bulk_move_tail`)."""
        for group in self._groups.values():
            group.move_tail()

    def group(self, lru: PriorityLru, priority: int) -> BulkGroup:
        """The group of one manager and priority, made when it is not there."""
        key = (lru, priority)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = BulkGroup(self, lru, priority)
        return group

    def fini(self) -> None:
        """End of the bulk move (`ttm_lru_bulk_move_fini`): asserts that it has no members.

        Cursors still parked inside have lost their place already, when the last member left.
        """
        assert not self.count, f"{self.count} items are still members of the bulk move"
        self._groups.clear()

    def __iter__(self) -> Iterator[LruItem]:
        """All members, for tests and dumps."""
        for group in self._groups.values():
            yield from group

    def check(self) -> list[str]:
        """A sentence for each thing that is wrong; the groups' lists are checked with their managers."""
        wrong = []
        members = list(self)
        if len(members) != self.count:
            wrong.append(f"bulk move: counts {self.count} members, its groups hold {len(members)}")
        if any(item.bo.resv is not self._resv for item in members):
            wrong.append("bulk move: a member has another reservation")
        for group in self._groups.values():
            if bool(group.count) != (group.marker._lru_list is not None):
                wrong.append(f"bulk move: {group.count} members in priority {group.priority}, marker disagrees")
        return wrong

    def _joined(self, item: LruItem) -> None:
        self.count += 1
        self._resv = item.bo.resv

    def _left(self) -> None:
        self.count -= 1
        if not self.count:
            self._resv = None
