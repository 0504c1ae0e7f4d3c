"""The page vector against a dict: whatever is set, cleared, cut and asked, at both ends of a vector of any length."""

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ttmfs.ttm.leaves import LEAF_PAGES, Index
from ttmfs.ttm.page_vector import PageVector, encode_handles, encode_pages

LARGEST = 1 << 35
LENGTHS = st.sampled_from((1, 2, 8, 9, 64, 511, 512, 513, 1024, 1300, 2048, 5000, 1 << 20, LARGEST))
STARTS = st.one_of(st.integers(0, 1500), st.integers(0, LARGEST), st.sampled_from((510, 511, 512, 1023, 1024, 1535)))
OFFSETS = (0, 0, 0, 0, -1, 1, -5, 200, -300)
NEAR = st.integers(0, 3)
"""0: anywhere; otherwise near one of the places where something was put."""
COUNTS = st.sampled_from((1, 1, 2, 5, 100, 511, 512, 513, 1024, 1100, 2600))


class Machine(RuleBasedStateMachine):
    """`model` has the entries that are not holes; `near` is where something was put, so that what is asked is near."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[int, int] = {}
        self.near = [0]

    @initialize(length=LENGTHS)
    def begin(self, length: int) -> None:
        self.vector = PageVector(None, length)  # type: ignore[arg-type]

    def stretch(self, start: int, count: int, which: int) -> range:
        """Up to `count` pages near something, all before the end."""
        if which:
            start = max(0, self.near[which % len(self.near)] + OFFSETS[start % len(OFFSETS)])
        start %= max(self.vector.num_pages, 1)
        return range(start, min(start + count, self.vector.num_pages))

    def expected(self, pages: range) -> list[int]:
        return [self.model.get(page, 0) for page in pages]

    @rule(start=STARTS, count=COUNTS, which=NEAR, first=st.integers(0, 5000), step=st.sampled_from((0, 1, 1, 1, 3)))
    def put(self, start: int, count: int, which: int, first: int, step: int) -> None:
        """Pages or (step 0) handles into the holes of a stretch."""
        pages = self.stretch(start, count, which)
        self.near = [*self.near[-3:], pages.start, pages.stop]
        holes = [page for page in pages if page not in self.model]
        numbers = first + np.arange(len(holes), dtype=np.uint32) * np.uint32(step or 1)
        entries = encode_pages(numbers) if step else encode_handles(numbers + np.uint32(1))
        self.vector.put(np.array(holes, np.intp), entries)
        self.model |= dict(zip(holes, entries.tolist(), strict=True))
        if step:
            self.vector.populated_pages += len(holes)
        else:
            self.vector.backed_up_pages += len(holes)
        self.check(pages)

    @rule(start=STARTS, count=COUNTS, which=NEAR, kind=st.sampled_from("psa"), data=st.data())
    def clear(self, start: int, count: int, which: int, kind: str, data: st.DataObject) -> None:
        """Some of what is there, in any order."""
        index = self.there(self.stretch(start, count, which), kind)
        if len(index) > 2 and data.draw(st.booleans()):
            index = np.concatenate((index[1::2], index[::2]))
        self.clear_at(index)

    def there(self, pages: range, kind: str) -> Index:
        odd = {"p": (0,), "s": (1,), "a": (0, 1)}[kind]
        wanted = sorted(page for page, entry in self.model.items() if page in pages and entry & 1 in odd)
        return np.array(wanted, np.intp)

    def clear_at(self, index: Index) -> None:
        self.vector.clear(index)
        for page in index.tolist():
            entry = self.model.pop(page)
            self.vector.populated_pages -= not entry & 1
            self.vector.backed_up_pages -= entry & 1

    @rule(length=LENGTHS, shorter=st.sampled_from((False, False, True)))
    def set_length(self, length: int, shorter: bool) -> None:
        length = length if shorter else max(length, self.vector.num_pages)
        if length < self.vector.num_pages:
            self.clear_at(self.there(range(length, self.vector.num_pages), "a"))
        self.vector.set_length(length)
        self.near = [min(page, length - 1) for page in self.near]

    @rule(start=STARTS, count=COUNTS, which=NEAR)
    def neighbours(self, start: int, count: int, which: int) -> None:
        self.check(self.stretch(start, count, which))

    def check(self, pages: range) -> None:
        if not pages:
            return
        first, entries = pages.start, self.expected(pages)
        assert self.vector.entries(first, len(pages)).tolist() == entries
        assert self.vector.entry(first) == entries[0]
        are_pages = [bool(entry) and not entry & 1 for entry in entries]
        assert self.vector.has_memory(first, len(pages)) == all(are_pages)
        assert self.vector.next_hole(first, pages.stop) == next((p for p in pages if p not in self.model), pages.stop)
        self.check_extent(first, entries, are_pages)

    def check_extent(self, first: int, entries: list[int], are_pages: list[bool]) -> None:
        page, length = self.vector.extent(first, len(entries))
        if not are_pages[0]:
            assert page == -1
            assert length == next((n for n, is_page in enumerate(are_pages) if is_page), len(entries))
            return
        run = 1
        while run < len(entries) and entries[run] == entries[0] + 2 * run:
            run += 1
        assert (page, length) == (entries[0] // 2 - 1, run)
        if all(are_pages):
            assert self.vector.numbers(first, len(entries)).tolist() == [entry // 2 - 1 for entry in entries]

    @rule(start=STARTS, count=COUNTS, which=NEAR)
    def behind_the_end(self, start: int, count: int, which: int) -> None:
        end = self.vector.num_pages
        assert self.vector.extent(end + start % 5000, count) == (-1, count)
        assert not self.vector.has_memory(end - 1, 2)
        assert self.vector.entry(end + start) == 0
        assert not len(self.vector.entries(end + start, count))

    @rule(start=STARTS, count=st.one_of(COUNTS, st.just(LARGEST)), which=NEAR, data=st.data())
    def any_of_them(self, start: int, count: int, which: int, data: st.DataObject) -> None:
        pages = self.stretch(start, count, which)
        vector = self.vector
        present, stored = self.there(pages, "p"), self.there(pages, "s")
        assert vector.present_in(pages.start, len(pages)).tolist() == present.tolist()
        assert vector.handles_in(pages.start, pages.stop).tolist() == stored.tolist()
        index, numbers = vector.pages_in(pages.start, len(pages))
        assert index.tolist() == present.tolist()
        assert numbers.tolist() == [self.model[page] // 2 - 1 for page in present.tolist()]
        there = np.concatenate((present, stored))
        if len(there) > 3 and data.draw(st.booleans()):
            there = there[:: len(there) // 3]
        assert vector.at(there).tolist() == [self.model[page] for page in there.tolist()]
        assert vector.pages_at(present).tolist() == numbers.tolist()

    @rule(start=STARTS, which=NEAR)
    def walking_skips_only_holes(self, start: int, which: int) -> None:
        at = self.stretch(start, 1, which).start
        found = self.vector.next_content(at)
        assert at <= found <= self.vector.num_pages
        assert not any(at <= page < found for page in self.model)
        if found < self.vector.num_pages:
            leaf = found // LEAF_PAGES
            assert any(page // LEAF_PAGES == leaf for page in self.model)

    @rule(start=STARTS, count=COUNTS, which=NEAR)
    def letters(self, start: int, count: int, which: int) -> None:
        pages = self.stretch(start, count, which)
        wanted = "".join("." if not entry else "b" if entry & 1 else "s" for entry in self.expected(pages))
        assert self.vector.letters(pages.start, len(pages)).tobytes().decode() == wanted

    @rule(order=st.integers(1, 10))
    def pieces(self, order: int) -> None:
        size = 1 << order
        wanted = [
            first
            for first in sorted({page >> order << order for page in self.model})
            if all(self.model.get(page, 1) & 1 == 0 for page in range(first, first + size))
        ]
        firsts, entries = self.vector.whole_pieces(order)
        assert firsts.tolist() == wanted
        assert entries.tolist() == [self.expected(range(first, first + size)) for first in wanted]

    @rule(turn=st.integers(0, 5000))
    def all_of_them(self, turn: int) -> None:
        everything = self.there(range(LARGEST), "a")
        assert self.vector.present().tolist() == self.there(range(LARGEST), "p").tolist()
        assert self.vector.handles_in(0, LARGEST).tolist() == self.there(range(LARGEST), "s").tolist()
        everything = np.roll(everything, turn)
        assert self.vector.at(everything).tolist() == [self.model[page] for page in everything.tolist()]

    @rule()
    def runs(self) -> None:
        pages = sorted(page for page, entry in self.model.items() if not entry & 1)
        new = [page for page in pages if self.model.get(page - 1, 1) != self.model[page] - 2]
        assert self.vector.runs() == len(new)

    @invariant()
    def nothing_is_kept_for_holes(self) -> None:
        vector: Any = getattr(self, "vector", None)
        if vector is None:
            return
        leaves = {page // LEAF_PAGES for page in self.model}
        assert vector.num_leaves == len(leaves)
        assert vector.leaves_in(0, LARGEST) == sorted(leaves) == sorted(vector._leaves)
        for number in leaves:
            assert min(vector.num_pages - number * LEAF_PAGES, LEAF_PAGES) <= len(vector.leaf(number)) <= LEAF_PAGES


TestPageVector = Machine.TestCase
TestPageVector.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)
