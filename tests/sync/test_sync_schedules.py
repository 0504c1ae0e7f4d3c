"""Random schedules of many tasks: no deadlock, mutual exclusion, EDEADLK for the younger only, nothing left over."""

import errno
import random
from collections.abc import Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from ttmfs.errors import TtmError
from ttmfs.sync.exec import Exec
from ttmfs.sync.fence import Fence, FenceCounters, Timeline
from ttmfs.sync.resv import Reservation, Usage
from ttmfs.sync.ww_mutex import AcquireContext, WwClass

# One row per task: kind, when it starts, when it is cancelled (0: never), seed of what it does.
ROW = st.tuples(
    st.sampled_from(["ticket", "ticket", "ticket", "exec", "plain", "watch"]),
    st.integers(0, 5),
    st.sampled_from([0, 0, 0, 1, 2, 3, 5, 8]),
    st.integers(0, 1 << 30),
)
Row = tuple[str, int, int, int]


class World:
    """A few reservations, and who is inside each according to the tasks themselves."""

    def __init__(self, number: int) -> None:
        self.ww = WwClass()
        self.resvs = [Reservation(self.ww) for _ in range(number)]
        self.inside: dict[Reservation, object] = {}
        self.live: set[int] = set()
        self.finished = 0

    def enter(self, resv: Reservation, who: object) -> None:
        assert resv not in self.inside
        assert resv.locked
        self.inside[resv] = who

    def leave(self, resv: Reservation, who: object) -> None:
        assert self.inside.pop(resv) is who
        resv.unlock()

    def check_queues(self) -> None:
        """Who holds something and waits, waits for younger tickets and for plain holders only."""
        for resv in self.resvs:
            waiters = [w.ticket for w in resv._waiters or () if w.ticket is not None]
            assert [t.stamp for t in waiters] == sorted(t.stamp for t in waiters)
            for ticket in waiters:
                if ticket.acquired:
                    assert ticket is waiters[0]
                    assert resv.holder is None or resv.holder.stamp > ticket.stamp

    async def pause(self, rng: random.Random) -> None:
        if rng.random() < 0.5:
            await trio.sleep(rng.choice([0, 0.3, 1]))
        else:
            await trio.lowlevel.checkpoint()
        self.check_queues()

    async def ticket(self, rng: random.Random) -> None:
        """A transaction with hand-made back-off."""
        ticket = AcquireContext()
        held: list[Reservation] = []
        wanted = rng.sample(self.resvs, rng.randint(1, len(self.resvs)))
        contended: Reservation | None = None
        self.live.add(ticket.stamp)
        try:
            while len(held) < len(wanted):
                if contended is not None:
                    await contended.lock_slow(ticket)
                    self.enter(contended, ticket)
                    held.append(contended)
                    contended = None
                for resv in wanted:
                    if resv in held:
                        continue
                    stamps = {w.ticket.stamp for w in resv._waiters or () if w.ticket}
                    stamps |= {resv.holder.stamp} if resv.holder else set()
                    free = not resv.locked
                    oldest = ticket.stamp == min(self.live)
                    try:
                        await resv.lock(ticket)
                    except TtmError as exc:
                        if exc.errno != errno.EDEADLK:
                            raise
                        assert held
                        assert not free
                        assert not oldest
                        contended = resv
                        break
                    # It got through with something held: so nobody older was there when it came.
                    assert not ticket.acquired > 1 or all(stamp > ticket.stamp for stamp in stamps)
                    self.enter(resv, ticket)
                    held.append(resv)
                    await self.pause(rng)
                if contended is not None:
                    while held:
                        self.leave(held.pop(), ticket)
                    assert ticket.acquired == 0
            await self.pause(rng)
        finally:
            while held:
                self.leave(held.pop(), ticket)
            ticket.fini()
            self.live.remove(ticket.stamp)

    async def exec(self, rng: random.Random) -> None:
        async with Exec[Reservation]() as ex:
            self.live.add(ex.ticket.stamp)
            async for attempt in ex.until_all_locked():
                with attempt:
                    for resv in rng.sample(self.resvs, rng.randint(1, len(self.resvs))):
                        await ex.lock(resv)
                        await self.pause(rng)
            for resv in ex.objects:
                assert resv.holder is ex.ticket
                assert resv not in self.inside

    async def plain(self, rng: random.Random) -> None:
        resv = rng.choice(self.resvs)
        me = object()
        for _ in range(3):
            if rng.random() < 0.3:
                if not resv.trylock():
                    continue
            else:
                await resv.lock()
            self.enter(resv, me)
            try:
                await self.pause(rng)
            finally:
                self.leave(resv, me)

    async def watch(self, rng: random.Random) -> None:
        for _ in range(3):
            await rng.choice(self.resvs).wait_unlocked()
            await self.pause(rng)


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 4), st.lists(ROW, min_size=2, max_size=12))
def test_locks_under_random_schedules(number: int, rows: list[Row]) -> None:
    world = World(number)

    async def task(row: Row) -> None:
        kind, start, cancel, seed = row
        await trio.sleep(start)
        body: Callable[[random.Random], object] = getattr(world, kind)
        with trio.move_on_after(cancel or float("inf")):
            await body(random.Random(seed))  # type: ignore[misc]
        world.finished += 1

    async def main() -> None:
        # A deadlock would leave only this timer: the clock jumps to it.
        with trio.fail_after(1e6):
            async with trio.open_nursery() as nursery:
                for row in rows:
                    nursery.start_soon(task, row)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert world.finished == len(rows)
    assert not world.inside
    for resv in world.resvs:
        assert not resv.locked
        assert resv._waiters is None


