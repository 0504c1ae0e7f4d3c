"""Bulk moves: members move as one and keep their order; cursors inside."""

import gc
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ttmfs.ttm.lru import LruBulkMove, LruItem, LruList, PriorityLru
from ttmfs.ttm.lru_cursor import LruCursor


class Item(LruItem):
    __slots__ = ("bo", "name")

    def __init__(self, name: str, resv: object = None) -> None:
        super().__init__()
        self.name = name
        self.bo = SimpleNamespace(resv=resv)


def names(iterable: Iterable[Any]) -> str:
    return "".join(item.name for item in iterable)


class Setup:
    """Items a..f in priority 0; the named ones in one bulk."""

    def __init__(self, members: str = "bc", letters: str = "abcdef") -> None:
        self.lru = PriorityLru()
        self.bulk = LruBulkMove()
        self.items = {letter: Item(letter) for letter in letters}
        for item in self.items.values():
            self.lru.add_tail(item, 0)
        for letter in members:
            self.bulk.add(self.items[letter])

    def __getitem__(self, letter: str) -> Item:
        return self.items[letter]

    def check(self) -> None:
        assert self.lru.check() == []
        assert self.bulk.check() == []


def test_bulk_moves_as_a_block_and_keeps_order() -> None:
    s = Setup()
    assert names(s.lru) == "adefbc"  # the first member brought the marker to the tail
    s.lru.move_to_tail(s["a"], 0)
    assert names(s.lru) == "defbca"
    s.bulk.move_tail()
    assert names(s.lru) == "defabc"
    assert s.lru.count == 6
    assert s.bulk.count == 2
    s.check()


def test_bump_of_a_member_stays_inside() -> None:
    s = Setup("bcd")
    s.lru.move_to_tail(s["a"], 0)
    assert names(s.lru) == "efbcda"
    s.lru.move_to_tail(s["b"], 0)
    assert names(s.lru) == "efcdba"
    assert s["b"].bulk is s.bulk
    s.check()


def test_bump_of_the_only_member_does_not_move_the_bulk() -> None:
    s = Setup("b")
    s.lru.move_to_tail(s["a"], 0)
    s.lru.move_to_tail(s["b"], 0)
    assert names(s.lru) == "cdefba"
    s.check()


def test_an_empty_group_comes_back_at_the_tail() -> None:
    s = Setup("b")
    s.lru.move_to_tail(s["a"], 0)
    assert names(s.lru) == "cdefba"
    s.lru.remove(s["b"])
    assert names(s.lru) == "cdefa"
    assert s.bulk.count == 0
    s.bulk.add(s["c"])
    assert names(s.lru) == "defac"
    s.check()


def test_pinned_member_leaves_and_comes_back_last() -> None:
    s = Setup("bcd")
    unevictable = LruList()
    unevictable.move_to_tail(s["b"])
    assert s.bulk.count == 2
    assert s["b"].bulk is None
    s.bulk.remove(s["b"])  # no member: nothing happens
    assert names(unevictable) == "b"
    s.bulk.move_tail()
    assert names(s.lru) == "aefcd"
    with pytest.raises(AssertionError):
        s.bulk.add(s["b"])
    s.lru.move_to_tail(s["b"], 0)
    s.bulk.add(s["b"])
    assert names(s.lru) == "aefcdb"
    s.check()


def test_add_twice_is_a_no_op_and_another_bulk_takes_over() -> None:
    s = Setup("bc")
    s.bulk.add(s["b"])
    assert names(s.lru) == "adefbc"
    other = LruBulkMove()
    other.add(s["b"])
    assert s["b"].bulk is other
    assert (s.bulk.count, other.count) == (1, 1)
    assert names(s.lru) == "adefcb"
    s.check()
    assert other.check() == []


def test_remove_makes_a_member_ordinary_again() -> None:
    s = Setup("bc")
    s.lru.move_to_tail(s["a"], 0)
    s.bulk.remove(s["b"])
    assert names(s.lru) == "defcab"
    assert s["b"].bulk is None
    assert s.lru.count == 6
    s.check()


def test_priority_change_stays_in_the_bulk() -> None:
    s = Setup("b")
    s.lru.move_to_tail(s["b"], 2)
    assert s["b"].bulk is s.bulk
    s.bulk.add(s["c"])
    s.lru.move_to_tail(s["a"], 2)
    assert names(s.lru) == "defcba"
    s.bulk.move_tail()
    assert names(s.lru) == "defcab"
    s.check()


def test_groups_of_several_managers_and_priorities_move_together() -> None:
    s = Setup("bc")
    vram = PriorityLru()
    for letter, priority in (("u", 0), ("v", 0), ("w", 3), ("x", 3)):
        s.items[letter] = item = Item(letter)
        vram.add_tail(item, priority)
        if letter in "uw":
            s.bulk.add(item)
    vram.move_to_tail(s["v"], 0)
    vram.move_to_tail(s["x"], 3)
    assert names(vram) == "uvwx"
    s.bulk.move_tail()
    assert names(vram) == "vuxw"
    assert s.bulk.count == 4
    assert vram.check() == []
    s.check()


def test_members_share_one_reservation() -> None:
    s = Setup("b")
    stranger = Item("z", resv=object())
    s.lru.add_tail(stranger, 0)
    with pytest.raises(AssertionError, match="reservation"):
        s.bulk.add(stranger)
    assert names(s.lru) == "acdefbz"
    s.lru.remove(s["b"])
    s.bulk.add(stranger)  # an empty bulk has no reservation yet
    with pytest.raises(AssertionError, match="reservation"):
        s.bulk.add(s["a"])
    s.check()


