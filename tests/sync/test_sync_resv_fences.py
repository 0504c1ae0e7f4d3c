"""The fence table of a reservation: slots, usages, replacement, waits."""

import errno
import gc
import weakref
from collections.abc import Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from ttmfs.errors import TtmError
from ttmfs.observe.inject import should_fail
from ttmfs.sync.containers import FenceArray, FenceChain
from ttmfs.sync.fence import Fence, Timeline
from ttmfs.sync.resv import Reservation, Usage
from ttmfs.sync.ww_mutex import WwClass

KERNEL, WRITE, READ, BOOKKEEP = Usage


def held(slots: int = 0, ww: WwClass | None = None) -> Reservation:
    resv = Reservation(ww or WwClass())
    resv.trylock()
    if slots:
        resv.reserve_fences(slots)
    return resv


def test_slots_grow_as_the_kernels() -> None:
    resv = held()
    assert resv.num_slots == 0
    with pytest.raises(TtmError) as info:
        resv.reserve_fences(0)
    assert info.value.errno == errno.EINVAL
    resv.reserve_fences(1)
    assert resv.num_slots == 4
    for context in range(1, 5):
        resv.add_fence(Fence(context, 1), READ)
    with pytest.raises(AssertionError):
        resv.add_fence(Fence(9, 1), READ)
    resv.reserve_fences(1)
    assert resv.num_slots == 8
    resv.reserve_fences(4)
    assert resv.num_slots == 8
    resv.reserve_fences(20)
    assert resv.num_slots == 24
    resv = held(9)
    assert resv.num_slots == 9


def test_a_failed_reserve_changes_nothing() -> None:
    ww = WwClass()
    resv = held(2, ww)
    ww.fail_fence_slot = lambda: True
    with pytest.raises(TtmError) as info:
        resv.reserve_fences(1)
    assert info.value.errno == errno.ENOMEM
    src = held(1)
    src.add_fence(Fence(1, 1), READ)
    with pytest.raises(TtmError) as info:
        resv.copy_fences(src)
    assert info.value.errno == errno.ENOMEM
    assert resv.num_slots == 4
    assert resv.test_signaled(BOOKKEEP)
    ww.fail_fence_slot = None
    resv.reserve_fences(1)


