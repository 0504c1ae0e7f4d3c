"""Eviction with a policy: its order counts in all walks, what it hears is what happens, and the LRU is kept."""

import random
import time
from collections.abc import Iterable, Iterator
from functools import partial

import pytest
import trio

from tests.core.advised import Told, in_region, install
from tests.core.harness import MIB, check, device, idle, lru_names, make, move, outcome
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.policy import BO, Evict, Request, deadline
from ttmfs.policy.seat import Ejection
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import release, set_madvise, set_size
from ttmfs.ttm.placement import PlaceFlag


@pytest.fixture(autouse=True)
def timer_given_back() -> Iterator[None]:
    """The timer of this process is pytest's own timeout's."""
    with deadline.borrowed():
        yield


async def full(vdev: VirtualDevice, count: int = 4) -> list[BufferObject]:
    """BOs b0, b1, … of 1 MiB that fill vram."""
    bos = [await make(vdev, f"b{number}", place="vram") for number in range(count)]
    await idle(*bos)
    return bos


async def test_the_order_of_the_policy_counts_and_the_lru_is_kept() -> None:
    async with device() as vdev:
        bos = await full(vdev)
        await install(vdev, "mru")
        new = await make(vdev, "new", place="vram")
        assert in_region(vdev, bos, "vram") == {"b0", "b1", "b2"}
        assert lru_names(vdev, "vram") == ["b0", "b1", "b2", "new"]
        await move(vdev, bos[0], "vram")
        await make(vdev, "newer", place="vram")
        assert in_region(vdev, [*bos, new], "vram") == {"b1", "b2", "new"}
        found = vdev.policies.stats()["evict"]["vram"]
        assert (found["name"], found["taken"], found["ejected"]) == ("mru", 2, 0)
        await install(vdev, "lru")
        assert vdev.ttm.managers["vram"].adviser is None
        await make(vdev, "newest", place="vram")
        assert in_region(vdev, [*bos, new], "vram") == {"b2", "new"}
        for bo in bos:
            await check(bo)


async def test_what_happens_is_told_once() -> None:
    async with device(placement="system") as vdev:
        bos = await full(vdev, 3)
        bos[0].pin()
        told = Told()
        await install(vdev, told)
        assert told.take() == [f"attach vram {4 * MIB}", "added b1", "added b2", "added b0"]
        await move(vdev, bos[1], "vram")
        assert told.take() == ["used b1 validate"]
        await access.write(bos[1], 0, b"x")
        await submit_job(vdev, Job("fill", dst=bos[2], value=1), OperationContext())
        assert told.take() == ["used b1 write", "used b2 job"]
        await idle(*bos)
        await access.read(bos[1], 0, 4096)
        assert told.take() == ["used b1 read"]
        # Coming in is the first use.
        new = await make(vdev, "new", 2 * MIB, place="vram")
        assert told.take() == ["removed b2 evicted", "added new"]
        await move(vdev, new, "gtt")
        assert told.take() == ["used new validate", "removed new moved"]
        await idle(new)
        await move(vdev, new, "vram")
        release(new)
        assert told.take() == ["added new", "removed new destroyed"]
        set_madvise(bos[1], "dontneed")
        await calls.evict_one(vdev, bos[1], OperationContext())
        assert told.take() == ["removed b1 evicted"]
        bos[0].unpin()
        await move(vdev, bos[0], "none")
        assert told.take() == ["used b0 validate", "removed b0 moved"]


async def test_a_bo_that_moves_within_its_region_has_not_left_it() -> None:
    async with device(visible_vram=2 * MIB) as vdev:
        low = await make(vdev, "low", place="vram@0-255")
        high = await make(vdev, "high", place="vram@768-1023")
        await idle(low, high)
        told = Told()
        await install(vdev, told)
        told.take()
        await check(high)
        assert high.resource is not None
        assert high.resource.start < 512
        assert told.take() == ["used high fault"]


async def test_a_view_lives_as_long_as_its_bo_and_says_what_is_so() -> None:
    async with device() as vdev:
        (bo,) = await full(vdev, 1)
        told = Told()
        await install(vdev, told)
        (view,) = told.here
        uses = view.uses
        await move(vdev, bo, "vram")
        assert (view.name, view.size, view.pages, view.region, view.pinned) == ("b0", MIB, 256, "vram", False)
        assert (view.priority, view.client, view.group, view.uses) == (1, "", "", uses + 1)
        assert view.last_use == vdev.ttm.uses
        await move(vdev, bo, "gtt")
        await move(vdev, bo, "vram")
        assert list(told.here) == [view]
        release(bo)
        assert (view.name, view.region) == ("b0", "")
        await idle(bo)


