"""Frames of 2 MiB that change hands in moves (R11): no byte is wrong, whoever looks when, and what still works on the
old page numbers keeps them. What a frame leaves behind is noise in all of these tests."""

import random
import zlib
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from tests.core.exchange import exchanged_frames, need_exchanges, noise_behind
from tests.core.frames import FRAMES, SIZE, make
from tests.core.harness import MIB, PAGE, WaitingUnmapper, device, fails, idle, move
from tests.core.stores import same
from tests.driver.defrag_tools import scattered
from tests.memory.host_memory import resident_pages
from ttmfs.driver import calls
from ttmfs.driver.defrag import defrag_bo
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.memory import frames
from ttmfs.memory.arena import FRAME_PAGES, HUGE_SIZE, Arena
from ttmfs.sync import offload
from ttmfs.sync.fence import Fence
from ttmfs.sync.offload import Lane
from ttmfs.ttm import access, at_once, copy_frames, lifetime
from ttmfs.ttm.backing import Backing
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.copy import Copy, CopyState
from ttmfs.ttm.copy_frames import FrameRun
from ttmfs.ttm.move import pipeline_gutting

T = TypeVar("T")
SECOND = HUGE_SIZE + 5 * PAGE - 13
"""Bytes of two pages of the second frame."""
PLACES = ("vram", "gtt", "vram", "system")
CONFIG = {"vram": 16 * MIB, "gtt": 32 * MIB, "memory": 64 * MIB, "swap": 0}


@pytest.fixture(autouse=True)
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    need_exchanges()
    monkeypatch.setattr(frames._Host, "refused", False)
    # Each run of frames in a step of its own, and runs of one or two.
    monkeypatch.setattr("ttmfs.ttm.copy._STEP_FRAMES", 1)
    noise_behind(monkeypatch)


async def test_whole_frames_change_hands_and_the_rest_is_copied() -> None:
    async with device(**CONFIG) as vdev:
        bo = await make(vdev)
        for number, place in enumerate(("vram", "gtt", "vram", "system", "vram"), 1):
            await move(vdev, bo.bo, place)
            await idle(bo.bo)
            assert exchanged_frames(vdev) == number * FRAMES
            await bo.check()
        assert bo.bo.moves == vdev.ttm.counters.moves.count
        assert not vdev.selfcheck()


async def test_where_it_is_forbidden_all_is_copied() -> None:
    async with device(**CONFIG) as vdev:
        vdev.ttm.inject.ban_exchange = True
        bo = await make(vdev)
        for place in ("vram", "gtt"):
            await move(vdev, bo.bo, place)
            await bo.check()
        assert exchanged_frames(vdev) == 0