def test_should_fail_takes_true_and_exceptions_for_failure() -> None:
    def out_of_memory() -> bool:
        raise MemoryError

    def enomem() -> bool:
        raise TtmError(errno.ENOMEM, "no")

    assert [should_fail(h) for h in (None, lambda: False, lambda: True, out_of_memory, enomem)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_the_table_needs_the_lock() -> None:
    resv = held(4)
    resv.unlock()
    changes: tuple[Callable[[], None], ...] = (
        lambda: resv.reserve_fences(1),
        lambda: resv.add_fence(Fence(1, 1), READ),
        lambda: resv.replace_fences(1, Fence(1, 1), READ),
        lambda: resv.copy_fences(Reservation()),
    )
    for change in changes:
        with pytest.raises(AssertionError):
            change()


def test_usage_selects_itself_and_the_stronger() -> None:
    resv = held(4)
    fences = {usage: Fence(10 + usage, 1) for usage in Usage}
    for usage, fence in fences.items():
        resv.add_fence(fence, usage)
    for usage in Usage:
        expected = [fences[u] for u in Usage if u <= usage]
        assert list(resv.fences(usage)) == expected
        assert resv.get_fences(usage) == expected
    assert not resv.test_signaled(KERNEL)
    fences[KERNEL].signal()
    assert resv.test_signaled(KERNEL)
    assert not resv.test_signaled(WRITE)


@pytest.mark.parametrize("old_usage", Usage)
@pytest.mark.parametrize("new_usage", Usage)
@pytest.mark.parametrize("step", [-1, 0, 1])
def test_add_replaces_by_context_seqno_and_usage(old_usage: Usage, new_usage: Usage, step: int) -> None:
    resv = held(4)
    old, new = Fence(5, 10), Fence(5, 10 + step)
    resv.add_fence(old, old_usage)
    resv.add_fence(new, new_usage)
    expected = [new] if step >= 0 and old_usage >= new_usage else [old, new]
    assert list(resv.fences(BOOKKEEP)) == expected
    assert (new in list(resv.fences(new_usage))) is True


def test_context_zero_is_never_replaced() -> None:
    resv = held(4)
    resv.add_fence(Fence(0, 1), READ)
    resv.add_fence(Fence(0, 2), READ)
    assert len(resv.get_fences(READ)) == 2
    with pytest.raises(AssertionError):
        resv.replace_fences(0, Fence(1, 1), READ)


def test_a_replacement_needs_no_slot_and_neither_does_the_place_of_a_signaled_fence() -> None:
    resv = held(4)
    fences = [Fence(context, 1) for context in range(1, 5)]
    for fence in fences:
        resv.add_fence(fence, READ)
    resv.add_fence(Fence(4, 2), READ)
    fences[0].signal()
    resv.add_fence(Fence(9, 1), READ)
    with pytest.raises(AssertionError):
        resv.add_fence(Fence(10, 1), READ)
    assert resv.num_slots == 4


def test_containers_are_refused() -> None:
    resv = held(4)
    plain = Fence(1, 1)
    for container in (FenceArray([plain]), FenceChain(None, plain, 1)):
        with pytest.raises(AssertionError):
            resv.add_fence(container, READ)
        with pytest.raises(AssertionError):
            resv.replace_fences(1, container, READ)
    assert resv.get_fences(BOOKKEEP) == []


def test_iteration_survives_changes_and_shows_signaled_fences_only_when_held() -> None:
    resv = held(4)
    fences = [Fence(context, 1) for context in range(1, 4)]
    for fence in fences:
        resv.add_fence(fence, READ)
    walk = resv.fences(READ)
    assert next(walk) is fences[0]
    resv.add_fence(Fence(9, 1), READ)
    fences[1].signal()
    resv.test_signaled(READ)
    assert list(walk) == fences[1:]
    late = Fence(10, 1)
    resv.add_fence(late, READ)
    late.signal()
    assert late in list(resv.fences(READ))
    resv.unlock()
    assert late not in list(resv.fences(READ))


def test_get_singleton() -> None:
    resv = held(4)
    assert resv.get_singleton(BOOKKEEP) is None
    a, b = Fence(1, 1), Fence(2, 1)
    resv.add_fence(a, WRITE)
    resv.add_fence(b, READ)
    assert resv.get_singleton(WRITE) is a
    both = resv.get_singleton(READ)
    assert isinstance(both, FenceArray)
    assert both.fences == (a, b)
    a.signal()
    assert resv.get_singleton(READ) is b
    b.signal()
    assert resv.get_singleton(READ) is None


def test_replace_fences() -> None:
    resv = held(4)
    a, b, c = Fence(1, 1), Fence(1, 2), Fence(2, 1)
    resv.add_fence(a, WRITE)
    resv.add_fence(c, WRITE)
    resv.add_fence(b, READ)
    new = Fence(3, 1)
    resv.replace_fences(7, new, READ)
    assert resv.get_fences(BOOKKEEP) == [a, c, b]
    resv.replace_fences(1, new, BOOKKEEP)
    assert resv.get_fences(BOOKKEEP) == [new, c]
    assert resv.get_fences(READ) == [c]


def test_copy_fences_takes_the_pending_ones_and_keeps_its_own() -> None:
    src, dst = held(4), held(4)
    pending, done, own = Fence(1, 1), Fence(2, 1), Fence(3, 1)
    src.add_fence(pending, WRITE)
    src.add_fence(done, READ)
    done.signal()
    dst.add_fence(own, BOOKKEEP)
    dst.copy_fences(src)
    assert dst.get_fences(BOOKKEEP) == [own, pending]
    assert dst.get_fences(WRITE) == [pending]
    assert src.get_fences(BOOKKEEP) == [pending]
    dst.copy_fences(dst)
    assert len(dst.get_fences(BOOKKEEP)) == 2
    fresh = Reservation()
    fresh.trylock()
    fresh.copy_fences(dst)
    assert len(fresh.get_fences(BOOKKEEP)) == 2


@pytest.mark.parametrize("look", ["test", "reserve", "add", "get"])
def test_signaled_fences_are_let_go(look: str) -> None:
    resv = held(4)
    timeline = Timeline("t")
    fence = timeline.next_fence()
    resv.add_fence(fence, READ)
    fence.signal()
    gone = weakref.ref(fence)
    del fence
    gc.collect()
    assert gone() is not None
    if look == "test":
        assert resv.test_signaled(KERNEL)
        assert resv._fences is None
    elif look == "reserve":
        resv.reserve_fences(1)
    elif look == "add":
        resv.add_fence(Fence(99, 1), READ)
    else:
        resv.get_fences(KERNEL)
    gc.collect()
    assert gone() is None


async def test_wait(autojump_clock: MockClock) -> None:
    resv = held(4)
    write, read = Fence(1, 1), Fence(2, 1)
    resv.add_fence(write, WRITE)
    resv.add_fence(read, READ)
    resv.unlock()
    assert await resv.wait(KERNEL)
    assert not await resv.wait(WRITE, 0)
    start = trio.current_time()
    assert not await resv.wait(READ, 3)
    assert trio.current_time() - start == pytest.approx(3)
    done: list[str] = []

    async def waiter(name: str, usage: Usage, timeout: float | None) -> None:
        assert await resv.wait(usage, timeout)
        done.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter, "write", WRITE, None)
        nursery.start_soon(waiter, "read", READ, 100)
        await wait_all_tasks_blocked()
        resv.trylock()
        later = Fence(3, 1)
        resv.add_fence(later, READ)
        resv.unlock()
        write.signal(errno.EIO)
        await wait_all_tasks_blocked()
        assert done == ["write"]
        read.signal()
        await wait_all_tasks_blocked()
        assert done == ["write"]
        later.signal()
    assert done == ["write", "read"]
    assert await resv.wait(BOOKKEEP, 0)


