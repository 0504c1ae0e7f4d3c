"""PagePool: orders, pooling, zeroing, reserve, the beneficial order, shrinking and giving back to the host."""

import errno
from collections.abc import Iterator

import numpy as np
import pytest

from tests.memory.pools import make, page_array, refused
from ttmfs.errors import TtmError
from ttmfs.memory.pool import PagePool
from ttmfs.memory.pool_types import Caching
from ttmfs.memory.runs import runs


@pytest.fixture
def fragmented() -> Iterator[tuple[PagePool, np.ndarray]]:
    """4096 pages of which every other one is free; with the pages that are held."""
    pool = make()
    pages = pool.alloc(4096, max_order=0).pages
    pool.free(pages[::2])
    yield pool, pages[1::2]
    pool.check()


def test_orders_start_at_what_fits_and_fall() -> None:
    pool = make()
    got = pool.alloc(1024 + 512 + 3)
    assert got.pages.dtype == np.uint32
    assert not got.beneficial_order_failed
    orders = pool.page_orders(got.pages)
    assert orders.tolist() == [10] * 1024 + [9] * 512 + [1] * 2 + [0]
    assert (np.diff(got.pages.astype(int))[:1023] == 1).all()
    assert pool.in_use_pages == 1539
    assert len(pool.alloc(0).pages) == 0
    pool.check()


def test_orders_stop_at_ten_and_at_the_cap() -> None:
    pool = make(8192)
    assert set(pool.page_orders(pool.alloc(4096).pages).tolist()) == {10}
    assert set(pool.page_orders(pool.alloc(64, max_order=2).pages).tolist()) == {2}
    assert len(pool.free_by_order()) == 11


def test_too_much_is_enomem_with_nothing_kept() -> None:
    pool = make()
    refused(pool, 4097)
    held = pool.alloc(96)
    refused(pool, 4001)
    pool.free(held.pages)
    assert len(pool.alloc(4096).pages) == 4096
    refused(pool, 1)
    with pytest.raises(TtmError) as error:
        pool.alloc(-1)
    assert error.value.errno == errno.EINVAL


def test_beneficial_order_failure_is_reported(fragmented: tuple[PagePool, np.ndarray]) -> None:
    pool, _ = fragmented
    assert not pool.alloc(511).beneficial_order_failed  # never tried
    assert not pool.alloc(512, max_order=8).beneficial_order_failed
    assert pool.alloc(512).beneficial_order_failed
    assert pool.statistics()["beneficial_order_failed"] == 1


def test_order_ten_may_fail_without_a_mark() -> None:
    pool = make(1536)
    low = pool.alloc(512).pages
    pool.alloc(512)
    pool.free(low)
    got = pool.alloc(1024, defrag=True)
    assert set(pool.page_orders(got.pages).tolist()) == {9}
    assert not got.beneficial_order_failed


def test_beneficial_order_zero_is_off() -> None:
    off = make(1024, beneficial=0)
    pages = off.alloc(1024, max_order=0).pages
    off.free(pages[::2])
    assert not off.alloc(512).beneficial_order_failed


def test_defrag_fails_at_once_and_leaves_the_pool_alone() -> None:
    pool = make(limit=4096)
    pages = pool.alloc(4096, max_order=0).pages
    pool.free(pages[::2])  # pooled, as single pages
    assert pool.pooled_pages == 2048
    refused(pool, 512, defrag=True)
    refused(pool, 1024, defrag=True)
    assert pool.alloc(256, defrag=True).pages.size == 256  # smaller than the beneficial order: falls as usual
    assert pool.statistics()["shrunk_pages"] == 0
    assert pool.statistics()["beneficial_order_failed"] == 2


def test_pool_is_emptied_for_the_beneficial_order() -> None:
    pool = make(1024, limit=1024)
    pool.free(pool.alloc(1024, max_order=0).pages)
    assert pool.pooled_pages == 1024
    got = pool.alloc(512)
    assert not got.beneficial_order_failed
    assert set(pool.page_orders(got.pages).tolist()) == {9}
    assert pool.pooled_pages == 0
    pool.free(got.pages)
    pool.free(pool.alloc(1024, max_order=0).pages)
    got = pool.alloc(512, reclaim_backoff=True)
    assert got.beneficial_order_failed
    assert pool.pooled_pages == 512  # not emptied


