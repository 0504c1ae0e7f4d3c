"""The LRU of a resource manager: intrusive lists by priority, and bulk moves.

What it is: `PriorityLru` is the kernel's `ttm_resource_manager.lru[]`, `LruItem` its `ttm_lru_item` as part of a
resource. `LruList` alone is the device's `unevictable` list. `LruBulkMove` (`ttm_lru_bulk_move`) is a set of resources
that move through the LRU as one; in each (manager, priority) its members are in a private sublist (`BulkGroup`), for
which one marker stands on the manager's list. Walks are in `ttmfs.ttm.lru_cursor`.

What it promises: every operation touches a constant number of nodes (`PriorityLru.steps` counts them) plus one
per cursor parked in the way; an item pays four slots and one integer, less than 100 bytes. Bumping a bulk costs a step
for each group, whatever the number of members, and keeps their order. The caller decides where an item belongs: pinned,
swapped and backed-up ones to `unevictable`. A member that goes there leaves its bulk; the owner adds it again later.
"""

import errno
from collections.abc import Iterator
from typing import Any, ClassVar, Final

from ttmfs.errors import TtmError

NUM_PRIORITIES: Final = 4
"""TTM_MAX_BO_PRIORITY: priorities 0..3, the lower is walked, and so evicted, first."""

HEAD: Final = 0
HITCH: Final = 1  # TTM_LRU_HITCH
_BULK: Final = 2  # TTM_LRU_BULK
_RESOURCE: Final = 3  # TTM_LRU_RESOURCE


class LruNode:
    """Whatever stands on a list: an item, a hitch, a bulk marker or the list's own head (`ttm_lru_item`)."""

    __slots__ = ("_lru_list", "_lru_next", "_lru_prev", "_lru_stamp")

    _lru_kind: ClassVar[int] = HITCH
    _lru_prev: "LruNode"
    _lru_next: "LruNode"
    _lru_list: "LruList | None"
    _lru_stamp: int

    def __init__(self) -> None:
        # Not linked to itself: a node off all lists must be freed by its reference count, without the collector.
        self._lru_prev = self._lru_next = NOWHERE
        self._lru_list = None
        self._lru_stamp = 0


NOWHERE: Final[LruNode] = LruNode.__new__(LruNode)


def link_after(node: LruNode, prev: LruNode) -> None:
    after = prev._lru_next
    node._lru_prev = prev
    node._lru_next = after
    prev._lru_next = after._lru_prev = node


def unlink(node: LruNode) -> None:
    """Take `node` out of whatever it is in; nothing happens to a node that is in nothing (`list_del_init`)."""
    prev = node._lru_prev
    if prev is NOWHERE:
        return
    after = node._lru_next
    prev._lru_next = after
    after._lru_prev = prev
    node._lru_prev = node._lru_next = NOWHERE


class LruItem(LruNode):
    """Base of `Resource`: one place on one list. Subclasses call `super().__init__()`.

    `bo.resv`, the reservation of the object that owns it, is read when the item joins a bulk move.
    """

    __slots__ = ()

    _lru_kind = _RESOURCE
    bo: Any

    @property
    def on_lru(self) -> bool:
        """Whether it stands on any list, `unevictable` included."""
        return self._lru_list is not None

    @property
    def lru_list(self) -> "LruList | None":
        """The list it stands on; a `BulkGroup` while it is a member of a bulk move."""
        return self._lru_list

    @property
    def bulk(self) -> "LruBulkMove | None":
        """The bulk move it is a member of."""
        where = self._lru_list
        return where.bulk if isinstance(where, BulkGroup) else None


