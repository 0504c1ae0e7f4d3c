"""Fences and timelines: once, in order, callbacks, waits that leave no trace."""

import errno
import gc
import weakref

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ttmfs.sync.fence import Fence, FenceCounters, Timeline, context_alloc, get_stub


def test_a_fence_signals_once_and_keeps_its_first_error() -> None:
    fence = Fence(7, 3, "copy")
    assert (fence.name, fence.signaled, fence.error) == ("7:3", False, 0)
    assert fence.signal(errno.EIO)
    assert not fence.signal(errno.ENOMEM)
    assert (fence.signaled, fence.error) == (True, errno.EIO)


def test_set_error_only_before_the_signal() -> None:
    fence = Fence(7, 3)
    fence.set_error(errno.EIO)
    with pytest.raises(AssertionError):
        fence.set_error(-errno.EIO)
    assert not fence.signaled
    fence.signal()
    assert fence.error == errno.EIO
    with pytest.raises(AssertionError):
        fence.set_error(errno.ENOMEM)
    assert fence.error == errno.EIO


def test_callbacks_run_in_order_of_registration_and_never_on_a_signaled_fence() -> None:
    fence = Fence(1, 1)
    ran: list[int] = []
    callbacks = [lambda f, i=i: ran.append(i) for i in range(5)]
    assert all(fence.add_callback(callback) for callback in callbacks)
    assert fence.remove_callback(callbacks[2])
    assert not fence.remove_callback(callbacks[2])
    fence.signal()
    assert ran == [0, 1, 3, 4]
    assert not fence.add_callback(callbacks[2])
    assert not fence.remove_callback(callbacks[0])
    assert ran == [0, 1, 3, 4]


def test_a_callback_can_take_back_a_later_one() -> None:
    fence = Fence(1, 1)
    ran: list[str] = []

    def second(_: Fence) -> None:
        ran.append("second")

    def first(_: Fence) -> None:
        ran.append("first")
        assert fence.remove_callback(second)

    fence.add_callback(first)
    fence.add_callback(second)
    fence.signal()
    assert ran == ["first"]


def test_a_callback_queued_twice_is_a_mistake() -> None:
    fence = Fence(1, 1)
    ran: list[Fence] = []
    callback = ran.append
    fence.add_callback(callback)
    with pytest.raises(AssertionError):
        fence.add_callback(callback)


def test_a_callback_that_raises_keeps_nobody_from_running() -> None:
    ran: list[Fence] = []

    def bad(_: Fence) -> None:
        raise ValueError("bad")

    def worse(_: Fence) -> None:
        raise KeyError("worse")

    one = Fence(1, 1)
    one.add_callback(bad)
    one.add_callback(ran.append)
    with pytest.raises(ValueError, match="bad"):
        one.signal()
    two = Fence(1, 2)
    two.add_callback(bad)
    two.add_callback(worse)
    two.add_callback(ran.append)
    with pytest.raises(ExceptionGroup):
        two.signal()
    assert ran == [one, two]
    assert one.signaled
    assert two.signaled


def test_is_later_needs_one_context() -> None:
    assert Fence(1, 2).is_later(Fence(1, 1))
    assert not Fence(1, 1).is_later(Fence(1, 1))
    assert not Fence(0, 2).is_later(Fence(0, 1))
    with pytest.raises(AssertionError):
        Fence(1, 2).is_later(Fence(2, 1))


def test_contexts_increase() -> None:
    first = context_alloc()
    second = Timeline("x").context
    assert 0 < first < second


def test_a_timeline_signals_in_order() -> None:
    counters = FenceCounters()
    timeline = Timeline("copy0", counters)
    fences = [timeline.next_fence() for _ in range(3)]
    assert [fence.seqno for fence in fences] == [1, 2, 3]
    assert (counters.emitted, counters.signaled, counters.pending) == (3, 0, 3)
    with pytest.raises(AssertionError):
        fences[1].signal(errno.EIO)
    assert (fences[1].signaled, fences[1].error, timeline.last_signaled) == (False, 0, 0)
    assert counters.pending == 3
    assert fences[0].signal()
    assert timeline.find(1) is None
    assert timeline.find(2) is fences[1]
    assert timeline.find(4) is None
    assert fences[1].signal()
    assert fences[2].signal()
    assert not fences[2].signal()
    assert (timeline.last_emitted, timeline.last_signaled) == (3, 3)
    assert (counters.emitted, counters.signaled, counters.pending) == (3, 3, 0)
    assert not timeline.pending


def test_a_signaled_fence_keeps_nothing_alive() -> None:
    timeline = Timeline("copy0")
    older = timeline.next_fence("older")
    newer = timeline.next_fence("newer", deps=[older])
    assert list(newer.deps) == [older]
    older.signal()
    newer.signal()
    gone = weakref.ref(older)
    del older
    gc.collect()
    assert gone() is None
    assert timeline.last_signaled == 2


def test_the_stub_is_signaled() -> None:
    assert get_stub().signaled
    assert get_stub() is get_stub()
    assert get_stub().error == 0


async def test_wait_returns_at_the_signal_or_at_the_timeout(autojump_clock: MockClock) -> None:
    fence = Fence(1, 1)
    assert not await fence.wait(0)
    start = trio.current_time()
    assert not await fence.wait(2.5)
    assert trio.current_time() - start == pytest.approx(2.5)
    assert fence._callbacks is None

    async with trio.open_nursery() as nursery:
        woken: list[int] = []

        async def waiter(number: int, timeout: float | None) -> None:
            assert await fence.wait(timeout)
            woken.append(number)

        nursery.start_soon(waiter, 1, None)
        nursery.start_soon(waiter, 2, 60)
        await wait_all_tasks_blocked()
        fence.signal(errno.EIO)
        assert not woken
    assert sorted(woken) == [1, 2]
    assert await fence.wait(0)
    assert await fence.wait()


def test_a_wait_on_a_signaled_fence_has_no_checkpoint() -> None:
    with pytest.raises(StopIteration):
        get_stub().wait().send(None)


async def test_a_cancelled_wait_leaves_no_trace_and_takes_no_wakeup_along() -> None:
    fence = Fence(1, 1)
    scope = trio.CancelScope()
    woken: list[str] = []

    async def doomed() -> None:
        with scope:
            await fence.wait()
            woken.append("doomed")

    async def patient() -> None:
        await fence.wait()
        woken.append("patient")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(doomed)
        nursery.start_soon(patient)
        await wait_all_tasks_blocked()
        assert len(fence._callbacks or ()) == 2
        scope.cancel()
        await wait_all_tasks_blocked()
        assert len(fence._callbacks or ()) == 1
        fence.signal()
    assert woken == ["patient"]


async def test_a_callback_may_cancel_a_waiter_of_the_same_fence() -> None:
    fence = Fence(1, 1)
    scope = trio.CancelScope()
    fence.add_callback(lambda _: scope.cancel())

    async def waiter() -> None:
        with scope:
            await fence.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter)
        await wait_all_tasks_blocked()
        assert fence.signal()
    assert scope.cancelled_caught
