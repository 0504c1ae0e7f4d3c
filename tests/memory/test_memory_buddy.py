"""Buddy: each behaviour of drm_buddy, one at a time."""

import errno
import random

import numpy as np
import pytest

from ttmfs.errors import TtmError
from ttmfs.memory.blocks import Blocks
from ttmfs.memory.buddy import Buddy


def as_pairs(blocks: Blocks) -> list[tuple[int, int]]:
    return list(zip(blocks.start.tolist(), blocks.order.tolist(), strict=True))


def make(pairs: list[tuple[int, int]]) -> Blocks:
    starts, orders = zip(*pairs, strict=True)
    return Blocks.of(np.array(starts, np.int64), np.array(orders, np.uint8))


def fails(buddy: Buddy, code: int, pages: int, **options: object) -> None:
    before, state = buddy.free_by_order(), (buddy.free_pages, buddy.clear_free_pages)
    with pytest.raises(TtmError) as error:
        buddy.alloc(pages, **options)  # type: ignore[arg-type]
    assert error.value.errno == code
    assert buddy.free_by_order() == before
    assert (buddy.free_pages, buddy.clear_free_pages) == state
    buddy.check()


@pytest.mark.parametrize("size", [1, 2, 7, 8, 1000, 4096, 12345])
def test_one_root_for_each_set_bit_of_the_size(size: int) -> None:
    buddy = Buddy(size)
    assert buddy.max_order == size.bit_length() - 1
    assert buddy.free_by_order() == [size >> k & 1 for k in range(size.bit_length())]
    assert buddy.free_pages == size
    assert buddy.clear_free_pages == 0
    buddy.check()


def test_no_pages_is_einval() -> None:
    with pytest.raises(TtmError) as error:
        Buddy(0)
    assert error.value.errno == errno.EINVAL


def test_default_allocation_comes_from_the_top_and_keeps_the_right_half() -> None:
    buddy = Buddy(64)
    assert as_pairs(buddy.alloc(1)) == [(63, 0)]
    assert as_pairs(buddy.alloc(4)) == [(56, 2)]  # the smallest sufficient block is 56..59, not something of 0..31
    assert as_pairs(buddy.alloc(1)) == [(62, 0)]
    assert buddy.free_by_order() == [0, 1, 0, 1, 1, 1, 0]
    buddy.check()


def test_smallest_sufficient_order_goes_before_the_highest_offset() -> None:
    buddy = Buddy(16)
    low = buddy.alloc(1, first=0, last=2)
    assert as_pairs(low) == [(1, 0)]
    assert as_pairs(buddy.alloc(1)) == [(0, 0)]
    assert as_pairs(buddy.alloc(1, topdown=True)) == [(15, 0)]


def test_topdown_takes_the_highest_offset_of_all_orders() -> None:
    buddy = Buddy(16)
    buddy.alloc(1, first=0, last=1)  # leaves a single free page at 1
    assert as_pairs(buddy.alloc(2, topdown=True)) == [(14, 1)]
    assert as_pairs(buddy.alloc(1, topdown=True)) == [(13, 0)]
    assert buddy.alloc(3, topdown=True).pages().tolist() == [10, 11, 12]
    buddy.check()


def test_sizes_that_are_no_power_of_two_take_falling_orders() -> None:
    buddy = Buddy(64)
    blocks = buddy.alloc(21)
    assert blocks.order.tolist() == [4, 2, 0]
    assert blocks.num_pages == 21
    assert blocks.pages().dtype == np.uint32
    assert blocks.pages().tolist() == [*range(48, 64), *range(44, 48), 43]
    assert buddy.free_pages == 43


def test_orders_fall_only_as_far_as_fragmentation_forces() -> None:
    buddy = Buddy(32)
    singles = buddy.alloc_order(0, 32)
    buddy.free(make([(int(p), 0) for p in singles[::2]]))
    blocks = buddy.alloc(8)
    assert set(blocks.order.tolist()) == {0}
    fails(buddy, errno.ENOSPC, 8, min_order=1)
    fails(buddy, errno.ENOSPC, 2, contiguous=True)


