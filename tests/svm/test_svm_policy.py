"""The knobs of migration: which device faults take a range to VRAM, how large ranges are, and a device without VRAM."""

import errno

import pytest
from trio.testing import MockClock

from tests.svm.conftest import MIB, MakeDevice, SvmDevice
from ttmfs.errors import TtmError
from ttmfs.svm import calls, cpu
from ttmfs.svm.policy import check_threshold, format_range_sizes, parse_migrate, parse_range_sizes
from ttmfs.svm.space import AddressSpace

KIB = 1 << 10
PAGE = 4096


async def to_and_fro(device: SvmDevice, space: AddressSpace, times: int) -> list[str]:
    """Where the first range is after each fault of the device, with a touch by the CPU between."""
    where = []
    for number in range(times):
        await calls.gpu_fill(space, 0, PAGE, number)
        where.append(device.locations(space)[0][2])
        assert bytes(await cpu.read(space, 0, 1)) == bytes([number])
    return where


@pytest.mark.parametrize(
    ("policy", "where", "flags"),
    [
        ("once", ["vram", "system", "system"], "skip_migrate"),
        ("always", ["vram", "vram", "vram"], "-"),
        ("never", ["system", "system", "system"], "bound"),
    ],
)
async def test_which_fault_migrates(
    svm_device: MakeDevice, autojump_clock: MockClock, policy: str, where: list[str], flags: str
) -> None:
    async with svm_device(svm_migrate=policy) as device:
        space = device.space(4 * MIB)
        assert await to_and_fro(device, space, 3) == where
        assert device.svm.counters.migrations_in == where.count("vram")
        assert flags in space.table.ranges[0].flags
        # Asked for it goes, whatever the policy.
        await calls.prefetch(space, 0, 2 * MIB, "vram")
        assert device.locations(space) == [(0, "2M", "vram")]
        await cpu.read(space, 0, 1)
        await calls.madvise(space, 0, 4 * MIB, preferred="vram")
        assert (await to_and_fro(device, space, 1)) == ["vram"]
        await calls.madvise(space, 0, 4 * MIB, preferred="system")
        assert (await to_and_fro(device, space, 1)) == ["system"]
        space.release()
        await device.check_nothing_left()


