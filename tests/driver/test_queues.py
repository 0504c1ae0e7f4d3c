"""Queues: what passes what by, what waits, points, priorities, and whose a queue is."""

import errno
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.core.harness import device, fails, make
from ttmfs.driver.compute import MAX_PASSED
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job, QueuedJob
from ttmfs.driver.queues import MAX_JOBS, MAX_QUEUES, Priority, default_of
from ttmfs.driver.submit import submit_job
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext


async def submit(vdev: VirtualDevice, kind: str, **fields: Any) -> QueuedJob:
    return await submit_job(vdev, Job(kind, **fields), OperationContext())


async def busy(vdev: VirtualDevice, bo: BufferObject, seconds: float, queue: str, **fields: Any) -> QueuedJob:
    return await submit(vdev, "busy", srcs=(bo,), seconds=seconds, queue=queue, **fields)


async def small(vdev: VirtualDevice, *names: str) -> list[BufferObject]:
    """One BO a name, so that jobs have nothing in common but what a test gives them."""
    return [await make(vdev, name, 4096) for name in names]


async def ended(*jobs: QueuedJob) -> list[float]:
    """When each has ended, in seconds from now."""
    began = trio.current_time()
    times = [0.0] * len(jobs)

    async def watch(index: int) -> None:
        await jobs[index].fence.wait()
        times[index] = round(trio.current_time() - began, 3)

    async with trio.open_nursery() as nursery:
        for index in range(len(jobs)):
            nursery.start_soon(watch, index)
    return times


