"""The engine `sizes`: against a model in few lines, with pages, with prefetch, and with policies that fail."""

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replay.traces import replayed, trace_of, zipf
from ttmfs.policy import BO, Evict, Prefetch, Request
from ttmfs.policy.shipped import SHIPPED
from ttmfs.policy.shipped.prefetch import NoPrefetch, Tree
from ttmfs.replay.sizes import SizesEngine
from ttmfs.replay.trace import Builder

PAGE = 4096
MIB = 1 << 20


def lru_model(requests: list[tuple[int, int]], capacity: int) -> tuple[int, int, int]:
    """(misses, evictions, bytes moved) of LRU over (object, size); a size of 0 destroys it."""
    there: OrderedDict[int, int] = OrderedDict()
    misses = evictions = moved = 0
    for key, size in requests:
        if not size:
            there.pop(key, None)
            continue
        if key in there:
            there.move_to_end(key)
            continue
        misses += 1
        if size > capacity:
            continue
        while sum(there.values()) + size > capacity:
            moved += there.popitem(last=False)[1]
            evictions += 1
        there[key] = size
        moved += size
    return misses, evictions, moved


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans() | st.just(False) | st.just(False)), min_size=1, max_size=150),
    st.integers(1, 40),
)
def test_it_counts_as_the_model_does(requests: list[tuple[int, bool]], capacity: int) -> None:
    builder = Builder("t", "test")
    model = []
    made: dict[int, int] = {}
    for key, destroyed in requests:
        # A BO that comes again after its end is another one, and may have another size.
        number = made.get(key, 0)
        size = 1 + (key * 5 + number * 3) % 13
        if destroyed:
            builder.destroy((key, number))
            made[key] = number + 1
            model.append((key * 1000 + number, 0))
        else:
            builder.use((key, number), size)
            model.append((key * 1000 + number, size))
    if all(not size for _, size in model):
        return
    row = replayed(builder.build(), "lru", capacity)
    assert (row.misses, row.evictions, row.bytes_moved) == lru_model(model, capacity)
    assert row.requests == row.hits + row.misses == sum(1 for _, size in model if size)
    assert row.bytes_requested == sum(size for _, size in model)


@pytest.mark.parametrize("policy", [*sorted(SHIPPED["evict"]), "belady"])
def test_every_policy_runs_through(policy: str) -> None:
    row = replayed(trace_of(zipf(3000, 300, 0.8, seed=5)), policy, 50 * PAGE)
    bound = replayed(trace_of(zipf(3000, 300, 0.8, seed=5)), "belady", 50 * PAGE)
    assert not row.ejected
    assert bound.misses <= row.misses <= row.requests
    assert row.evictions == row.misses - 50
    assert row.bytes_moved == (2 * row.misses - 50) * PAGE
    assert row.miss_ratio == row.byte_miss_ratio


def test_all_that_fits_is_brought_in_once() -> None:
    row = replayed(trace_of("abcabcabc"), "sieve", 3 * PAGE)
    assert (row.misses, row.evictions, row.bytes_moved) == (3, 0, 3 * PAGE)


def test_what_is_larger_than_the_region_never_comes_in() -> None:
    builder = Builder("t", "test")
    for key, size in (("a", PAGE), ("large", 9 * PAGE), ("a", PAGE), ("large", 9 * PAGE)):
        builder.use(key, size)
    row = replayed(builder.build(), "lru", 4 * PAGE)
    assert (row.misses, row.too_large, row.evictions, row.bytes_moved) == (3, 2, 0, PAGE)


# -- pages ---------------------------------------------------------------------------------------------------------


def test_pages_come_in_one_by_one_and_go_together() -> None:
    builder = Builder("t", "test")
    for bo, first, count in (("a", 0, 2), ("a", 1, 2), ("a", 0, 3), ("b", 0, 2), ("a", 5, 1), ("b", 0, 2), ("a", 0, 1)):
        builder.use(bo, 0, first, count)
    row = replayed(builder.build(), "lru", 4 * PAGE)
    # a 0-1, a 2; a is there; b 0-1 push a out; a 5; b is there; a 0.
    assert (row.requests, row.misses, row.evictions) == (7, 5, 1)
    assert row.bytes_requested == 13 * PAGE
    assert row.bytes_missed == (2 + 1 + 2 + 1 + 1) * PAGE
    assert row.bytes_moved == (2 + 1 + 2 + 1 + 1 + 3) * PAGE


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15), st.integers(1, 16)), min_size=1, max_size=80),
    st.integers(1, 40),
    st.sampled_from(sorted(SHIPPED["prefetch"])),
)
def test_pages_are_counted_right_whatever_is_prefetched(
    requests: list[tuple[int, int, int]], capacity: int, prefetch: str
) -> None:
    builder = Builder("t", "test")
    for bo in range(4):
        builder.bo(bo, 16 * PAGE)
    for bo, first, count in requests:
        builder.use(bo, 0, first, min(count, 16 - first))
    trace = builder.build()
    engine = SizesEngine(trace, capacity * PAGE, SHIPPED["evict"]["fifo"](), SHIPPED["prefetch"][prefetch]())  # type: ignore[arg-type]
    counts = engine.run()
    held = sum(int(np.count_nonzero(bo.there)) * PAGE for bo in engine.bos if bo is not None and bo.there is not None)
    assert held == engine.held == sum(bo.held for bo in engine.bos if bo is not None)
    assert held <= capacity * PAGE
    assert counts.requests == len(requests)
    assert counts.bytes_missed <= counts.bytes_requested
    if prefetch == "none":
        assert counts.bytes_missed <= counts.bytes_moved or counts.too_large
    assert not engine.ejected


