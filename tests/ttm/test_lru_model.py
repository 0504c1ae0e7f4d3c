"""LRU, bulk moves and cursors against plain lists: any changes, any number of cursors held across them."""

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ttmfs.ttm.lru import BulkMarker, LruBulkMove, LruItem, LruList, PriorityLru
from ttmfs.ttm.lru_cursor import LruCursor, newer

RESVS = "resv 0", "resv 1"
NUMBERS = st.integers(0, 11)
PRIORITIES = st.sampled_from([0, 0, 0, 1, 3])
MANAGERS = st.sampled_from([0, 0, 0, 1])
BULKS = st.integers(0, 1)


class Item(LruItem):
    __slots__ = ("bo", "number")

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.bo = SimpleNamespace(resv=RESVS[number % 2])


class Walk:
    """A cursor and what it must keep: the order of its birth, what moved since, what it has returned."""

    def __init__(self, machine: "LruMachine", manager: int, until_now: bool) -> None:
        self.machine = machine
        self.manager = manager
        self.until_now = until_now
        self.cursor = LruCursor(machine.lrus[manager], until_now=until_now)
        self.stamp = machine.lrus[manager].stamp
        self.birth = machine.order(manager)
        self.moved: set[int] = set()
        self.owed = set(self.birth)  # unmoved and not returned yet
        self.due: set[int] = set()  # bumped to a place ahead, and not returned yet
        self.returned: list[int] = []  # since its last move
        self.priority = 0

    def touch(self, number: int, ahead: bool) -> None:
        self.moved.add(number)
        self.owed.discard(number)
        manager, priority, _ = self.machine.where[number]
        if ahead and manager == self.manager and priority >= self.priority:
            self.due.add(number)
        else:
            self.due.discard(number)
        if number in self.returned:
            self.returned.remove(number)

    def next(self) -> Item | None:
        item = cast("Item | None", self.cursor.next())
        machine = self.machine
        if item is None:
            self.check_newer()
            assert not self.owed, "items that did not move were skipped"
            assert self.until_now or not self.due, "bumped items were skipped"
            return None
        number = item.number
        self.check_newer()
        kind, priority, *_ = machine.where[number]
        assert kind == self.manager, "an item that is not on the list was returned"
        assert number not in self.returned, "an item that was not bumped was returned twice"
        assert priority >= self.priority, "the walk went back to a lower priority"
        self.priority = priority
        if self.until_now:
            assert number not in self.moved, "a bounded walk returned what came after its birth"
        if number not in self.moved:
            self.owed.discard(number)
            ahead = self.birth[: self.birth.index(number)]
            assert not self.owed.intersection(ahead), "the order was not respected"
        self.due.discard(number)
        self.returned.append(number)
        return item

    def check_newer(self) -> None:
        """`newer` gives what moved since the birth and is there: nobody else, and each once."""
        machine = self.machine
        found = sorted(cast("Item", item).number for item in newer(machine.lrus[self.manager], self.stamp))
        assert found == sorted(self.moved.intersection(machine.order(self.manager)))


class LruMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lrus: Any = (PriorityLru(), PriorityLru())
        self.unevictable: Any = LruList()
        self.bulks = LruBulkMove(), LruBulkMove()
        self.items = [Item(i) for i in range(12)]
        # number -> (manager, priority, bulk or None), ("pinned", 0, None) or (None, 0, None)
        self.where: dict[int, tuple[Any, int, int | None]] = dict.fromkeys(range(12), (None, 0, None))
        # The model: for each (manager, priority) a list of ("item", number) and ("bulk", which).
        self.lists: dict[tuple[int, int], list[tuple[str, int]]] = {(m, p): [] for m in range(2) for p in range(4)}
        self.groups: dict[tuple[int, int, int], list[int]] = {
            (b, m, p): [] for b in range(2) for m in range(2) for p in range(4)
        }
        self.pinned: list[int] = []
        self.walks: list[Walk] = []
        # Begin where it is interesting: 1 (0 2 4 6) 3 (5 7 9), 8 10 11 nowhere.
        for number in (1, 0, 2, 4, 6, 3, 5, 7, 9):
            self.bump_or_add(number, 0, 0)
            if number not in (1, 3):
                self.bulk_add(number, number % 2)

    # The model's own operations

    def order(self, manager: int) -> list[int]:
        out = []
        for priority in range(4):
            for kind, which in self.lists[manager, priority]:
                out += [which] if kind == "item" else self.groups[which, manager, priority]
        return out

    def touch(self, number: int, ahead: bool) -> None:
        """The item moved; `ahead` when to the tail of a list (and not inside a group that a walk may have left)."""
        for walk in self.walks:
            walk.touch(number, ahead)

    def take_off(self, number: int) -> None:
        manager, priority, bulk = self.where[number]
        if manager == "pinned":
            self.pinned.remove(number)
        elif bulk is not None:
            group = self.groups[bulk, manager, priority]
            group.remove(number)
            if not group:
                self.lists[manager, priority].remove(("bulk", bulk))
        elif manager is not None:
            self.lists[manager, priority].remove(("item", number))
        self.where[number] = (None, 0, None)
        self.touch(number, ahead=False)

    def put(self, number: int, manager: int, priority: int, bulk: int | None = None) -> None:
        ahead = True
        if bulk is None:
            self.lists[manager, priority].append(("item", number))
        else:
            group = self.groups[bulk, manager, priority]
            if not group:
                self.lists[manager, priority].append(("bulk", bulk))
            ahead = not group
            group.append(number)
        self.where[number] = (manager, priority, bulk)
        self.touch(number, ahead)

    # Rules

    @rule(number=NUMBERS, manager=MANAGERS, priority=PRIORITIES)
    def bump_or_add(self, number: int, manager: int, priority: int) -> None:
        was, was_priority, bulk = self.where[number]
        if was is None:
            self.lrus[manager].add_tail(self.items[number], priority)
        else:
            self.lrus[manager].move_to_tail(self.items[number], priority)
        if was != manager:
            bulk = None
        if bulk is not None and was_priority == priority:
            group = self.groups[bulk, manager, priority]
            group.append(group.pop(group.index(number)))
            self.touch(number, ahead=False)
        else:
            self.take_off(number)
            self.put(number, manager, priority, bulk)

    @rule(number=NUMBERS)
    def remove(self, number: int) -> None:
        manager = self.where[number][0]
        owner = self.unevictable if manager == "pinned" else self.lrus[manager or 0]
        owner.remove(self.items[number])
        self.take_off(number)

    @rule(number=NUMBERS)
    def pin(self, number: int) -> None:
        self.unevictable.move_to_tail(self.items[number])
        self.take_off(number)
        self.pinned.append(number)
        self.where[number] = ("pinned", 0, None)

    @rule(number=NUMBERS, bulk=BULKS)
    def bulk_add(self, number: int, bulk: int) -> None:
        manager, priority, was = self.where[number]
        allowed = manager in (0, 1) and all(other % 2 == number % 2 for other in self.items_of(bulk) if other != number)
        if not allowed:
            try:
                self.bulks[bulk].add(self.items[number])
            except AssertionError:
                return
            raise RuntimeError("a stranger joined the bulk")
        self.bulks[bulk].add(self.items[number])
        if was != bulk:
            self.take_off(number)
            self.put(number, manager, priority, bulk)

    def items_of(self, bulk: int) -> list[int]:
        return [number for number, where in self.where.items() if where[2] == bulk]

    @rule(number=NUMBERS, bulk=BULKS)
    def bulk_remove(self, number: int, bulk: int) -> None:
        self.bulks[bulk].remove(self.items[number])
        manager, priority, was = self.where[number]
        if was == bulk:
            self.take_off(number)
            self.put(number, manager, priority)

    @rule(bulk=BULKS)
    def bulk_move(self, bulk: int) -> None:
        self.bulks[bulk].move_tail()
        for (which, manager, priority), group in self.groups.items():
            if which == bulk and group:
                entries = self.lists[manager, priority]
                entries.remove(("bulk", bulk))
                entries.append(("bulk", bulk))
                for number in group:
                    self.touch(number, ahead=True)

    @rule(manager=MANAGERS, priority=PRIORITIES, numbers=st.permutations(range(12)))
    def empty_and_refill(self, manager: int, priority: int, numbers: list[int]) -> None:
        present = self.order(manager)
        for number in present:
            self.lrus[manager].remove(self.items[number])
            self.take_off(number)
        assert self.lrus[manager].first() is None
        for number in numbers:
            if number in present:
                self.lrus[manager].add_tail(self.items[number], priority)
                self.put(number, manager, priority)

    @precondition(lambda self: len(self.walks) < 4)
    @rule(manager=MANAGERS, until_now=st.booleans())
    def start_walk(self, manager: int, until_now: bool) -> None:
        self.walks.append(Walk(self, manager, until_now))

    @precondition(lambda self: self.walks)
    @rule(which=NUMBERS, times=st.integers(1, 6))
    def step_walk(self, which: int, times: int) -> None:
        walk = self.walks[which % len(self.walks)]
        for _ in range(times):
            if walk.next() is None:
                self.walks.remove(walk)
                walk.cursor.fini()
                break

    @rule(times=st.integers(1, 8), bulk=BULKS, refill=st.booleans(), until_now=st.booleans())
    def walk_across_bulk_move(self, times: int, bulk: int, refill: bool, until_now: bool) -> None:
        """One whole walk with a change to a bulk on the way, which other rules seldom catch parked inside."""
        walk = Walk(self, 0, until_now)
        self.walks.append(walk)
        over = any(walk.next() is None for _ in range(times))
        if over:
            self.walks.remove(walk)
            return
        if refill:
            members = [number for number in self.items_of(bulk) if self.where[number][0] == 0]
            for number in members:
                self.remove(number)
            for number in members:
                self.bump_or_add(number, 0, 0)
                self.bulk_add(number, bulk)
        else:
            self.bulk_move(bulk)
        while walk.next():
            pass
        self.walks.remove(walk)
        walk.cursor.fini()

    @precondition(lambda self: self.walks)
    @rule(which=NUMBERS)
    def end_walk(self, which: int) -> None:
        walk = self.walks.pop(which % len(self.walks))
        walk.cursor.fini()
        walk.cursor.fini()
        assert walk.cursor.next() is None

    @invariant()
    def agree(self) -> None:
        for manager, lru in enumerate(self.lrus):
            order = self.order(manager)
            assert [item.number for item in lru] == order
            first = lru.first()
            assert (first.number if first else None) == (order[0] if order else None)
            assert lru.count == len(order)
            assert lru.check() == []
        assert [item.number for item in self.unevictable] == self.pinned
        for which, bulk in enumerate(self.bulks):
            assert bulk.count == len(self.items_of(which))
            assert bulk.check() == []

    def teardown(self) -> None:
        # A bounded walk ends however its items are bumped; an unbounded one when nothing is.
        for walk in list(self.walks):
            for _ in range(13):
                item = walk.next()
                if item is None:
                    break
                if walk.until_now:
                    manager, priority, _ = self.where[item.number]
                    self.bump_or_add(item.number, manager, priority)
            else:
                raise AssertionError("the walk does not end")
        for walk in self.walks:
            walk.cursor.fini()
        lists = [*self.lrus[0].lists, *self.lrus[1].lists]
        for bulk in self.bulks:
            lists += bulk._groups.values()
        for where in lists:
            node = where._lru_next
            while node is not where:
                assert isinstance(node, LruItem | BulkMarker), "a hitch was left behind"
                node = node._lru_next


TestLru = LruMachine.TestCase
TestLru.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
