"""A BO whose content was lost says so at once and pretends nothing; a request that is told "again" does not spin."""

import errno

import pytest

from tests.core.harness import MIB, PAGE, device, idle, make, move, outcome
from ttmfs.driver.device import VirtualDevice
from ttmfs.errors import TtmError
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject


async def lose(vdev: VirtualDevice, size: int = MIB, **extra: object) -> BufferObject:
    """A BO in gtt whose copy to there failed for good."""
    bo = await make(vdev, "lost", size, place="vram")
    await idle(bo)
    vdev.ttm.inject["engine"].probability = 100
    vdev.ttm.inject["engine"].times = 1
    vdev.ttm.inject.ban_memcpy = True
    await move(vdev, bo, "gtt")
    await idle(bo)
    assert bo.unknown_state
    return bo


def count_faults(monkeypatch: pytest.MonkeyPatch, bo: BufferObject, most: int) -> list[int]:
    calls: list[int] = []
    fault = type(bo.funcs).fault

    async def counting(self: object, vmf: object) -> object:
        calls.append(1)
        assert len(calls) <= most, "it spins"
        return await fault(self, vmf)  # type: ignore[arg-type]

    monkeypatch.setattr(type(bo.funcs), "fault", counting)
    return calls


@pytest.mark.parametrize("unmapping", [False, True])
@pytest.mark.parametrize("size", [PAGE, 100, MIB])
async def test_reads_and_writes_are_eio_at_once(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch, size: int, unmapping: bool
) -> None:
    async with device() as vdev:
        bo = await lose(vdev)
        calls = count_faults(monkeypatch, bo, 4)
        if unmapping:
            bo.gate.begin_unmapping()
        assert await outcome(lambda: access.write(bo, 0, b"x" * size)) == errno.EIO
        assert await outcome(lambda: access.write(bo, bo.size, b"x" * size)) == errno.EIO
        assert await outcome(lambda: access.read(bo, 0, size)) == errno.EIO
        assert bo.size == MIB
        assert bo.unknown_state
        assert len(calls) <= 4
        if unmapping:
            bo.gate.end_unmapping()


async def test_a_request_whose_time_is_up_gets_no_lost_bytes_either(autojump_clock: object) -> None:
    async with device(fault_timeout=0.0) as vdev:
        bo = await lose(vdev)
        assert await outcome(lambda: access.read(bo, 0, PAGE)) == errno.EIO
        assert await outcome(lambda: access.write(bo, 0, b"x")) == errno.EIO


async def test_truncating_to_nothing_makes_it_usable(autojump_clock: object) -> None:
    async with device() as vdev:
        bo = await lose(vdev)
        lifetime.set_size(bo, PAGE)
        assert await outcome(lambda: access.read(bo, 0, 1)) == errno.EIO
        lifetime.set_size(bo, 0)
        lifetime.set_size(bo, 2 * PAGE)
        assert bytes(await access.read(bo, 0, PAGE)) == bytes(PAGE)
        await access.write(bo, 0, b"new")
        assert bytes(await access.read(bo, 0, 4)) == b"new\0"


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EINTR])
async def test_a_driver_that_says_again_for_ever_is_asked_seldom(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    async with device(fault_timeout=15.0, vram=4 * MIB, visible_vram=2 * MIB) as vdev:
        bo = await make(vdev, "far", MIB, place="vram:topdown")
        await idle(bo)
        assert not bo.visible
        calls: list[int] = []

        async def again(self: object, asked: BufferObject) -> None:
            calls.append(1)
            assert len(calls) < 1000, "it spins"
            raise TtmError(code, "not now")

        monkeypatch.setattr(type(vdev.funcs), "fault_reserve_notify", again)
        expected = bytes(await access.read(bo, 0, PAGE))
        assert 20 < len(calls) < 400
        calls.clear()
        await access.write(bo, 5, b"kept")
        assert 20 < len(calls) < 400
        assert bytes(await access.read(bo, 0, PAGE)) == expected[:5] + b"kept" + expected[9:]