async def test_a_policy_counts_from_when_it_is_set(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space, policy = device.space(4 * MIB), device.svm.policy
        assert await to_and_fro(device, space, 2) == ["vram", "system"]
        policy.migrate = "always"
        # A valid range does not fault; the touch of a client before this one is no reason to move it.
        await calls.prefetch(space, 0, 2 * MIB, "system")
        space.invalidate(0, 512, "test")
        assert await to_and_fro(device, space, 2) == ["vram", "vram"]
        policy.migrate = "never"
        assert await to_and_fro(device, space, 2) == ["system", "system"]


async def test_always_without_room_stays_in_system_and_goes_when_there_is_some(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device(svm_migrate="always") as device:
        space = device.space(2 * MIB)
        fault = device.vdev.ttm.inject["resource_alloc"]
        fault.probability, fault.times = 100, -1
        result = await calls.gpu_fill(space, 0, PAGE, 1)
        assert (result["fallbacks"], device.locations(space)) == (1, [(0, "2M", "system")])
        fault.probability = 0
        space.invalidate(0, 512, "test")
        assert "fallbacks" not in await calls.gpu_fill(space, 0, PAGE, 1)
        assert device.locations(space) == [(0, "2M", "vram")]


@pytest.mark.parametrize(("threshold", "where"), [(4, "vram"), (64, "system"), (2048, "system")])
async def test_ranges_below_the_threshold_stay(
    svm_device: MakeDevice, autojump_clock: MockClock, threshold: int, where: str
) -> None:
    async with svm_device(svm_migrate_threshold=threshold * KIB) as device:
        space = device.space(4 * MIB + 8 * KIB)
        await cpu.write(space, 4 * MIB, b"\5" * 8 * KIB)
        await calls.gpu_fill(space, 4 * MIB + PAGE, PAGE, 6)
        await calls.gpu_fill(space, 0, PAGE, 6)
        assert device.locations(space) == [(0, "2M", "vram"), (4 * MIB + PAGE, "4K", where)]
        await calls.prefetch(space, 4 * MIB, 8 * KIB, "vram")
        assert [row[2] for row in device.locations(space)[1:]] == [where] * 2
        assert (await calls.gpu_atomic_add(space, 4 * MIB + PAGE, 1))["value"] == int.from_bytes(b"\6" * 8, "little")
        assert bytes(await cpu.read(space, 4 * MIB, 8 * KIB)) == b"\5" * PAGE + b"\7" + b"\6" * (PAGE - 1)
        space.release()
        await device.check_nothing_left()


async def test_sizes_of_ranges(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(svm_range_sizes="256K,16K,4K", svm_migrate_threshold=16 * KIB) as device:
        space = device.space(4 * MIB)
        await calls.unmap(space, MIB + 20 * KIB, PAGE)
        await cpu.write(space, MIB, b"\1" * 20 * KIB)
        for at in (0, MIB, MIB + 16 * KIB):
            await calls.gpu_fill(space, at, PAGE, 2)
        assert device.locations(space) == [
            (0, "256K", "vram"), (MIB, "16K", "vram"), (MIB + 16 * KIB, "4K", "system")
        ]
        assert "svm_256K_migrate_count: 1\n" in space.stats_text()
        device.svm.policy.sizes = parse_range_sizes("2M,64K,4K")
        await calls.gpu_fill(space, 2 * MIB, PAGE, 2)
        # Those that there are stay what they are, and nothing overlaps them.
        await calls.gpu_fill(space, 512 * KIB, PAGE, 2)
        assert [row[1] for row in device.locations(space)] == ["256K", "4K", "16K", "4K", "2M"]
        await cpu.write(space, 512 * KIB + 64 * KIB, b"\1" * 64 * KIB)
        await calls.gpu_fill(space, 512 * KIB + 64 * KIB, PAGE, 2)
        assert (512 * KIB + 64 * KIB, "64K", "vram") in device.locations(space)
        space.release()
        await device.check_nothing_left()


@pytest.mark.parametrize("policy", ["once", "always", "never"])
async def test_without_vram_the_device_works_in_system(
    svm_device: MakeDevice, autojump_clock: MockClock, policy: str
) -> None:
    async with svm_device(vram=0, svm_migrate=policy) as device:
        space = device.space(2 * MIB + 64 * KIB)
        result = await calls.gpu_fill(space, 0, PAGE, 1)
        assert (result["faults"], result.get("fallbacks"), result.get("restarts")) == (1, None, None)
        for atomic in ("undefined", "device", "global"):
            await calls.madvise(space, 0, 2 * MIB, atomic=atomic)
            await calls.gpu_atomic_add(space, 16, 3)
        assert (await calls.gpu_atomic_add(space, 16, 0))["value"] == int.from_bytes(b"\1" * 8, "little") + 9
        await calls.madvise(space, 0, 2 * MIB, atomic="cpu")
        with pytest.raises(TtmError) as caught:
            await calls.gpu_atomic_add(space, 16, 3)
        assert caught.value.errno == errno.EACCES
        # On such a device nothing small is taken page by page.
        await calls.gpu_fill(space, 2 * MIB, PAGE, 1)
        assert device.locations(space) == [(0, "2M", "system"), (2 * MIB, "64K", "system")]
        assert (await calls.prefetch(space, 0, 2 * MIB, "preferred"))["ranges"] == 1
        with pytest.raises(TtmError) as caught:
            await calls.prefetch(space, 0, 2 * MIB, "vram")
        assert caught.value.errno == errno.ENODATA
        assert device.svm.counters.alloc_failures == 0
        space.release()
        await device.check_nothing_left()


async def test_atomics_where_faults_never_migrate(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(svm_migrate="never") as device:
        space = device.space(4 * MIB)
        await calls.gpu_atomic_add(space, 8, 1)
        await calls.madvise(space, 2 * MIB, 2 * MIB, preferred="vram")
        await calls.gpu_atomic_add(space, 2 * MIB, 1)
        assert [row[2] for row in device.locations(space)] == ["system", "vram"]


def test_what_the_knobs_take() -> None:
    assert format_range_sizes(parse_range_sizes("2M,64K,0x1000")) == "2M,64K,4K"
    assert (check_threshold(4096), check_threshold(2 * MIB)) == (1, 512)
    for text in ("", "2M", "4M,4K", "2M,4K,4K", "96K,4K", "64K,2M,4K", "2M,-4K", "0", "2M,8K"):
        with pytest.raises(TtmError, match="svm_range_sizes="):
            parse_range_sizes(text)
    for size in (0, 4095, 4097, 4 * MIB):
        with pytest.raises(TtmError, match="svm_migrate_threshold="):
            check_threshold(size)
    with pytest.raises(TtmError, match="once always never"):
        parse_migrate("Once")