async def test_an_unrelated_job_does_not_wait_behind_a_busy_one(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        a, b = await small(vdev, "a", "b")
        long, short = await busy(vdev, a, 60, "render"), await busy(vdev, b, 1, "video")
        again = await busy(vdev, b, 1, "render")
        assert await ended(long, short, again) == [60, 1, 61], "those of one queue run in order"


async def test_jobs_of_two_queues_over_one_bo_run_one_after_the_other(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        (a,) = await small(vdev, "a")
        assert await ended(await busy(vdev, a, 2, "x"), await busy(vdev, a, 3, "y")) == [2, 5]


async def test_as_many_run_at_a_time_as_there_are_engines(autojump_clock: MockClock) -> None:
    async with device(compute_engines=3) as vdev:
        bos = await small(vdev, *"abcde")
        assert await ended(*[await busy(vdev, bo, 1, f"q{bo.name}") for bo in bos]) == [1, 1, 1, 2, 2]


async def test_a_job_that_waits_holds_no_engine(autojump_clock: MockClock) -> None:
    async with device(compute_engines=1, copy_latency=9.0) as vdev:
        a, b = await small(vdev, "a", "b")
        # It waits nine seconds for the move of its own BO.
        a.placement = vdev.parse_placement(["vram"])
        waits, runs = await busy(vdev, a, 1, "x"), await busy(vdev, b, 1, "y")
        assert await ended(waits, runs) == [10, 1]


async def test_after_orders_what_has_no_bo_in_common(autojump_clock: MockClock) -> None:
    async with device(compute_engines=4) as vdev:
        a, b, c = await small(vdev, "a", "b", "c")
        first = await busy(vdev, a, 5, "x")
        second = await busy(vdev, b, 2, "y", after=vdev.find_fence(first.fence.name))
        third = await busy(vdev, c, 1, "z", after=vdev.find_fence("y:1"))
        assert await ended(first, second, third) == [5, 7, 8]
        assert vdev.find_fence("z:1") is None
        # After what is done: at once.
        assert await ended(await busy(vdev, a, 1, "z", after=vdev.find_fence("x:1"))) == [1]


async def test_more_urgent_jobs_come_first_and_nobody_starves(autojump_clock: MockClock) -> None:
    async with device(compute_engines=1) as vdev:
        bos = await small(vdev, "hold", "low", "normal", "high")
        hold = await busy(vdev, bos[0], 1, "hold")
        await wait_all_tasks_blocked()
        low = await busy(vdev, bos[1], 1, "l", priority=Priority.LOW)
        normal = await busy(vdev, bos[2], 1, "n")
        high = await busy(vdev, bos[3], 1, "h", priority=Priority.HIGH)
        assert await ended(hold, low, normal, high) == [1, 4, 3, 2]
        # Two queues that never run dry, both more urgent than a third.
        await busy(vdev, bos[3], 1, "hold")
        await wait_all_tasks_blocked()
        more = [
            await busy(vdev, bos[which], 1, f"q{which}", priority=Priority.HIGH)
            for _ in range(MAX_PASSED)
            for which in (0, 2)
        ]
        (when, *_) = await ended(await busy(vdev, bos[1], 1, "l", priority=Priority.LOW), *more)
        assert when == MAX_PASSED + 2, "one was running, and it was passed over so many times"


async def test_a_queue_hurries_for_its_most_urgent_job(autojump_clock: MockClock) -> None:
    async with device(compute_engines=1) as vdev:
        a, b, c, d = await small(vdev, *"abcd")
        hold = await busy(vdev, a, 1, "hold")
        await wait_all_tasks_blocked()
        other = await busy(vdev, b, 1, "other")
        before = await busy(vdev, c, 1, "mixed", priority=Priority.LOW)
        urgent = await busy(vdev, d, 1, "mixed", priority=Priority.HIGH)
        assert await ended(hold, other, before, urgent) == [1, 4, 2, 3]


async def test_a_point_is_reached_when_all_jobs_up_to_it_are_done(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        (a,) = await small(vdev, "a")
        jobs = [await busy(vdev, a, 1, "q", point=point) for point in (3, None, 10)]
        assert [job.point for job in jobs] == [3, 4, 10]
        fences = {point: vdev.find_fence(f"q:{point}") for point in (1, 3, 4, 5, 10)}
        began = trio.current_time()
        for point, seconds in ((1, 1), (3, 1), (4, 2), (5, 3), (10, 3)):
            fence = fences[point]
            assert fence is not None
            await fence.wait()
            assert round(trio.current_time() - began, 3) == seconds, f"q:{point}"
        assert all(vdev.find_fence(f"q:{point}") is None for point in range(1, 11))


async def test_points_only_grow_and_only_those_that_a_job_stands_for_can_be_waited_for() -> None:
    async with device() as vdev:
        (a,) = await small(vdev, "a")
        job = await busy(vdev, a, 0, "q", point=7)
        for point in (7, 1, 0, 1 << 63):
            with fails(errno.EINVAL):
                await busy(vdev, a, 0, "q", point=point)
        with fails(errno.EINVAL):
            vdev.find_fence("q:8")
        with fails(errno.ENOENT):
            vdev.find_fence("nobody:1")
        for text in ("q:0", "q:-1", "q:01", "q:", ":1", "q", "7:x"):
            with fails(errno.EINVAL):
                vdev.find_fence(text)
        await job.fence.wait()
        assert vdev.compute.queues.get("q").last_point == 7, "what was refused is no job"


async def test_a_point_tells_of_the_first_job_that_failed(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        (a,) = await small(vdev, "a")
        await access.write(a, 0, b"\x01" * 4096)
        one = await submit(vdev, "fill", dst=a, value=2, queue="q")
        await one.fence.wait()
        attr = vdev.ttm.inject["job"]
        attr.probability, attr.times = 100, 1
        two = await submit(vdev, "fill", dst=a, value=3, queue="q")
        three = await submit(vdev, "add", dst=a, srcs=(a,), queue="other", after=vdev.find_fence("q:2"))
        four = await busy(vdev, a, 1, "q")
        await ended(two, three, four)
        assert [job.fence.error for job in (one, two, three, four)] == [0, errno.EIO, 0, 0]
        assert bytes(await access.read(a, 0, 4096)) == b"\x04" * 4096, "the one that failed wrote nothing"
        assert [vdev.fence_error(f"q:{point}") for point in (1, 2, 3)] == [0, errno.EIO, errno.EIO]
        assert vdev.fence_error("other:1") == 0


async def test_an_engine_outlives_a_job_that_raises_anything(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device(compute_engines=1) as vdev:
        (a,) = await small(vdev, "a")

        def broken(*_args: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr("ttmfs.driver.jobs.execute", broken)
            job = await submit(vdev, "fill", dst=a, value=3)
            await job.fence.wait()
        assert job.fence.error == errno.EIO
        assert await ended(await busy(vdev, a, 1, "default")) == [1]


async def test_whose_a_queue_is() -> None:
    async with device() as vdev:
        (a,) = await small(vdev, "a")
        await busy(vdev, a, 0, "mine", uid=1000)
        for queue, uid in (("mine", 1001), ("svm", 1000), ("svm", 0)):
            with fails(errno.EACCES):
                await busy(vdev, a, 0, queue, uid=uid)
        await busy(vdev, a, 0, "mine", uid=0)
        await busy(vdev, a, 0, "default", uid=1001)
        for name in ("1", "7up", "", "a:b", "a b", "ü", "x" * 65):
            with fails(errno.EINVAL):
                await busy(vdev, a, 0, name)


async def test_many_queues_make_no_larger_share(autojump_clock: MockClock) -> None:
    async with device(compute_engines=1) as vdev:
        bos = await small(vdev, *(f"bo{number}" for number in range(10)))
        many = [await busy(vdev, bo, 1, f"a{number}", uid=1000) for number, bo in enumerate(bos[:8])]
        few = [await busy(vdev, bo, 1, f"b{number}", uid=1001) for number, bo in enumerate(bos[8:])]
        assert await ended(*few) == [2, 4]
        assert await ended(*many) == [0, 0, 1, 2, 3, 4, 5, 6]


async def test_aged_or_urgent_queues_of_one_user_are_no_more_than_that_user(autojump_clock: MockClock) -> None:
    async with device(compute_engines=1) as vdev:
        bos = await small(vdev, *(f"b{number}" for number in range(MAX_PASSED * 2 + 1)))
        for bo in bos[:-1]:
            for _ in range(3):
                await busy(vdev, bo, 1, f"a{bo.name}", uid=1000, priority=Priority.HIGH)
        await trio.sleep(MAX_PASSED * 2 + 0.5)
        began = trio.current_time()
        job = await busy(vdev, bos[-1], 1, "b", uid=1001, priority=Priority.LOW)
        await job.fence.wait()
        assert trio.current_time() - began <= 2, "the job that ran, and it"


async def test_jobs_of_a_user_that_have_not_ended_are_counted(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        a, b = await small(vdev, "a", "b")
        queue = vdev.compute.queues.open("q", 1000)
        jobs = [await busy(vdev, a, 1, name, uid=1000) for name in ("q", "r")]
        monkey = [(job, Priority.NORMAL) for job in jobs] * (MAX_JOBS // 2 - 1)
        queue._jobs.extend(monkey)
        with fails(errno.EAGAIN):
            await busy(vdev, a, 1, "s", uid=1000)
        with fails(errno.EAGAIN):
            await busy(vdev, a, 1, "default", uid=1000)
        await busy(vdev, b, 1, "default", uid=1001)
        for _ in monkey:
            queue._jobs.pop()
        await a.resv.wait(Usage.BOOKKEEP)
        await busy(vdev, a, 1, "s", uid=1000)
        await a.resv.wait(Usage.BOOKKEEP)


async def test_the_default_queue_of_a_user_is_his() -> None:
    async with device() as vdev:
        (a,) = await small(vdev, "a")
        for uid in (1001, 0):
            with fails(errno.EACCES):
                await busy(vdev, a, 0, default_of(1000), uid=uid)
        await busy(vdev, a, 0, default_of(1000), uid=1000)
        with fails(errno.EACCES):
            await busy(vdev, a, 0, default_of(1000), uid=1001)
        await busy(vdev, a, 0, default_of(1000), uid=0)


async def test_one_queue_too_many_takes_the_place_of_one_that_is_idle(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        (a,) = await small(vdev, "a")
        await (gone := await busy(vdev, a, 0, "q0", uid=1000)).fence.wait()
        for number in range(1, MAX_QUEUES):
            await busy(vdev, a, 1, f"q{number}", uid=1000)
        await busy(vdev, a, 1, "others", uid=1001)
        await busy(vdev, a, 1, "more", uid=1000)
        assert "q0" not in [queue.name for queue in vdev.compute.queues]
        assert vdev.find_fence(gone.fence.name) is None, "its fences are remembered as signaled"
        with fails(errno.ENOENT):
            vdev.find_fence("q0:1")
        with fails(errno.ENOSPC):
            await busy(vdev, a, 1, "evenmore", uid=1000)
        await a.resv.wait(Usage.BOOKKEEP)


async def test_suspend_waits_for_the_jobs_of_all_queues(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        a, b = await small(vdev, "a", "b")
        jobs = [await busy(vdev, a, 5, "x"), await busy(vdev, b, 9, "y")]
        await vdev.power.suspend(OperationContext())
        assert all(job.fence.signaled for job in jobs)
