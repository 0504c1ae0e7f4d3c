"""Memory that is handed out and given back in one go, and becomes pages and blocks some at a time."""

from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tests.memory.pools import make, refused
from ttmfs.errors import TtmError
from ttmfs.memory.leftovers import STEP_PAGES
from ttmfs.memory.pool import PagePool
from ttmfs.memory.runs import PageArray

WHOLE = 1 << 13


def in_parts(pages: PageArray, size: int) -> Iterator[PageArray]:
    return (pages[first : first + size] for first in range(0, len(pages), size))


def give_all_back(pool: PagePool, pages: PageArray, part: int = 512) -> None:
    pool.free_in_steps(len(pages), in_parts(pages, part))


def test_it_is_free_at_once_and_taken_apart_later() -> None:
    pool = make(WHOLE)
    give_all_back(pool, pool.alloc(WHOLE).pages)
    assert (pool.in_use_pages, pool.free_pages, pool.leftovers.pages) == (0, WHOLE, WHOLE)
    steps = 0
    while pool.leftovers.step():
        steps += 1
    assert steps >= WHOLE // STEP_PAGES
    assert (pool.in_use_pages, pool.free_pages, pool.leftovers.pages) == (0, WHOLE, 0)
    pool.check()


def test_who_needs_it_has_it_at_once_and_no_more_than_that() -> None:
    pool = make(WHOLE)
    give_all_back(pool, pool.alloc(WHOLE).pages)
    assert len(pool.alloc(1024).pages) == 1024
    assert WHOLE - 2 * 1024 <= pool.leftovers.pages < WHOLE
    assert len(set(pool.alloc(WHOLE - 1024).pages.tolist())) == WHOLE - 1024
    assert (pool.free_pages, pool.leftovers.pages) == (0, 0)
    refused(pool, 1)


def test_who_looks_sees_it_free() -> None:
    pool = make(WHOLE, limit=WHOLE)
    held = pool.alloc(1024).pages
    give_all_back(pool, pool.alloc(WHOLE - 1024).pages)
    assert np.flatnonzero(pool.in_use_map()).tolist() == sorted(held.tolist())
    assert pool.pooled_pages == WHOLE - 1024


@pytest.mark.parametrize("part", [1, 100, 512, 1500])
def test_a_block_that_goes_on_in_the_next_part_stays_whole(part: int) -> None:
    pool = make(WHOLE, limit=WHOLE)
    pages = pool.alloc(WHOLE).pages
    # The first block begins in the middle of a part.
    pool.split(pages[:5])
    pool.free(pages[:5])
    give_all_back(pool, pages[5:], part)
    pool.leftovers.settle()
    assert (pool.page_orders(pages[1024:]) == 10).all()
    pool.check()


def test_what_is_only_part_of_its_blocks_is_split_off() -> None:
    pool = make(WHOLE)
    pages = pool.alloc(WHOLE).pages
    give_all_back(pool, pages[::2])
    pool.leftovers.settle()
    assert np.flatnonzero(pool.in_use_map()).tolist() == sorted(pages[1::2].tolist())
    pool.free(pages[1::2])
    pool.check()


def test_an_allocation_that_is_undone_leaves_the_pool_within_its_limit() -> None:
    pool = make(WHOLE, limit=1024)
    pooled, rest = pool.alloc(512).pages, pool.alloc(WHOLE - 512).pages
    pool.free(pooled)
    # Of every block a page stays, so that there is none of the order that is insisted on.
    goes = np.setdiff1d(rest, rest[::256])
    give_all_back(pool, goes)
    with pytest.raises(TtmError, match="which defrag insists on"):
        pool.alloc(1024, defrag=True, max_order=9)
    assert 0 < pool.pooled_pages <= 1024
    pool.check()


@given(
    sizes=st.lists(st.integers(1, 900), min_size=1, max_size=6),
    part=st.integers(1, 1200),
    steps=st.integers(0, 3),
    wanted=st.integers(1, 4096),
    limit=st.sampled_from([0, 700, 4096]),
)
@settings(deadline=None, max_examples=60)
def test_no_page_is_anybodys_twice(sizes: list[int], part: int, steps: int, wanted: int, limit: int) -> None:
    pool = make(4096, limit=limit)
    owned: set[int] = set()
    for number, size in enumerate(sizes):
        if size > pool.free_pages:
            break
        pages = pool.alloc(size).pages
        assert not pool.arena.mem[pages].any(), "old bytes"
        pool.arena.mem[pages] = 1
        if number % 2:
            owned |= set(pages.tolist())
        else:
            give_all_back(pool, pages, part)
        for _ in range(steps):
            pool.leftovers.step()
    assert pool.in_use_pages == len(owned)
    got = pool.alloc(min(wanted, pool.free_pages)).pages
    assert not owned & set(got.tolist())
    assert not pool.arena.mem[got].any(), "old bytes"
    pool.check()


@pytest.mark.parametrize("taken", [(1,), (7, 1000), (512, 512), (2048,)])
@pytest.mark.parametrize("zero", [True, False])
def test_a_stock_becomes_the_pages_of_an_allocation(taken: tuple[int, ...], zero: bool) -> None:
    one, other = make(WHOLE, limit=3000), make(WHOLE, limit=3000)
    for pool in (one, other):
        used = pool.alloc(4100).pages
        pool.arena.mem[used] = 5
        pool.free(used)
    expected = one.alloc(4500, zero=zero)
    stock = other.stock(4500)
    assert other.in_use_pages == 4500
    got, turn = [], 0
    while stock.pages:
        count = taken[turn % len(taken)]
        turn += 1
        got.append(other.draw(stock, count, zero=zero))
        assert len(got[-1]) == min(count, len(got[-1]) + stock.pages)
        assert not (zero and other.arena.mem[got[-1]].any()), "old bytes"
    assert np.concatenate(got).tolist() == expected.pages.tolist()
    assert np.array_equal(one.arena.mem[expected.pages].any(axis=1), other.arena.mem[expected.pages].any(axis=1))


def test_what_is_left_of_a_stock_goes_back() -> None:
    pool = make(WHOLE)
    stock = pool.stock(3000)
    pages = pool.draw(stock, 1700, zero=True)
    assert stock.pages == 1300
    pool.free(stock.rest(), split=True)
    assert np.flatnonzero(pool.in_use_map()).tolist() == sorted(pages.tolist())
    pool.free(pages, split=True)
    assert pool.free_by_order() == make(WHOLE).free_by_order()
    pool.check()
