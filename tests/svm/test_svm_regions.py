"""Prefetch and advice over several regions: of the space (mapped parts with holes) and of the device's memory."""

import errno
import random
import zlib

import pytest
from trio.testing import MockClock

from tests.core.harness import outcome
from tests.svm.conftest import MIB, MakeDevice
from ttmfs.driver.calls import evict_region
from ttmfs.driver.config import Region
from ttmfs.errors import TtmError
from ttmfs.svm import calls, cpu
from ttmfs.ttm.context import OperationContext

PAGE = 4096
HBM = (Region("hbm", 8 * MIB), Region("slow", 8 * MIB, "range"))


async def test_one_call_over_mapped_parts_holes_and_regions(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(regions=HBM) as device:
        space = device.space(32 * MIB)
        for address, length in ((3 * MIB, MIB), (8 * MIB, 2 * MIB), (13 * MIB + PAGE, 64 * 1024)):
            await calls.unmap(space, address, length)
        for address, region in ((0, "hbm"), (4 * MIB, "slow"), (6 * MIB, "system"), (10 * MIB, "vram")):
            await calls.madvise(space, address, 2 * MIB, preferred=region)
        # Advice of other kinds, over all of these and the holes between, leaves that as it is.
        changed = await calls.madvise(space, 0, 32 * MIB, atomic="device")
        assert changed["changed"] == 8192
        data = random.Random(1).randbytes(16 * MIB)
        for address in (0, 4 * MIB, 6 * MIB, 10 * MIB):
            await cpu.write(space, address, data[address : address + 2 * MIB])
        await cpu.write(space, 14 * MIB, data[14 * MIB :])
        result = await calls.prefetch(space, 0, 16 * MIB, "preferred")
        found = {start: (size, where) for start, size, where in device.locations(space)}
        assert found[0] == ("2M", "hbm")
        assert found[4 * MIB] == ("2M", "slow")
        assert found[6 * MIB] == ("2M", "system")
        assert found[10 * MIB] == ("2M", "vram")
        assert found[14 * MIB] == ("2M", "vram"), "nobody said anything of it"
        assert not [start for start in found if 3 * MIB <= start < 4 * MIB or 8 * MIB <= start < 10 * MIB]
        assert result["ranges"] == len(found)
        for address in (0, 4 * MIB, 6 * MIB, 10 * MIB, 14 * MIB):
            wanted = zlib.crc32(data[address : address + 2 * MIB])
            assert (await calls.gpu_checksum(space, address, 2 * MIB))["value"] == wanted
        assert (await calls.prefetch(space, 0, 16 * MIB, "system"))["ranges"] >= len(found)
        assert {where for _start, _size, where in device.locations(space)} == {"system"}
        for address in (0, 4 * MIB, 6 * MIB, 10 * MIB, 14 * MIB):
            assert bytes(await cpu.read(space, address, 2 * MIB)) == data[address : address + 2 * MIB]
        space.release()
        await device.check_nothing_left()


async def test_faults_go_where_the_pages_are_advised(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(regions=HBM) as device:
        space = device.space(8 * MIB)
        usage = {name: device.vdev.ttm.managers[name] for name in ("vram", "hbm", "slow")}
        for address, region in ((0, "hbm"), (2 * MIB, "slow")):
            await calls.madvise(space, address, 2 * MIB, preferred=region)
            await calls.gpu_fill(space, address, PAGE, 5)
            await calls.gpu_atomic_add(space, address, 1)
        await calls.gpu_fill(space, 4 * MIB, PAGE, 5)
        assert device.locations(space) == [(0, "2M", "hbm"), (2 * MIB, "2M", "slow"), (4 * MIB, "2M", "vram")]
        assert [manager.usage for manager in usage.values()] == [2 * MIB] * 3
        # Advised anew it goes from one to the other, by way of system, at the next fault.
        await calls.madvise(space, 0, 8 * MIB, preferred="slow")
        await calls.gpu_fill(space, PAGE, PAGE, 6)
        assert device.locations(space)[0] == (0, "2M", "slow")
        await calls.prefetch(space, 0, 2 * MIB, "vram")
        assert (await calls.gpu_read(space, PAGE - 1, 2))["data"] == "0506"
        assert device.locations(space)[0] == (0, "2M", "vram"), "where somebody wanted it"
        # And without any wish it stays where it is.
        await calls.madvise(space, 0, 8 * MIB, preferred="fault")
        await calls.gpu_read(space, 2 * MIB, 1)
        assert device.locations(space)[1] == (2 * MIB, "2M", "slow")
        assert bytes(await cpu.read(space, 0, 2)) == b"\6\5"
        space.release()
        await device.check_nothing_left()


async def test_ranges_evict_each_other_from_a_region_and_it_can_be_emptied(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device(regions=HBM, vram=0) as device:
        space = device.space(16 * MIB)
        await calls.madvise(space, 0, 16 * MIB, preferred="hbm")
        for number in range(8):
            await calls.gpu_fill(space, number * 2 * MIB, 2 * MIB, number + 1)
        assert [where for _, _, where in device.locations(space)] == ["system"] * 4 + ["hbm"] * 4
        await evict_region(device.vdev, "hbm", None, OperationContext())
        assert device.vdev.ttm.managers["hbm"].usage == 0
        wanted = b"".join(bytes([number + 1]) * 2 * MIB for number in range(8))
        assert (await calls.gpu_checksum(space, 0, 16 * MIB))["value"] == zlib.crc32(wanted)
        space.release()
        await device.check_nothing_left()


async def test_what_is_no_memory_of_the_device_is_no_place(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(regions=HBM) as device:
        space = device.space(2 * MIB)
        for word in ("gtt", "hbm2", "", "fault", "hbm vram"):
            with pytest.raises(TtmError, match="vram hbm slow system preferred"):
                await calls.prefetch(space, 0, 2 * MIB, word)
        with pytest.raises(TtmError, match="vram hbm slow system fault"):
            await calls.madvise(space, 0, 2 * MIB, preferred="gtt")
        assert await outcome(lambda: calls.madvise(space, 0, 2 * MIB, preferred="preferred")) == errno.EINVAL
