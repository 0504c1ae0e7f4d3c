"""Faults of the device get there in the end: ranges that are unmapped meanwhile, ranges that evict each other."""

import errno
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.svm.conftest import MIB, MakeDevice
from tests.svm.page_cache import PAGE
from ttmfs.errors import TtmError
from ttmfs.svm import calls, fault, migrate
from ttmfs.svm.fault import VRAM_TRIES


async def test_an_atomic_goes_on_however_often_its_range_is_unmapped(
    svm_device: MakeDevice, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with svm_device() as device:
        space = device.space(2 * MIB)
        await device.cache.store(space, 8 * PAGE, b"kept")
        real, times = migrate._allocate, 0

        async def allocate(*arguments: object) -> None:
            nonlocal times
            await real(*arguments)  # type: ignore[arg-type]
            if times < VRAM_TRIES + 2:
                times += 1
                await calls.unmap(space, 100 * PAGE, PAGE)
                await calls.map_range(space, 100 * PAGE, PAGE, read_only=False)

        monkeypatch.setattr(migrate, "_allocate", allocate)
        assert (await calls.gpu_atomic_add(space, 16 * PAGE, 5))["value"] == 0
        assert times == VRAM_TRIES + 2
        assert (await calls.gpu_atomic_add(space, 16 * PAGE, 5))["value"] == 5
        assert await device.cache.load(space, 8 * PAGE, 4) == b"kept"
        assert device.locations(space)[0][2] == "vram" or device.svm.counters.migrations_in
        await device.check_nothing_left()


async def test_an_atomic_goes_on_however_often_clients_touch_its_range(
    svm_device: MakeDevice, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with svm_device() as device:
        space = device.space(2 * MIB)
        real, times = migrate._invalidate_cpu, 0

        async def invalidate(*arguments: Any) -> None:
            nonlocal times
            times += 1
            if times <= VRAM_TRIES + 2:
                await trio.lowlevel.checkpoint()
                raise TtmError(errno.EBUSY, "clients keep touching the range")
            await real(*arguments)

        monkeypatch.setattr(migrate, "_invalidate_cpu", invalidate)
        assert (await calls.gpu_atomic_add(space, 16 * PAGE, 5))["value"] == 0
        assert times == VRAM_TRIES + 3
        await device.check_nothing_left()


async def test_atomics_whose_ranges_do_not_fit_together_take_turns(
    svm_device: MakeDevice, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with svm_device(vram=2 * MIB) as device:
        space = device.space(4 * MIB)
        real, attempts = fault._get_pages, 0

        async def get_pages(*arguments: Any, **options: Any) -> int:
            """Others have all the time they need to evict what has just been migrated."""
            nonlocal attempts
            attempts += 1
            assert attempts < 200, "they evict each other's ranges for ever"
            for _ in range(200):
                await trio.lowlevel.checkpoint()
            return await real(*arguments, **options)

        monkeypatch.setattr(fault, "_get_pages", get_pages)

        async def add(address: int) -> None:
            for _ in range(5):
                await calls.gpu_atomic_add(space, address, 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add, 0)
            nursery.start_soon(add, 2 * MIB)
        for address in (0, 2 * MIB):
            assert (await calls.gpu_atomic_add(space, address, 0))["value"] == 5
        assert device.svm.counters.gpu_restarts > 0, "they never met: the test tests nothing"
        await device.check_nothing_left()