def test_range_restriction() -> None:
    buddy = Buddy(100)
    blocks = buddy.alloc(10, first=33, last=47)
    pages = blocks.pages()
    assert pages.min() >= 33
    assert pages.max() < 47
    fails(buddy, errno.ENOSPC, 5, first=33, last=47)
    assert buddy.alloc(4, first=33, last=47).num_pages == 4
    fails(buddy, errno.ENOSPC, 1, first=33, last=47)
    assert buddy.free_pages == 86
    buddy.check()


def test_exact_range_is_all_or_nothing() -> None:
    buddy = Buddy(64)
    assert sorted(buddy.alloc(10, first=3, last=13).pages().tolist()) == list(range(3, 13))
    fails(buddy, errno.ENOSPC, 4, first=10, last=14)
    fails(buddy, errno.ENOSPC, 64)
    assert buddy.alloc(51, first=13).num_pages == 51
    assert buddy.alloc(3, first=0, last=3).contiguous
    assert buddy.free_pages == 0
    fails(buddy, errno.ENOSPC, 1)


def test_exact_range_of_large_blocks_only() -> None:
    buddy = Buddy(64)
    fails(buddy, errno.EINVAL, 8, first=4, last=12, min_order=3)
    assert as_pairs(buddy.alloc(8, first=8, last=16, min_order=3)) == [(8, 3)]


@pytest.mark.parametrize(
    ("pages", "options"),
    [
        (0, {}),
        (-1, {}),
        (1, {"min_order": -1}),
        (1, {"min_order": 7}),
        (1, {"last": 101}),
        (1, {"first": -1}),
        (1, {"first": 100}),
        (1, {"first": 5, "last": 5}),
        (60, {"first": 50}),
        (101, {}),
        (101, {"contiguous": True}),
        (97, {"min_order": 3}),
        (65, {"contiguous": True, "first": 1}),
    ],
)
def test_silly_arguments_are_einval(pages: int, options: dict[str, object]) -> None:
    fails(Buddy(100), errno.EINVAL, pages, **options)


def test_min_order_rounds_the_size_up() -> None:
    buddy = Buddy(64)
    blocks = buddy.alloc(9, min_order=2)
    assert blocks.num_pages == 12
    assert blocks.order.min() >= 2


def test_contiguous_is_trimmed_back() -> None:
    buddy = Buddy(64)
    blocks = buddy.alloc(5, contiguous=True)
    assert blocks.pages().tolist() == [56, 57, 58, 59, 60]
    assert buddy.free_pages == 59
    assert buddy.alloc(3, contiguous=True, trim=False).num_pages == 4
    buddy.check()


def test_contiguous_tries_harder_to_the_right_then_to_the_left() -> None:
    buddy = Buddy(7)
    assert buddy.alloc(7, contiguous=True).pages().tolist() == list(range(7))
    # A free block of 8 at 8 with 4 more at its right: 11 pages fit from its start on.
    buddy = Buddy(32)
    buddy.alloc(8, first=0, last=8)
    buddy.alloc(12, first=20, last=32)
    assert buddy.alloc(11, contiguous=True).pages().tolist() == list(range(8, 19))
    # With only 2 at its right and 4 at its left: what lacks comes from the left.
    buddy = Buddy(32)
    buddy.alloc(4, first=0, last=4)
    buddy.alloc(14, first=18, last=32)
    assert buddy.alloc(13, contiguous=True).pages().tolist() == list(range(5, 18))
    buddy.check()


def test_contiguous_fails_without_neighbours() -> None:
    buddy = Buddy(32)
    buddy.alloc(8, first=0, last=8)
    buddy.alloc(16, first=16, last=32)
    fails(buddy, errno.ENOSPC, 11, contiguous=True)
    fails(buddy, errno.ENOSPC, 9, contiguous=True)
    # Within a range a single block is all that is tried.
    buddy = Buddy(32)
    fails(buddy, errno.ENOSPC, 5, contiguous=True, first=1, last=8)
    assert buddy.alloc(4, contiguous=True, first=1, last=8).pages().tolist() == [4, 5, 6, 7]