def test_pool_is_shrunk_for_single_pages_of_another_type() -> None:
    pool = make(1024, limit=1024)
    pool.free(pool.alloc(1024, max_order=3).pages, Caching.write_combined)
    assert pool.pooled_pages == 1024
    got = pool.alloc(7)  # cached: nothing of this type is pooled
    assert got.pages.size == 7
    assert pool.pooled_pages < 1024
    pool.check()


def test_free_pools_pages_by_type_and_order_and_alloc_zeroes_them() -> None:
    pool = make(limit=100)
    got = pool.alloc(64, caching=Caching.write_combined)
    pool.arena.mem[got.pages] = 0xAA
    pool.free(got.pages, Caching.write_combined)
    assert pool.pooled_pages == 64
    again = pool.alloc(64, caching=Caching.write_combined)
    assert np.array_equal(again.pages, got.pages)
    assert again.unzeroed.size == 0
    assert not pool.arena.mem[got.pages].any()
    assert pool.statistics()["pool_hit_pages"] == 64
    other = pool.alloc(64, caching=Caching.uncached)
    assert not np.array_equal(other.pages, got.pages)


def test_the_limit_is_kept() -> None:
    pool = make(limit=100)
    pages = pool.alloc(256, max_order=0).pages
    pool.free(pages)
    assert pool.pooled_pages == 100
    pool.check()
    pool.limit_pages = 30
    assert pool.pooled_pages == 30
    pool.limit_pages = 0
    assert pool.pooled_pages == 0
    with pytest.raises(TtmError):
        pool.limit_pages = -1
    pool.check()


def test_to_pool_false_goes_past_the_pool() -> None:
    pool = make(limit=4096)
    pool.free(pool.alloc(100).pages, to_pool=False)
    assert pool.pooled_pages == 0
    assert pool.free_pages == 4096


def test_dirty_pages_are_zero_when_allocated_again() -> None:
    pool = make(limit=0)
    got = pool.alloc(300)
    pool.arena.mem[got.pages] = 0x55
    keep = pool.alloc(1).pages
    pool.free(got.pages)
    again = pool.alloc(4095)
    assert not pool.arena.mem[again.pages].any()
    pool.free(keep)


def test_zero_false_says_what_is_not_zero() -> None:
    pool = make(1024, limit=0)
    keep = pool.alloc(1).pages  # so that nothing goes back to the host
    got = pool.alloc(10, max_order=0)
    assert got.unzeroed.size == 0
    pool.arena.mem[got.pages] = 0x55
    pool.free(got.pages)
    again = pool.alloc(20, max_order=0, zero=False)
    assert set(again.unzeroed.tolist()) == set(got.pages.tolist())
    assert (pool.arena.mem[again.unzeroed] == 0x55).all()
    assert pool.alloc(1, zero=False).unzeroed.size == 0
    pool.free(keep)


@pytest.mark.parametrize("count", [1, 3, 512, 1536, 3000])
def test_what_is_pooled_is_said_to_hold_old_bytes(count: int) -> None:
    pool = make(limit=4096)
    got = pool.alloc(count)
    pool.arena.mem[got.pages] = 0xAA
    pool.free(got.pages)
    assert pool.pooled_pages == count
    again = pool.alloc(count, zero=False)
    assert sorted(again.unzeroed.tolist()) == sorted(got.pages.tolist())
    assert (pool.arena.mem[again.pages] == 0xAA).all()  # nobody spent time on them
    pool.free(again.pages)
    assert not pool.arena.mem[pool.alloc(count).pages].any()


def test_the_reserve_is_only_for_those_who_ask() -> None:
    pool = make(1024, reserve=64)
    assert pool.free_pages == 960
    refused(pool, 961)
    pool.alloc(960)
    assert pool.free_pages == 0
    refused(pool, 1)
    last = pool.alloc(64, use_reserve=True)
    refused(pool, 1, use_reserve=True)
    pool.free(last.pages[:0])
    pool.free(last.pages)
    refused(pool, 1)
    assert pool.in_use_pages == 960


def test_free_needs_whole_blocks_in_use() -> None:
    pool = make(limit=64)
    got = pool.alloc(16).pages
    single = pool.alloc(1).pages
    for wrong in (got[:8], got[1:], page_array(0), page_array(4096), np.concatenate((single, single))):
        with pytest.raises(TtmError) as error:
            pool.free(wrong)
        assert error.value.errno == errno.EINVAL
        assert pool.in_use_pages == 17
    pool.free(got)
    with pytest.raises(TtmError):
        pool.free(got)  # pooled: freed twice
    with pytest.raises(TtmError):
        pool.split(got[:1])
    assert pool.in_use_pages == 1
    pool.check()


