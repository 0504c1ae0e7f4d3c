"""Arrays, chains, unwrap and merge; nothing is kept alive, nothing recurses."""

import errno
import gc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttmfs.errors import TtmError
from ttmfs.sync.containers import FenceArray, FenceChain, merge, unwrap
from ttmfs.sync.fence import Fence, Timeline, get_stub


def make(number: int) -> list[Fence]:
    return [Timeline("t").next_fence() for _ in range(number)]


def test_an_array_is_signaled_when_all_are_and_the_first_error_wins() -> None:
    a, b, c = make(3)
    array = FenceArray([a, b, c, a])
    assert array.fences == (a, b, c)
    b.signal(errno.EIO)
    a.signal(errno.ENOMEM)
    assert not array.signaled
    c.signal()
    assert (array.signaled, array.error) == (True, errno.EIO)
    assert array.context not in (a.context, b.context, c.context)


def test_an_array_of_any_is_signaled_by_the_first_and_lets_go_of_the_others() -> None:
    a, b = make(2)
    array = FenceArray([a, b], any=True)
    b.signal(errno.EIO)
    assert (array.signaled, array.error) == (True, errno.EIO)
    assert a._callbacks is None
    a.signal(errno.ENOMEM)
    assert array.error == errno.EIO


def test_an_array_of_signaled_fences_is_signaled() -> None:
    a, b = make(2)
    a.signal(errno.EIO)
    b.signal()
    assert FenceArray([a, b]).error == errno.EIO
    assert FenceArray([a, b]).signaled
    c, d = make(2)
    c.signal()
    assert FenceArray([d, c], any=True).signaled
    assert d._callbacks is None
    with pytest.raises(AssertionError):
        FenceArray([])


def test_a_link_waits_for_all_earlier_ones() -> None:
    fences = make(3)
    link: FenceChain | None = None
    links = []
    for seqno, fence in enumerate(fences, 1):
        link = FenceChain(link, fence, seqno)
        links.append(link)
    assert len({link.context for link in links}) == 1
    fences[2].signal()
    fences[1].signal(errno.EIO)
    assert [link.signaled for link in links] == [False, False, False]
    fences[0].signal()
    assert [link.signaled for link in links] == [True, True, True]
    assert [link.error for link in links] == [0, errno.EIO, errno.EIO]
    assert links[2].prev is None


def test_a_chain_may_begin_behind_a_plain_fence() -> None:
    a, b = make(2)
    link = FenceChain(a, b, 5)
    b.signal()
    assert not link.signaled
    a.signal()
    assert link.signaled
    assert FenceChain(a, b, 1).signaled
    c = make(1)[0]
    behind = FenceChain(c, a, 1)
    assert not behind.signaled
    c.signal()
    assert behind.signaled


def test_find_seqno() -> None:
    fences = make(3)
    first = FenceChain(None, fences[0], 2)
    second = FenceChain(first, fences[1], 5)
    third = FenceChain(second, fences[2], 6)
    assert third.find_seqno(0) is third
    assert [third.find_seqno(n) for n in range(1, 7)] == [first, first, second, second, second, third]
    for beyond in (7, -1):
        with pytest.raises(TtmError) as info:
            third.find_seqno(beyond)
        assert info.value.errno == errno.EINVAL
    fences[0].signal()
    assert third.find_seqno(1) is get_stub()
    assert third.find_seqno(3) is second


def test_a_seqno_that_does_not_increase_starts_a_new_context() -> None:
    fences = make(3)
    first = FenceChain(None, fences[0], 5)
    same = FenceChain(first, fences[1], 5)
    assert same.context != first.context
    assert (same.seqno, same.prev_seqno) == (5, 0)
    back = FenceChain(first, fences[2], 3)
    assert back.context != first.context
    assert back.seqno == 5
    assert same.find_seqno(1) is same
    with pytest.raises(AssertionError):
        FenceChain(None, first, 6)


