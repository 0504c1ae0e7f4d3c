"""What stat was shown of a BO is true, or whoever caches it was told, whatever the device does in whatever order."""

import random

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.core.harness import MIB, PAGE, WaitingUnmapper, device, outcome
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job, Work
from ttmfs.driver.namespace import BoFile, Namespace
from ttmfs.driver.shown import NOT_SHOWN
from ttmfs.driver.submit import submit_job
from ttmfs.fs.kernel.attribute_cache import KernelAttributes
from ttmfs.fs.kernel.inval import SessionFd
from ttmfs.fs.tree.attributes import set_text
from ttmfs.ttm import access
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import set_size


class Told:
    """An AttributeCache that notes what it was told."""

    def __init__(self) -> None:
        self.inos: list[int] = []
        self.settled = 0

    def changed(self, ino: int) -> None:
        self.inos.append(ino)

    async def settle(self) -> None:
        self.settled += 1


def show(file: BoFile) -> None:
    """As a GETATTR does."""
    file.shown = file.bo.held_pages


def make_file(names: Namespace, name: str, size: int) -> BoFile:
    file = names.create(names.root, name.encode(), 0o644, 0, 0)
    set_size(file.bo, size)
    return file


async def act(vdev: VirtualDevice, rng: random.Random, bo: BufferObject, other: BufferObject) -> None:
    """One thing that a command, a job or a client does."""
    ctx = OperationContext()
    page = rng.randrange(bo.num_pages)
    places = vdev.parse_placement(rng.choice(("vram gtt", "gtt", "system", "none")).split())
    await rng.choice(
        (
            lambda: calls.validate_bo(vdev, bo, places, ctx),
            lambda: calls.validate_bo(vdev, bo, places, ctx),
            lambda: calls.validate_many(vdev, [bo, other], places, ctx),
            lambda: calls.evict_one(vdev, bo, ctx),
            lambda: calls.evict_region(vdev, "vram", None, ctx),
            lambda: calls.backup_one(vdev, bo, BackupFlags(allow_move=True), ctx),
            lambda: calls.backup_one(vdev, bo, BackupFlags(purge=True), ctx),
            lambda: calls.shrink_all(vdev, 300, BackupFlags(), ctx),
            lambda: calls.shrink_all(vdev, 300, BackupFlags(purge=True), ctx),
            lambda: calls.swapout_one(vdev, bo, ctx),
            lambda: calls.restore(vdev, bo, ctx),
            lambda: submit_job(vdev, Job("fill", dst=bo, value=7, size=PAGE), ctx),
            lambda: submit_job(vdev, Job("copy", dst=bo, srcs=(other,)), ctx),
            lambda: access.read(bo, page * PAGE, PAGE),
            lambda: _set(vdev, bo, "madvise", rng.choice(("dontneed", "willneed", "normal"))),
        )
    )()


async def _set(vdev: VirtualDevice, bo: BufferObject, key: str, value: str) -> None:
    set_text(vdev, bo, key, value)


@pytest.mark.parametrize("seed", range(8))
async def test_what_was_shown_is_true_or_was_taken_back(autojump_clock: MockClock, seed: int) -> None:
    rng = random.Random(seed)
    async with device(vram=2 * MIB, gtt=3 * MIB, memory=8 * MIB, swap=16 * MIB) as vdev:
        vdev.ttm.unmapper = WaitingUnmapper()
        names, told = Namespace(vdev, uid=0, gid=0), Told()
        names.root.cache = told
        files = [make_file(names, name, rng.randrange(1, 2 * MIB)) for name in "abcd"]
        for _ in range(120):
            file, other = rng.sample(files, 2)
            for each in files:
                show(each)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outcome, lambda file=file, other=other: act(vdev, rng, file.bo, other.bo))
                nursery.start_soon(outcome, lambda file=file, other=other: act(vdev, rng, other.bo, file.bo))
                for _ in range(rng.randrange(20)):
                    await trio.lowlevel.checkpoint()
                show(rng.choice(files))  # a GETATTR in the middle
            while vdev.fence_counters.pending:
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked()
            for each in files:
                assert each.shown in (NOT_SHOWN, each.bo.held_pages), each.bo.name
        assert len(told.inos) > 20, "something changes, or the test tests nothing"


