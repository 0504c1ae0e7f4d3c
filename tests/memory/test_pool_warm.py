"""PagePool and the host: what stays warm for a moment, what goes back, in calls of a bounded length."""

import pytest

from tests.memory.pools import Clock, make
from ttmfs.memory.arena import Arena
from ttmfs.memory.pool import PagePool
from ttmfs.memory.warm import MAX_DROP_PAGES


def test_free_frames_stay_warm_for_a_second() -> None:
    clock = Clock()
    pool = PagePool(Arena("system", 4096), limit_pages=1, reserve_pages=0, warm_pages=2048, now=clock)
    got = pool.alloc(1024).pages
    pool.arena.mem[got] = 7
    pool.free(got)
    assert pool.statistics()["dirty_free_pages"] == 1024
    clock.seconds += 0.9
    assert pool.drop_idle() == 0
    again = pool.alloc(1024, zero=False)
    assert (pool.arena.mem[again.pages] == 7).all()  # the same memory, as it was
    assert again.unzeroed.size == 1024
    pool.free(again.pages)
    clock.seconds += 0.9
    assert pool.drop_idle() == 0  # its second began anew
    clock.seconds += 0.2
    assert pool.drop_idle() == 1024
    assert pool.statistics()["dirty_free_pages"] == 0
    assert not pool.arena.mem.any()
    pool.check()


@pytest.mark.parametrize("size", [512, 1024, 2048])
def test_warm_frames_read_as_zeros_when_allocated(size: int) -> None:
    pool = PagePool(Arena("system", 4096), limit_pages=1, reserve_pages=0, warm_pages=4096, now=Clock())
    got = pool.alloc(4096).pages
    pool.arena.mem[got] = 7
    pool.free(got)
    for _ in range(4096 // size):
        assert not pool.arena.mem[pool.alloc(size).pages].any()
    pool.check()


def test_no_more_than_the_limit_stays_warm() -> None:
    pool = PagePool(Arena("system", 4096), limit_pages=1, reserve_pages=0, warm_pages=1100, now=Clock())
    blocks = [pool.alloc(512).pages for _ in range(8)]
    for block in blocks:
        pool.arena.mem[block] = 1
        pool.free(block)
        assert pool.statistics()["dirty_free_pages"] <= 1100
    assert pool.statistics()["dirty_free_pages"] == 1024
    everything = pool.alloc(4096).pages
    pool.arena.mem[everything] = 1
    pool.free(everything)
    assert pool.statistics()["dirty_free_pages"] == 1024
    assert pool.drop_idle() == 0
    pool.check()


def test_small_pieces_go_back_while_frames_stay_warm() -> None:
    pool = PagePool(Arena("system", 4096), limit_pages=1, reserve_pages=0, warm_pages=4096, now=Clock())
    whole, pages = pool.alloc(512).pages, pool.alloc(512, max_order=0).pages
    pool.arena.mem[:] = 1
    pool.free(whole)
    pool.free(pages[::2])
    assert pool.pooled_pages == 1
    assert pool.drop_idle(max_runs=1000) == 255
    assert pool.statistics()["dirty_free_pages"] == 512
    pool.check()


def test_much_that_idles_goes_back_in_bounded_calls() -> None:
    clock = Clock()
    pool = PagePool(Arena("system", 40960), limit_pages=1, reserve_pages=0, warm_pages=40960, now=clock)
    held = pool.alloc(1, max_order=0).pages
    rest = pool.alloc(40000).pages
    pool.arena.mem[rest[::512]] = 1
    pool.free(rest)
    dirty = pool.statistics()["dirty_free_pages"]
    clock.seconds += 2
    assert pool.idle_windows == 3
    dropped = [pool.drop_idle() for _ in range(dirty // MAX_DROP_PAGES + 6)]
    assert max(dropped) == MAX_DROP_PAGES
    assert sum(dropped) == dirty
    assert dropped[-3:] == [0, 0, 0]
    assert not pool.arena.mem[rest].any()
    pool.free(held)
    pool.check()


def test_a_limit_of_none_keeps_nothing_warm() -> None:
    pool = PagePool(Arena("system", 4096), limit_pages=1, reserve_pages=0, warm_pages=4096, now=Clock())
    pages = pool.alloc(1024).pages
    pool.arena.mem[pages] = 1
    pool.free(pages)
    assert pool.drop_idle() == 0
    pool.limit_pages = 0
    assert pool.drop_idle() == 1024
    pages = pool.alloc(1024).pages
    pool.arena.mem[pages] = 1
    pool.free(pages)
    assert pool.statistics()["dirty_free_pages"] == 0
    pool.limit_pages = 1
    pool.free(pool.alloc(1024).pages)
    assert pool.statistics()["dirty_free_pages"] == 1024


def test_whole_free_two_mib_go_back_to_the_host() -> None:
    pool = make(4096, limit=0)
    got = pool.alloc(1024 + 512).pages
    pool.arena.mem[got] = 1
    pool.free(got)
    assert pool.statistics()["given_back_pages"] == 1536
    assert pool.statistics()["dirty_free_pages"] == 0
    assert not pool.arena.mem.any()
    pages = pool.alloc(512, max_order=0).pages
    pool.arena.mem[pages] = 1
    pool.free(pages[:511])
    assert pool.statistics()["given_back_pages"] == 1536
    assert pool.statistics()["dirty_free_pages"] == 511
    pool.free(pages[511:])
    assert pool.statistics()["given_back_pages"] == 2048


def test_the_tail_of_an_odd_arena_is_never_given_back_as_a_whole() -> None:
    pool = make(512 + 100, limit=0)
    got = pool.alloc(612).pages
    pool.arena.mem[got] = 1
    pool.free(got)
    assert pool.statistics()["given_back_pages"] == 512
    assert pool.statistics()["dirty_free_pages"] == 100
    assert pool.drop_idle() == 100
    assert pool.statistics()["dirty_free_pages"] == 0
    small = make(100, limit=0)
    small.free(small.alloc(100).pages)
    small.check()


def test_drop_idle_gives_back_small_pieces_in_bounded_calls() -> None:
    pool = make(4096, limit=0)
    pages = pool.alloc(4096, max_order=0).pages
    pool.arena.mem[pages] = 3
    pool.free(pages[::4])
    assert pool.drop_idle(max_runs=1000) == 1000
    assert pool.drop_idle(max_runs=1000) == 24
    assert pool.drop_idle() == 0
    assert not pool.arena.mem[pages[::4]].any()
    assert (pool.arena.mem[pages[1::4]] == 3).all()
    pool.check()


def test_an_idle_pool_is_trimmed_after_five_seconds() -> None:
    clock = Clock()
    pool = PagePool(Arena("system", 1024), limit_pages=512, reserve_pages=0, now=clock)
    pool.free(pool.alloc(200).pages)
    clock.seconds += 4.9
    pool.drop_idle()
    assert pool.pooled_pages == 200
    clock.seconds += 0.1
    assert pool.drop_idle() >= 200  # with what had merged with them
    assert pool.pooled_pages == 0
    assert pool.statistics()["dirty_free_pages"] == 0