def test_split_lets_a_part_go() -> None:
    pool = make(limit=0)
    got = pool.alloc(16).pages
    pool.split(got[3:8])
    pool.free(got[3:8])
    assert pool.in_use_pages == 11
    assert pool.page_orders(got[8:]).tolist() == [3] * 8
    pool.free(np.concatenate((got[:3], got[8:])))
    assert pool.in_use_pages == 0
    pool.check()


def test_shrink_takes_one_of_each_type_in_turn() -> None:
    pool = make(limit=4096)
    cached = pool.alloc(4, max_order=0).pages
    combined = pool.alloc(4, max_order=0, caching=Caching.write_combined).pages
    large = pool.alloc(32, caching=Caching.uncached).pages
    pool.free(cached)
    pool.free(combined, Caching.write_combined)
    pool.free(large, Caching.uncached)
    assert pool.shrink(0) == 0
    assert pool.shrink(1) == 32  # uncached, order 5, is first in the list
    assert pool.shrink(3) == 3
    assert pool.pooled_pages == 5
    assert pool.shrink(100) == 5
    assert pool.shrink(100) == 0
    pool.check()


def test_shrink_in_bulk_equals_one_at_a_time() -> None:
    def filled() -> PagePool:
        pool = make(limit=4096)
        parts = [
            (pool.alloc(n, max_order=order, caching=caching).pages, caching)
            for n, order, caching in (
                (40, 0, Caching.cached),
                (24, 2, Caching.cached),
                (7, 0, Caching.uncached),
                (96, 4, Caching.write_combined),
            )
        ]
        for pages, caching in parts:
            pool.free(pages, caching)
        return pool

    for wanted in (1, 17, 50, 90, 141, 160, 167, 500):
        bulk, single = filled(), filled()
        freed = 0
        while freed < min(wanted, 167):
            freed += single.shrink(1)
        assert bulk.shrink(wanted) == freed
        assert bulk.device_pool_table() == single.device_pool_table()
        bulk.check()


def test_tables_have_the_kernels_format() -> None:
    pool = make(limit=4096)
    pool.free(pool.alloc(3, max_order=0).pages, Caching.write_combined)
    pool.free(pool.alloc(1024).pages, Caching.uncached)
    pool.free(pool.alloc(16).pages, Caching.cached)
    lines = pool.page_pool_table().split("\n")
    assert lines[0] == "\t " + "".join(f" ---{order:2d}---" for order in range(11))
    assert lines[1] == "wc\t:" + "        3" + "        0" * 10
    assert lines[2] == "uc\t:" + "        0" * 10 + "        1"
    assert lines[3] == "wc 32\t:" + "        0" * 11
    assert lines[4] == "uc 32\t:" + "        0" * 11
    assert lines[5:] == ["", "total\t:     1043 of     4096", ""]
    assert pool.device_pool_table().split("\n")[1] == "DMA \t:" + "        0" * 4 + "        1" + "        0" * 6


def test_unusable_free_index(fragmented: tuple[PagePool, np.ndarray]) -> None:
    pool, held = fragmented
    assert pool.unusable_free_index(0) == 0.0
    assert pool.unusable_free_index(1) == 1.0
    pool.free(held[: held.size // 2])
    assert pool.unusable_free_index(9) == pytest.approx(1 / 3)
    pool.alloc(pool.free_pages)
    assert pool.unusable_free_index(0) == 1.0


def test_statistics_add_up() -> None:
    pool = make(limit=50, reserve=10)
    got = pool.alloc(100).pages
    pool.free(got[:64])
    numbers = pool.statistics()
    assert numbers["in_use_pages"] == 36
    assert numbers["pooled_pages"] + numbers["in_use_pages"] + sum(
        n << k for k, n in enumerate(pool.free_by_order())
    ) == 4096
    assert numbers["free_pages"] == pool.free_pages == 4096 - 36 - 10


@pytest.mark.parametrize("bad", [{"limit": -1}, {"reserve": -1}, {"warm": -1}, {"beneficial": 11}, {"num_pages": 0}])
def test_bad_numbers_are_einval(bad: dict[str, int]) -> None:
    with pytest.raises(TtmError) as error:
        make(**bad)
    assert error.value.errno == errno.EINVAL


def test_pages_of_one_order_form_runs() -> None:
    pool = make()
    pages = pool.alloc(1000, max_order=0).pages
    assert len(runs(pages)[0]) == 1