def test_priority_change_of_the_only_member_keeps_the_reservation() -> None:
    s = Setup("")
    stranger = Item("z", resv=object())
    s.lru.add_tail(stranger, 0)
    s.bulk.add(stranger)
    s.lru.move_to_tail(stranger, 1)
    with pytest.raises(AssertionError, match="reservation"):
        s.bulk.add(s["a"])
    s.check()


def test_item_on_no_list_cannot_join() -> None:
    with pytest.raises(AssertionError):
        LruBulkMove().add(Item("x"))


def test_fini_asserts_emptiness() -> None:
    s = Setup("b")
    with pytest.raises(AssertionError):
        s.bulk.fini()
    s.bulk.remove(s["b"])
    s.bulk.fini()
    s.check()


def test_first_looks_into_the_bulk() -> None:
    s = Setup("abcdef")
    assert s.lru.first() is s["a"]
    cursor = LruCursor(s.lru)
    cursor.next()
    s.lru.remove(s["a"])
    assert s.lru.first() is s["b"]
    cursor.fini()


def test_walk_descends_and_comes_back_up() -> None:
    s = Setup("bc")
    s.lru.move_to_tail(s["a"], 0)
    with LruCursor(s.lru) as cursor:
        assert names(cursor) == "defbca"


def test_cursor_survives_a_bulk_move_while_parked_inside() -> None:
    s = Setup("bcd", "abcdefg")
    s.lru.move_to_tail(s["a"], 0)  # efg (bcd) a
    with LruCursor(s.lru) as cursor, LruCursor(s.lru, until_now=True) as bounded:
        for walk in (cursor, bounded):
            assert names(walk.next() for _ in range(4)) == "efgb"
        s.bulk.move_tail()
        assert names(bounded) == "a"  # the bulk is newer than this walk now
        assert names(cursor) == "abcd"  # what was bumped is met again at the tail
    s.check()


def test_several_cursors_inside_one_bulk() -> None:
    s = Setup("bcd", "abcd")
    cursors = [LruCursor(s.lru) for _ in range(3)]
    for cursor in cursors:
        assert names(cursor.next() for _ in range(2)) == "ab"
    # The one that came last stands behind the hitches of the others.
    assert [names(cursor) for cursor in reversed(cursors)] == ["cd", "cd", "cd"]


def test_fini_inside_a_bulk_leaves_nothing() -> None:
    s = Setup("bc")
    cursor = LruCursor(s.lru)
    assert names(cursor.next() for _ in range(4)) == "adef"
    assert cursor.next() is s["b"]
    cursor.fini()
    for letter in "adefb":
        s.lru.remove(s[letter])
    before = s.lru.steps
    assert s.lru.first() is s["c"]
    assert s.lru.steps - before == 2  # the marker and the item


def test_cursor_inside_a_bulk_whose_members_change() -> None:
    s = Setup("bcd")  # a e f (b c d)
    cursor = LruCursor(s.lru)
    assert names(cursor.next() for _ in range(4)) == "aefb"
    s.lru.remove(s["b"])
    assert cursor.next() is s["c"]
    s.lru.move_to_tail(s["c"], 0)
    assert cursor.next() is s["d"]
    assert cursor.next() is s["c"]
    assert cursor.next() is None
    s.check()


def test_cursor_inside_a_bulk_that_empties_and_fills_again() -> None:
    s = Setup("bc")
    s.lru.move_to_tail(s["a"], 0)  # d e f (b c) a
    with LruCursor(s.lru) as cursor:
        assert names(cursor.next() for _ in range(4)) == "defb"
        s.lru.remove(s["b"])
        s.lru.remove(s["c"])
        s.lru.add_tail(s["c"], 0)
        s.bulk.add(s["c"])  # d e f a (c)
        assert names(cursor) == "ac"
    s.check()


def test_cursor_outlives_the_bulk() -> None:
    s = Setup("bc")
    with LruCursor(s.lru) as cursor:
        assert names(cursor.next() for _ in range(5)) == "adefb"
        for letter in "bc":
            s.lru.remove(s[letter])
        s.bulk.fini()
        s.bulk = LruBulkMove()
        gc.collect()
        s.lru.add_tail(s["b"], 1)
        assert names(cursor) == "b"
    s.check()


def test_a_walk_that_bumps_the_bulk_ends_with_until_now() -> None:
    s = Setup("bcd")
    with LruCursor(s.lru, until_now=True) as cursor:
        seen = ""
        for item in cursor:
            seen += cast("Item", item).name
            assert len(seen) < 20
            s.lru.move_to_tail(item, 0)
    assert seen == "aefbcd"
    assert names(s.lru) == "bcdaef"  # members stay inside when bumped, so their marker is the oldest now
    with LruCursor(s.lru, until_now=True) as cursor:
        seen = ""
        for item in cursor:
            seen += cast("Item", item).name
            assert len(seen) < 20
            s.bulk.move_tail()
    assert seen == "baef"


def test_moving_a_large_bulk_costs_a_step_for_each_group() -> None:
    lru = PriorityLru()
    bulk = LruBulkMove()
    items = [Item(str(i)) for i in range(100_000)]
    for i, item in enumerate(items):
        lru.add_tail(item, i % 4)
        bulk.add(item)
    before = lru.steps
    bulk.move_tail()
    assert lru.steps - before == 4
    before = lru.steps
    lru.move_to_tail(items[0], 0)
    assert lru.steps - before == 1
    before = lru.steps
    assert lru.first() is items[4]
    with LruCursor(lru) as cursor:
        assert cursor.next() is items[4]
        bulk.move_tail()
        assert cursor.next() is items[4]
    assert lru.steps - before < 12
