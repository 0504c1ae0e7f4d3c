"""How long the steps of a copy are: short while clients want something, long while nobody does."""

import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from tests.driver.conftest import MakeDevice
from ttmfs import clock
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.engine import MAX_STEP_PAGES, CopySteps
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.copy import Copy
from ttmfs.ttm.device import CLEAR_STEP_PAGES

MIB = 1 << 20


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """(first page, pages) of every step that any copy makes, on a clock that advances by 10 us at every look."""
    looks = itertools.count(0, 10_000)
    seen: list[tuple[int, int]] = []
    real = Copy.step

    def step(self: Copy, index: int, count: int) -> None:
        seen.append((index, count))
        real(self, index, count)

    monkeypatch.setattr(Copy, "step", step)
    with clock.replaced(lambda: next(looks), clock.wall_ns):
        yield seen


async def move(vdev: VirtualDevice, bo: BufferObject, place: str) -> None:
    await calls.validate_bo(vdev, bo, vdev.parse_placement(place.split()), OperationContext())
    await bo.resv.wait(Usage.BOOKKEEP)


async def make(vdev: VirtualDevice, size: int) -> tuple[BufferObject, bytes]:
    # What changes hands takes no steps.
    vdev.ttm.inject.ban_exchange = True
    bo = vdev.create_bo("a")
    data = random.Random(size).randbytes(size)
    await access.write(bo, 0, data)
    await move(vdev, bo, "gtt")
    return bo, data


def covers(steps: list[tuple[int, int]], pages: int) -> bool:
    """Every page once, in order."""
    at = 0
    for index, count in steps:
        if index != at or count < 1:
            return False
        at += count
    return at == pages


@pytest.mark.parametrize("size", [16 * MIB, 9 * MIB + 5 * 4096, 4096])
async def test_steps_grow_while_nobody_wants_anything_and_are_aligned(
    device: MakeDevice, steps: list[tuple[int, int]], size: int
) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, size)
        steps.clear()
        await move(vdev, bo, "vram")
        assert covers(steps, size // 4096 if size % 4096 == 0 else size // 4096 + 1)
        counts = [count for _, count in steps]
        assert counts[0] == min(CLEAR_STEP_PAGES, size // 4096)
        if size > 8 * MIB:
            assert max(counts) == MAX_STEP_PAGES
            assert all(index % MAX_STEP_PAGES == 0 for index, count in steps if count == MAX_STEP_PAGES)
        assert bytes(await access.read(bo, 0, size)) == data


@contextlib.asynccontextmanager
async def read_all_the_time(vdev: VirtualDevice) -> AsyncIterator[trio.Event]:
    """A client of another BO, until the event is set or the block ends."""
    other = vdev.create_bo("other")
    await access.write(other, 0, b"x" * 4096)
    done = trio.Event()

    async def client() -> None:
        while not done.is_set():
            assert bytes(await access.read(other, 0, 4096)) == b"x" * 4096
            vdev.ttm.counters.requests.read += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        yield done
        done.set()


async def test_steps_stay_short_while_there_are_requests(device: MakeDevice, steps: list[tuple[int, int]]) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, 16 * MIB)
        async with read_all_the_time(vdev):
            steps.clear()
            await move(vdev, bo, "vram")
        assert covers(steps, 4096)
        assert max(count for _, count in steps) == CLEAR_STEP_PAGES
        assert bytes(await access.read(bo, 0, bo.size)) == data


@pytest.mark.parametrize("op", ["read", "write"])
async def test_steps_hurry_for_a_request_that_waits_for_a_copy_and_for_no_other(
    device: MakeDevice, steps: list[tuple[int, int]], op: str
) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, 16 * MIB)

        async def waiter(done: trio.Event) -> None:
            while not bo.copies or len(steps) < 20:
                await trio.lowlevel.checkpoint()
            if op == "read":
                assert bytes(await access.read(bo, 4096, 100)) == data[4096:4196]
            else:
                await access.write(bo, 4096, data[4096:4196])
            done.set()

        async with read_all_the_time(vdev) as done, trio.open_nursery() as nursery:
            steps.clear()
            nursery.start_soon(waiter, done)
            await move(vdev, bo, "vram")
        assert covers(steps, 4096)
        assert {count for _, count in steps[:20]} == {CLEAR_STEP_PAGES}
        assert 512 in [count for _, count in steps[20:24]]
        assert max(count for _, count in steps) == 512
        assert bytes(await access.read(bo, 0, bo.size)) == data


async def test_an_injected_failure_comes_half_way_in_short_steps(
    device: MakeDevice, steps: list[tuple[int, int]]
) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, 8 * MIB)
        vdev.ttm.inject["engine"].set("times", "1")
        vdev.ttm.inject["engine"].set("probability", "100")
        steps.clear()
        await move(vdev, bo, "vram")
        again = [number for number, (index, _) in enumerate(steps) if index == 0][-1]
        assert again > 0
        assert 0.4 < sum(count for _, count in steps[:again]) / 2048 < 0.6
        assert all(count <= CLEAR_STEP_PAGES for _, count in steps[:again])
        assert covers(steps[again:], 2048)
        assert vdev.engines[0].cpu_copies == 1
        assert bytes(await access.read(bo, 0, bo.size)) == data


def quiet(steps: CopySteps, times: int, step: float = 50e-6) -> list[int]:
    out = []
    for _ in range(times):
        steps.after(step, 10e-6, 0)
        out.append(steps.pages)
    return out


def test_steps_double_when_quiet_up_to_their_maximum() -> None:
    pages = quiet(CopySteps(0), 20)
    assert pages[0] == CLEAR_STEP_PAGES
    assert pages[-1] == MAX_STEP_PAGES
    assert all(after in (before, 2 * before) for before, after in itertools.pairwise(pages))


def test_steps_shrink_at_once_for_a_request_and_are_slow_to_grow_again() -> None:
    steps = CopySteps(7)
    for _ in range(20):
        steps.after(50e-6, 10e-6, 7)
    steps.after(50e-6, 10e-6, 8)
    assert steps.pages == CLEAR_STEP_PAGES
    first = next(number for number, pages in enumerate(_grow(steps, 8)) if pages > CLEAR_STEP_PAGES)
    fresh = next(number for number, pages in enumerate(quiet(CopySteps(0), 40)) if pages > CLEAR_STEP_PAGES)
    assert first > fresh


def _grow(steps: CopySteps, served: int) -> list[int]:
    out = []
    for _ in range(40):
        steps.after(50e-6, 10e-6, served)
        out.append(steps.pages)
    return out


def test_steps_that_are_slow_become_short() -> None:
    steps = CopySteps(0)
    quiet(steps, 20)
    steps.after(900e-6, 10e-6, 0)
    assert steps.pages == MAX_STEP_PAGES // 2
    for _ in range(10):
        steps.after(900e-6, 10e-6, 0)
    assert steps.pages == CLEAR_STEP_PAGES
    assert set(quiet(CopySteps(0), 40, step=500e-6)) == {CLEAR_STEP_PAGES}, "twice that would be too long"


def test_steps_give_way_to_others_on_the_loop() -> None:
    steps = CopySteps(0)
    quiet(steps, 20)
    steps.after(50e-6, 5e-3, 0)
    assert steps.pages == MAX_STEP_PAGES // 2