class LruList(LruNode):
    """One list, oldest first. On its own it is the `unevictable` list of a device.

    `count` is the number of items in it, those in the sublists of bulk moves not included.
    """

    __slots__ = ("count", "owner", "priority")

    _lru_kind = HEAD

    def __init__(self, owner: "PriorityLru | None" = None, priority: int = 0) -> None:
        super().__init__()
        self._lru_prev = self._lru_next = self
        self.count = 0
        self.owner = owner
        self.priority = priority

    def add_tail(self, item: LruItem) -> None:
        """Put an item that is on no list at the tail."""
        assert item._lru_list is None, "the item is on a list already: move_to_tail takes it off there"
        self._append(item)

    def remove(self, item: LruItem) -> None:
        """Take the item off; nothing happens when it is on no list."""
        where = item._lru_list
        assert where is None or where is self, "the item is on another list"
        if where is not None:
            self._detach(item)

    def move_to_tail(self, item: LruItem) -> None:
        """Take the item off whatever list (and bulk move) it is on, if any, and put it at this tail."""
        where = item._lru_list
        if where is self:
            # Never through an empty group: bumping a bulk's only member must not move the bulk.
            unlink(item)
            self._place(item)
            return
        if where is not None:
            where._detach(item)
        self._append(item)

    def first(self) -> LruItem | None:
        """The oldest item, or None."""
        node = self._lru_next
        steps = 1
        while True:
            if isinstance(node, BulkMarker):  # never that of an empty group
                node = node.group._lru_next
            elif node._lru_kind == HITCH:
                node = node._lru_next
            else:
                break
            steps += 1
        if self.owner is not None:
            self.owner.steps += steps
        return node if isinstance(node, LruItem) else None

    def __iter__(self) -> Iterator[LruItem]:
        """All items in walking order, for tests and dumps: the list must not change meanwhile."""
        node = self._lru_next
        while node is not self:
            if isinstance(node, LruItem):
                yield node
            elif isinstance(node, BulkMarker):
                yield from node.group
            node = node._lru_next

    def _place(self, node: LruNode) -> None:
        """Link at the tail and stamp: the one way onto a list, which is what keeps stamps in order."""
        link_after(node, self._lru_prev)
        node._lru_list = self
        owner = self.owner
        if owner is not None:
            owner.steps += 1
            owner.stamp += 1
            node._lru_stamp = owner.stamp

    def _append(self, item: LruItem) -> None:
        self._place(item)
        self.count += 1
        if self.owner is not None:
            self.owner.count += 1

    def _detach(self, item: LruItem) -> None:
        unlink(item)
        item._lru_list = None
        self.count -= 1
        if self.owner is not None:
            self.owner.count -= 1
            self.owner.steps += 1


class BulkMarker(LruNode):
    """TTM_LRU_BULK: stands on the manager's list for all members of one group."""

    __slots__ = ("group",)

    _lru_kind = _BULK

    def __init__(self, group: "BulkGroup") -> None:
        super().__init__()
        self.group = group


class BulkGroup(LruList):
    """The members of one bulk move in one (manager, priority): a private sublist and its marker.

    The marker is on the manager's list while there are members, and enters at the tail when the first one comes.
    `epoch` rises whenever the marker moves or goes: a cursor parked inside sees that its place is gone.
    """

    __slots__ = ("bulk", "epoch", "home", "lru", "marker")

    def __init__(self, bulk: "LruBulkMove", owner: "PriorityLru", priority: int) -> None:
        super().__init__(owner, priority)
        self.bulk = bulk
        self.lru = owner
        self.epoch = 0
        self.home = owner.lists[priority]
        self.marker = BulkMarker(self)

    def move_tail(self) -> None:
        """The marker, and so all members in their order, to the tail of the manager's list."""
        if self.count:
            unlink(self.marker)
            self.home._place(self.marker)
            self.epoch += 1

    def _append(self, item: LruItem) -> None:
        if not self.count:
            self.home._place(self.marker)
            self.lru.groups[self] = None
        super()._append(item)
        self.bulk._joined(item)

    def _detach(self, item: LruItem) -> None:
        super()._detach(item)
        if not self.count:
            unlink(self.marker)
            self.marker._lru_list = None
            del self.lru.groups[self]
            self.epoch += 1
        self.bulk._left()