def test_try_harder_respects_the_minimum_order() -> None:
    buddy = Buddy(32)
    buddy.alloc(4, first=0, last=4)
    buddy.alloc(14, first=18, last=32)
    blocks = buddy.alloc(10, contiguous=True, min_order=1)
    assert blocks.contiguous
    assert blocks.order.min() >= 1
    buddy.check()


def test_free_of_strangers_is_einval_and_changes_nothing() -> None:
    buddy = Buddy(64)
    blocks = buddy.alloc(21)
    for wrong in (
        [(0, 0)],
        [(48, 3)],
        [(49, 0)],
        [(64, 0)],
        [(-1, 0)],
        [(48, 4), (48, 4)],
        [(48, 4), (44, 2), (42, 0)],
    ):
        with pytest.raises(TtmError) as error:
            buddy.free(make(wrong))
        assert error.value.errno == errno.EINVAL
        assert buddy.free_pages == 43
        buddy.check()
    buddy.free(blocks)
    with pytest.raises(TtmError):
        buddy.free(blocks)
    assert buddy.free_by_order() == [0, 0, 0, 0, 0, 0, 1]


def test_many_frees_merge_completely() -> None:
    buddy = Buddy(5000)
    fresh = buddy.free_by_order()
    pages = buddy.alloc_order(0, 5000)
    assert pages.size == 5000
    shuffled = np.random.default_rng(3).permutation(pages)
    for part in np.array_split(shuffled, 7):
        buddy.free(Blocks.of(part, np.zeros(part.size, np.uint8)))
        buddy.check()
    assert buddy.free_by_order() == fresh


def test_alloc_order_takes_small_blocks_first_and_stops_short() -> None:
    buddy = Buddy(64)
    buddy.alloc(24, first=0, last=24)  # free: 24..31 (order 3), 32..63 (order 5)
    assert buddy.alloc_order(2, 3).tolist() == [24, 28, 60]
    assert buddy.alloc_order(2, 100).tolist() == [32, 36, 40, 44, 48, 52, 56]
    assert buddy.alloc_order(0, 1).size == 0
    assert buddy.alloc_order(9, 2).size == 0
    buddy.check()


def test_trim_tail() -> None:
    buddy = Buddy(64)
    blocks = buddy.alloc(40)
    assert as_pairs(blocks) == [(32, 5), (24, 3)]
    kept = buddy.trim_tail(blocks, 35)
    assert kept.pages().tolist() == [*range(32, 64), 24, 25, 26]
    kept = buddy.trim_tail(kept, 32)
    assert as_pairs(kept) == [(32, 5)]
    assert as_pairs(buddy.trim_tail(kept, 32)) == [(32, 5)]
    for bad in (0, -1, 33):
        with pytest.raises(TtmError) as error:
            buddy.trim_tail(kept, bad)
        assert error.value.errno == errno.EINVAL
    assert buddy.free_pages == 32
    buddy.check()


def test_clear_memory_comes_first_then_dirty() -> None:
    buddy = Buddy(1024)
    blocks = buddy.alloc_order(2, 256)
    order = np.full(128, 2, np.uint8)
    buddy.free(Blocks.of(blocks[::2], order), cleared=True)
    buddy.free(Blocks.of(blocks[1::2], order), cleared=False)
    assert buddy.free_by_order()[10] == 1  # clear and dirty buddies merge all the same
    assert buddy.clear_free_pages == 512
    for _ in range(128):
        got = buddy.alloc(4, clear=True)
        assert buddy.is_clear(got.start, 2).all()
    assert buddy.clear_free_pages == 0
    buddy.check()
    rest = buddy.alloc(512, clear=True)  # never fails for lack of clear memory
    assert rest.num_pages == 512
    assert not buddy.is_clear(rest.start[rest.order == 2], 2).any()


