"""Deps: coalescing, growth, the synchronous fallback, errors that finalise, one fence out of many."""

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from ttmfs.errors import TtmError
from ttmfs.sync.containers import FenceArray
from ttmfs.sync.deps import Deps
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Reservation, Usage
from ttmfs.sync.ww_mutex import WwClass


@dataclass(frozen=True)
class Ctx:
    no_wait_gpu: bool = False
    interruptible: bool = True


CTX = Ctx()
NO_WAIT = Ctx(no_wait_gpu=True)


def failed(error: int) -> Fence:
    fence = Fence(77, 1, "broken job")
    fence.signal(error)
    return fence


async def errno_of(call: Awaitable[object]) -> int | None:
    with pytest.raises(TtmError) as info:
        await call
    return info.value.errno


async def filled(number: int, deps: Deps | None = None) -> tuple[Deps, list[Fence]]:
    deps = Deps() if deps is None else deps
    fences = [Fence(context, 1) for context in range(1, number + 1)]
    for fence in fences:
        await deps.add_dependency(fence, CTX)
    return deps, fences


async def test_nothing_to_add() -> None:
    deps = Deps()
    await deps.add_dependency(None, NO_WAIT)
    done = Fence(1, 1)
    done.signal()
    await deps.add_dependency(done, NO_WAIT)
    assert list(deps) == []
    assert await deps.to_fence(NO_WAIT) is None


async def test_growth_from_one_inline_slot() -> None:
    calls: list[int] = []
    deps = Deps(fail_grow=lambda: calls.append(len(deps)) is not None)  # type: ignore[func-returns-value]
    sizes = []
    for context in range(1, 18):
        await deps.add_dependency(Fence(context, 1), CTX)
        sizes.append(deps.capacity)
    assert sizes == [1] + [8] * 7 + [16] * 8 + [32]
    assert calls == [1, 8, 16]


async def test_the_same_context_keeps_the_later_in_its_place() -> None:
    deps = Deps()
    a1, a2, b1, a3 = Fence(1, 1), Fence(1, 2), Fence(2, 1), Fence(1, 3)
    for fence in (a2, b1, a1):
        await deps.add_dependency(fence, NO_WAIT)
    assert list(deps) == [a2, b1]
    await deps.add_dependency(a3, NO_WAIT)
    assert list(deps) == [a3, b1]


async def test_context_zero_never_merges() -> None:
    deps = Deps()
    fences = [Fence(0, 1), Fence(0, 1), Fence(0, 2)]
    for fence in fences:
        await deps.add_dependency(fence, CTX)
    assert list(deps) == fences


async def test_a_failed_fence_finalises_the_collection() -> None:
    deps, _ = await filled(3)
    assert await errno_of(deps.add_dependency(failed(errno.EIO), CTX)) == errno.EIO
    assert (len(deps), deps.capacity) == (0, 1)
    deps.fini()
    await deps.add_dependency(Fence(1, 1), CTX)
    assert len(deps) == 1


async def test_growth_failure_waits_instead(autojump_clock: MockClock) -> None:
    deps, kept = await filled(1, Deps(fail_grow=lambda: True))
    pending = Fence(9, 1)

    async def signal() -> None:
        await trio.sleep(3)
        pending.signal()

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(signal)
        await deps.add_dependency(pending, CTX)
        assert trio.current_time() - start == pytest.approx(3)
    assert list(deps) == kept


async def test_growth_failure_then_a_fence_that_fails() -> None:
    deps, _ = await filled(1, Deps(fail_grow=lambda: True))
    pending = Fence(9, 1)

    async def signal() -> None:
        await wait_all_tasks_blocked()
        pending.signal(errno.ENOMEM)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(signal)
        assert await errno_of(deps.add_dependency(pending, CTX)) == errno.ENOMEM
    assert len(deps) == 0


async def test_growth_failure_with_no_wait_gpu_is_ebusy() -> None:
    deps, _ = await filled(1, Deps(fail_grow=lambda: True))
    assert await errno_of(deps.add_dependency(Fence(9, 1), NO_WAIT)) == errno.EBUSY
    assert len(deps) == 0
    deps.fini()


async def test_an_allocator_that_raises_is_a_growth_failure() -> None:
    def out_of_memory() -> bool:
        raise MemoryError

    deps, _ = await filled(1, Deps(fail_grow=out_of_memory))
    assert await errno_of(deps.add_dependency(Fence(9, 1), NO_WAIT)) == errno.EBUSY


async def test_add_resv_takes_what_the_usage_covers_and_stops_at_an_error() -> None:
    resv = Reservation(WwClass())
    with pytest.raises(AssertionError):
        await Deps().add_resv(resv, Usage.READ, CTX)
    resv.trylock()
    resv.reserve_fences(4)
    fences = {usage: Fence(10 + usage, 1) for usage in Usage}
    for usage, fence in fences.items():
        resv.add_fence(fence, usage)
    deps = Deps()
    await deps.add_resv(resv, Usage.WRITE, CTX)
    assert list(deps) == [fences[Usage.KERNEL], fences[Usage.WRITE]]
    await deps.add_resv(resv, Usage.BOOKKEEP, CTX)
    assert list(deps) == list(fences.values())
    fences[Usage.WRITE].signal(errno.EIO)
    assert await errno_of(deps.add_resv(resv, Usage.READ, CTX)) == errno.EIO
    assert len(deps) == 0