FENCE_ROW = st.tuples(
    st.sampled_from(["wait", "resv", "callback"]), st.integers(0, 30), st.sampled_from([None, 1, 3, 9])
)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 3), st.integers(1, 12), st.lists(FENCE_ROW, max_size=15), st.integers(0, 1 << 30))
def test_fences_signal_once_in_order_and_wake_everybody(
    timelines: int, number: int, rows: list[tuple[str, int, float | None]], seed: int
) -> None:
    counters = FenceCounters()
    rng = random.Random(seed)
    log: list[Fence] = []
    woken: list[int] = []

    async def main() -> None:
        lines = [Timeline(str(n), counters) for n in range(timelines)]
        resv = Reservation(WwClass())
        resv.trylock()
        fences: list[Fence] = []
        for _ in range(number):
            fence = rng.choice(lines).next_fence()
            assert fence.add_callback(log.append)
            resv.reserve_fences(1)
            resv.add_fence(fence, rng.choice(list(Usage)))
            fences.append(fence)
        resv.unlock()

        async def watcher(index: int, what: str, which: int, timeout: float | None) -> None:
            fence = fences[which % number]
            if what == "wait":
                assert await fence.wait(timeout) == fence.signaled
                assert fence.signaled or timeout is not None
            elif what == "resv":
                usage = Usage(which % 4)
                assert await resv.wait(usage, timeout) == resv.test_signaled(usage)
            elif fence.add_callback(lambda _: log.append(fence)):
                expected[fence] = expected.get(fence, 1) + 1
            woken.append(index)

        async def engine() -> None:
            while pending := [line for line in lines if line.pending]:
                await trio.sleep(rng.choice([0, 0.5, 2]))
                line = rng.choice(pending)
                if len(line.pending) > 1 and rng.random() < 0.3:
                    with pytest.raises(AssertionError):
                        line.pending[1].signal()
                fence = line.pending[0]
                assert fence.signal(rng.choice([0, errno.EIO]))
                assert not fence.signal()
                assert line.last_signaled == fence.seqno

        expected: dict[Fence, int] = {}
        with trio.fail_after(1e6):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine)
                for index, row in enumerate(rows):
                    nursery.start_soon(watcher, index, *row)
        for fence in fences:
            assert log.count(fence) == expected.get(fence, 1)
            assert fence._callbacks is None
        for line in lines:
            order = list(dict.fromkeys(f.seqno for f in log if f.context == line.context))
            assert order == sorted(order)
        assert resv.test_signaled(Usage.BOOKKEEP)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert sorted(woken) == list(range(len(rows)))
    assert (counters.emitted, counters.signaled) == (number, number)
