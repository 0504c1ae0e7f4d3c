"""Purgeable BOs: what `dontneed` allows to be dropped, and who learns of it; zeros by default, errors when strict."""

import errno

import pytest
import trio

from tests.core.harness import PAGE, device, fails, make, move
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.fs.tree.attributes import set_text
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.shrinker import shrink


async def purged(vdev: VirtualDevice, place: str) -> BufferObject:
    """A BO that was advised dontneed and that lost its content since."""
    bo = await make(vdev, "tex", 32 * PAGE, place=place)
    lifetime.set_madvise(bo, "dontneed")
    if place == "vram":
        await calls.evict_one(vdev, bo, OperationContext())
    else:
        assert (await shrink(vdev.ttm, 32, OperationContext())).purged == 32
    assert bo.purged
    return bo


async def submit(vdev: VirtualDevice, bo: BufferObject) -> None:
    """A job that reads it."""
    job = await submit_job(vdev, Job("checksum", srcs=(bo,)), OperationContext())
    await job.fence.wait()


@pytest.mark.parametrize("place", ["", "gtt", "vram"])
async def test_what_was_purged_reads_as_zeros_and_willneed_tells(place: str) -> None:
    async with device() as vdev:
        bo = await purged(vdev, place)
        assert bytes(await access.read(bo, 0, 32 * PAGE)) == bytes(32 * PAGE)
        assert set_text(vdev, bo, "madvise", "willneed") == {"retained": False}
        # It is wanted again, and has what it has now.
        assert set_text(vdev, bo, "madvise", "normal") == {"retained": True}
        await submit(vdev, bo)


async def test_what_was_written_anew_is_retained() -> None:
    async with device() as vdev:
        bo = await purged(vdev, "")
        lifetime.set_size(bo, 0)
        await access.write(bo, 0, b"new")
        assert set_text(vdev, bo, "madvise", "willneed") == {"retained": True}
        empty = vdev.create_bo("empty")
        await calls.backup_one(vdev, empty, BackupFlags(purge=True), OperationContext())
        assert not empty.purged


@pytest.mark.parametrize("place", ["", "gtt", "vram"])
async def test_strict_is_an_error_for_everybody_until_it_is_truncated_to_0(place: str) -> None:
    async with device(purgeable="strict") as vdev:
        bo = await purged(vdev, place)
        for advised in (False, True):
            if advised:
                assert set_text(vdev, bo, "madvise", "willneed") == {"retained": False}
                assert bo.purged
            with fails(errno.EIO):
                await access.read(bo, 0, PAGE)
            with fails(errno.EIO):
                await access.write(bo, PAGE, b"x" * PAGE)
            with fails(errno.EIO):
                await access.write(bo, bo.size, b"beyond the end")
            assert bo.size == 32 * PAGE
            with fails(errno.EACCES):
                await submit(vdev, bo)
            with fails(errno.EINVAL):
                await move(vdev, bo, "vram")
            with fails(errno.EINVAL):
                await calls.validate_many(vdev, [bo], vdev.parse_placement(["gtt"]), OperationContext())
        lifetime.set_size(bo, PAGE)
        with fails(errno.EIO):
            await access.read(bo, 0, 1)
        lifetime.set_size(bo, 0)
        await access.write(bo, 0, b"anew")
        assert bytes(await access.read(bo, 0, 4)) == b"anew"
        await move(vdev, bo, "vram")
        await submit(vdev, bo)


async def test_strict_looking_is_an_error_too() -> None:
    async with device(purgeable="strict") as vdev:
        bo = await purged(vdev, "")
        bo.looks_only = True
        with fails(errno.EIO):
            await access.read(bo, 0, PAGE)


async def test_strict_no_job_may_rely_on_what_may_go_at_any_time() -> None:
    async with device(purgeable="strict") as vdev:
        bo = await make(vdev, "tex", 4 * PAGE)
        lifetime.set_madvise(bo, "dontneed")
        with fails(errno.EBUSY):
            await submit(vdev, bo)
        assert set_text(vdev, bo, "madvise", "willneed") == {"retained": True}
        await submit(vdev, bo)


async def test_strict_nobody_is_given_zeros_in_the_middle_of_a_purge() -> None:
    """What is answered while the second INVAL runs would stay in a client's cache."""
    async with device(purgeable="strict") as vdev:
        bo = await make(vdev, "tex", 4 * PAGE)
        lifetime.set_madvise(bo, "dontneed")
        answers: list[bytes] = []
        failed: list[int | None] = []

        class Reads:
            async def invalidate(self, of: BufferObject, _first: int, _count: int) -> None:
                await trio.lowlevel.checkpoint()
                try:
                    answers.append(bytes(await access.read(of, 0, PAGE)))
                except OSError as error:
                    failed.append(error.errno)

        await access.read(bo, 0, PAGE)
        vdev.ttm.unmapper = Reads()
        await calls.backup_one(vdev, bo, BackupFlags(purge=True), OperationContext())
        assert bytes(PAGE) not in answers
        assert failed in ([], [errno.EIO])