async def test_sync(autojump_clock: MockClock) -> None:
    deps, fences = await filled(3)
    assert await errno_of(deps.sync(NO_WAIT)) == errno.EBUSY
    assert len(deps) == 0
    deps, fences = await filled(3)

    async def signal(first_error: int) -> None:
        for fence in fences:
            await trio.sleep(1)
            fence.signal(first_error)
            first_error = 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(signal, 0)
        await deps.sync(CTX)
        assert all(fence.signaled for fence in fences)
    assert list(deps) == fences
    await deps.sync(NO_WAIT)
    deps, fences = await filled(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(signal, errno.EIO)
        assert await errno_of(deps.sync(CTX)) == errno.EIO
        assert [fence.signaled for fence in fences] == [True, False, False]
    assert len(deps) == 0


async def test_to_fence() -> None:
    deps, fences = await filled(1)
    assert await deps.to_fence(CTX) is fences[0]
    assert len(deps) == 0
    deps, fences = await filled(3, deps)
    array = await deps.to_fence(NO_WAIT)
    assert isinstance(array, FenceArray)
    assert array.fences == tuple(fences)
    assert (len(deps), deps.capacity) == (0, 1)
    assert await deps.to_fence(CTX) is None


async def test_to_fence_without_memory_for_the_array() -> None:
    deps, fences = await filled(1, Deps(fail_array=lambda: True))
    assert await deps.to_fence(NO_WAIT) is fences[0]
    deps, fences = await filled(2, deps)
    assert await errno_of(deps.to_fence(NO_WAIT)) == errno.EBUSY
    assert len(deps) == 0
    deps, fences = await filled(2, deps)
    results: list[Fence | None] = []

    async def ask() -> None:
        results.append(await deps.to_fence(CTX))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        for fence in fences:
            await wait_all_tasks_blocked()
            assert results == []
            fence.signal()
    assert results == [None]
    assert len(deps) == 0


Wait = Callable[[Deps, Fence, Ctx], Awaitable[object]]


@pytest.mark.parametrize(
    "wait",
    [
        lambda deps, fence, ctx: deps.add_dependency(fence, ctx),
        lambda deps, fence, ctx: deps.sync(ctx),
        lambda deps, fence, ctx: deps.to_fence(ctx),
    ],
    ids=["add_dependency", "sync", "to_fence"],
)
@pytest.mark.parametrize("interruptible", [True, False])
async def test_only_interruptible_waits_end_with_cancellation_and_that_finalises(
    wait: Wait, interruptible: bool
) -> None:
    fail = False
    deps, fences = await filled(8, Deps(fail_grow=lambda: fail, fail_array=lambda: True))
    fail = True
    fences.append(Fence(99, 1))
    scope = trio.CancelScope()
    ended: list[str] = []

    async def waiter() -> None:
        with scope:
            try:
                await wait(deps, fences[-1], Ctx(interruptible=interruptible))
            finally:
                ended.append("ended")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        if interruptible:
            assert ended
            assert len(deps) == 0
            assert all(fence._callbacks is None for fence in fences)
        else:
            assert not ended
            assert len(deps) == 8
        for fence in fences:
            fence.signal()
    assert ended


ADD = st.tuples(st.just("add"), st.integers(0, 5), st.integers(1, 6))
SIGNAL = st.tuples(st.just("signal"), st.integers(0, 40), st.sampled_from([0, 0, 0, errno.EIO]))
GROW = st.tuples(st.just("grow"), st.integers(0, 1), st.just(0))


class Model:
    """Deps with `no_wait_gpu`, in a few plain lines."""

    def __init__(self) -> None:
        self.fail = False
        self.fences: list[Fence] = []
        self.capacity = 1

    def add(self, fence: Fence) -> int:
        """Adds it; the errno that the call must have, 0 for success."""
        error = fence.error if fence.signaled else self.store(fence)
        if error:
            self.fences, self.capacity = [], 1
        return error

    def store(self, fence: Fence) -> int:
        same = [i for i, old in enumerate(self.fences) if old.context == fence.context != 0]
        if same:
            self.fences[same[0]] = max(self.fences[same[0]], fence, key=lambda f: f.seqno)
            return 0
        if len(self.fences) == self.capacity:
            if self.fail:
                return errno.EBUSY
            self.capacity = max(2 * self.capacity, 8)
        self.fences.append(fence)
        return 0


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(ADD, ADD, ADD, SIGNAL, GROW), max_size=50))
def test_against_a_model(steps: list[tuple[str, int, int]]) -> None:
    async def add_both(deps: Deps, model: Model, fence: Fence) -> None:
        expected = model.add(fence)
        if expected:
            assert await errno_of(deps.add_dependency(fence, NO_WAIT)) == expected
        else:
            await deps.add_dependency(fence, NO_WAIT)
        assert list(deps) == model.fences
        assert deps.capacity == model.capacity

    async def main() -> None:
        model = Model()
        deps = Deps(fail_grow=lambda: model.fail)
        known: list[Fence] = []
        for what, which, value in steps:
            if what == "grow":
                model.fail = bool(which)
            elif what == "signal":
                if which < len(known):
                    known[which].signal(value)
            else:
                known.append(Fence(which, value))
                await add_both(deps, model, known[-1])
                # And an old one again: it may be signaled by now, or be there already.
                await add_both(deps, model, known[value % len(known)])
        whole = await deps.to_fence(NO_WAIT)
        if len(model.fences) < 2:
            assert whole is (model.fences[0] if model.fences else None)
        else:
            assert isinstance(whole, FenceArray)
            assert list(whole.fences) == list(dict.fromkeys(model.fences))

    trio.run(main)