async def test_a_job_shows_in_the_times_before_its_fence_signals(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        names, told = Namespace(vdev, uid=0, gid=0), Told()
        names.root.cache = told
        file = make_file(names, "a", MIB)
        queued = await submit_job(vdev, Job("fill", dst=file.bo, value=7), OperationContext())
        show(file)
        before, told.inos = file.mtime, []
        seen: list[tuple[bool, list[int], int]] = []
        queued.fence.add_callback(lambda _fence: seen.append((file.mtime > before, told.inos, told.settled)))
        await queued.fence.wait()
        assert seen == [(True, [file.ino], 1)]


async def test_what_a_job_wrote_before_it_failed_is_published_too(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(work: Work) -> None:
        assert work.dst is not None
        work.dst.store(0, memoryview(b"x" * PAGE))
        raise RuntimeError("the shader hung")

    monkeypatch.setattr("ttmfs.driver.jobs.execute", broken)
    async with device() as vdev:
        names = Namespace(vdev, uid=0, gid=0)
        vdev.ttm.unmapper = unmapper = WaitingUnmapper()
        file = make_file(names, "a", MIB)
        await access.write(file.bo, 0, bytes(MIB))
        file.mtime = 0
        queued = await submit_job(vdev, Job("fill", dst=file.bo, value=7), OperationContext())
        while not unmapper.unmapped:
            await trio.lowlevel.checkpoint()
        assert bytes(await access.read(file.bo, 0, 4)) == bytes(4), "somebody caches it once more"
        await queued.fence.wait()
        assert queued.fence.error
        assert bytes(await access.read(file.bo, 0, 4)) == b"xxxx"
        assert unmapper.unmapped == ["a", "a"]
        assert file.mtime > 0


@pytest.mark.parametrize("how", ["gut", "purge", "shrink"])
async def test_content_that_is_dropped_moves_mtime_and_what_was_never_there_does_not(
    autojump_clock: MockClock, how: str
) -> None:
    async with device() as vdev:
        names = Namespace(vdev, uid=0, gid=0)
        full, empty = make_file(names, "full", MIB), make_file(names, "empty", MIB)
        await access.write(full.bo, 0, bytes(PAGE))
        moved = []
        for file in (full, empty):
            file.mtime = file.ctime = 0
            if how == "gut":
                await calls.validate_bo(vdev, file.bo, (), OperationContext())
            elif how == "purge":
                await calls.backup_one(vdev, file.bo, BackupFlags(purge=True), OperationContext())
            else:
                set_text(vdev, file.bo, "madvise", "dontneed")
                await calls.shrink_all(vdev, 1 << 30, BackupFlags(purge=True), OperationContext())
            assert file.bo.held_pages == 0
            assert (file.mtime > 0) == (file.ctime > 0)
            moved.append(file.mtime > 0)
        assert moved == [True, False]


class Session(SessionFd):
    """A session whose notifications are only noted; `fail` is raised by the next."""

    def __init__(self) -> None:
        self.dropped: list[tuple[int, int]] = []

    def invalidate_inode(self, ino: int, offset_bytes: int = 0, length_bytes: int = 0) -> bool:
        self.dropped.append((ino, offset_bytes))
        return True


async def test_the_kernel_is_told_once_and_settle_waits_for_that(autojump_clock: MockClock) -> None:
    session = Session()
    cache = KernelAttributes(session)
    await cache.settle()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.run)
        for ino in (7, 8, 7):
            cache.changed(ino)
        assert session.dropped == []
        await cache.settle()
        assert session.dropped == [(7, -1), (8, -1)]
        cache.changed(7)
        await cache.settle()
        assert session.dropped[2:] == [(7, -1)]
        nursery.cancel_scope.cancel()
