"""LRU lists and cursors, one behaviour at a time."""

import errno
import gc
import random
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from ttmfs.errors import TtmError
from ttmfs.ttm.lru import NUM_PRIORITIES, LruItem, LruList, PriorityLru
from ttmfs.ttm.lru_cursor import LruCursor

MANY = 100_000


class Item(LruItem):
    __slots__ = ("__weakref__", "bo", "name")

    def __init__(self, name: object, resv: object = None) -> None:
        super().__init__()
        self.name = name
        self.bo = SimpleNamespace(resv=resv)

    def __repr__(self) -> str:
        return f"Item({self.name})"


def filled(count: int, priority: int = 0) -> tuple[PriorityLru, list[Item]]:
    lru = PriorityLru()
    items = [Item(i) for i in range(count)]
    for item in items:
        lru.add_tail(item, priority)
    return lru, items


def names(iterable: Iterable[Any]) -> list[Any]:
    return [item.name for item in iterable]


def test_lower_priority_first_then_oldest() -> None:
    lru = PriorityLru()
    for name, priority in (("d", 3), ("b", 1), ("a", 0), ("c", 1)):
        lru.add_tail(Item(name), priority)
    assert names([lru.first()]) == ["a"]
    assert names(lru) == ["a", "b", "c", "d"]
    with LruCursor(lru) as cursor:
        assert names(cursor) == ["a", "b", "c", "d"]
    assert lru.count == 4
    assert lru.check() == []


def test_empty() -> None:
    lru = PriorityLru()
    assert lru.first() is None
    assert lru.count == 0
    cursor = LruCursor(lru)
    assert cursor.next() is None
    cursor.fini()
    assert cursor.next() is None


def test_bump_and_priority_change() -> None:
    lru, items = filled(3)
    lru.move_to_tail(items[0], 0)
    assert names(lru) == [1, 2, 0]
    lru.move_to_tail(items[1], 2)
    assert names(lru) == [2, 0, 1]
    lru.move_to_tail(items[2], 2)
    assert names(lru) == [0, 1, 2]
    assert lru.count == 3
    assert lru.check() == []


def test_remove_twice_is_harmless_and_frees_the_item() -> None:
    lru, items = filled(3)
    item = items.pop(1)
    lru.remove(item)
    lru.remove(item)
    assert names(lru) == [0, 2]
    assert lru.count == 2
    assert not item.on_lru
    alive = weakref.ref(item)
    gc.disable()
    try:
        del item
        assert alive() is None, "an item off the lists must not need the garbage collector"
    finally:
        gc.enable()


def test_pin_and_unpin_through_the_unevictable_list() -> None:
    lru, items = filled(3)
    unevictable = LruList()
    unevictable.move_to_tail(items[1])
    assert names(lru) == [0, 2]
    assert names(unevictable) == [1]
    assert (lru.count, unevictable.count) == (2, 1)
    assert unevictable.first() is items[1]
    lru.move_to_tail(items[1], 0)
    assert names(lru) == [0, 2, 1]
    assert unevictable.count == 0
    assert unevictable.first() is None
    assert lru.check() == []


@pytest.mark.parametrize("priority", [-1, NUM_PRIORITIES])
def test_bad_priority_changes_nothing(priority: int) -> None:
    lru, items = filled(2)
    with pytest.raises(TtmError) as caught:
        lru.move_to_tail(items[0], priority)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(TtmError):
        lru.add_tail(Item(9), priority)
    assert names(lru) == [0, 1]
    assert lru.check() == []


def test_misuse_is_caught() -> None:
    lru, items = filled(1)
    other = PriorityLru()
    with pytest.raises(AssertionError):
        lru.add_tail(items[0], 0)
    with pytest.raises(AssertionError):
        other.remove(items[0])
    with pytest.raises(AssertionError):
        LruList().remove(items[0])
    assert names(lru) == [0]


def test_cursor_goes_on_after_its_item_was_removed_bumped_or_left() -> None:
    for change in ("remove", "bump", "priority"):
        lru, items = filled(4)
        with LruCursor(lru) as cursor:
            assert cursor.next() is items[0]
            assert cursor.next() is items[1]
            if change == "remove":
                lru.remove(items[1])
            else:
                lru.move_to_tail(items[1], 0 if change == "bump" else 2)
            rest = names(cursor)
        assert rest == ([2, 3] if change == "remove" else [2, 3, 1])


def test_cursor_after_everything_was_removed_and_put_back() -> None:
    lru, items = filled(4)
    with LruCursor(lru) as cursor, LruCursor(lru, until_now=True) as bounded:
        assert cursor.next() is items[0]
        assert bounded.next() is items[0]
        for item in items:
            lru.remove(item)
        assert lru.first() is None
        for item in reversed(items):
            lru.add_tail(item, 0)
        assert names(cursor) == [3, 2, 1, 0]
        assert names(bounded) == []