async def test_in_a_walk_without_a_ticket_who_is_busy_is_passed_over() -> None:
    async with device() as vdev:
        bos = await full(vdev)
        await install(vdev, "mru")
        async with trio.open_nursery() as nursery:
            await bos[3].resv.lock()
            nursery.start_soon(make, vdev, "new")
            new = await make(vdev, "other", place="vram")
            bos[3].unlock()
        assert new.mem_type == "vram"
        assert in_region(vdev, bos, "vram") == {"b0", "b1", "b3"}


async def test_under_a_ticket_the_one_named_first_is_waited_for() -> None:
    class Stubborn(Told):
        def victims(self, request: Request) -> Iterable[BO]:
            super().victims(request)
            return [bo for bo in self.here if bo.name == "b2"]

    async with device() as vdev:
        bos = await full(vdev)
        stubborn = Stubborn()
        await install(vdev, stubborn)
        for bo in bos:
            await bo.resv.lock()
        ended = trio.Event()

        async def fill() -> None:
            await make(vdev, "new", place="vram")
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fill)
            with trio.move_on_after(0.2):
                await ended.wait()
            assert not ended.is_set()
            bos[2].unlock()
            with trio.fail_after(10):
                await ended.wait()
            for bo in (bos[0], bos[1], bos[3]):
                bo.unlock()
        assert in_region(vdev, bos, "vram") == {"b0", "b1", "b3"}
        assert vdev.policies.stats()["evict"]["vram"]["ejected"] == 0


async def test_what_the_same_ticket_holds_never_goes_and_the_policy_may_know() -> None:
    class Curious(Told):
        def victims(self, request: Request) -> Iterable[BO]:
            self.protected = {bo.name for bo in request.protected}
            assert request.for_bo is not None
            self.known = request.for_bo in request.protected, len(request.protected)
            return super().victims(request)

    async with device() as vdev:
        bos = await full(vdev)
        curious = Curious()
        await install(vdev, curious)
        new = await make(vdev, "new")
        await calls.validate_many(vdev, [bos[3], bos[2], new], vdev.parse_placement(["vram"]), OperationContext())
        assert in_region(vdev, [*bos, new], "vram") == {"b0", "b2", "b3", "new"}
        assert curious.protected == {"b2", "b3"}
        assert curious.known == (True, 2)
        assert vdev.policies.stats()["evict"]["vram"]["rejected"] == 2


async def test_a_lower_priority_goes_first_whatever_is_named() -> None:
    async with device() as vdev:
        bos = await full(vdev)
        bos[1].priority = 0
        bos[1].relist()
        told = Told()
        await install(vdev, told)
        await make(vdev, "new", place="vram")
        assert in_region(vdev, bos, "vram") == {"b0", "b2", "b3"}
        assert [request.priority for request in told.requests] == [0]
        assert told.requests[0].pages == 256


async def test_a_region_that_is_emptied_goes_in_the_order_of_the_policy() -> None:
    async with device() as vdev:
        bos = await full(vdev)
        told = Told()
        await install(vdev, told)
        await calls.evict_region(vdev, "vram", 2 * MIB, OperationContext())
        assert in_region(vdev, bos, "vram") == {"b0", "b1"}
        assert told.requests[0].for_bo is None
        await calls.evict_region(vdev, "vram", None, OperationContext())
        assert not in_region(vdev, bos, "vram")
        assert vdev.policies.stats()["evict"]["vram"]["taken"] == 4


class Raises(Told):
    def victims(self, request: Request) -> Iterable[BO]:
        raise KeyError("tex0")


class Nothing(Told):
    def victims(self, request: Request) -> Iterable[BO]:
        return ()


class Loops(Told):
    def victims(self, request: Request) -> Iterable[BO]:
        while True:
            pass


class Sleeps(Told):
    def victims(self, request: Request) -> Iterable[BO]:
        time.sleep(60)
        return ()


class Eats(Told):
    def victims(self, request: Request) -> Iterable[BO]:
        return [bytearray(1 << 62)]  # type: ignore[list-item]


class Lies(Told):
    def victims(self, request: Request) -> Iterable[BO]:
        return [request.for_bo, "b1", *request.protected] * 3  # type: ignore[list-item]