async def test_the_timeout_of_a_wait_is_for_all_fences_together(autojump_clock: MockClock) -> None:
    resv = held(4)
    fences = [Fence(context, 1) for context in range(1, 5)]
    for fence in fences:
        resv.add_fence(fence, READ)

    async def signal_all() -> None:
        for fence in fences:
            await trio.sleep(1)
            fence.signal()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(signal_all)
        assert not await resv.wait(READ, 2.5)
        assert await resv.wait(READ, 2.5)


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "signal", "reserve", "test"]), st.integers(0, 4), st.integers(0, 3)
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_no_pending_use_is_ever_forgotten(steps: list[Step]) -> None:
    """Whatever is added is waited for: by itself, or by a later one of its context with as strong a usage."""
    resv = held(1)
    timelines = [Timeline(str(n)) for n in range(4)]
    added: list[tuple[Fence, Usage]] = []
    for what, which, usage in steps:
        if what == "add":
            resv.reserve_fences(1)
            fence = Fence(0, 1) if which == 4 else timelines[which].next_fence()
            added.append((fence, Usage(usage)))
            resv.add_fence(fence, Usage(usage))
        elif what == "signal" and which < 4 and timelines[which].pending:
            timelines[which].pending[0].signal()
        elif what == "reserve":
            resv.reserve_fences(usage + 1)
            assert resv.num_slots >= len(resv.get_fences(BOOKKEEP)) + usage + 1
        for asked in Usage:
            current = resv.get_fences(asked)
            assert resv.test_signaled(asked) == (not current)
            assert all(not fence.signaled for fence in current)
            for fence, fence_usage in added:
                if not fence.signaled and fence_usage <= asked:
                    assert any(
                        f is fence or (fence.context and f.context == fence.context and f.seqno >= fence.seqno)
                        for f in current
                    )