def test_cursor_does_not_go_back_to_a_lower_priority() -> None:
    lru, items = filled(2, priority=1)
    with LruCursor(lru) as cursor:
        assert cursor.next() is items[0]
        lru.add_tail(Item("late"), 0)
        assert names(cursor) == [1]
    assert names([lru.first()]) == ["late"]


def test_hitches_are_invisible_and_leave_nothing() -> None:
    lru, items = filled(3)
    cursors = [LruCursor(lru) for _ in range(5)]
    for cursor in cursors:
        cursor.next()
    assert names(lru) == [0, 1, 2]
    lru.remove(items[0])
    assert lru.first() is items[1]
    for cursor in cursors:
        cursor.fini()
        cursor.fini()
        assert cursor.next() is None
    before = lru.steps
    lru.first()
    assert lru.steps - before == 1
    assert lru.check() == []


def test_fini_after_the_lists_are_empty() -> None:
    lru, items = filled(2)
    cursor = LruCursor(lru)
    cursor.next()
    for item in items:
        lru.remove(item)
    del items
    cursor.fini()
    assert lru.first() is None
    assert lru.check() == []


def test_a_walk_that_bumps_all_it_sees_ends_with_until_now() -> None:
    lru, items = filled(100)
    for i, item in enumerate(items):
        lru.move_to_tail(item, i % NUM_PRIORITIES)
    seen = []
    with LruCursor(lru, until_now=True) as cursor:
        for each in cursor:
            number = names([each])[0]
            seen.append(number)
            assert len(seen) <= 100, "the walk came back to what it had bumped"
            lru.move_to_tail(each, number % NUM_PRIORITIES)
    assert sorted(seen) == list(range(100))
    with LruCursor(lru) as cursor:  # the kernel's wart, without the bound
        for _ in range(500):
            oldest = cursor.next()
            assert oldest is not None
            lru.move_to_tail(oldest, 0)


def test_until_now_leaves_out_what_came_later() -> None:
    lru, items = filled(4)
    with LruCursor(lru, until_now=True) as cursor:
        lru.add_tail(Item("new"), 0)
        lru.move_to_tail(items[1], 3)
        assert names(cursor) == [0, 2, 3]
    with LruCursor(lru, until_now=True) as cursor:
        assert names(cursor) == [0, 2, 3, "new", 1]


def test_steps_stay_constant_with_many_items() -> None:
    lru, items = filled(MANY)

    def cost(call: Callable[[], object]) -> int:
        before = lru.steps
        call()
        return lru.steps - before

    assert cost(lru.first) == 1
    assert cost(lambda: lru.move_to_tail(items[MANY // 2], 0)) <= 2
    assert cost(lambda: lru.move_to_tail(items[MANY // 2], 1)) <= 2
    assert cost(lambda: lru.remove(items[MANY // 3])) <= 2
    with LruCursor(lru) as cursor:
        assert max(cost(cursor.next) for _ in range(1000)) == 1
        cursor.fini()
    bounded = LruCursor(lru, until_now=True)
    for item in items[: MANY // 2]:
        lru.move_to_tail(item, 0)
    assert bounded.next() is items[MANY // 2 + 1]
    for item in items:
        lru.move_to_tail(item, 0)
    assert cost(bounded.next) <= NUM_PRIORITIES, "the newer part of a list is not walked"


def test_an_item_costs_less_than_100_bytes_on_a_list() -> None:
    class Bare:
        __slots__ = ("__weakref__", "bo", "name")

    linked = PriorityLru()
    linked.stamp = 1 << 40  # integers of a device that has run for a while
    items = [Item(None) for _ in range(10_000)]
    tracemalloc.start()
    for item in items:
        linked.add_tail(item, 0)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown / len(items) + sys.getsizeof(items[0]) - sys.getsizeof(Bare()) < 100


def test_check_sees_damage() -> None:
    lru, items = filled(3)
    lru.count += 1
    assert lru.check()
    lru.count -= 1
    items[1]._lru_stamp = 0
    assert lru.check()
    items[1]._lru_stamp = 2
    assert lru.check() == []
    items[2]._lru_prev = items[0]
    assert lru.check()


def test_random_walks_visit_each_item_once() -> None:
    rng = random.Random(3)
    lru, items = filled(500)
    for item in items:
        lru.move_to_tail(item, rng.randrange(NUM_PRIORITIES))
    order = list(lru)
    with LruCursor(lru) as one, LruCursor(lru) as two:
        seen: tuple[list[LruItem], list[LruItem]] = ([], [])
        while min(map(len, seen)) < len(items):
            which = rng.randrange(2)
            found = (one, two)[which].next()
            if found is not None:
                seen[which].append(found)
    assert seen[0] == order
    assert seen[1] == order
