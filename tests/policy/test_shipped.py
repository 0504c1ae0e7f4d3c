"""The shipped policies: what each promises for any sequence of uses, and what each is, in small examples."""

import ast
import inspect
import textwrap
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.model_region import ModelRegion
from ttmfs.policy import PlainBO, Request
from ttmfs.policy.shipped import SHIPPED

PAGE = 4096
EVICT = sorted(SHIPPED["evict"])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("use"), st.integers(0, 11)),
        st.tuples(st.just("use"), st.integers(0, 11)),
        st.tuples(st.just("use"), st.integers(0, 11)),
        st.tuples(st.sampled_from(["pin", "unpin", "destroy", "move", "lock", "resize"]), st.integers(0, 11)),
    ),
    max_size=120,
)


def code_lines(cls: type) -> int:
    """Lines of a class that are code: no docstring, no comment, no empty line."""
    source = textwrap.dedent(inspect.getsource(cls))
    words = {line for node in ast.walk(ast.parse(source)) for line in _docstring_lines(node)}
    lines = enumerate(source.splitlines(), 1)
    return sum(1 for number, line in lines if number not in words and line.strip() and not line.strip().startswith("#"))


def _docstring_lines(node: ast.AST) -> range:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return range(node.lineno, (node.end_lineno or node.lineno) + 1)
    return range(0)


ALL = [(kind, name) for kind, table in SHIPPED.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_each_is_short_and_says_where_it_is_from(kind: Any, name: str) -> None:
    cls = SHIPPED[kind][name]
    assert code_lines(cls) <= 30
    assert name.startswith("no") or "Source: " in (cls.__doc__ or "")


class Exercise:
    """Twelve BOs of up to three pages, one of none, a region of ten, and whatever the sequence says."""

    def __init__(self, name: str) -> None:
        self.region = ModelRegion(10 * PAGE)
        self.region.install(name)
        self.bos = [self._new(number) for number in range(12)]

    @staticmethod
    def _new(number: int) -> PlainBO:
        size = PAGE * (1 + number % 3) if number else 0
        return PlainBO(f"b{number}", size, client=f"c{number % 4}", group=f"g{number % 2}")

    def do(self, action: str, number: int) -> None:
        region, bo = self.region, self.bos[number]
        if action == "use":
            fits = region.use(bo)
            free = region.region.size - sum(other.size for other in region.order if other.pinned)
            assert fits or region.locked or bo.size > free
        elif action in ("pin", "unpin"):
            bo._pinned = action == "pin"
        elif action == "lock":
            region.locked = {bo}
        elif action == "resize":
            # What a policy counts with is what it was when it came: it must not lose count.
            if region.held + PAGE <= region.region.size:
                bo._size += PAGE
        elif bo in region.order:
            region.leave(bo, "moved" if action == "move" else "destroyed")
            if action == "destroy":
                self.bos[number] = self._new(number)


@pytest.mark.parametrize("name", EVICT)
@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS)
def test_it_keeps_its_promises(name: str, actions: list[tuple[str, int]]) -> None:
    """Only residents are named, nobody is lost, nothing is raised."""
    exercise = Exercise(name)
    region = exercise.region
    for action, number in actions:
        exercise.do(action, number)
    assert not region.ejections, str(region.ejections[0])
    # Not one of them is lost: asked on and on, it comes to every one that may go.
    with region.adviser.ask(Request(1)) as answer:
        named = list(answer)
    assert len(named) == len(set(named))
    assert set(named) == {bo for bo in region.order if not bo.pinned}
    for bo in list(region.order):
        region.leave(bo, "destroyed")
    with region.adviser.ask(Request(1)) as answer:
        assert list(answer) == []
    assert not region.ejections


@pytest.mark.parametrize("name", EVICT)
@settings(max_examples=20, deadline=None)
@given(actions=ACTIONS)
def test_the_same_uses_lead_to_the_same_victims(name: str, actions: list[tuple[str, int]]) -> None:
    runs = []
    for _ in range(2):
        exercise = Exercise(name)
        for action, number in actions:
            exercise.do(action, number)
        runs.append(exercise.region.evicted)
    assert runs[0] == runs[1]


