"""A whole device without a thread: what is offloaded runs on the loop, under schedules that can be repeated."""

import errno
import itertools
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.core.harness import PAGE, device, outcome
from tests.core.stores import make_noise, noise, same, spec
from tests.sync.inline import Inline
from tests.turns import seed_turns
from ttmfs import clock
from ttmfs.driver import calls
from ttmfs.driver.imported import import_bo
from ttmfs.driver.jobs import INLINE_BYTES, Job
from ttmfs.driver.namespace import Namespace
from ttmfs.driver.submit import submit_job
from ttmfs.sync import fence, offload
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

PAGES = 512
WRITTEN = b"\x5a" * PAGE
Found = tuple[list[tuple[str, str]], list[tuple[Any, ...]]]


async def _there_and_back(vdev: Any, bo: BufferObject) -> None:
    # A page that is handed out again and again stays: the backup may say so.
    assert await outcome(lambda: calls.backup_one(vdev, bo, BackupFlags(), OperationContext())) in (0, errno.EBUSY)
    await calls.restore(vdev, bo, OperationContext())


async def _write(bo: BufferObject, rng: Random) -> None:
    """Page by page, at turns of its own."""
    for page in range(0, PAGES, 100):
        await access.write(bo, page * PAGE, WRITTEN)
        for _ in range(rng.randrange(8)):
            await trio.lowlevel.checkpoint()


async def _world(folder: Path, seed: int) -> Found:
    """A backup to disk and back under WRITEs, a long job, an import; all bytes are looked at. What happened."""
    rng = Random(seed)
    inline = Inline(lambda _lane, _when: rng.randrange(4))
    offload.use(inline)
    outside = folder / "outside"
    outside.write_bytes(noise("outside", PAGES * PAGE))
    async with device(swap_store=spec("zstd+file", folder)) as vdev:
        vdev.ttm.trace.start()
        names = Namespace(vdev, uid=0, gid=0)
        a, b = await make_noise(vdev, "a", PAGES), await make_noise(vdev, "b", PAGES)
        assert b.size > INLINE_BYTES
        job = await submit_job(vdev, Job("xor", dst=b, srcs=(b,)), OperationContext())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_there_and_back, vdev, a)
            nursery.start_soon(_write, a, rng)
            file = await import_bo(vdev, names, "file", str(outside), mappable=True)
        await job.fence.wait()
        expected = bytearray(noise("a", PAGES * PAGE))
        for page in range(0, PAGES, 100):
            expected[page * PAGE : (page + 1) * PAGE] = WRITTEN
        await same(a, bytes(expected))
        await same(b, bytes(PAGES * PAGE))
        await same(file.bo, noise("outside", PAGES * PAGE))
        for bo in (a, b, file.bo):
            lifetime.release(bo)
        events = [(event.when, event.name, event.bo, str(event.facts)) for event in vdev.ttm.trace.ring]
    return inline.log, events


def _no_thread(*_args: object, **_more: object) -> None:
    raise AssertionError("a thread was asked for")


def _run(seed: int) -> Found:
    """One run of that schedule: no thread, no time that passes by itself, all names anew, trio's dice from the seed."""
    ticks = itertools.count(0, 1000)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ttmfs-test-") as folder:
        patch.setattr(trio.to_thread, "run_sync", _no_thread)
        seed_turns(seed)
        patch.setattr(fence, "_contexts", itertools.count(1))
        with clock.replaced(lambda: next(ticks), lambda: 0):
            return trio.run(_world, Path(folder), seed, clock=MockClock(autojump_threshold=0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32))
@example(1)
def test_no_byte_is_wrong_under_any_schedule(seed: int) -> None:
    log, events = _run(seed)
    assert {lane.rstrip("01") for lane, _ in log} >= {"store", "import", "compute"}
    assert events


def test_a_schedule_can_be_repeated() -> None:
    """The same seed gives the same run, event by event and to the nanosecond; another seed gives another."""
    assert _run(1) == _run(1)
    assert len({str(_run(seed)) for seed in range(5)}) > 1
