"""Promotion: who comes home, within which budget, and what is made of any answer."""

from collections.abc import Collection, Iterable

import pytest

from ttmfs.policy import BO, PlainBO, Promote
from ttmfs.policy.deadline import run_unwatched
from ttmfs.policy.parameters import Spec, parse_spec
from ttmfs.policy.promote import PromoteAdviser
from ttmfs.policy.registry import Prepared, entry_of, prepare
from ttmfs.policy.seat import Ejection

MIB = 1 << 20


def adviser(words: str | type, ejections: list[Ejection] | None = None) -> PromoteAdviser:
    found = PromoteAdviser((ejections if ejections is not None else []).append, run_unwatched)
    if isinstance(words, str):
        found.install(prepare(parse_spec("promote", words.split())))
    else:
        found.install(Prepared(Spec("promote", "x"), entry_of("promote", "x", words)))
    return found


def displaced(found: PromoteAdviser, *sizes: int) -> list[PlainBO]:
    bos = []
    for number, size in enumerate(sizes):
        one = PlainBO(f"b{number}", size, region="gtt")
        one._last_use = number
        bos.append(one)
        found.displaced(one, "vram")
    return bos


def test_none_leaves_all_where_they_are() -> None:
    found = adviser("none")
    bos = displaced(found, MIB)
    assert found.tick(0.0) == found.tick(9.0) == found.submitted(bos, 9.0) == []
    assert list(found.displaced_bos) == bos


def test_the_last_used_first_as_far_as_the_rate_has_saved() -> None:
    found = adviser("moverate rate=4M")
    bos = displaced(found, 2 * MIB, 2 * MIB, MIB)
    assert found.tick(0.0) == []
    assert found.tick(0.75) == [(bos[2], "vram"), (bos[1], "vram")]
    for one in (bos[2], bos[1]):
        found.spent(one.size)
        found.settled(one)
    assert found.tick(0.75) == []
    # No more than one second is saved.
    assert found.tick(99.0) == [(bos[0], "vram")]
    assert found.as_dict()["taken"] == 2


def test_what_a_job_uses_comes_home_at_once() -> None:
    found = adviser("moverate rate=4M")
    bos = displaced(found, MIB, MIB, MIB)
    assert found.submitted(bos[:1], 0.0) == []
    assert found.submitted([*bos[:1], PlainBO("other", MIB)], 1.0) == [(bos[0], "vram")]


def test_what_is_larger_than_a_second_s_bytes_comes_home_when_a_second_is_saved() -> None:
    found = adviser("moverate rate=1M")
    (large,) = displaced(found, 64 * MIB)
    assert found.tick(0.0) == found.tick(0.9) == []
    assert found.tick(1.0) == [(large, "vram")]
    found.spent(large.size)
    # That has to be saved again before the next one.
    assert found.tick(60.0) == []
    assert found.tick(70.0) == [(large, "vram")]


def test_no_rate_is_no_limit() -> None:
    found = adviser("moverate rate=0")
    bos = displaced(found, 1 << 40, 1 << 40)
    assert found.tick(0.0) == [(bos[1], "vram"), (bos[0], "vram")]


def test_a_new_policy_is_told_who_is_displaced() -> None:
    found = adviser("none")
    (one,) = displaced(found, MIB)
    found.install(prepare(parse_spec("promote", ["moverate", "rate=0"])))
    assert found.tick(0.0) == [(one, "vram")]
    found.settled(one)
    assert found.tick(0.0) == []


def test_lies_are_passed_over() -> None:
    class Liar(Promote):
        def tick(self, budget: int) -> Iterable[tuple[BO, str]]:
            return [(PlainBO("x", 1), "vram"), (bos[0], "gtt"), (bos[1], "vram"), (bos[1], "vram"), (bos[2], "vram")]

    found = adviser(Liar)
    bos = displaced(found, MIB, MIB, MIB)
    bos[2]._pinned = True
    assert found.tick(0.0) == [(bos[1], "vram")]
    assert found.as_dict()["rejected"] == 4


def test_what_raises_is_ejected() -> None:
    class Raises(Promote):
        def submitted(self, bos: Collection[BO]) -> Iterable[tuple[BO, str]]:
            raise KeyError(1)

    ejections: list[Ejection] = []
    found = adviser(Raises, ejections)
    bos = displaced(found, MIB)
    assert found.submitted(bos, 0.0) == []
    assert str(ejections[0]).startswith("promote policy x is ejected: raised KeyError: 1 at ")
    assert found.name == "none"
    assert found.submitted(bos, 1.0) == []


def test_a_rate_that_is_no_number_is_refused() -> None:
    class Odd(Promote):
        rate = "fast"  # type: ignore[assignment]

    with pytest.raises(OSError, match="rate must be a whole number"):
        adviser(Odd)
