"""Groups: effective protection as mm/page_counter.c has it, and whose BOs may go (kernel/cgroup/dmem.c)."""

import errno
from dataclasses import dataclass, field
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttmfs.errors import TtmError
from ttmfs.ttm.account import Account
from ttmfs.ttm.dmem import MAX_DEPTH, MAX_GROUPS, UNLIMITED, Dmem, Group, Pool
from ttmfs.ttm.protection import Search, Spared, common_ancestor, why_spared

# -- the rules, plainly: struct page_counter, written down from mm/page_counter.c ------------------------------------


@dataclass
class Counter:
    """As the kernel's, each group's values worked out anew from those of all."""

    parent: "Counter | None"
    min: int
    low: int
    own: int
    children: list["Counter"] = field(default_factory=list)
    emin: int = 0
    elow: int = 0

    @property
    def usage(self) -> int:
        return self.own + sum(child.usage for child in self.children)


def effective_protection(
    usage: int, parent_usage: int, setting: int, parent_effective: int, siblings_protected: int, *, recursive: bool
) -> int:
    protected = min(usage, setting)
    if siblings_protected > parent_effective:
        return protected * parent_effective // siblings_protected
    ep = protected
    if not recursive:
        return ep
    if parent_effective > siblings_protected and parent_usage > siblings_protected and usage > protected:
        unclaimed = parent_effective - siblings_protected
        unclaimed *= usage - protected
        unclaimed //= parent_usage - siblings_protected
        ep += unclaimed
    return ep


def calculate_protection(root: Counter, counter: Counter, *, recursive: bool) -> None:
    """Callers come down from below `root`."""
    parent = counter.parent
    if parent is None or counter is root:
        return
    if parent is root:
        counter.emin, counter.elow = counter.min, counter.low
        return
    usage, theirs = counter.usage, parent.usage
    mins = sum(min(child.usage, child.min) for child in parent.children)
    lows = sum(min(child.usage, child.low) for child in parent.children)
    counter.emin = effective_protection(usage, theirs, counter.min, parent.emin, mins, recursive=recursive)
    counter.elow = effective_protection(usage, theirs, counter.low, parent.elow, lows, recursive=recursive)


NOBODY = Account("nobody")
amounts = st.integers(0, 40)
trees = st.lists(st.tuples(st.integers(0, 11), amounts, amounts, amounts), min_size=1, max_size=12)


def grow(rows: list[tuple[int, int, int, int]]) -> tuple[Dmem, list[Group], list[Counter]]:
    """The same tree twice. Settings come before some charges and after others: the order must not matter."""
    dmem = Dmem({"vram": 1 << 20})
    groups, counters = [dmem.root], [Counter(None, 0, 0, 0)]
    for number, (above, low, least, own) in enumerate(rows):
        parent = above % len(groups)
        group = groups[parent].make(f"g{number}")
        counter = Counter(counters[parent], least, low, own)
        counters[parent].children.append(counter)
        groups.append(group)
        counters.append(counter)
        pool = group.pools["vram"]
        if number % 2:
            pool.charge(own)
        pool.protect(low=low, min=least)
        if not number % 2:
            pool.charge(own + 3)
            pool.uncharge(3)
    return dmem, groups, counters


@settings(max_examples=200, deadline=None)
@given(trees, st.booleans(), st.integers(0, 12))
def test_effective_protection_is_the_kernels(
    rows: list[tuple[int, int, int, int]], recursive: bool, below: int
) -> None:
    dmem, groups, counters = grow(rows)
    dmem.recursive = recursive
    chosen = below % len(groups)
    root, counted_root = groups[chosen], counters[chosen]
    for group, counter in zip(groups, counters, strict=True):
        assert group.pools["vram"].usage == counter.usage
        if root.pools["vram"] not in group.pools["vram"].chain:
            continue
        path: list[Counter] = []
        at: Counter | None = counter
        while at is not None:
            path.append(at)
            at = at.parent
        for one in reversed(path[: path.index(counted_root) + 1]):
            calculate_protection(counted_root, one, recursive=recursive)
        want = (0, 0) if counter is counted_root else (counter.emin, counter.elow)
        assert group.pools["vram"].effective(root.pools["vram"]) == want
    assert not dmem.check({"vram": counters[0].usage})


def test_what_is_documented_of_unclaimed_protection() -> None:
    """The table in Documentation/admin-guide/cgroup-v2.rst: nobody claims, so it is shared by usage."""
    dmem = Dmem({"vram": 1000})
    above = dmem.root.make("a")
    above.pools["vram"].protect(low=100)
    one, two = above.make("one").pools["vram"], above.make("two").pools["vram"]
    one.charge(300)
    two.charge(100)
    assert (one.effective(), two.effective()) == ((0, 75), (0, 25))
    two.protect(low=60)
    assert (one.effective(), two.effective()) == ((0, 35), (0, 64))


# -- who may be evicted ----------------------------------------------------------------------------------------------

RELATIONS = ("own", "sibling", "child", "parent", "root_limit", "none")
STATES = ("unprotected", "below_low", "below_min")


def family() -> tuple[Dmem, dict[str, Pool]]:
    """root / top / {limit / child, sibling}"""
    dmem = Dmem({"vram": 1 << 20})
    top = dmem.root.make("top")
    limit, sibling = top.make("limit"), top.make("sibling")
    groups = {"root": dmem.root, "top": top, "limit": limit, "sibling": sibling, "child": limit.make("child")}
    return dmem, {name: group.pools["vram"] for name, group in groups.items()}


