"""The wait-die lock of a reservation: hand-over, tickets, back-off, cancellation."""

import errno
import sys
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ttmfs.errors import TtmError
from ttmfs.sync.resv import Reservation
from ttmfs.sync.ww_mutex import AcquireContext, WwClass


def raised(info: pytest.ExceptionInfo[TtmError]) -> int | None:
    return info.value.errno


def test_an_idle_reservation_is_small() -> None:
    resv = Reservation()
    assert not hasattr(resv, "__dict__")
    assert sys.getsizeof(resv) < 200
    resv.trylock()
    resv.unlock()
    assert all(getattr(resv, table) is None for table in ("_waiters", "_fences"))


def test_trylock_and_unlock() -> None:
    resv = Reservation()
    assert resv.trylock()
    assert (resv.locked, resv.holder) == (True, None)
    assert not resv.trylock()
    resv.unlock()
    assert not resv.locked
    with pytest.raises(AssertionError):
        resv.unlock()
    ticket = AcquireContext()
    assert resv.trylock(ticket)
    assert resv.holder is ticket
    assert ticket.acquired == 1
    assert not resv.trylock(ticket)
    with pytest.raises(AssertionError):
        ticket.fini()
    resv.unlock()
    assert ticket.acquired == 0
    ticket.fini()
    ticket.fini()
    with pytest.raises(AssertionError):
        resv.trylock(ticket)
    assert not resv.locked


@pytest.mark.parametrize("call", [Reservation.lock, Reservation.wait_unlocked, Reservation.reserve])
def test_nothing_to_wait_for_means_no_checkpoint(call: Callable[[Reservation], Awaitable[None]]) -> None:
    with pytest.raises(StopIteration):
        call(Reservation()).send(None)  # type: ignore[attr-defined]


async def test_waiters_without_ticket_get_it_in_order_of_arrival_and_trylock_does_not_come_between() -> None:
    resv = Reservation()
    order: list[int] = []

    async def waiter(number: int) -> None:
        await resv.lock()
        order.append(number)
        await trio.lowlevel.checkpoint()
        resv.unlock()

    resv.trylock()
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(waiter, number)
            await wait_all_tasks_blocked()
        resv.unlock()
        assert resv.locked
        assert not resv.trylock()
        assert order == []
    assert order == [0, 1, 2, 3, 4]
    assert not resv.locked
    assert resv.trylock()


async def test_the_same_ticket_is_ealready() -> None:
    resv, ticket = Reservation(), AcquireContext()
    await resv.lock(ticket)
    with pytest.raises(TtmError) as info:
        await resv.lock(ticket)
    assert raised(info) == errno.EALREADY
    assert resv.holder is ticket
    assert ticket.acquired == 1


async def test_the_younger_dies_and_the_older_waits() -> None:
    ww = WwClass()
    a, b = Reservation(ww), Reservation(ww)
    older, younger = AcquireContext(), AcquireContext()
    await a.lock(older)
    await b.lock(younger)
    with pytest.raises(TtmError) as info:
        await a.lock(younger)
    assert raised(info) == errno.EDEADLK
    assert (younger.acquired, a.holder) == (1, older)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.lock, older)
        await wait_all_tasks_blocked()
        assert b.holder is younger
        b.unlock()
        assert b.holder is older
    assert (ww.contended, ww.ticketed_waits, ww.edeadlk, ww.slow_locks) == (2, 1, 1, 0)


async def test_a_younger_ticket_that_holds_nothing_waits() -> None:
    resv = Reservation()
    older, younger = AcquireContext(), AcquireContext()
    await resv.lock(older)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resv.lock, younger)
        await wait_all_tasks_blocked()
        assert resv.holder is older
        resv.unlock()
    assert resv.holder is younger


async def test_lock_slow_waits_for_an_older_holder_and_refuses_a_ticket_that_holds_something() -> None:
    ww = WwClass()
    a, b = Reservation(ww), Reservation(ww)
    older, younger = AcquireContext(), AcquireContext()
    await a.lock(older)
    await b.lock(younger)
    with pytest.raises(AssertionError):
        await a.lock_slow(younger)
    b.unlock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.lock_slow, younger)
        await wait_all_tasks_blocked()
        a.unlock()
    assert a.holder is younger
    assert ww.slow_locks == 1


async def test_tickets_wait_for_holders_without_a_ticket() -> None:
    a, b, ticket = Reservation(), Reservation(), AcquireContext()
    await a.lock(ticket)
    b.trylock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.lock, ticket)
        await wait_all_tasks_blocked()
        b.unlock()
    assert b.holder is ticket


