"""Dirty tracking and the vmwgfx-like driver."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.harness import MIB, PAGE, WaitingUnmapper, check, device, make, move
from ttmfs.driver.dirty import DirtyMethod, DirtyTracker, MethodSwitch
from ttmfs.driver.vmwgfx import VmwgfxTracker
from ttmfs.ttm import access, lifetime

RANGES = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40), st.sampled_from(["wrote", "cut", "take"])))


@settings(deadline=None)
@given(RANGES)
def test_the_tracker_against_a_set(steps: list[tuple[int, int, str]]) -> None:
    tracker, model = DirtyTracker(), set()
    for first, count, what in steps:
        if what == "wrote":
            tracker.wrote(first, first + count)
            model |= set(range(first, first + count))
        elif what == "cut":
            tracker.cut(first)
            model = {page for page in model if page < first}
        else:
            taken = {page for low, high in tracker.take() for page in range(low, high)}
            assert taken == model
            model = set()
        runs = tracker.runs()
        assert {page for low, high in runs for page in range(low, high)} == model
        assert all(a[1] < b[0] for a, b in pairwise(runs))


def test_the_method_changes_on_the_third_trigger_in_a_row() -> None:
    switch = MethodSwitch(511)
    assert switch.method is DirtyMethod.SCAN
    assert MethodSwitch(512).method is DirtyMethod.LOG
    assert [switch.collected(dirty, 500) for dirty in (0, 0, 1, 0, 0, 0)] == [False] * 5 + [True]
    assert switch.method is DirtyMethod.LOG  # type: ignore[comparison-overlap]
    # Exactly 10 % is not more than 10 %.
    assert [switch.collected(dirty, 500) for dirty in (51, 51, 50, 51, 51, 51)] == [False] * 5 + [True]
    assert switch.method is DirtyMethod.SCAN


async def test_the_default_driver_tracks_until_the_device_takes_the_bo() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a")
        assert isinstance(bo.dirty, DirtyTracker)
        assert bo.dirty.runs() == [(0, 256)]
        assert (await move(vdev, bo, "vram"))["dirty_pages"] == 256
        await access.write(bo, 5 * PAGE - 1, b"xy")
        assert bo.dirty.runs() == [(4, 6)]


async def test_vmwgfx_prefaults_16_and_one_when_random() -> None:
    async with device(driver="vmwgfx", vram=8 * MIB) as vdev:
        for advice, most in (("normal", 17), ("random", 2)):
            bo = vdev.create_bo(advice)
            bo.madvise = advice
            lifetime.set_size(bo, 4 * MIB)
            await access.read(bo, 100 * PAGE, 1)
            assert bo.tt is not None
            assert 1 <= bo.tt.populated_pages <= most


async def test_vmwgfx_scans_small_bos_and_logs_large_ones() -> None:
    async with device(driver="vmwgfx") as vdev:
        unmapper = WaitingUnmapper()
        vdev.ttm.unmapper = unmapper
        small, large = await make(vdev, "small"), await make(vdev, "large", 3 * MIB)
        for bo in (small, large):
            assert isinstance(bo.dirty, VmwgfxTracker)
        unmapper.unmapped.clear()
        assert (await move(vdev, large, "system"))["dirty_pages"] == 768
        assert unmapper.unmapped == []
        assert (await move(vdev, small, "system"))["dirty_pages"] == 256
        assert unmapper.unmapped == ["small"]
        for _ in range(3):
            await move(vdev, small, "system")
        assert isinstance(small.dirty, VmwgfxTracker)
        assert small.dirty.method(small) is DirtyMethod.LOG
        await check(small)
        await check(large)


async def test_the_event_of_a_fault_says_what_its_handler_maps_the_pages_with() -> None:
    async with device(driver="vmwgfx", vram=8 * MIB) as vdev:
        small, large = vdev.create_bo("small"), vdev.create_bo("large")
        lifetime.set_size(small, MIB)
        lifetime.set_size(large, 4 * MIB)
        vdev.ttm.trace.start(["fault"])
        await access.read(small, 0, PAGE)
        # Its dirty pages are found by write-protecting them (LOG).
        await access.read(large, 0, PAGE)
        # Prefaulted: no handler is asked.
        await access.read(large, PAGE, PAGE)
        events = [(event.bo, event.facts["prot"]) for event in vdev.ttm.trace.ring]
        assert events == [("small", "rw"), ("large", "r"), ("large", "-")]
        lines = vdev.ttm.trace.text().splitlines()
        assert " waits=- prot=r latency_us=" in lines[-2]