def test_a_block_with_one_dirty_page_is_not_clear() -> None:
    buddy = Buddy(16, clear=True)
    page = buddy.alloc(1)
    assert buddy.is_clear(page.start, 0).all()
    buddy.free(page, cleared=False)
    assert buddy.clear_free_pages == 15
    assert not buddy.is_clear(np.array([0]), 4).any()
    assert buddy.is_clear(np.array([0]), 3).all()
    assert as_pairs(buddy.alloc(8, clear=True)) == [(0, 3)]
    whole = buddy.alloc(8, clear=True)
    assert not buddy.is_clear(whole.start, 3).any()


def test_free_as_it_was_keeps_what_was_known() -> None:
    buddy = Buddy(64, clear=True)
    dirty = buddy.alloc(3)
    buddy.free(dirty)
    blocks = buddy.alloc(64)
    buddy.free(blocks, cleared=None)
    assert buddy.clear_free_pages == 61
    some = buddy.alloc_order(1, 20)
    buddy.free(Blocks.of(some, np.ones(20, np.uint8)), cleared=None)
    assert buddy.clear_free_pages == 61
    buddy.check()


def test_reset_clear() -> None:
    buddy = Buddy(64)
    held = buddy.alloc(5)
    buddy.reset_clear(True)
    assert buddy.clear_free_pages == 59
    buddy.check()
    buddy.free(held)
    assert buddy.clear_free_pages == 59
    buddy.reset_clear(False)
    assert buddy.clear_free_pages == 0
    buddy.check()


def test_mark_clear_needs_free_blocks() -> None:
    buddy = Buddy(64)
    buddy.alloc(1)
    with pytest.raises(TtmError) as error:
        buddy.mark_clear(np.array([0, 56]), 3)
    assert error.value.errno == errno.EINVAL
    buddy.mark_clear(np.array([0, 8]), 3)
    assert buddy.clear_free_pages == 16
    assert buddy.dirty_free_pages(0, 64).tolist() == list(range(16, 63))
    assert buddy.dirty_free_pages(48, 56).tolist() == list(range(48, 56))
    assert buddy.dirty_free_pages(0, 16).tolist() == []
    buddy.check()


def test_clear_of_nonsense_is_einval() -> None:
    buddy = Buddy(100)
    for starts, order in (([1], 1), ([100], 0), ([96], 3), ([-4], 2), ([0], 7)):
        with pytest.raises(TtmError):
            buddy.is_clear(np.array(starts), order)


def test_split_cuts_only_what_is_cut() -> None:
    buddy = Buddy(64)
    blocks = buddy.alloc(48)
    assert blocks.order.tolist() == [5, 4]
    buddy.split(np.array([33, 34]))
    assert as_pairs(buddy.blocks_of(np.array([33, 34]))) == [(33, 0), (34, 0)]
    rest = np.setdiff1d(np.arange(32, 64), [33, 34])
    assert as_pairs(buddy.blocks_of(rest)) == [(32, 0), (35, 0), (36, 2), (40, 3), (48, 4)]
    assert as_pairs(buddy.blocks_of(np.arange(16, 32))) == [(16, 4)]
    buddy.check()
    with pytest.raises(TtmError):
        buddy.split(np.array([16, 0]))
    assert as_pairs(buddy.blocks_of(np.arange(16, 32))) == [(16, 4)]


def test_blocks_of_tells_parts_strangers_and_repetitions() -> None:
    buddy = Buddy(64)
    buddy.alloc(16)
    buddy.alloc(1)
    for pages in ([48, 49], list(range(47, 63)), [0], [64], [-1], [47, 47], [*range(48, 64), *range(48, 64)]):
        with pytest.raises(TtmError) as error:
            buddy.blocks_of(np.array(pages))
        assert error.value.errno == errno.EINVAL
    assert as_pairs(buddy.blocks_of(np.array([*range(48, 64), 47]))) == [(48, 4), (47, 0)]
    assert as_pairs(buddy.blocks_of(np.arange(63, 46, -1))) == [(47, 0), (48, 4)]
    heads, orders = buddy.heads_of(np.array([50, 47]))
    assert heads.tolist() == [48, 47]
    assert orders.tolist() == [4, 0]


