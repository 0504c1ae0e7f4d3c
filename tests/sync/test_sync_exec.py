"""Exec: restart on contention, duplicates, reverse unlock, and that EDEADLK never comes out."""

import errno

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ttmfs.errors import TtmError
from ttmfs.sync.exec import Exec
from ttmfs.sync.resv import Reservation
from ttmfs.sync.ww_mutex import AcquireContext, WwClass


class Bo:
    def __init__(self, name: str, resv: Reservation | None = None) -> None:
        self.name = name
        self.resv = resv or Reservation()

    def __repr__(self) -> str:
        return self.name


class Unreserve:
    """Notes the order in which objects are unlocked."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def __call__(self, bo: Bo) -> None:
        self.order.append(bo.name)
        bo.resv.unlock()


async def test_all_stay_locked_until_the_end_and_are_unlocked_in_reverse() -> None:
    a, b, c = Bo("a"), Bo("b"), Bo("c")
    unreserve = Unreserve()
    async with Exec(unlock=unreserve) as ex:
        async for attempt in ex.until_all_locked():
            with attempt:
                await ex.lock(a)
                await ex.prepare(b, 2)
                await ex.prepare_array([c], 1)
        assert ex.objects == (a, b, c)
        assert all(bo.resv.holder is ex.ticket for bo in (a, b, c))
        assert (a.resv.num_slots, b.resv.num_slots, c.resv.num_slots) == (0, 4, 4)
        assert (ex.restarts, ex.ticket.acquired) == (0, 3)
        ex.unlock(b)
        with pytest.raises(AssertionError):
            ex.unlock(b)
        assert not b.resv.locked
    assert unreserve.order == ["b", "c", "a"]
    assert not any(bo.resv.locked for bo in (a, b, c))
    assert ex.ticket.done


async def test_reservations_themselves_can_be_locked() -> None:
    resv = Reservation()
    async with Exec[Reservation]() as ex:
        async for attempt in ex.until_all_locked():
            with attempt:
                await ex.lock(resv)
        assert resv.holder is ex.ticket
    assert not resv.locked


async def test_locking_outside_an_attempt_fails_at_once() -> None:
    a = Bo("a")
    async with Exec[Bo]() as ex:
        with pytest.raises(AssertionError):
            await ex.lock(a)
        async for attempt in ex.until_all_locked():
            with pytest.raises(AssertionError):
                await ex.lock(a)
            with attempt:
                await ex.lock(a)
        with pytest.raises(AssertionError):
            await ex.lock(Bo("b"))
        with pytest.raises(AssertionError):
            ex.until_all_locked()
    assert not a.resv.locked


async def test_duplicates() -> None:
    a = Bo("a")
    twin = Bo("twin", a.resv)
    async with Exec[Bo]() as ex:
        async for attempt in ex.until_all_locked():
            with attempt:
                await ex.lock(a)
                for duplicate in (a, twin):
                    with pytest.raises(TtmError) as info:
                        await ex.lock(duplicate)
                    assert info.value.errno == errno.EALREADY
        assert ex.objects == (a,)
    unreserve = Unreserve()
    async with Exec(ignore_duplicates=True, unlock=unreserve) as ex:
        async for attempt in ex.until_all_locked():
            with attempt:
                await ex.lock(a)
                await ex.prepare(twin, 1)
                with pytest.raises(TtmError):
                    await ex.prepare(twin, 0)
                assert a.resv.locked
        assert ex.objects == (a,)
    assert unreserve.order == ["a"]
    assert not a.resv.locked


async def test_prepare_unlocks_what_it_has_locked_when_it_fails() -> None:
    ww = WwClass()
    ww.fail_fence_slot = lambda: True
    a, b = Bo("a"), Bo("b", Reservation(ww))
    unreserve = Unreserve()
    async with Exec(unlock=unreserve) as ex:
        async for attempt in ex.until_all_locked():
            with attempt:
                with pytest.raises(TtmError) as info:
                    await ex.prepare_array([a, b, Bo("c")], 1)
                assert info.value.errno == errno.ENOMEM
                assert ex.objects == (a,)
                assert not b.resv.locked
    assert unreserve.order == ["b", "a"]


async def contended_rounds(*, swallow: bool, take_a: bool) -> tuple[list[str], Exec[Bo], Unreserve]:
    """Locks a, then b, while an older ticket holds b, and perhaps takes a before it lets b go."""
    a, b = Bo("a"), Bo("b")
    older = AcquireContext()
    b.resv.trylock(older)
    log: list[str] = []
    unreserve = Unreserve()

    async def old() -> None:
        await wait_all_tasks_blocked()
        log.append("old has b, a is " + ("locked" if a.resv.locked else "free"))
        if take_a:
            await a.resv.lock(older)
        b.resv.unlock()
        if take_a:
            await wait_all_tasks_blocked()
            a.resv.unlock()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(old)
        async with Exec(unlock=unreserve) as ex:
            async for attempt in ex.until_all_locked():
                with attempt:
                    log.append("round")
                    await ex.lock(a)
                    try:
                        await ex.lock(b)
                    except BaseException:
                        if not swallow:
                            raise
                        with pytest.raises(BaseException, match="runs again"):
                            await ex.lock(a)
                        assert not a.resv.locked or a.resv.holder is ex.ticket
            log.append("all locked")
            assert set(ex.objects) == {a, b}
            assert ex.ticket.acquired == 2
    assert not a.resv.locked
    assert not b.resv.locked
    return log, ex, unreserve


@pytest.mark.parametrize("swallow", [False, True])
async def test_contention_unlocks_all_and_runs_the_block_again(swallow: bool) -> None:
    log, ex, unreserve = await contended_rounds(swallow=swallow, take_a=False)
    assert log == ["round", "old has b, a is free", "round", "all locked"]
    assert ex.restarts == 1
    # Round one gave a back; at the end b, locked first by the slow path, goes last.
    assert unreserve.order == ["a", "a", "b"]


async def test_each_restart_begins_with_what_was_contended_last() -> None:
    log, ex, unreserve = await contended_rounds(swallow=False, take_a=True)
    assert log == ["round", "old has b, a is free", "round", "round", "all locked"]
    assert ex.restarts == 2
    assert unreserve.order == ["a", "b", "b", "a"]


async def test_except_exception_in_the_block_does_not_hide_contention() -> None:
    a, b = Bo("a"), Bo("b")
    older = AcquireContext()
    b.resv.trylock(older)
    rounds = 0
    async with trio.open_nursery() as nursery, Exec[Bo]() as ex:
        async for attempt in ex.until_all_locked():
            with attempt:
                rounds += 1
                await ex.lock(a)
                if rounds == 1:
                    nursery.start_soon(unlock_when_blocked, b.resv)
                try:
                    await ex.lock(b)
                except Exception:
                    pytest.fail("contention came out as an ordinary exception")
    assert rounds == 2


async def unlock_when_blocked(resv: Reservation) -> None:
    await wait_all_tasks_blocked()
    resv.unlock()


async def test_the_contended_object_may_be_left_out_of_the_next_round() -> None:
    a, b = Bo("a"), Bo("b")
    b.resv.trylock(AcquireContext())
    unreserve = Unreserve()
    async with trio.open_nursery() as nursery, Exec(unlock=unreserve) as ex:
        nursery.start_soon(unlock_when_blocked, b.resv)
        async for attempt in ex.until_all_locked():
            with attempt:
                await ex.lock(a)
                if not ex.restarts:
                    await ex.lock(b)
        assert set(ex.objects) == {a, b}
    assert unreserve.order == ["a", "a", "b"]
    assert not b.resv.locked


async def test_an_error_or_break_in_the_block_unlocks_all() -> None:
    a, b = Bo("a"), Bo("b")

    async def fail() -> None:
        async with Exec[Bo]() as ex:
            async for attempt in ex.until_all_locked():
                with attempt:
                    await ex.lock(a)
                    raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        await fail()
    async with Exec[Bo]() as ex:
        async for attempt in ex.until_all_locked():
            with attempt:
                await ex.lock(b)
                break
    assert not a.resv.locked
    assert not b.resv.locked


async def test_an_unlock_that_raises_does_not_keep_the_others_locked() -> None:
    a, b = Bo("a"), Bo("b")

    def unlock(bo: Bo) -> None:
        bo.resv.unlock()
        raise ValueError(bo.name)

    async def lock_both() -> None:
        async with Exec(unlock=unlock) as ex:
            async for attempt in ex.until_all_locked():
                with attempt:
                    await ex.lock(a)
                    await ex.lock(b)

    with pytest.raises(ValueError, match="b"):
        await lock_both()
    assert not a.resv.locked
    assert not b.resv.locked


async def test_contention_of_an_outer_exec_passes_through_an_inner_one() -> None:
    a, b, c = Bo("a"), Bo("b"), Bo("c")
    b.resv.trylock(AcquireContext())
    reached: list[int] = []
    async with trio.open_nursery() as nursery, Exec[Bo]() as outer:
        nursery.start_soon(unlock_when_blocked, b.resv)
        async for attempt in outer.until_all_locked():
            with attempt:
                await outer.lock(a)
                async with Exec[Bo]() as inner:
                    async for inner_attempt in inner.until_all_locked():
                        with inner_attempt:
                            await inner.lock(c)
                            await outer.lock(b)
                reached.append(outer.restarts)
        assert set(outer.objects) == {a, b}
    assert outer.restarts == 1
    assert reached == [1]
    assert not c.resv.locked


@pytest.mark.parametrize("slow", [False, True])
async def test_cancellation_leaves_nothing_locked(autojump_clock: MockClock, slow: bool) -> None:
    """While it waits for a lock, and while it waits by the slow path between rounds."""
    a, b = Bo("a"), Bo("b")
    holder = AcquireContext() if slow else None
    b.resv.trylock(holder)
    with trio.move_on_after(5) as scope:
        async with Exec[Bo]() as ex:
            async for attempt in ex.until_all_locked():
                with attempt:
                    await ex.lock(a)
                    await ex.lock(b)
    assert scope.cancelled_caught
    assert ex.restarts == int(slow)
    assert not a.resv.locked
    assert b.resv._waiters is None
    b.resv.unlock()
    assert not b.resv.locked


def test_opposite_orders_ten_thousand_times() -> None:
    ww = WwClass()
    bos = [Bo(name, Reservation(ww)) for name in "abcd"]
    inside: set[Bo] = set()
    restarts = [0, 0]

    async def worker(number: int, order: list[Bo]) -> None:
        for _ in range(5_000):
            async with Exec[Bo]() as ex:
                async for attempt in ex.until_all_locked():
                    with attempt:
                        for bo in order:
                            await ex.lock(bo)
                            await trio.lowlevel.checkpoint()
                assert not inside.intersection(order)
                inside.update(order)
                await trio.lowlevel.checkpoint()
                inside.difference_update(order)
            restarts[number] += ex.restarts

    async def main() -> None:
        with trio.fail_after(1e6):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker, 0, bos[:3])
                nursery.start_soon(worker, 1, bos[:0:-1])

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert ww.edeadlk == ww.slow_locks == sum(restarts) > 0
    assert min(restarts) > 0
    assert not any(bo.resv.locked or bo.resv._waiters for bo in bos)