@pytest.mark.parametrize("oldest_last", [True, False])
def test_ten_thousand_links_do_not_recurse(oldest_last: bool) -> None:
    fences = make(10_000)
    link: FenceChain | None = None
    for seqno, fence in enumerate(fences, 1):
        link = FenceChain(link, fence, seqno)
    assert link is not None
    assert sum(1 for _ in unwrap(link)) == 10_000
    for fence in reversed(fences) if oldest_last else fences:
        assert not link.signaled
        fence.signal()
    assert link.signaled


def test_a_container_made_inside_a_callback_of_a_container_is_complete_at_once() -> None:
    a, b = make(2)
    made: list[bool] = []
    array = FenceArray([a, b])
    array.add_callback(lambda f: made.append(FenceArray([a, f]).signaled and FenceChain(a, b, 1).signaled))
    a.signal()
    b.signal()
    assert made == [True]


def test_a_failing_callback_of_a_container_comes_out_and_the_next_container_still_signals() -> None:
    a, b = make(2)
    one, two = FenceArray([a, b]), FenceArray([a, b])

    def bad(_: Fence) -> None:
        raise ValueError("bad")

    one.add_callback(bad)
    a.signal()
    with pytest.raises(ValueError, match="bad"):
        b.signal()
    assert one.signaled
    assert two.signaled


def test_unwrap_takes_everything_apart() -> None:
    a, b, c, d = make(4)
    chain = FenceChain(FenceChain(None, a, 1), FenceArray([b, c]), 2)
    assert list(unwrap(chain)) == [b, c, a]
    assert list(unwrap(FenceArray([d, chain]))) == [d, b, c, a]
    assert list(unwrap(d)) == [d]
    assert list(unwrap(None)) == []


def test_merge() -> None:
    one, two = Timeline("one"), Timeline("two")
    a1, a2, b1 = one.next_fence(), one.next_fence(), two.next_fence()
    assert merge() is get_stub()
    assert merge(None, a1) is a1
    assert merge(a2, a1, a2) is a2
    merged = merge(b1, FenceArray([a1, b1]), a2)
    assert isinstance(merged, FenceArray)
    assert merged.fences == (a2, b1)
    u, v = Fence(0, 2), Fence(0, 1)
    unordered = merge(b1, u, v, u)
    assert isinstance(unordered, FenceArray)
    assert unordered.fences == (u, v, b1)
    a1.signal(errno.EIO)
    assert merge(a1, b1) is b1
    assert merge(a1) is get_stub()


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.booleans()), max_size=20))
def test_merge_against_a_model(rows: list[tuple[int, int, bool]]) -> None:
    fences = [Fence(context, seqno) for context, seqno, _ in rows]
    for fence, (_, _, done) in zip(fences, rows, strict=True):
        if done:
            fence.signal()
    pending = [fence for fence in fences if not fence.signaled]
    newest = {c: max(f.seqno for f in pending if f.context == c) for c in {f.context for f in pending} - {0}}
    expected = [(0, f.seqno) for f in pending if f.context == 0] + sorted(newest.items())
    left = [f for f in unwrap(merge(*fences)) if f is not get_stub()]
    assert [(f.context, f.seqno) for f in left] == expected


def test_nothing_is_kept_alive_once_all_is_signaled() -> None:
    parts = make(4)
    array = FenceArray(parts)
    early = FenceArray(parts, any=True)
    chain = FenceChain(FenceChain(array, parts[0], 1), parts[1], 2)
    last = merge(chain, early)
    assert isinstance(last, FenceArray)
    refs = [weakref.ref(x) for x in (array, early, chain, last)]
    part_refs = [weakref.ref(part) for part in parts]
    for part in parts:
        part.signal()
    assert all(x.signaled for x in (array, early, chain, last))
    gc.disable()
    try:
        # Without the collector: no cycles may be left either.
        del array, early, chain, last
        assert [ref() for ref in refs] == [None] * 4
        del parts, part
        assert [ref() for ref in part_refs] == [None] * 4
    finally:
        gc.enable()