class BadNews(Told):
    def removed(self, bo: BO, why: str) -> None:
        raise ValueError("no")


@pytest.mark.parametrize("policy", [Raises, Nothing, Loops, Sleeps, Eats, Lies, BadNews])
async def test_a_bad_policy_is_ejected_and_lru_is_back_for_that_request(policy: type[Told]) -> None:
    async with device() as vdev:
        bos = await full(vdev)
        ejections: list[Ejection] = []
        vdev.policies.report = ejections.append
        vdev.ttm.trace.start(["policy_ejected"], [])
        await install(vdev, policy(), watched=True)
        result = await move(vdev, await make(vdev, "new"), "vram")
        assert result["evictions"] == 1
        gone = "b3" if policy is BadNews else "b0"
        assert in_region(vdev, bos, "vram") == {"b0", "b1", "b2", "b3"} - {gone}
        assert [ejection.policy for ejection in ejections] == [policy.__name__.lower()]
        assert vdev.ttm.managers["vram"].adviser is None
        found = vdev.policies.stats()["evict"]["vram"]
        assert (found["name"], found["ejected"], found["last_error"]) == ("lru", 1, str(ejections[0]))
        assert [event.facts["region"] for event in vdev.ttm.trace.ring] == ["vram"]
        # The next one that comes into office is told all there is.
        told = Told()
        await install(vdev, told)
        assert {bo.name for bo in told.here} == in_region(vdev, [*bos], "vram") | {"new"}
        for bo in bos:
            await check(bo)


async def test_one_that_names_a_single_victim_again_and_again_does_not_hold_a_walk() -> None:
    class Same(Evict):
        def added(self, bo: BO) -> None:
            self.first = getattr(self, "first", bo)

        def victims(self, request: Request) -> Iterable[BO]:
            return [self.first] * 3

    async with device() as vdev:
        await full(vdev)
        await install(vdev, Same())
        with trio.fail_after(5):
            await make(vdev, "new", 3 * MIB, place="vram")
        assert vdev.policies.stats()["evict"]["vram"]["ejected"] == 1


async def test_what_cannot_be_evicted_ends_as_without_a_policy() -> None:
    async with device() as vdev:
        bos = await full(vdev)
        for bo in bos:
            bo.pin()
        await install(vdev, "fifo")
        new = await make(vdev, "new")
        assert await outcome(lambda: move(vdev, new, "vram")) != 0
        assert vdev.policies.stats()["evict"]["vram"]["ejected"] == 0


async def test_a_policy_knows_at_every_moment_who_is_there() -> None:
    for seed in range(6):
        rng = random.Random(seed)
        async with device() as vdev:
            told = Told()
            bos = [await make(vdev, f"b{number}", rng.choice((1, 2)) * MIB // 2) for number in range(12)]
            await move(vdev, bos[0], "vram")
            await install(vdev, told)
            for _ in range(80):
                bo = rng.choice(bos)
                what = rng.randrange(9)
                if what < 4:
                    place = rng.choice(("vram", "vram gtt"))
                    await outcome(partial(move, vdev, bo, place))
                elif what == 4:
                    place = rng.choice(("gtt", "system", "none"))
                    await outcome(partial(move, vdev, bo, place))
                elif what == 5:
                    await outcome(partial(calls.evict_one, vdev, bo, OperationContext()))
                elif what == 6:
                    bo.unpin() if bo.pin_count else bo.pin()
                elif what == 7:
                    set_size(bo, rng.choice((0, MIB // 2, MIB)))
                else:
                    release(bo)
                    bos[bos.index(bo)] = await make(vdev, f"n{rng.random()}", MIB // 2)
                assert {view.name for view in told.here} == in_region(vdev, bos, "vram")
            assert vdev.policies.stats()["evict"]["vram"]["ejected"] == 0


async def test_who_bounces_through_a_region_is_not_handed_over_to_its_policy() -> None:
    """It is gone at once, and nobody is ejected for not naming it."""
    async with device() as vdev:
        bo = await make(vdev, "a", place="gtt")
        assert bo.resource is not None
        bo.resource.flags |= PlaceFlag.TEMPORARY
        told = Told()
        await install(vdev, told, "gtt")
        assert told.take() == [f"attach gtt {vdev.ttm.managers['gtt'].size}"]
        assert vdev.policies.evict["gtt"].a_victim(Request(1)) is None
        bo.resource.flags &= ~PlaceFlag.TEMPORARY
        await move(vdev, bo, "system")