def test_dump_has_the_kernels_format() -> None:
    buddy = Buddy(1024 + 256)
    buddy.alloc(256, first=0, last=256)
    lines = buddy.dump().splitlines()
    assert lines[0] == "chunk_size: 4KiB, total: 5MiB, free: 4MiB, clear_free: 0MiB"
    assert lines[1] == "order-10 free:        0 KiB, blocks: 0"
    assert lines[2] == "order- 9 free:        2 MiB, blocks: 1"
    assert lines[3] == "order- 8 free:        2 MiB, blocks: 2"
    assert len(lines) == 12
    assert make([(1, 0), (4, 2)]).dump() == (
        "0x0000000000001000-0x0000000000002000: 4096\n0x0000000000004000-0x0000000000008000: 16384\n"
    )


@pytest.mark.parametrize("clear", [False, True])
def test_steps_stay_logarithmic_with_100000_blocks(clear: bool) -> None:
    buddy = Buddy(1 << 20, clear=clear)
    held = buddy.alloc_order(0, 300_000)
    hundred_thousand = held[::3]
    buddy.free(Blocks.of(hundred_thousand, np.zeros(hundred_thousand.size, np.uint8)), cleared=clear)
    rng = np.random.default_rng(5)
    for pages in rng.integers(1, 5, 200).tolist():
        before = buddy.steps
        blocks = buddy.alloc(pages, clear=clear)
        middle = buddy.steps
        buddy.free(blocks)
        # At most three blocks each, each through at most 21 levels of two sets.
        assert middle - before <= 3 * 2 * 21
        assert buddy.steps - middle <= 3 * 2 * 21
    buddy.check()


@pytest.mark.parametrize("size", [1, 4095, 40_000, 65_536, 150_001])
def test_a_check_takes_steps_and_what_others_do_between_them_is_no_finding(size: int) -> None:
    buddy, rng = Buddy(size, clear=size % 2 == 0), random.Random(size)
    owned: list[Blocks] = []
    for _ in range(3):
        steps = 0
        for _step in buddy.check_steps():
            steps += 1
            for _ in range(3):
                if owned and (rng.random() < 0.5 or buddy.free_pages < size // 4):
                    buddy.free(owned.pop(rng.randrange(len(owned))), rng.choice((True, False, None)))
                elif buddy.free_pages:
                    wanted = rng.choice((1, rng.randint(1, 64), rng.randint(1, size)))
                    owned.append(buddy.alloc(min(wanted, buddy.free_pages)))
        assert steps >= -(-size // 65_536)
    assert owned or size == 1


@pytest.mark.parametrize("page", [0, 65_536, 140_000])
def test_a_check_in_steps_finds_a_page_that_nobody_has_and_one_that_two_have(page: int) -> None:
    buddy = Buddy(150_001)
    buddy.alloc_order(0, 150_001)
    buddy._owned.drop_one(page, 0)
    with pytest.raises(AssertionError, match=f"page {page} is in 0 blocks"):
        buddy.check()
    buddy._owned.own_one(page, 3)
    with pytest.raises(AssertionError, match=f"page {page + 1} is in 2 blocks"):
        buddy.check()
    buddy._owned.own_one(page, 0)
    buddy._free.add(page, 0)
    with pytest.raises(AssertionError, match=f"page {page} is in 2 blocks"):
        buddy.check()


def test_a_block_larger_than_a_step_is_counted_in_each() -> None:
    buddy = Buddy(1 << 20)
    blocks = buddy.alloc(1 << 19)
    assert len(blocks) == 1
    buddy.check()
    buddy._owned.own_one(int(blocks.start[0]) + 300_000, 0)
    with pytest.raises(AssertionError, match=f"page {int(blocks.start[0]) + 300_000} is in 2 blocks"):
        buddy.check()