class PriorityLru:
    """The lists of one resource manager, one for each priority (`ttm_resource_manager.lru`).

    `count`: items on them, members of bulk moves included. `steps`: nodes visited since it was made, by all
    operations. `stamp`: insertions so far. `groups`: those of bulk moves that have members here.
    """

    __slots__ = ("count", "groups", "lists", "stamp", "steps")

    def __init__(self) -> None:
        self.count = 0
        self.groups: dict[BulkGroup, None] = {}
        self.steps = 0
        self.stamp = 0
        self.lists = tuple(LruList(self, priority) for priority in range(NUM_PRIORITIES))

    def add_tail(self, item: LruItem, priority: int) -> None:
        """Put an item that is on no list at the tail of its priority (`ttm_resource_init`).

        Raises TtmError(EINVAL) when the priority is not 0..3.
        """
        self._list(priority).add_tail(item)

    def remove(self, item: LruItem) -> None:
        """Take the item off, out of its bulk move too; nothing happens when it is on no list."""
        where = item._lru_list
        assert where is None or where.owner is self, "the item is on the list of another manager"
        if where is not None:
            where._detach(item)

    def move_to_tail(self, item: LruItem, priority: int) -> None:
        """Bump (`ttm_resource_move_to_lru_tail`): to the tail of its bulk's group, else of its priority's list.

        The item may come from any list (unpin: from `unevictable`) or none. A bulk member whose priority has
        changed goes to the group of the same bulk in that priority.

        Raises TtmError(EINVAL) when the priority is not 0..3.
        """
        target = self._list(priority)
        where = item._lru_list
        if isinstance(where, BulkGroup) and where.owner is self:
            target = where if where.priority == priority else where.bulk.group(self, priority)
        target.move_to_tail(item)

    def first(self) -> LruItem | None:
        """The item to evict first: lowest priority, oldest (`ttm_resource_manager_first`)."""
        for lru_list in self.lists:
            item = lru_list.first()
            if item is not None:
                return item
        return None

    def __iter__(self) -> Iterator[LruItem]:
        """All items in walking order, for tests and dumps: the lists must not change meanwhile."""
        for lru_list in self.lists:
            yield from lru_list

    def check(self) -> list[str]:
        """Walk everything; a sentence for each thing that is wrong."""
        wrong: list[str] = []
        total = 0
        groups: dict[BulkGroup, None] = {}
        for lru_list in self.lists:
            wrong += _check_list(lru_list, f"priority {lru_list.priority}")
            node = lru_list._lru_next
            while node is not lru_list:
                if isinstance(node, BulkMarker):
                    wrong += _check_list(node.group, f"bulk group in priority {lru_list.priority}")
                    if node.group.home is not lru_list or not node.group.count:
                        wrong.append(f"priority {lru_list.priority}: a bulk marker is out of place")
                    total += node.group.count
                    groups[node.group] = None
                node = node._lru_next
            total += lru_list.count
        if groups.keys() != self.groups.keys():
            wrong.append(f"lru: knows {len(self.groups)} groups of bulk moves, the lists hold {len(groups)}")
        if total != self.count:
            wrong.append(f"lru: counts {self.count} items, the lists hold {total}")
        return wrong

    def _list(self, priority: int) -> LruList:
        if not 0 <= priority < NUM_PRIORITIES:
            raise TtmError(errno.EINVAL, f"priority {priority} does not exist: it is 0 to {NUM_PRIORITIES - 1}")
        return self.lists[priority]


def _check_list(lru_list: LruList, name: str) -> list[str]:
    wrong: list[str] = []
    found = 0
    stamp = 0
    prev: LruNode = lru_list
    node = lru_list._lru_next
    while node is not lru_list:
        if node._lru_prev is not prev:
            wrong.append(f"{name}: links do not agree after {found} items")
            break
        if node._lru_kind != HITCH:
            found += node._lru_kind == _RESOURCE
            if node._lru_list is not lru_list:
                wrong.append(f"{name}: node {found} believes it is on another list")
            if node._lru_stamp <= stamp:
                wrong.append(f"{name}: stamps fall at item {found}")
            stamp = node._lru_stamp
        prev, node = node, node._lru_next
    if found != lru_list.count:
        wrong.append(f"{name}: counts {lru_list.count} items, holds {found}")
    return wrong


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
