"""Chunks of 2 MiB of address spaces that change hands on their way to VRAM and back, and those that are copied."""

import zlib

import numpy as np
import pytest
from trio.testing import MockClock

from tests.core.exchange import exchanged_frames, need_exchanges, noise_behind
from tests.svm.conftest import MakeDevice
from ttmfs.driver.calls import evict_region
from ttmfs.memory import frames
from ttmfs.svm import calls, cpu
from ttmfs.ttm.context import OperationContext

MIB = 1 << 20
PAGE = 4096
CHUNK = 2 * MIB


@pytest.fixture(autouse=True)
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    need_exchanges()
    monkeypatch.setattr(frames._Host, "refused", False)
    noise_behind(monkeypatch)


def noise(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


async def test_whole_chunks_change_hands_and_no_byte_is_wrong(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device() as device:
        vdev, space = device.vdev, device.space(4 * CHUNK)
        wanted = noise(4 * CHUNK)
        for at in range(0, 4 * CHUNK, MIB):
            await cpu.write(space, at, wanted[at : at + MIB])
        for turn in range(1, 4):
            await calls.prefetch(space, 0, 4 * CHUNK, "vram")
            into = exchanged_frames(vdev)
            assert (await calls.gpu_checksum(space, 0, 4 * CHUNK))["value"] == zlib.crc32(wanted)
            await evict_region(vdev, "vram", None, OperationContext())
            assert exchanged_frames(vdev) > into >= 4 * (turn - 1)
            for at in range(0, 4 * CHUNK, MIB):
                assert bytes(await cpu.read(space, at, MIB)) == wanted[at : at + MIB], f"at {at:#x}"
        space.release()
        await device.check_nothing_left()


async def test_a_hole_in_a_chunk_reads_as_zeros_on_both_sides(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device() as device:
        vdev, space = device.vdev, device.space(2 * CHUNK)
        wanted = bytearray(2 * CHUNK)
        full = noise(CHUNK)
        for at in range(0, CHUNK, MIB):
            await cpu.write(space, at, full[at : at + MIB])
        wanted[:CHUNK] = full
        # The other one has what the first leaves behind, and holes.
        await calls.prefetch(space, 0, CHUNK, "vram")
        await evict_region(vdev, "vram", None, OperationContext())
        for page in range(0, 512, 3):
            await cpu.write(space, CHUNK + page * PAGE, b"\x55" * PAGE)
            wanted[CHUNK + page * PAGE : CHUNK + (page + 1) * PAGE] = b"\x55" * PAGE
        before = exchanged_frames(vdev)
        await calls.prefetch(space, CHUNK, CHUNK, "vram")
        assert exchanged_frames(vdev) == before, "it has holes: it is copied"
        assert (await calls.gpu_checksum(space, 0, 2 * CHUNK))["value"] == zlib.crc32(wanted)
        await evict_region(vdev, "vram", None, OperationContext())
        for at in range(0, 2 * CHUNK, MIB):
            assert bytes(await cpu.read(space, at, MIB)) == wanted[at : at + MIB]
        space.release()
        await device.check_nothing_left()
