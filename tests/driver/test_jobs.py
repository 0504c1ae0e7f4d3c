"""Jobs: what they compute, what they wait for, what waits for them."""

import errno
import zlib
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from tests.driver.conftest import MakeDevice
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

MIB = 1 << 20


async def make(vdev: VirtualDevice, name: str, data: bytes, place: str = "system") -> BufferObject:
    bo = vdev.create_bo(name)
    await access.write(bo, 0, data)
    await calls.validate_bo(vdev, bo, vdev.parse_placement([place]), OperationContext())
    return bo


async def run(vdev: VirtualDevice, kind: str, **fields: Any) -> Any:
    queued = await submit_job(vdev, Job(kind, **fields), OperationContext())
    await queued.fence.wait()
    assert not queued.fence.error
    return queued.value


async def content(bo: BufferObject) -> bytes:
    return bytes(await access.read(bo, 0, bo.size))


@pytest.mark.parametrize("place", ["system", "gtt", "vram"])
async def test_arithmetic(device: MakeDevice, place: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.random(300_000, dtype=np.float32)
    y = rng.random(300_000, dtype=np.float32)
    async with device() as vdev:
        a, b = await make(vdev, "x", x.tobytes(), place), await make(vdev, "y", y.tobytes(), place)
        await run(vdev, "saxpy", dst=b, srcs=(a,), factor=2.5, dtype="f32")
        expected = y + np.float32(2.5) * x
        assert await content(b) == expected.astype(np.float32).tobytes()
        assert await run(vdev, "checksum", srcs=(a,)) == zlib.crc32(x.tobytes())
        assert await run(vdev, "reduce", srcs=(a,), dtype="f32") == pytest.approx(float(x.sum(dtype=np.float64)))
        await run(vdev, "xor", dst=a, srcs=(a,))
        assert await content(a) == bytes(len(x.tobytes()))


async def test_integer_add_wraps_and_ranges_are_kept(device: MakeDevice) -> None:
    async with device() as vdev:
        a = await make(vdev, "a", b"\xff" * 10000)
        b = await make(vdev, "b", b"\x03" * 10000)
        await run(vdev, "add", dst=b, srcs=(a,), offset=1000, size=5000)
        assert await content(b) == b"\x03" * 1000 + b"\x02" * 5000 + b"\x03" * 4000
        await run(vdev, "fill", dst=b, value=9, offset=4095, size=2)
        assert (await content(b))[4094:4098] == b"\x02\x09\x09\x02"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"offset": 9000, "size": 2000}, "within"),
        ({"dtype": "u32", "offset": 2}, "multiples"),
        ({"size": 1 << 60}, "within"),
    ],
)
async def test_bad_ranges_are_refused_and_change_nothing(device: MakeDevice, fields: dict[str, Any], word: str) -> None:
    async with device() as vdev:
        a = await make(vdev, "a", b"\x01" * 10000)
        with pytest.raises(TtmError, match=word) as caught:
            await submit_job(vdev, Job("fill", dst=a, value=5, **fields), OperationContext())
        assert caught.value.errno == errno.EINVAL
        assert await content(a) == b"\x01" * 10000
        assert not a.resv.locked


async def test_a_job_brings_its_bo_to_its_placement_and_evicts_others(device: MakeDevice) -> None:
    async with device(vram=4 * MIB) as vdev:
        bos = [await make(vdev, f"b{n}", bytes([n]) * (2 * MIB)) for n in range(4)]
        for bo in bos:
            bo.placement = vdev.parse_placement(["vram"])
        for _round in range(2):
            for n, bo in enumerate(bos):
                assert await run(vdev, "checksum", srcs=(bo,)) == zlib.crc32(bytes([n]) * (2 * MIB))
                assert bo.mem_type == "vram"
        assert vdev.ttm.counters.moves.evictions > 0


async def test_fences_order_writers_and_readers(device: MakeDevice, autojump_clock: MockClock) -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", bytes(4096))
        first = await submit_job(vdev, Job("busy", srcs=(bo,), seconds=2), OperationContext())
        second = await submit_job(vdev, Job("fill", dst=bo, value=3), OperationContext())
        third = await submit_job(vdev, Job("checksum", srcs=(bo,)), OperationContext())
        assert first.fence in second.deps
        assert second.fence in third.deps
        assert await bo.resv.wait(Usage.READ, 5)
        assert third.value == zlib.crc32(b"\x03" * 4096)


