"""Prefetch: what the shipped ones bring in, and what is made of any answer."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttmfs.policy import BO, PlainBO, Prefetch
from ttmfs.policy.deadline import run_unwatched
from ttmfs.policy.parameters import Spec, parse_spec
from ttmfs.policy.prefetch import PrefetchAdviser
from ttmfs.policy.registry import Prepared, entry_of, prepare
from ttmfs.policy.seat import Ejection
from ttmfs.policy.shipped import SHIPPED

PAGE = 4096


def adviser(words: str | type, ejections: list[Ejection] | None = None) -> PrefetchAdviser:
    found = PrefetchAdviser((ejections if ejections is not None else []).append, run_unwatched)
    if isinstance(words, str):
        found.install(prepare(parse_spec("prefetch", words.split())))
    else:
        found.install(Prepared(Spec("prefetch", "x"), entry_of("prefetch", "x", words)))
    return found


def bo(pages: int = 4096) -> PlainBO:
    return PlainBO("a", pages * PAGE)


def asked(words: str, faults: list[tuple[int, int]], pages: int = 4096) -> list[tuple[int, int]]:
    found, one = adviser(words), bo(pages)
    return [found.fault(one, first, count, "fault") for first, count in faults]


def test_none() -> None:
    assert asked("none", [(7, 3)]) == [(7, 3)]


def test_window() -> None:
    assert asked("window", [(17, 1), (15, 2), (4095, 1)]) == [(16, 16), (0, 32), (4080, 16)]
    assert asked("window pages=64", [(70, 1)], pages=100) == [(64, 36)]


def test_sequential_doubles_and_starts_over() -> None:
    faults = [(0, 4), (8, 4), (20, 4), (100, 4), (104, 4)]
    assert asked("sequential", faults) == [(0, 8), (8, 12), (20, 20), (100, 4), (104, 8)]
    assert asked("sequential most=8", [(0, 8), (16, 8)]) == [(0, 16), (16, 16)]


def test_stride_brings_in_the_next_step_and_nothing_between() -> None:
    assert asked("stride", [(0, 1), (64, 1), (128, 1), (256, 1), (320, 1), (448, 1)]) == [
        (0, 1),
        (64, 1),
        (192, 1),
        (320, 1),
        (320, 1),
        (448, 1),
    ]


def test_tree_takes_a_subtree_that_is_more_than_half_there() -> None:
    leaf = 16
    faults = [(0, 1), (leaf, 1), (2 * leaf, 1), (4 * leaf, 1), (31 * leaf, 1)]
    assert asked("tree", faults) == [
        (0, leaf),
        (0, 2 * leaf),
        (0, 4 * leaf),
        # Five of eight, but eight of sixteen are not more than half.
        (0, 8 * leaf),
        (31 * leaf, leaf),
    ]
    # A fault over the border of two blocks grows on both sides of it.
    assert asked("tree", [(30 * leaf, 4 * leaf)]) == [(30 * leaf, 4 * leaf)]
    assert asked("tree", [(0, 17 * leaf)], pages=300) == [(0, 300)]


def test_tree_forgets_what_has_left() -> None:
    found, one = adviser("tree"), bo()
    found.fault(one, 0, 48, "svm")
    found.removed(one, 16, 32)
    # Of the first four leaves it has the first and the last.
    assert found.fault(one, 16, 1, "svm") == (0, 64)
    found.removed(one, 0, 4096)
    assert found.fault(one, 32, 1, "svm") == (32, 16)


def test_a_sparse_bo_of_any_size_may_be_cut() -> None:
    found, one = adviser("tree"), bo(1 << 50)
    for page in (0, 512, 1 << 40):
        found.fault(one, page, 16 * 17, "fault")
    found.removed(one, 513, 1 << 50)
    assert found.fault(one, 0, 1, "fault") == (0, 512)
    assert found.fault(one, 512, 1, "fault") == (512, 16)
    assert found.fault(one, 1 << 40, 1, "fault") == (1 << 40, 16)


@pytest.mark.parametrize("name", sorted(SHIPPED["prefetch"]))
@settings(max_examples=60, deadline=None)
@given(
    pages=st.integers(1, 2000),
    faults=st.lists(st.tuples(st.integers(0, 1999), st.integers(1, 300), st.booleans()), max_size=40),
)
def test_it_keeps_within_the_bo(name: str, pages: int, faults: list[tuple[int, int, bool]]) -> None:
    ejections: list[Ejection] = []
    found, one = adviser(name, ejections), bo(pages)
    for first, count, gone in faults:
        if first >= pages:
            continue
        wanted, number = found.fault(one, first, min(count, pages - first), "fault")
        assert 0 <= wanted < wanted + number <= pages
        if gone:
            found.removed(one, wanted, number)
    assert not ejections


def answering(answer: Callable[[], Any]) -> type:
    class Answers(Prefetch):
        def fault(self, bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
            return answer()  # type: ignore[no-any-return]

    return Answers


@pytest.mark.parametrize(("answer", "got"), [((-5, 10), (0, 5)), ((90, 50), (90, 10)), ((0, 1 << 70), (0, 100))])
def test_an_answer_is_clipped(answer: tuple[int, int], got: tuple[int, int]) -> None:
    found = adviser(answering(lambda: answer))
    assert found.fault(bo(100), 7, 1, "fault") == got
    assert found.as_dict()["taken"] == 1


@pytest.mark.parametrize("answer", [(200, 5), (5, 0), (5, -3)])
def test_an_answer_outside_of_the_bo_is_passed_over(answer: tuple[int, int]) -> None:
    found = adviser(answering(lambda: answer))
    assert found.fault(bo(100), 7, 1, "fault") == (7, 1)
    assert (found.as_dict()["rejected"], found.name) == (1, "x")


@pytest.mark.parametrize("answer", [lambda: None, lambda: (1, 2, 3), lambda: [1, 2], lambda: (1, True), lambda: 1 // 0])
def test_no_answer_ejects(answer: Callable[[], Any]) -> None:
    ejections: list[Ejection] = []
    found = adviser(answering(answer), ejections)
    assert found.fault(bo(100), 7, 1, "fault") == (7, 1)
    assert found.name == "none"
    assert str(ejections[0]).startswith("prefetch policy x is ejected: raised ")
    assert str(ejections[0]).endswith("; none is back")
    found.retire()
    assert found.as_dict()["ejected"] == 1