async def test_what_does_not_lie_in_frames_is_copied() -> None:
    async with device(**CONFIG) as vdev:
        bo, data = await scattered(vdev, "a", 4 * MIB)
        for place in ("vram", "gtt"):
            await move(vdev, bo, place)
            await idle(bo)
            await same(bo, data)
            # What it gets in gtt is in large blocks.
            assert exchanged_frames(vdev) == (0 if place == "vram" else 4 * MIB // HUGE_SIZE)


class Watch(trio.abc.Instrument):
    """After each step of a task: of no page whose frame has changed hands is the source where requests find it."""

    def __init__(self, bo: BufferObject, patch: pytest.MonkeyPatch) -> None:
        self.bo = bo
        self.steps: list[int] = []
        """Steps in which frames changed hands."""
        self._count = 0
        self._left: set[tuple[Arena, int]] = set()
        real, real_signal = vars(copy_frames)["exchange"], Fence.signal

        def exchange(one: Arena, page: int, other: Arena, other_page: int, count: int) -> None:
            self.steps.append(self._count)
            self._left.update((one, at) for at in range(page, page + count * FRAME_PAGES))
            real(one, page, other, other_page, count)

        def signal(fence: Fence, error: int = 0) -> None:
            # Its source is anybody's from now on.
            self._left.clear()
            real_signal(fence, error)

        patch.setattr("ttmfs.ttm.copy_frames.exchange", exchange)
        patch.setattr(Fence, "signal", signal)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Some task lets others run."""
        self._count += 1
        if not self._left:
            return
        index = 0
        while index < self.bo.num_pages:
            backing, _copy, end = self.bo.truth(index)
            assert backing is not None
            for at in range(index, min(end, self.bo.num_pages)):
                assert (backing.arena, backing.extent(at, 1)[0]) not in self._left, f"page {at} is not there any more"
            index = end


@pytest.mark.parametrize("run", [1, 16])
async def test_requests_find_a_frame_at_the_target_in_the_step_in_which_it_changes_hands(
    monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    """Whoever ran in between would read, or write, what is no source any more. Frames change hands some at a time."""
    frames.longest_run()
    monkeypatch.setattr(copy_frames, "longest_run", lambda: run)
    async with device(**CONFIG) as vdev:
        bo = await make(vdev)
        watch = Watch(bo.bo, monkeypatch)
        trio.lowlevel.add_instrument(watch)
        for place in ("vram", "gtt"):
            await move(vdev, bo.bo, place)
            await idle(bo.bo)
            await bo.check()
        trio.lowlevel.remove_instrument(watch)
        assert exchanged_frames(vdev) == 2 * FRAMES
    assert len(watch.steps) >= (2 * FRAMES if run == 1 else 2)
    assert len(set(watch.steps)) == len(watch.steps), "each run had a step of its own"


@pytest.mark.parametrize("late", [False, True], ids=["", "late"])
async def test_every_turn_of_a_move_shows_and_takes_the_right_bytes(
    monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """A READ and a WRITE in each turn of the loop, INVALs outstanding; with `late` all but one of them are hurried."""
    monkeypatch.setattr(copy_frames, "longest_run", lambda: 1)
    rng = random.Random(1)
    async with device(**CONFIG) as vdev:
        vdev.ttm.unmapper = WaitingUnmapper(4)
        vdev.ttm.max_parked = 1 if late else 1 << 30
        bo = await make(vdev)
        done = trio.Event()
        owned: set[int] = set()
        served = [0, 0]

        async def read(page: int) -> None:
            got = bytes(await access.read(bo.bo, page * PAGE, PAGE))
            assert got == bo.model[page * PAGE : (page + 1) * PAGE], f"page {page}"
            owned.discard(page)
            served[0] += 1

        async def write(page: int) -> None:
            data = rng.randbytes(16) * (PAGE // 16)
            await access.write(bo.bo, page * PAGE, data)
            bo.model[page * PAGE : (page + 1) * PAGE] = data
            owned.discard(page)
            served[1] += 1

        async def client(nursery: trio.Nursery) -> None:
            pages = SIZE // PAGE
            while not done.is_set():
                for request in (read, write):
                    page = rng.choice((0, 511, 512, 1023, 1535, 1536, rng.randrange(pages)))
                    if page not in owned and len(owned) < 40:
                        owned.add(page)
                        nursery.start_soon(request, page)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client, nursery)
            for place in 3 * PLACES:
                bo.bo.handed_out = True
                await move(vdev, bo.bo, place)
                with trio.fail_after(60):
                    while bo.bo.copies:
                        await trio.lowlevel.checkpoint()
            done.set()
        assert min(served) > 12 * len(PLACES)
        assert exchanged_frames(vdev) == 3 * len(PLACES) * FRAMES
        await bo.check()


async def _relocate(vdev: VirtualDevice, bo: BufferObject, how: str) -> None:
    if how == "evict":
        await calls.evict_one(vdev, bo, OperationContext())
    elif how == "defrag":
        await defrag_bo(vdev, bo, OperationContext())
    else:
        await move(vdev, bo, how)


@pytest.mark.parametrize("held", ["queued", "in its thread"])
@pytest.mark.parametrize(("start", "how"), [("vram", "gtt"), ("gtt", "vram"), ("vram", "evict"), ("vram", "gtt vram")])
async def test_a_job_that_reads_goes_on_in_the_memory_it_was_given(
    autojump_clock: MockClock, start: str, how: str, held: str
) -> None:
    """It is no dependency of the copy, and reads after its end: nothing may have changed hands under it."""
    gate = trio.Event()

    class Held:
        """A thread that gets no turn until the gate is open."""

        async def run(self, lane: Lane, work: Callable[[], T]) -> T:
            await gate.wait()
            return work()

    async with device(**CONFIG) as vdev:
        offload.use(Held())
        bo = await make(vdev)
        await move(vdev, bo.bo, start)
        await idle(bo.bo)
        before = exchanged_frames(vdev)
        if held == "queued":
            await submit_job(vdev, Job("busy", srcs=(vdev.create_bo("other"),), seconds=50.0), OperationContext())
        queued = await submit_job(vdev, Job("checksum", srcs=(bo.bo,)), OperationContext())
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            for step in how.split():
                nursery.start_soon(_relocate, vdev, bo.bo, step)
                await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5):
                # The copies end, the job has not.
                while bo.bo.copies:
                    await trio.sleep(0.01)
            assert not queued.fence.signaled
            assert exchanged_frames(vdev) == before
            gate.set()
        await queued.fence.wait()
        assert queued.value == zlib.crc32(bo.model), "it read what was no source any more"
        await bo.check()
        # Nobody uses it now.
        await move(vdev, bo.bo, start)
        await idle(bo.bo)
        await move(vdev, bo.bo, "gtt" if start == "vram" else "vram")
        await idle(bo.bo)
        assert exchanged_frames(vdev) > before
        await bo.check()


async def test_moves_in_a_row_behind_a_job_that_writes(autojump_clock: MockClock) -> None:
    async with device(**CONFIG) as vdev:
        bo = await make(vdev)
        await move(vdev, bo.bo, "vram")
        await submit_job(vdev, Job("busy", srcs=(bo.bo,), seconds=5.0), OperationContext())
        for place in ("gtt", "vram", "gtt", "vram", "gtt"):
            await move(vdev, bo.bo, place)
        assert len(bo.bo.copies) >= 3
        await access.write(bo.bo, 5 * PAGE, b"x" * PAGE)
        bo.model[5 * PAGE : 6 * PAGE] = b"x" * PAGE
        await bo.check()
        await idle(bo.bo)
        await bo.check()
        assert exchanged_frames(vdev) >= 4 * FRAMES


@pytest.mark.parametrize("latency", [0.0, 0.01])
async def test_whoever_gets_what_was_left_behind_sees_none_of_it(autojump_clock: MockClock, latency: float) -> None:
    """VRAM by a clear and by a copy while it is still being evicted, memory as fresh pages and as holes."""
    async with device(**CONFIG, copy_latency=latency) as vdev:
        held = [await make(vdev, name) for name in ("a", "b")]
        for bo in held:
            await move(vdev, bo.bo, "vram")
        for turn in range(3):
            await idle(*[bo.bo for bo in held])
            fresh = vdev.create_bo(f"fresh{turn}")
            lifetime.set_size(fresh, 14 * MIB)
            await move(vdev, fresh, "vram")
            for offset in range(0, 14 * MIB, MIB):
                assert bytes(await access.read(fresh, offset, MIB)) == bytes(MIB), f"stale bytes in {offset >> 20} MiB"
            sparse = vdev.create_bo(f"sparse{turn}")
            lifetime.set_size(sparse, 8 * MIB)
            for page in range(0, 2048, 7):
                await access.write(sparse, page * PAGE + 5, b"some")
            assert bytes(await access.read(sparse, 0, 8 * MIB)).count(0) == 8 * MIB - 4 * len(range(0, 2048, 7))
            for bo in held:
                # Evicts what is fresh, by a copy, and is evicted by it next.
                await move(vdev, bo.bo, "vram")
                await bo.check()
            for other in (fresh, sparse):
                lifetime.release(other)
        assert exchanged_frames(vdev) >= 6 * FRAMES
        assert not vdev.selfcheck()


@pytest.mark.parametrize("cpu", ["copies", "banned"])
async def test_an_engine_that_fails_exchanges_nothing(cpu: str) -> None:
    async with device(**CONFIG) as vdev:
        bo = await make(vdev)
        inject = vdev.ttm.inject
        inject.ban_memcpy = cpu == "banned"
        inject["engine"].probability, inject["engine"].times = 100, 1
        await move(vdev, bo.bo, "vram")
        await idle(bo.bo)
        assert exchanged_frames(vdev) == 0
        if cpu == "copies":
            await bo.check()
            await move(vdev, bo.bo, "gtt")
            await bo.check()
            assert exchanged_frames(vdev) == FRAMES
        else:
            with fails(5):
                await access.read(bo.bo, 0, PAGE)


@pytest.mark.parametrize("call", range(1, 13))
async def test_a_host_that_refuses_in_the_middle_of_a_move(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """At the 1st, 2nd or 3rd step of any of its runs: what it did not move was copied, and so is all that follows."""
    calls_made = iter(range(1, 1000))
    real = frames._mremap

    def mremap(source: int, size: int, new_size: int, flags: int, target: int) -> int | None:
        if next(calls_made) != call:
            result: int | None = real(source, size, new_size, flags, target)
            return result
        if size > HUGE_SIZE:
            # Half of it has come.
            assert real(source, HUGE_SIZE, HUGE_SIZE, flags, target) == target
        return frames._FAILED

    async with device(**CONFIG) as vdev:
        bo = await make(vdev)
        frames.longest_run()
        monkeypatch.setattr(frames, "_mremap", mremap)
        moves = 0
        for place in ("vram", "gtt", "vram", "gtt", "vram", "gtt"):
            moves += not frames._Host.refused
            await move(vdev, bo.bo, place)
            await idle(bo.bo)
            await bo.check()
        assert frames._Host.refused
        assert exchanged_frames(vdev) == FRAMES * moves
        for arena in (vdev.ttm.managers["vram"].arena, vdev.pool.arena):
            assert arena is not None
            assert resident_pages(arena) >= 0, "it says so itself where there is a hole"


@pytest.mark.parametrize("offset", [HUGE_SIZE + 3 * PAGE + 7, 2 * HUGE_SIZE, 5])
@pytest.mark.parametrize("when", ["before a step", "after one", "between frames"])
@pytest.mark.parametrize("place", ["vram", "gtt"])
async def test_a_truncate_while_bytes_move_cuts_what_changes_hands(
    monkeypatch: pytest.MonkeyPatch, offset: int, place: str, when: str
) -> None:
    """And nothing of what was written where the bytes have arrived. The first frame is one that is copied."""
    monkeypatch.setattr(copy_frames, "longest_run", lambda: 1)
    real_runs = copy_frames.frame_runs

    def but_the_first(src: Backing, dst: Backing, index: int, count: int) -> list[FrameRun]:
        return [run for run in real_runs(src, dst, index, count) if run.first]

    monkeypatch.setattr("ttmfs.ttm.copy.frame_runs", but_the_first)
    async with device(**CONFIG) as vdev:
        bo = await make(vdev)
        await move(vdev, bo.bo, "gtt" if place == "vram" else "vram")
        await idle(bo.bo)
        before = exchanged_frames(vdev)
        cut: list[bool] = []
        real, real_change = Copy.step, Copy.change_hands

        def cut_once(copy: Copy) -> None:
            if not cut:
                assert copy.state is CopyState.RUNNING
                cut.append(True)
                bo.cut(offset)

        def step(self: Copy, index: int, count: int) -> None:
            if when == "before a step":
                cut_once(self)
            real(self, index, count)
            if when == "after one":
                cut_once(self)

        def change_hands(self: Copy) -> int:
            pages = real_change(self)
            if len(self.frames) == 1:
                cut_once(self)
                assert at_once.try_write(bo.bo, SECOND, b"new" * 9)
                bo.model[SECOND : SECOND + 27] = b"new" * 9
                assert bytes(at_once.gather_now(bo.bo, 0, SIZE)) == bo.model
                assert not at_once.try_write(bo.bo, 2 * HUGE_SIZE - 5, b"new" * 9), "it would be lost"
            return pages

        monkeypatch.setattr(Copy, "step", step)
        monkeypatch.setattr(Copy, "change_hands", change_hands)
        await move(vdev, bo.bo, place)
        await idle(bo.bo)
        assert cut
        assert exchanged_frames(vdev) == before + FRAMES - 1
        await bo.check()


@pytest.mark.parametrize("end", ["gut", "unlink", "cancel"])
async def test_a_bo_that_ends_while_its_frames_are_about_to_change_hands(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    async with device(**CONFIG) as vdev:
        bo = await make(vdev)
        begun = trio.Event()
        real = Copy.step

        def step(self: Copy, index: int, count: int) -> None:
            begun.set()
            real(self, index, count)

        monkeypatch.setattr(Copy, "step", step)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(move, vdev, bo.bo, "vram"))
            await begun.wait()
            if end == "cancel":
                nursery.cancel_scope.cancel()
        if end == "gut":
            await bo.bo.resv.lock()
            await pipeline_gutting(bo.bo, OperationContext())
            bo.bo.unlock()
            bo.model = bytearray(SIZE)
        if end != "unlink":
            await bo.check()
            await idle(bo.bo)
            await bo.check()
        lifetime.release(bo.bo)
        with trio.fail_after(10):
            while vdev.ttm.num_bos:
                await trio.sleep(0.001)
        assert vdev.pool.in_use_pages == 0
        assert not vdev.selfcheck()