async def test_after_waits_for_a_fence_of_another_bo(device: MakeDevice, autojump_clock: MockClock) -> None:
    async with device() as vdev:
        a, b = await make(vdev, "a", bytes(4096)), await make(vdev, "b", bytes(4096))
        busy = await submit_job(vdev, Job("busy", srcs=(a,), seconds=2), OperationContext())
        started = trio.current_time()
        queued = await submit_job(vdev, Job("fill", dst=b, value=1, after=busy.fence), OperationContext())
        await queued.fence.wait()
        assert trio.current_time() - started >= 2


async def test_a_failing_job_does_not_fail_later_moves(
    device: MakeDevice, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", b"\x05" * MIB, "vram")

        def broken(*_args: Any) -> None:
            raise RuntimeError("the shader hung")

        monkeypatch.setattr("ttmfs.driver.jobs.execute", broken)
        queued = await submit_job(vdev, Job("fill", dst=bo, value=1), OperationContext())
        await queued.fence.wait()
        assert queued.fence.error == errno.EIO
        assert vdev.fence_errors.get(queued.fence.name) == errno.EIO
        await calls.validate_bo(vdev, bo, vdev.parse_placement(["gtt"]), OperationContext())
        assert await content(bo) == b"\x05" * MIB


async def test_a_job_starts_after_the_move_of_its_bo(device: MakeDevice, autojump_clock: MockClock) -> None:
    async with device(copy_latency=1.0) as vdev:
        bo = await make(vdev, "a", b"\x05" * MIB)
        result = await calls.validate_bo(vdev, bo, vdev.parse_placement(["vram"]), OperationContext())
        queued = await submit_job(vdev, Job("checksum", srcs=(bo,)), OperationContext())
        assert result["fence"] in {fence.name for fence in queued.deps}
        await queued.fence.wait()
        assert queued.value == zlib.crc32(b"\x05" * MIB)


async def test_nothing_is_left_after_everything_is_gone(device: MakeDevice, autojump_clock: MockClock) -> None:
    async with device() as vdev:
        bos = [await make(vdev, f"b{n}", bytes(MIB), "vram") for n in range(3)]
        await submit_job(vdev, Job("busy", srcs=tuple(bos), seconds=1), OperationContext())
        for bo in bos:
            lifetime.release(bo)
        assert vdev.ttm.num_zombies == 3, "busy: they keep their space"
        assert vdev.ttm.managers["vram"].usage == 3 * MIB
        await trio.sleep(2)
        assert vdev.ttm.num_bos == 0
        assert vdev.fence_counters.pending == 0
        assert vdev.ttm.managers["vram"].usage == 0
        assert vdev.pool.in_use_pages == 0


@pytest.mark.parametrize("place", ["system", "gtt", "vram"])
async def test_a_bo_that_grows_while_another_one_is_prepared_has_no_holes(
    device: MakeDevice, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    async with device() as vdev:
        a, b = await make(vdev, "a", b"a" * 10000, place), await make(vdev, "b", b"b" * 50000)
        prepared = []

        async def grow(bo: BufferObject) -> int:
            prepared.append(bo)
            if len(prepared) == 2:
                lifetime.set_size(a, 5000)
                lifetime.set_size(a, 40000)
            return 0

        monkeypatch.setattr(vdev.funcs, "take_dirty", grow)
        await run(vdev, "xor", dst=a, srcs=(b,))
        assert len(prepared) == 4
        assert await content(a) == b"\3" * 5000 + b"b" * 35000


@pytest.mark.parametrize("place", ["system", "gtt", "vram"])
async def test_what_grew_behind_a_queued_job_is_not_touched(device: MakeDevice, place: str) -> None:
    async with device() as vdev:
        a = await make(vdev, "a", b"a" * 10000, place)
        before = Fence(4711, 1, "before")
        await a.resv.lock()
        a.resv.reserve_fences(1)
        a.resv.add_fence(before, Usage.WRITE)
        a.unlock()
        queued = await submit_job(vdev, Job("fill", dst=a, value=9), OperationContext())
        lifetime.set_size(a, 30000)
        assert not queued.fence.signaled
        before.signal()
        await queued.fence.wait()
        assert not queued.fence.error
        assert await content(a) == b"\x09" * 10000 + bytes(20000)


async def test_bos_that_never_stop_growing_are_busy(device: MakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    async with device() as vdev:
        a, b = await make(vdev, "a", b"a" * 10000), await make(vdev, "b", b"b" * 10000)

        async def grow(bo: BufferObject) -> int:
            lifetime.set_size(a, a.size + 4096)
            return 0

        monkeypatch.setattr(vdev.funcs, "take_dirty", grow)
        with pytest.raises(TtmError) as error:
            await run(vdev, "xor", dst=b, srcs=(a,))
        assert error.value.errno == errno.EBUSY
        monkeypatch.undo()
        assert not a.resv.locked
        assert not b.resv.locked
        assert await content(b) == b"b" * 10000