EXPECTED: dict[str, tuple[str, str | None]] = {
    # the relation of the victim to the limit: (victim, limit)
    "own": ("limit", "limit"),
    "sibling": ("sibling", "limit"),
    "child": ("child", "limit"),
    "parent": ("top", "limit"),
    "root_limit": ("child", "root"),
    "none": ("child", None),
}


@pytest.mark.parametrize(("relation", "state", "ignore_low"), list(product(RELATIONS, STATES, (False, True))))
def test_who_may_be_evicted(relation: str, state: str, ignore_low: bool) -> None:
    _, pools = family()
    victim, limit = EXPECTED[relation]
    pools[victim].charge(10)
    # All above must have it too, or it protects nothing.
    for name in ("top", "limit", "sibling", "child"):
        pools[name].protect(
            low=20 if state == "below_low" else 0,
            min=20 if state == "below_min" else 0,
        )
    answer = why_spared(pools[victim], None if limit is None else pools[limit], ignore_low=ignore_low)
    want: Spared
    if relation in ("own", "root_limit"):
        want = ""
    elif relation in ("sibling", "parent"):
        want = "outside"
    elif state == "below_min":
        want = "min"
    else:
        want = "low" if state == "below_low" and not ignore_low else ""
    assert answer == want


def test_who_has_more_than_protects_it_may_be_evicted() -> None:
    _, pools = family()
    pools["child"].charge(21)
    for name in ("top", "limit", "child"):
        pools[name].protect(low=20, min=10)
    assert why_spared(pools["child"], None, ignore_low=False) == ""
    pools["child"].uncharge(1)
    assert why_spared(pools["child"], None, ignore_low=False) == "low"
    assert why_spared(pools["child"], None, ignore_low=True) == ""
    pools["child"].uncharge(10)
    assert why_spared(pools["child"], None, ignore_low=True) == "min"


def test_the_newer_rules_judge_from_the_common_ancestor() -> None:
    """A sibling's own low counts against its sibling, whatever the one above both is protected by."""
    dmem, pools = family()
    pools["sibling"].charge(10)
    pools["sibling"].protect(low=20)
    for protection, want in (("newer", "low"), ("released", "")):
        dmem.protection = "newer" if protection == "newer" else "released"
        search = Search(pools["limit"])
        assert search.spares(pools["sibling"], NOBODY) == want
    assert common_ancestor(pools["child"], pools["sibling"]) is pools["top"]


def test_low_is_lowered_once_and_only_where_it_was_in_the_way() -> None:
    dmem, pools = family()
    assert dmem.count == 4
    pools["sibling"].charge(10)
    pools["sibling"].protect(min=20)
    root = dmem.root.make("other").pools["vram"]
    search = Search(root)
    assert search.spares(pools["sibling"], NOBODY) == ""
    pools["top"].protect(low=20)
    assert search.spares(pools["sibling"], NOBODY) == "low"
    assert search.lower()
    assert search.spares(pools["sibling"], NOBODY) == ""
    assert search.takes_low(pools["sibling"])
    assert not search.lower()
    search = Search(root)
    pools["top"].protect(low=0, min=20)
    assert search.spares(pools["sibling"], NOBODY) == "min"
    assert not search.lower()


# -- the tree --------------------------------------------------------------------------------------------------------


def test_max_is_that_of_all_above() -> None:
    _, pools = family()
    pools["top"].max, pools["child"].max = 10, UNLIMITED
    assert pools["child"].over(10) is None
    assert pools["child"].over(11) is pools["top"]
    pools["child"].charge(10)
    assert pools["child"].over(1, but=pools["sibling"]) is None
    assert pools["child"].over(1) is pools["top"]
    assert pools["child"].room() == 10


def test_a_peak_is_the_most_that_there_ever_was() -> None:
    _, pools = family()
    pools["child"].charge(7)
    pools["child"].uncharge(5)
    pools["sibling"].charge(4)
    assert (pools["child"].peak, pools["top"].peak, pools["top"].usage) == (7, 7, 6)
    assert pools["child"].entitled(100) == ""
    assert pools["child"].peak == 7


def test_a_group_that_has_something_or_somebody_below_it_is_not_removed() -> None:
    dmem, pools = family()
    limit, child = pools["limit"].group, pools["child"].group
    pools["child"].charge(1)
    for group in (limit, child, dmem.root):
        with pytest.raises(TtmError) as caught:
            group.remove()
        assert caught.value.errno == errno.EBUSY
    pools["child"].uncharge(1)
    child.remove()
    assert child.live is limit
    assert "child" not in limit.children
    limit.remove()
    assert child.live is pools["top"].group


def test_there_are_so_many_groups_and_no_more() -> None:
    dmem = Dmem({"vram": 1 << 20})
    top = dmem.root.make("top")
    for number in range(1, MAX_GROUPS):
        (top if number % 2 else dmem.root).make(f"g{number}")
    for parent in (top, dmem.root):
        with pytest.raises(TtmError) as caught:
            parent.make("more")
        assert caught.value.errno == errno.EAGAIN
    top.children["g1"].remove()
    dmem.root.make("more")
    assert not list(dmem.check({"vram": 0}))


def test_groups_nest_so_deep_and_no_deeper() -> None:
    dmem = Dmem({"vram": 1 << 20})
    group = dmem.root
    for _ in range(MAX_DEPTH):
        group = group.make("a")
    with pytest.raises(TtmError) as caught:
        group.make("a")
    assert caught.value.errno == errno.EAGAIN
    assert [each.name for each in dmem.root.walk()] == [
        "",
        *("/".join("a" * depth) for depth in range(1, MAX_DEPTH + 1)),
    ]
    group.pools["vram"].charge(5)
    assert not list(dmem.check({"vram": 5}))
