"""The range allocator, one behaviour at a time and against a bitmap."""

import contextlib
import errno
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ttmfs.errors import TtmError
from ttmfs.memory.range_allocator import Mode, RangeAllocator, RangeNode


def with_holes(total: int, *holes: tuple[int, int]) -> RangeAllocator:
    """Everything used but `holes`, each (start, pages)."""
    mm = RangeAllocator(total)
    position = 0
    for start, pages in sorted(holes):
        if start > position:
            mm.reserve_exact(position, start - position)
        position = start + pages
    if position < total:
        mm.reserve_exact(position, total - position)
    assert list(mm.holes()) == sorted(holes)
    return mm


def fails(code: int, call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(TtmError) as caught:
        call(*args, **kwargs)
    assert caught.value.errno == code
    return caught.value.message


def test_best_fit_lowest_of_equals() -> None:
    mm = with_holes(100, (10, 8), (30, 4), (50, 4), (70, 6))
    assert mm.insert(4).start == 30
    assert mm.insert(4).start == 50
    assert mm.insert(4).start == 70
    assert mm.insert(4).start == 10
    assert list(mm.holes()) == [(14, 4), (74, 2)]
    assert mm.check() == []


def test_high_and_low() -> None:
    mm = with_holes(100, (10, 8), (30, 4), (50, 4), (70, 6))
    assert mm.insert(2, mode="high").start == 74
    assert mm.insert(5, mode="high").start == 13
    assert mm.insert(4, mode="low").start == 30
    assert mm.insert(1, mode="low").start == 10
    assert mm.check() == []


def test_windows() -> None:
    mm = RangeAllocator(100)
    assert mm.insert(10, first=20, last=50).start == 20
    assert mm.insert(10, first=20, last=50, mode="high").start == 40
    assert mm.insert(10, first=20, last=50).start == 30
    fails(errno.ENOSPC, mm.insert, 1, first=20, last=50)
    assert mm.insert(50, last=1000).start == 50
    assert mm.insert(20).start == 0
    assert mm.free_pages == 0
    assert mm.check() == []


def test_last_is_exclusive_and_first_inclusive() -> None:
    mm = RangeAllocator(10)
    fails(errno.ENOSPC, mm.insert, 4, first=3, last=6)
    node = mm.insert(3, first=3, last=6)
    assert (node.start, node.end) == (3, 6)
    fails(errno.ENOSPC, mm.insert, 1, first=10)
    fails(errno.ENOSPC, mm.insert, 1, first=5, last=5)


def test_alignment() -> None:
    mm = with_holes(100, (3, 20), (50, 14))
    assert mm.insert(4, alignment=16).start == 16
    mm = with_holes(100, (3, 20), (50, 17))
    assert mm.insert(2, alignment=16, mode="high").start == 64
    assert mm.insert(2, alignment=7, mode="best").start == 56
    assert mm.insert(2, alignment=0, mode="high").start == 62
    fails(errno.ENOSPC, mm.insert, 5, alignment=64)
    assert mm.check() == []


def test_out_of_space_says_so_and_changes_nothing() -> None:
    mm = with_holes(100, (10, 8), (30, 4))
    before = mm.dump()
    assert "12 of 100 are free" in fails(errno.ENOSPC, mm.insert, 9)
    fails(errno.ENOSPC, mm.insert, 9, mode="low")
    fails(errno.ENOSPC, mm.insert, 9, mode="high")
    fails(errno.ENOSPC, mm.insert, 1 << 40)
    fails(errno.ENOSPC, mm.reserve_exact, 17, 2)
    fails(errno.ENOSPC, mm.reserve_exact, 9, 1)
    assert mm.dump() == before


def test_silly_arguments() -> None:
    mm = RangeAllocator(10)
    for kwargs in (
        {"pages": 0},
        {"pages": -1},
        {"pages": 1, "alignment": -1},
        {"pages": 1, "first": -1},
        {"pages": 1, "first": 5, "last": 4},
        {"pages": 1, "last": -1},
        {"pages": 1, "mode": "middle"},
    ):
        fails(errno.EINVAL, mm.insert, **kwargs)
    for start, pages in ((-1, 1), (0, 0), (0, 11), (10, 1)):
        fails(errno.EINVAL, mm.reserve_exact, start, pages)
    fails(errno.EINVAL, RangeAllocator, -1)
    assert (mm.used_pages, list(mm.holes())) == (0, [(0, 10)])


def test_nothing_fits_in_nothing() -> None:
    mm = RangeAllocator(0)
    fails(errno.ENOSPC, mm.insert, 1)
    assert mm.dump() == "total: 0, used 0 free 0\n"
    assert mm.check() == []


def test_remove_merges_and_only_once() -> None:
    mm = RangeAllocator(30)
    a, b, c = (mm.insert(10, mode="low") for _ in range(3))
    mm.remove(a)
    mm.remove(c)
    assert list(mm.holes()) == [(0, 10), (20, 10)]
    mm.remove(b)
    assert list(mm.holes()) == [(0, 30)]
    fails(errno.EINVAL, mm.remove, b)
    again = mm.insert(10, first=10)
    fails(errno.EINVAL, mm.remove, b)  # another node has its place
    fails(errno.EINVAL, mm.remove, RangeNode(again.start, 10))
    assert mm.used_pages == 10
    assert mm.check() == []


def test_when_all_are_gone_no_room_is_kept_for_as_many() -> None:
    mm = RangeAllocator(5000)
    nodes = [mm.insert(1) for _ in range(5000)]
    before = sys.getsizeof(mm._nodes)
    for node in nodes:
        mm.remove(node)
    assert sys.getsizeof(mm._nodes) < before / 100
    assert list(mm.holes()) == [(0, 5000)]
    assert mm.insert(7).start == 0


def test_dump_is_drm_mm_print() -> None:
    mm = with_holes(0x30, (0x10, 8))
    assert mm.dump() == (
        "0x0000000000000000-0x0000000000000010: 16: used\n"
        "0x0000000000000010-0x0000000000000018: 8: free\n"
        "0x0000000000000018-0x0000000000000030: 24: used\n"
        "total: 48, used 40 free 8\n"
    )


def damage(mm: RangeAllocator, what: str) -> None:
    """Somewhere in the middle, or in the totals."""
    start, node = list(mm._nodes.items())[-900]
    hole, size = list(mm._holes.items())[-900]
    if what == "node":
        node.num_pages += 1
    elif what == "lost node":
        del mm._nodes[start]
    elif what == "lost hole":
        del mm._holes[hole]
    elif what == "size":
        mm._by_size.remove((size, hole))
        mm._by_size.add((size + 1, hole))
    elif what == "tree":
        mm._tree.set(hole, size + 1)
    elif what == "split hole":
        mm._holes[hole] = 1
        mm._holes[hole + 1] = size - 1
    else:
        mm.used_pages += 1


@pytest.mark.parametrize("what", ["node", "lost node", "lost hole", "size", "tree", "split hole", "total"])
def test_damage_is_seen_among_many(what: str) -> None:
    mm = RangeAllocator(20_000)
    nodes = [mm.insert(4) for _ in range(5000)]
    for node in nodes[::2]:
        mm.remove(node)
    assert mm.check() == []
    damage(mm, what)
    assert mm.check()


@pytest.mark.parametrize("seed", range(20))
def test_a_check_in_steps_holds_whatever_happens_between_them(seed: int) -> None:
    rng = random.Random(seed)
    mm = RangeAllocator(8000)
    nodes = [mm.insert(rng.randint(1, 6)) for _ in range(2000)]
    steps = 0
    for wrong in mm.check_steps():
        assert wrong == []
        steps += 1
        for _ in range(rng.choice((1, 50, 600))):
            if nodes and rng.random() < 0.6:
                mm.remove(nodes.pop(rng.randrange(len(nodes))))
            else:
                with contextlib.suppress(TtmError):
                    nodes.append(mm.insert(rng.randint(1, 9), mode=rng.choice(("best", "high", "low"))))
    assert steps > 3


def test_check_sees_damage() -> None:
    mm = with_holes(100, (10, 8))
    mm.used_pages += 1
    assert mm.check()
    mm.used_pages -= 1
    assert mm.check() == []
    mm._by_size.clear()
    assert mm.check()


@pytest.fixture(scope="module")
def crowded() -> tuple[RangeAllocator, int]:
    """100 000 ranges of 2, 1, 2, 1 … pages, those of 1 page free again, and one hole of 4 in the middle."""
    count = 100_000
    mm = RangeAllocator(count * 3 // 2)
    nodes = [mm.insert(1 if i % 2 else 2, mode="low") for i in range(count)]
    assert mm.free_pages == 0
    for node in nodes[1::2]:
        mm.remove(node)
    wide = nodes[count // 2]
    mm.remove(wide)
    return mm, wide.start - 1


@pytest.mark.parametrize("mode", ["best", "low", "high"])
def test_steps_stay_logarithmic_with_many_nodes(crowded: tuple[RangeAllocator, int], mode: Mode) -> None:
    # A plain walk for two pages would pass 25 000 holes of one page, whatever end it begins at.
    mm, hole = crowded
    costs: list[int] = []

    def measured(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        before = mm.steps
        try:
            return call(*args, **kwargs)
        finally:
            costs.append(mm.steps - before)

    node = measured(mm.insert, 2, mode=mode)
    assert node.start == hole + (2 if mode == "high" else 0)
    measured(mm.remove, node)
    singles = [measured(mm.insert, 1, mode=mode) for _ in range(200)]
    for node in singles:
        measured(mm.remove, node)
    with pytest.raises(TtmError):
        measured(mm.insert, 5, mode=mode)
    measured(mm.remove, measured(mm.reserve_exact, hole + 1, 2))
    if mode != "best":
        node = measured(mm.insert, 2, first=10, last=mm.num_pages - 10, mode=mode)
        measured(mm.remove, node)
    assert max(costs) < 120
    assert mm.check() == []


def test_best_in_a_small_window_looks_only_there() -> None:
    count = 20_000
    mm = RangeAllocator(2 * count)
    for i in range(count):
        mm.reserve_exact(2 * i, 1)
    before = mm.steps
    assert mm.insert(1, first=20_000, last=20_020).start == 20_001
    assert mm.steps - before < 200


def test_random_load_stays_sound() -> None:
    rng = random.Random(5)
    mm = RangeAllocator(1 << 16)
    nodes: list[RangeNode] = []
    for _ in range(5000):
        if nodes and rng.random() < 0.45:
            mm.remove(nodes.pop(rng.randrange(len(nodes))))
        else:
            nodes.append(mm.insert(rng.randint(1, 30), mode=rng.choice(("best", "high", "low"))))
    assert mm.check() == []
    for node in nodes:
        mm.remove(node)
    assert list(mm.holes()) == [(0, 1 << 16)]
    assert mm._tree._levels[0] == {0: 1 << 16}
    assert sum(map(len, mm._tree._levels)) == len(mm._tree._levels)


TOTAL = 70


class RangeMachine(RuleBasedStateMachine):
    """Against one flag for each page."""

    def __init__(self) -> None:
        super().__init__()
        self.mm = RangeAllocator(TOTAL)
        self.used = [False] * TOTAL
        self.nodes: list[RangeNode] = []

    def hole_list(self) -> list[tuple[int, int]]:
        out: list[tuple[int, int]] = []
        start: int | None = None
        for page in range(TOTAL + 1):
            free = page < TOTAL and not self.used[page]
            if free and start is None:
                start = page
            elif not free and start is not None:
                out.append((start, page))
                start = None
        return out

    def expected(self, pages: int, alignment: int, first: int, last: int, mode: Mode) -> int | None:
        """The start by looking at every page of every hole."""
        step = max(alignment, 1)
        found = []
        for start, end in self.hole_list():
            places = [page for page in range(max(start, first), min(end, last) - pages + 1) if page % step == 0]
            if places:
                found.append((end - start, start, places))
        if not found:
            return None
        if mode == "best":
            return min(found)[2][0]
        return found[0][2][0] if mode == "low" else found[-1][2][-1]

    def took(self, node: RangeNode) -> None:
        pages = range(node.start, node.end)
        assert not any(self.used[page] for page in pages)
        for page in pages:
            self.used[page] = True
        self.nodes.append(node)

    @rule(
        pages=st.integers(1, 12),
        alignment=st.sampled_from([0, 1, 1, 2, 3, 4, 8, 16]),
        window=st.one_of(st.none(), st.tuples(st.integers(0, TOTAL), st.integers(0, TOTAL + 5))),
        mode=st.sampled_from(["best", "high", "low"]),
    )
    def insert(self, pages: int, alignment: int, window: tuple[int, int] | None, mode: Mode) -> None:
        first, last = (0, TOTAL) if window is None else sorted(window)
        expected = self.expected(pages, alignment, first, min(last, TOTAL), mode)
        kwargs: dict[str, Any] = {} if window is None else {"first": first, "last": last}
        kwargs |= {"alignment": alignment, "mode": mode}
        if expected is None:
            fails(errno.ENOSPC, self.mm.insert, pages, **kwargs)
        else:
            node = self.mm.insert(pages, **kwargs)
            assert (node.start, node.num_pages) == (expected, pages)
            self.took(node)

    @rule(start=st.integers(0, TOTAL - 1), pages=st.integers(1, 12))
    def reserve(self, start: int, pages: int) -> None:
        inside = start + pages <= TOTAL
        if not inside:
            fails(errno.EINVAL, self.mm.reserve_exact, start, pages)
        elif any(self.used[start : start + pages]):
            fails(errno.ENOSPC, self.mm.reserve_exact, start, pages)
        else:
            self.took(self.mm.reserve_exact(start, pages))

    @precondition(lambda self: self.nodes)
    @rule(which=st.integers(0, TOTAL))
    def remove(self, which: int) -> None:
        node = self.nodes.pop(which % len(self.nodes))
        self.mm.remove(node)
        for page in range(node.start, node.end):
            self.used[page] = False
        fails(errno.EINVAL, self.mm.remove, node)

    @invariant()
    def agree(self) -> None:
        assert [(start, start + size) for start, size in self.mm.holes()] == self.hole_list()
        assert self.mm.used_pages == sum(self.used)
        assert [node.start for node in self.mm.nodes()] == sorted(node.start for node in self.nodes)
        assert self.mm.check() == []


TestRange = RangeMachine.TestCase
TestRange.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