def test_the_hand_of_the_sieve_goes_on_when_all_ahead_of_it_are_destroyed() -> None:
    region = ModelRegion(3 * PAGE)
    region.install("sieve")
    a, b, c, d = (PlainBO(name, PAGE) for name in "abcd")
    for bo in (a, b, c, a):
        assert region.use(bo)
    # The hand passes a, which was used, and b goes.
    assert region.use(d)
    assert region.evicted == ["b"]
    for bo in (c, d):
        region.leave(bo, "destroyed")
    with region.adviser.ask(Request(1)) as answer:
        assert list(answer) == [a]
    assert not region.ejections


def test_arc_takes_back_a_bo_of_no_bytes() -> None:
    region = ModelRegion(3 * PAGE)
    region.install("arc")
    empty = PlainBO("empty", 0)
    assert region.use(empty)
    region.leave(empty, "evicted")
    assert region.use(empty)
    assert not region.ejections


def evictions(policy: str, uses: str, size: int = 3) -> str:
    """Who is evicted, in order, when BOs of one page are used: a letter each."""
    region = ModelRegion(size * PAGE)
    region.install(policy)
    bos = {name: PlainBO(name, PAGE, client=name if name.isupper() else "") for name in sorted(set(uses))}
    for name in uses:
        assert region.use(bos[name])
    assert not region.ejections
    return "".join(region.evicted)


@pytest.mark.parametrize(
    ("policy", "uses", "evicted"),
    [
        ("fifo", "abcaad", "a"),
        ("lru", "abcad", "b"),
        ("mru", "abcad", "a"),
        ("lfu", "aabbcd", "c"),
        # Of those used once the one that came first; what was used long ago counts less than its number says.
        ("gdsf", "aaabcdef", "bcd"),
        # a had one more turn for being used. The clock puts it behind c then, in the sieve it keeps its place.
        ("clock", "abcadef", "bca"),
        ("sieve", "abcadef", "bcd"),
        # b and c were used twice and stand above a, which was used last.
        ("slru segments=3", "abcbccad", "b"),
        # What is used once (c, d, …) does not push out what was used twice.
        ("arc", "abab" + "cdef", "cde"),
        ("lirs hir=0.33", "abab" + "cdef", "cde"),
        # Of the three the small letters' client holds two.
        ("quota", "AabB", "a"),
    ],
)
def test_what_it_is(policy: str, uses: str, evicted: str) -> None:
    assert evictions(policy, uses) == evicted


def test_random_draws_by_its_seed() -> None:
    uses = "abcdefghij" * 20
    drawn = {seed: evictions(f"random seed={seed}", uses) for seed in (1, 1, 2)}
    assert evictions("random seed=1", uses) == drawn[1] != drawn[2]
    assert set(drawn[1]) == set("abcdefghij")


def test_clock_has_as_many_turns_as_it_was_used() -> None:
    assert evictions("clock bits=2", "aaaabcdefgh", 2) == "bcdaef"


def test_s3fifo_filters_what_is_used_once() -> None:
    # The small queue holds three of ten. a and b are used in it and go into the main one when room is needed, so that
    # it is over its part then: d and e go. After that k, l and m pass through the small queue without harm.
    assert evictions("s3fifo small=0.3", "ababab" + "cdefghij" + "klmno", 10) == "cdekl"


def test_quota_by_group_with_a_share() -> None:
    region = ModelRegion(10 * PAGE)
    region.install("quota by=group share=0.5")
    ours = [PlainBO(f"o{number}", PAGE, group="ours") for number in range(5)]
    theirs = [PlainBO(f"t{number}", PAGE, group="theirs") for number in range(20)]
    for bo in [*ours, *theirs]:
        assert region.use(bo)
    # Five of ten are within the share; the others go for each other from the sixth on.
    assert all(bo in region.order for bo in ours)
    assert region.evicted == [f"t{number}" for number in range(15)]