def sweep_over(blocks: int, rounds: int) -> Builder:
    """Every leaf of 64 KiB of each 2 MiB, in order."""
    builder = Builder("t", "test")
    for _ in range(rounds):
        for block in range(blocks):
            for leaf in range(0, 512, 16):
                builder.use(f"b{block}", 2 * MIB, leaf, 16)
    return builder


def test_a_tree_saves_faults_while_all_fits() -> None:
    trace = sweep_over(8, 2).build()
    none = replayed(trace, "lru", 16 * MIB)
    tree = replayed(trace, "lru", 16 * MIB, prefetch="tree")
    assert none.misses == 8 * 32
    # Of 32 leaves in order the 1st, 2nd, 3rd, 5th, 9th and 17th are faults.
    assert tree.misses == 8 * 6
    assert tree.bytes_moved == none.bytes_moved == 16 * MIB


def test_a_tree_wastes_where_little_of_each_block_is_used_and_not_all_fits() -> None:
    builder = Builder("t", "test")
    for turn in range(6):
        for block in range(8):
            for leaf in range(18):
                builder.use(f"b{block}", 2 * MIB, (leaf + turn) % 18 * 16, 16)
    trace = builder.build()
    used = 8 * 18 * 64 << 10
    none = replayed(trace, "lru", used)
    tree = replayed(trace, "lru", used, prefetch="tree")
    assert none.evictions == 0
    assert tree.evictions > 0
    assert tree.bytes_moved > 2 * none.bytes_moved


# -- policies that fail --------------------------------------------------------------------------------------------


class Listing(Evict):
    def __init__(self) -> None:
        self.here: list[BO] = []

    def added(self, bo: BO) -> None:
        self.here.append(bo)

    def removed(self, bo: BO, why: str) -> None:
        self.here.remove(bo)

    def victims(self, request: Request) -> Iterable[BO]:
        return self.here


class Raises(Listing):
    def victims(self, request: Request) -> Iterable[BO]:
        raise KeyError("x")


class RaisesInUsed(Listing):
    def used(self, bo: BO, why: str) -> None:
        raise KeyError("x")


class RaisesInRemoved(Listing):
    def removed(self, bo: BO, why: str) -> None:
        raise KeyError("x")


class Eats(Listing):
    def victims(self, request: Request) -> Iterable[BO]:
        return [bytearray(1 << 62)]  # type: ignore[list-item]


class Nobody(Listing):
    def victims(self, request: Request) -> Iterable[BO]:
        return [request.for_bo, 7]  # type: ignore[list-item]


@pytest.mark.parametrize("policy", [Raises, RaisesInUsed, Eats, Nobody])
def test_lru_goes_on_where_a_policy_fails(policy: type[Evict]) -> None:
    trace = trace_of("abcabc" + "adebcfab")
    engine = SizesEngine(trace, 3 * PAGE, policy(), NoPrefetch())
    counts = engine.run()
    assert len(engine.ejected) == 1
    # All failed before the first victim was chosen, so it is as if lru had been there from the start.
    assert counts.misses == replayed(trace, "lru", 3 * PAGE).misses
    if policy is not Nobody:
        assert f"{__file__}:" in engine.ejected[0]


def test_what_it_had_done_before_it_failed_stands() -> None:
    engine = SizesEngine(trace_of("abcdab"), 3 * PAGE, RaisesInRemoved(), NoPrefetch())
    assert engine.run().misses == 6
    assert engine.ejected[0].startswith("eviction: raised KeyError: 'x' at ")
    assert engine.ejected[0].endswith("in removed (request 4)")


def test_a_prefetcher_that_fails_is_left_out() -> None:
    class Bad(Prefetch):
        def fault(self, bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
            return None  # type: ignore[return-value]

    builder = Builder("t", "test")
    builder.use("a", 9 * PAGE, 0, 1)
    builder.use("a", 9 * PAGE, 1, 1)
    engine = SizesEngine(builder.build(), 9 * PAGE, SHIPPED["evict"]["lru"](), Bad())  # type: ignore[arg-type]
    assert engine.run().misses == 2
    assert engine.ejected[0].startswith("prefetch: raised TypeError")


def test_a_policy_sees_uses_on_the_device_s_clock() -> None:
    seen: list[tuple[str, int, int, str]] = []

    class Looks(Listing):
        def used(self, bo: BO, why: str) -> None:
            seen.append((bo.name, bo.uses, bo.last_use, bo.region))

    SizesEngine(trace_of("abab"), 4 * PAGE, Looks(), NoPrefetch()).run()
    assert seen == [("a", 2, 3, "vram"), ("b", 2, 4, "vram")]


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from ttmfs.policy.shipped.order import Lru\n\n\nclass Mine(Lru):\n    pass\n")
    trace = trace_of(zipf(2000, 200, 0.9, seed=7))
    assert replayed(trace, f"{path}:Mine", 40 * PAGE).misses == replayed(trace, "lru", 40 * PAGE).misses


def test_tree_is_told_what_was_evicted() -> None:
    tree = Tree()
    SizesEngine(sweep_over(4, 1).build(), 2 * MIB, SHIPPED["evict"]["lru"](), tree).run()  # type: ignore[arg-type]
    assert len(tree.blocks) == 1