async def test_a_younger_waiter_dies_when_an_older_one_queues_up() -> None:
    a, b = Reservation(), Reservation()
    older, younger = AcquireContext(), AcquireContext()
    b.trylock(younger)
    a.trylock()
    died: list[int | None] = []

    async def young() -> None:
        with pytest.raises(TtmError) as info:
            await a.lock(younger)
        died.append(raised(info))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(young)
        await wait_all_tasks_blocked()
        nursery.start_soon(a.lock, older)
        await wait_all_tasks_blocked()
        assert died == [errno.EDEADLK]
        a.unlock()
    assert a.holder is older
    assert a._waiters is None


async def test_a_younger_newcomer_does_not_queue_behind_an_older_waiter() -> None:
    a, b = Reservation(), Reservation()
    older, younger = AcquireContext(), AcquireContext()
    b.trylock(younger)
    a.trylock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.lock, older)
        await wait_all_tasks_blocked()
        with pytest.raises(TtmError) as info:
            await a.lock(younger)
        assert raised(info) == errno.EDEADLK
        a.unlock()
    assert a.holder is older


async def test_tickets_queue_by_stamp_and_others_by_arrival() -> None:
    resv = Reservation()
    tickets = [AcquireContext() for _ in range(3)]
    order: list[str] = []

    async def waiter(name: str, ticket: AcquireContext | None) -> None:
        await resv.lock(ticket)
        order.append(name)
        resv.unlock()

    resv.trylock()
    async with trio.open_nursery() as nursery:
        for name, ticket in (
            ("plain 0", None),
            ("ticket 1", tickets[1]),
            ("plain 1", None),
            ("ticket 2", tickets[2]),
            ("ticket 0", tickets[0]),
        ):
            nursery.start_soon(waiter, name, ticket)
            await wait_all_tasks_blocked()
        resv.unlock()
    assert order == ["plain 0", "ticket 0", "ticket 1", "plain 1", "ticket 2"]


async def test_a_cancelled_waiter_leaves_no_trace() -> None:
    resv = Reservation()
    scope = trio.CancelScope()
    ticket = AcquireContext()
    got: list[str] = []

    async def doomed() -> None:
        with scope:
            await resv.lock(ticket)
            got.append("doomed")

    async def patient() -> None:
        await resv.lock()
        got.append("patient")
        resv.unlock()

    resv.trylock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(doomed)
        await wait_all_tasks_blocked()
        nursery.start_soon(patient)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert ticket.acquired == 0
        resv.unlock()
    assert got == ["patient"]
    assert not resv.locked
    assert resv._waiters is None
    ticket.fini()


async def test_a_lock_handed_over_before_the_cancellation_is_held() -> None:
    resv = Reservation()
    scope = trio.CancelScope()
    got: list[str] = []

    async def waiter() -> None:
        with scope:
            await resv.lock()
            try:
                got.append("held")
                await trio.lowlevel.checkpoint()
                got.append("not reached")
            finally:
                resv.unlock()

    resv.trylock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter)
        await wait_all_tasks_blocked()
        resv.unlock()
        scope.cancel()
    assert got == ["held"]
    assert not resv.locked


async def test_reserve() -> None:
    resv, ticket = Reservation(), AcquireContext()
    for no_wait_ticket in (ticket, AcquireContext()):
        with pytest.raises(TtmError) as info:
            await resv.reserve(no_wait=True, ticket=no_wait_ticket)
        assert raised(info) == errno.EBUSY
        assert not resv.locked
    await resv.reserve(no_wait=True)
    with pytest.raises(TtmError) as info:
        await resv.reserve(no_wait=True)
    assert raised(info) == errno.EBUSY
    resv.unlock()
    await resv.reserve(ticket=ticket)
    assert resv.holder is ticket


async def test_wait_unlocked_waits_its_turn_and_takes_nothing() -> None:
    resv = Reservation()
    seen: list[str] = []

    async def watcher(name: str) -> None:
        await resv.wait_unlocked()
        seen.append(name)

    async def taker() -> None:
        await resv.lock()
        seen.append("taker")

    resv.trylock()
    async with trio.open_nursery() as nursery:
        for task, args in ((watcher, ("early",)), (taker, ()), (watcher, ("late",))):
            nursery.start_soon(task, *args)
            await wait_all_tasks_blocked()
        resv.unlock()
        assert resv.locked
        await wait_all_tasks_blocked()
        assert sorted(seen) == ["early", "taker"]
        resv.unlock()
        assert not resv.locked
        assert resv.trylock()
    assert seen[-1] == "late"
    assert resv.locked


async def test_a_cancelled_wait_unlocked_leaves_no_trace() -> None:
    resv = Reservation()
    resv.trylock()
    with trio.CancelScope() as scope:
        scope.cancel()
        await resv.wait_unlocked()
    assert scope.cancelled_caught
    assert resv._waiters is None
    resv.unlock()
    assert not resv.locked
