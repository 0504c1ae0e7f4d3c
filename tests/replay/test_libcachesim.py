"""Miss counts against PyPI's libcachesim, an implementation of others: identical, or the difference is shown."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sortedcontainers import SortedSet

from tests.replay.traces import KV, loops_and_hot, next_uses, replayed, scans, trace_of, zipf
from ttmfs.replay.formats import read_trace

# Its wheel needs a shared library, which a bare Debian does not have.
libcachesim = pytest.importorskip(
    "libcachesim",
    reason="libcachesim has no wheel for this Python, or it needs more: apt-get install libglib2.0-0",
    exc_type=ImportError,
)


def kv_blocks() -> list[int]:
    return [int(name) for name in _named(read_trace(str(KV), 1))]


def _named(trace: Any) -> list[str]:
    return [trace.names[index] for index in trace.objects.tolist()]


TRACES: dict[str, Callable[[], list[int]]] = {
    "zipf": lambda: zipf(15000, 2000, 0.9, seed=1),
    "loops": lambda: loops_and_hot(seed=2),
    "scans": lambda: scans(seed=3),
    "kv": kv_blocks,
}


@functools.cache
def ids_of(name: str) -> tuple[int, ...]:
    """Made once: each is asked for by all policies."""
    return tuple(TRACES[name]())


@functools.cache
def next_uses_of(ids: tuple[int, ...]) -> list[int]:
    return next_uses(ids)


@functools.cache
def ours_of(name: str, size: int) -> Any:
    return trace_of(ids_of(name), size)


# slru has four segments, s3fifo a small queue of a tenth: numbers of BOs that these divide leave nothing open.
SIZES = (40, 100, 400)

CACHES = {
    "lru": "LRU",
    "fifo": "FIFO",
    "clock": "Clock",
    "sieve": "Sieve",
    "slru": "SLRU",
    "arc": "ARC",
    "s3fifo": "S3FIFO",
    "belady": "Belady",
    "lfu": "LFU",
}


def theirs(cache: str, ids: tuple[int, ...], objects: int, size: int) -> int:
    """How often their cache misses."""
    made = getattr(libcachesim, cache)(objects * size, hashpower=14)
    later = next_uses_of(ids)
    found = 0
    for number, key in enumerate(ids):
        request = libcachesim.Request(obj_id=key + 1, obj_size=size, next_access_vtime=later[number])
        found += not made.get(request)
    return found


@pytest.mark.parametrize("size", [1, 4096])
@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("policy", CACHES)
def test_the_same_misses(policy: str, name: str, size: int) -> None:
    ids, trace = ids_of(name), ours_of(name, size)
    # Their arc moves its target by bytes, whatever the size of what came back.
    written = "arc step=1" if policy == "arc" else policy
    # That sizes of objects change nothing one capacity shows as well as three.
    capacities = SIZES if size == 1 else SIZES[1:2]
    ours = [replayed(trace, written, objects * size).misses for objects in capacities]
    assert ours == [theirs(CACHES[policy], ids, objects, size) for objects in capacities]


# -- where they differ ---------------------------------------------------------------------------------------------


def gdsf(ids: Sequence[int], objects: int, *, room_first: bool) -> int:
    """GDSF by its definition. Theirs lets the new one in, then evicts, maybe this very one; ours makes room first."""
    ranking: Any = SortedSet()
    ranks: dict[int, tuple[float, int, int]] = {}
    age, misses = 0.0, 0

    def put(key: int, uses: int, now: int) -> None:
        if key in ranks:
            ranking.remove((*ranks[key][:2], key))
        ranks[key] = (age + uses * 1e6, now, uses)
        ranking.add((age + uses * 1e6, now, key))

    def evict() -> None:
        nonlocal age
        age, _, victim = ranking.pop(0)
        del ranks[victim]

    for now, key in enumerate(ids):
        if key in ranks:
            put(key, ranks[key][2] + 1, now)
            continue
        misses += 1
        if room_first and len(ranks) == objects:
            evict()
        put(key, 1, now)
        if len(ranks) > objects:
            evict()
    return misses


@pytest.mark.parametrize("name", TRACES)
def test_gdsf_differs_by_when_it_makes_room(name: str) -> None:
    ids, trace = ids_of(name), ours_of(name, 1)
    for objects in SIZES:
        assert gdsf(ids, objects, room_first=False) == theirs("GDSF", ids, objects, 1)
        assert gdsf(ids, objects, room_first=True) == replayed(trace, "gdsf", objects).misses


class LirsModel:
    """LIRS by its paper, for objects of size one. `demotes_on_hit`: what theirs does besides.

    `stack` says of each whether it is LIR (L), resident HIR (H) or gone (N).
    """

    def __init__(self, objects: int, *, demotes_on_hit: bool) -> None:
        self.objects = objects
        self.most_hir = max(1, objects // 100)
        self.most_lir = objects - self.most_hir
        self.demotes_on_hit = demotes_on_hit
        self.stack: OrderedDict[int, str] = OrderedDict()
        self.hir: OrderedDict[int, None] = OrderedDict()
        self.gone: OrderedDict[int, None] = OrderedDict()
        self.lirs = 0

    def get(self, key: int) -> bool:
        state = self.stack.get(key, "")
        resident = key in self.hir
        if state:
            self.stack.move_to_end(key)
        if state == "L":
            self.prune()
        elif state == "H":
            # Theirs may have evicted it when it was hit last (below), and still takes it for resident.
            self.hir.pop(key, None)
            self.become_lir(key)
        elif resident:
            self.hir.move_to_end(key)
            # A HIR one that is not in the stack stays HIR, so no LIR one has to make room for it.
            while self.demotes_on_hit and self.lirs >= self.most_lir:
                self.demote()
            self.stack[key] = "H"
        elif state == "N":
            self.become_lir(key)
            self.gone.pop(key, None)
        elif self.lirs < self.most_lir:
            self.stack[key] = "L"
            self.lirs += 1
        else:
            self.make_room()
            self.stack[key] = "H"
            self.hir[key] = None
        while len(self.stack) > 2 * self.objects and self.gone:
            del self.stack[self.gone.popitem(last=False)[0]]
        return state in ("L", "H") or resident

    def become_lir(self, key: int) -> None:
        while self.lirs >= self.most_lir:
            self.demote()
        self.stack[key] = "L"
        self.lirs += 1

    def demote(self) -> None:
        self.make_room()
        victim, _ = self.stack.popitem(last=False)
        self.hir[victim] = None
        self.lirs -= 1
        self.prune()

    def make_room(self) -> None:
        while len(self.hir) >= self.most_hir:
            victim, _ = self.hir.popitem(last=False)
            if victim in self.stack:
                self.stack[victim] = "N"
                self.gone[victim] = None

    def prune(self) -> None:
        while len(self.stack) > 1 and self.stack[next(iter(self.stack))] != "L":
            oldest, _ = self.stack.popitem(last=False)
            self.gone.pop(oldest, None)


def lirs(ids: Sequence[int], objects: int, *, demotes_on_hit: bool) -> int:
    model = LirsModel(objects, demotes_on_hit=demotes_on_hit)
    return sum(not model.get(key) for key in ids)


@pytest.mark.parametrize("name", TRACES)
def test_lirs_differs_by_what_theirs_demotes(name: str) -> None:
    ids, trace = ids_of(name), ours_of(name, 1)
    for objects in SIZES:
        assert lirs(ids, objects, demotes_on_hit=True) == theirs("LIRS", ids, objects, 1)
        assert lirs(ids, objects, demotes_on_hit=False) == replayed(trace, "lirs", objects).misses
