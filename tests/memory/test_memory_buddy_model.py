"""Buddy against a set of pages with owners."""

import errno

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ttmfs.errors import TtmError
from ttmfs.memory.blocks import Blocks
from ttmfs.memory.buddy import Buddy


class BuddyMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.buddy = Buddy(1)
        self.owned: list[Blocks] = []
        self.free: set[int] = set()
        self.clear: set[int] = set()

    @initialize(size=st.one_of(st.integers(1, 300), st.sampled_from([64, 1023, 2048, 3000])), clear=st.booleans())
    def start(self, size: int, clear: bool) -> None:
        self.buddy = Buddy(size, clear=clear)
        self.fresh = self.buddy.free_by_order()
        self.free = set(range(size))
        self.clear = set(range(size)) if clear else set()

    def took(self, blocks: Blocks) -> None:
        pages = blocks.pages().tolist()
        assert len(set(pages)) == len(pages) == blocks.num_pages
        assert set(pages) <= self.free, "a page with two owners"
        assert not (blocks.start & ((1 << blocks.order.astype(np.int64)) - 1)).any()
        for order in set(blocks.order.tolist()):
            starts = blocks.start[blocks.order == order]
            for start, said in zip(starts.tolist(), self.buddy.is_clear(starts, order).tolist(), strict=True):
                assert said == (set(range(start, start + (1 << order))) <= self.clear)
        self.free -= set(pages)
        self.owned.append(blocks)

    @rule(
        data=st.data(),
        contiguous=st.booleans(),
        topdown=st.booleans(),
        trim=st.booleans(),
        clear=st.booleans(),
        min_order=st.sampled_from([0, 0, 0, 1, 2, 3]),
        ranged=st.booleans(),
    )
    def alloc(
        self,
        data: st.DataObject,
        contiguous: bool,
        topdown: bool,
        trim: bool,
        clear: bool,
        min_order: int,
        ranged: bool,
    ) -> None:
        size = self.buddy.num_pages
        first, last = 0, size
        if ranged:
            first = data.draw(st.integers(0, size - 1))
            last = data.draw(st.integers(first + 1, size))
        pages = data.draw(st.integers(1, last - first))
        try:
            blocks = self.buddy.alloc(
                pages,
                first=first,
                last=last if last < size else None,
                min_order=min_order,
                contiguous=contiguous,
                topdown=topdown,
                trim=trim,
                clear=clear,
            )
        except TtmError as error:
            code = error.errno
        else:
            code = 0
        if code:
            assert code in (errno.ENOSPC, errno.EINVAL)
            window = sum(first <= page < last for page in self.free)
            if not contiguous and not min_order:
                assert code == errno.ENOSPC
                assert window < pages, "there was room"
            return
        assert blocks.num_pages >= pages
        if not min_order and not contiguous:
            assert blocks.num_pages == pages
        taken = blocks.pages()
        assert taken.min() >= first
        assert taken.max() < last
        assert blocks.order.min() >= min_order
        if contiguous:
            assert blocks.contiguous
            assert trim is False or blocks.num_pages == -(-pages >> min_order) << min_order
        if clear and blocks.num_pages == 1 and not ranged and not contiguous:
            assert not self.clear & self.free or int(taken[0]) in self.clear, "clear memory was not preferred"
        self.took(blocks)

    @rule(order=st.integers(0, 6), count=st.integers(1, 200), clear=st.booleans())
    def alloc_order(self, order: int, count: int, clear: bool) -> None:
        possible = sum(
            set(range(p, p + (1 << order))) <= self.free for p in range(0, self.buddy.num_pages, 1 << order)
        )
        starts = self.buddy.alloc_order(order, count, clear=clear)
        assert starts.size == min(count, possible)
        if starts.size:
            self.took(Blocks.of(starts, np.full(starts.size, order, np.uint8)))

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), cleared=st.sampled_from([False, True, None]), together=st.integers(1, 4))
    def give_back(self, data: st.DataObject, cleared: bool | None, together: int) -> None:
        chosen = [self.owned.pop(data.draw(st.integers(0, len(self.owned) - 1)))]
        while self.owned and len(chosen) < together:
            chosen.append(self.owned.pop())
        starts = np.concatenate([blocks.start for blocks in chosen])
        orders = np.concatenate([blocks.order for blocks in chosen])
        blocks = Blocks.of(starts, orders)
        self.buddy.free(blocks, cleared)
        pages = set(blocks.pages().tolist())
        self.free |= pages
        if cleared is not None:
            self.clear = self.clear | pages if cleared else self.clear - pages

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), cleared=st.sampled_from([False, None]))
    def trim(self, data: st.DataObject, cleared: bool | None) -> None:
        blocks = self.owned.pop(data.draw(st.integers(0, len(self.owned) - 1)))
        keep = data.draw(st.integers(1, blocks.num_pages))
        kept = self.buddy.trim_tail(blocks, keep, cleared)
        assert kept.pages().tolist() == blocks.pages().tolist()[:keep]
        gone = set(blocks.pages().tolist()[keep:])
        self.free |= gone
        if cleared is False:
            self.clear -= gone
        self.owned.append(kept)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def split(self, data: st.DataObject) -> None:
        blocks = self.owned.pop(data.draw(st.integers(0, len(self.owned) - 1)))
        pages = blocks.pages().astype(np.int64)
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=1, max_size=9)))
        inside = np.resize(mask, pages.size)
        self.buddy.split(pages[inside])
        for part in (pages[inside], pages[~inside]):
            if part.size:
                self.owned.append(self.buddy.blocks_of(part))

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def free_twice_fails(self, data: st.DataObject) -> None:
        blocks = self.owned[data.draw(st.integers(0, len(self.owned) - 1))]
        twice = Blocks.of(np.concatenate((blocks.start, blocks.start[:1])), np.append(blocks.order, blocks.order[0]))
        with pytest.raises(TtmError) as error:
            self.buddy.free(twice)
        assert error.value.errno == errno.EINVAL

    @rule(is_clear=st.booleans())
    def reset_clear(self, is_clear: bool) -> None:
        self.buddy.reset_clear(is_clear)
        self.clear = self.clear | self.free if is_clear else self.clear - self.free

    @rule()
    def free_all(self) -> None:
        if self.owned:
            starts = np.concatenate([blocks.start for blocks in self.owned])
            orders = np.concatenate([blocks.order for blocks in self.owned])
            self.buddy.free(Blocks.of(starts, orders))
            for blocks in self.owned:
                pages = set(blocks.pages().tolist())
                self.free |= pages
                self.clear -= pages
            self.owned.clear()
        assert self.buddy.free_by_order() == self.fresh

    @invariant()
    def counts(self) -> None:
        assert self.buddy.free_pages == (len(self.free) or self.buddy.free_pages)
        if self.free:
            assert self.buddy.clear_free_pages == len(self.clear & self.free)
        self.buddy.check()


BuddyMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestBuddyModel = BuddyMachine.TestCase
