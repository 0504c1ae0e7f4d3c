"""IntervalMap against a list, and what ranges and chunks cost in memory."""

import gc
import itertools
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.svm.conftest import MakeDevice
from ttmfs.svm import calls
from ttmfs.svm.intervals import IntervalMap

MIB = 1 << 20
END = 40


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, END), st.integers(0, END), st.sampled_from("abc"))))
def test_interval_map_is_a_list_of_values(changes: list[tuple[int, int, str]]) -> None:
    model = ["a"] * END
    intervals: IntervalMap[str] = IntervalMap("a")
    for first, end, value in changes:
        changed = any(old != value for old in model[first:end])
        assert intervals.set(first, end, value) == changed
        model[first:end] = [value] * max(0, end - first)
        assert [intervals.get(page) for page in range(END)] == model
        pieces = list(intervals.pieces(0, END))
        assert [value for start, stop, value in pieces for _ in range(stop - start)] == model
        # As few as there can be: neighbours differ.
        assert all(one[2] != two[2] for one, two in itertools.pairwise(pieces))
        assert len(intervals) <= len(pieces) + 1
    assert all(intervals.get(page + 1000) == intervals.get(END + 999) for page in range(3))


@pytest.mark.parametrize("where", ["vram", "system"])
async def test_a_range_costs_at_most_two_kib(svm_device: MakeDevice, autojump_clock: MockClock, where: str) -> None:
    count = 64
    async with svm_device(vram=2 * count * MIB, memory=3 * count * MIB) as device:
        space = device.space(1 << 40)
        stride = 8 << 30
        await calls.prefetch(space, 0, 1, where)
        tracemalloc.start()
        for number in range(1, count):
            await calls.prefetch(space, number * stride, 1, where)
        # It keeps as many entries as it ever does, however many ranges there are.
        device.vdev.ttm.recorder.entries.clear()
        gc.collect()
        # Deadlines that have passed stay on trio's heap for a while: they are no part of a range.
        taken = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, "*/trio/*")])
        tracemalloc.stop()
        each = sum(statistic.size for statistic in taken.statistics("filename")) / (count - 1)
        print(f"{where}: {each:.0f} bytes per 2 MiB range")
        assert {row[2] for row in device.locations(space)} == {where}
        assert each <= 2048
