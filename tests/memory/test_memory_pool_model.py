"""PagePool against a model: owners, bytes, counts."""

import errno

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.pool import PagePool
from ttmfs.memory.pool_types import Caching


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.owned: list[tuple[np.ndarray, Caching, int]] = []
        self.used: set[int] = set()
        self.next_byte = 1

    @initialize(
        size=st.sampled_from([100, 600, 1024, 1600]),
        limit=st.sampled_from([0, 50, 700]),
        reserve=st.sampled_from([0, 16]),
        warm=st.sampled_from([0, 600, 1600]),
        beneficial=st.sampled_from([0, 3, 9]),
    )
    def start(self, size: int, limit: int, reserve: int, warm: int, beneficial: int) -> None:
        self.arena = Arena("system", size)
        self.warm = warm
        self.pool = PagePool(
            self.arena,
            limit_pages=limit,
            reserve_pages=reserve,
            warm_pages=warm,
            beneficial_order=beneficial,
            now=lambda: self.seconds,
        )

    def teardown(self) -> None:
        if hasattr(self, "arena"):
            self.arena.close()

    @rule(
        pages=st.one_of(st.integers(0, 40), st.integers(0, 1700)),
        caching=st.sampled_from(Caching),
        max_order=st.sampled_from([None, None, 0, 1, 4]),
        zero=st.booleans(),
        defrag=st.booleans(),
        use_reserve=st.booleans(),
    )
    def alloc(
        self, pages: int, caching: Caching, max_order: int | None, zero: bool, defrag: bool, use_reserve: bool
    ) -> None:
        room = self.arena.num_pages - len(self.used) - (0 if use_reserve else self.pool.reserve_pages)
        beneficial = self.pool.beneficial_order
        tried = beneficial and pages >= 1 << beneficial and (max_order is None or max_order >= beneficial)
        before = self.pool.pooled_pages
        try:
            got = self.pool.alloc(
                pages, caching=caching, max_order=max_order, zero=zero, defrag=defrag, use_reserve=use_reserve
            )
        except TtmError as error:
            code = error.errno
        else:
            code = 0
        if code:
            assert code == errno.ENOMEM
            assert pages > room or (defrag and tried)
            if defrag and tried:
                assert self.pool.pooled_pages == before
            return
        assert pages <= max(room, 0)
        assert got.pages.dtype == np.uint32
        assert got.pages.size == pages
        assert len(set(got.pages.tolist())) == pages
        assert not self.used & set(got.pages.tolist()), "a page twice"
        if not tried:
            assert not got.beneficial_order_failed
        if zero:
            assert not got.unzeroed.size
        known = np.setdiff1d(got.pages, got.unzeroed)
        assert not self.arena.mem[known].any(), "old bytes in a page that is said to be zero"
        if pages:
            orders = self.pool.page_orders(got.pages)
            assert (np.diff(orders.astype(int)) <= 0).all()
            assert orders.max() <= (10 if max_order is None else max_order)
            if tried and not got.beneficial_order_failed:
                assert (orders >= beneficial).sum() == pages >> beneficial << beneficial
            self.next_byte = self.next_byte % 255 + 1
            self.arena.mem[got.pages] = self.next_byte
            self.used |= set(got.pages.tolist())
            self.owned.append((got.pages, caching, self.next_byte))

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), to_pool=st.booleans())
    def free(self, data: st.DataObject, to_pool: bool) -> None:
        pages, caching, byte = self.owned.pop(data.draw(st.integers(0, len(self.owned) - 1)))
        assert (self.arena.mem[pages] == byte).all(), "somebody wrote into these pages"
        self.pool.free(pages, caching, to_pool=to_pool)
        self.used -= set(pages.tolist())

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), to_pool=st.booleans())
    def free_part(self, data: st.DataObject, to_pool: bool) -> None:
        pages, caching, byte = self.owned.pop(data.draw(st.integers(0, len(self.owned) - 1)))
        first = data.draw(st.integers(0, pages.size - 1))
        last = data.draw(st.integers(first + 1, pages.size))
        self.pool.split(pages[first:last])
        self.pool.free(pages[first:last], caching, to_pool=to_pool)
        self.used -= set(pages[first:last].tolist())
        rest = np.concatenate((pages[:first], pages[last:]))
        if rest.size:
            self.owned.append((rest, caching, byte))

    @rule(pages=st.integers(0, 800))
    def shrink(self, pages: int) -> None:
        before = self.pool.pooled_pages
        freed = self.pool.shrink(pages)
        assert before - self.pool.pooled_pages == freed
        assert freed >= min(pages, before)

    @rule(seconds=st.sampled_from([0.0, 2.0, 6.0]), max_runs=st.sampled_from([1, 1000]))
    def idle(self, seconds: float, max_runs: int) -> None:
        self.seconds += seconds
        self.pool.drop_idle(max_runs)
        if seconds > 5:
            assert self.pool.pooled_pages == 0
        if seconds > 1 and max_runs == 1000 and not self.pool.pooled_pages and not self.used:
            self.seconds += 2  # what was pooled until now has idled as well
            self.pool.drop_idle(max_runs)
            assert self.pool.statistics()["dirty_free_pages"] == 0

    @rule(limit=st.sampled_from([0, 30, 900]))
    def set_limit(self, limit: int) -> None:
        self.pool.limit_pages = limit

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()
            assert self.pool.in_use_pages == len(self.used)
            expected = self.arena.num_pages - len(self.used) - self.pool.reserve_pages
            assert self.pool.free_pages == max(0, expected)
            if not self.used:
                # Everything that is not pooled has merged: whole 2 MiB are at the host again, or warm for a moment.
                dirty = self.pool.statistics()["dirty_free_pages"]
                assert dirty <= self.arena.num_pages % 512 + self.warm or self.pool.pooled_pages
            for pages, _, byte in self.owned:
                assert (self.arena.mem[pages[[0, -1]]] == byte).all()


PoolMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestPoolModel = PoolMachine.TestCase
