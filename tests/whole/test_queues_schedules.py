"""Jobs on several queues of a whole device under eviction, moves and injected failures, against a simple model.

The model: jobs over the same BO work in the order in which they were submitted, whatever queues they are in; one that
failed has changed nothing. And of the trace: no job begins before what it is to come after has ended.
"""

import errno
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.core.harness import PAGE, device
from tests.turns import run_seeded
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job, QueuedJob
from ttmfs.driver.queues import Priority
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

QUEUES = ("default", "render", "video", "copy")
PLACES = ("vram", "vram gtt", "gtt", "system", "vram:topdown gtt")
PAGES = 48
REFUSED = {errno.ENOMEM, errno.ENOSPC, errno.EBUSY}


def _apply(job: Job, memory: dict[BufferObject, bytearray]) -> None:
    """What a job does, said again in the plainest way."""
    if job.dst is None:
        return
    size = job.size if job.size is not None else len(memory[job.dst]) - job.offset
    part = slice(job.offset, job.offset + size)
    out = memory[job.dst]
    if job.kind == "fill":
        out[part] = bytes([job.value]) * size
        return
    src = bytes(memory[job.srcs[0]][part])
    if job.kind == "copy":
        out[part] = src
    elif job.kind == "add":
        out[part] = bytes((x + y) & 0xFF for x, y in zip(out[part], src, strict=True))
    else:
        out[part] = bytes(x ^ y for x, y in zip(out[part], src, strict=True))


class World:
    """One device and what its bytes must be."""

    def __init__(self, vdev: VirtualDevice, rng: Random) -> None:
        self.vdev = vdev
        self.rng = rng
        self.memory: dict[BufferObject, bytearray] = {}
        self.jobs: list[tuple[QueuedJob, set[str]]] = []
        """All jobs, and the names of the fences that each must come after."""
        self.settled = 0
        self.last: dict[str, QueuedJob] = {}

    async def make(self) -> None:
        for number in range(6):
            bo = self.vdev.create_bo(f"bo{number}")
            self.memory[bo] = bytearray(self.rng.randbytes(PAGES * PAGE))
            await access.write(bo, 0, bytes(self.memory[bo]))
            bo.placement = self.vdev.parse_placement(self.rng.choice(PLACES).split())

    def _bo(self) -> BufferObject:
        return self.rng.choice(list(self.memory))

    async def submit(self) -> None:
        rng, queues = self.rng, self.vdev.compute.queues
        queue = rng.choice(QUEUES)
        kind = rng.choice(("fill", "copy", "add", "xor", "checksum", "busy"))
        offset = rng.randrange(PAGES) * PAGE
        fields: dict[str, Any] = {"queue": queue, "priority": rng.choice(list(Priority))}
        if kind == "busy":
            fields |= {"srcs": (self._bo(), self._bo()), "seconds": rng.randrange(1000) / 1e4}
        else:
            fields |= {
                "offset": offset,
                "size": rng.randrange(1, PAGES * PAGE - offset + 1),
                "value": rng.randrange(256),
            }
            fields |= {"dst": self._bo()} if kind != "checksum" else {}
            fields |= {"srcs": (self._bo(),)} if kind != "fill" else {}
        if queue != "default" and rng.random() < 0.3:
            before = self.last.get(queue)
            fields["point"] = (before.point if before else 0) + rng.randrange(1, 5)
        must: set[str] = set()
        if self.jobs and rng.random() < 0.5:
            other, _ = rng.choice(self.jobs[-8:])
            name = f"{other.job.queue}:{other.point}" if rng.random() < 0.5 else other.fence.name
            fields["after"] = self.vdev.find_fence(name)
            must.add(other.fence.name)
        try:
            queued = await submit_job(self.vdev, Job(kind, **fields), OperationContext())
        except TtmError as error:
            if error.errno not in REFUSED:
                raise
            return
        if queue in self.last:
            must.add(self.last[queue].fence.name)
        self.last[queue] = queued
        self.jobs.append((queued, must))
        assert queues.get(queue).last_point == queued.point

    async def move(self) -> None:
        bo, rng = self._bo(), self.rng
        deeds: list[Callable[[], Any]] = [
            lambda: calls.evict_one(self.vdev, bo, OperationContext()),
            lambda: calls.swapout_one(self.vdev, bo, OperationContext()),
            lambda: calls.validate_bo(
                self.vdev, bo, self.vdev.parse_placement(rng.choice(PLACES).split()), OperationContext()
            ),
        ]
        try:
            await rng.choice(deeds)()
        except TtmError as error:
            if error.errno not in REFUSED:
                raise

    async def settle(self) -> None:
        """Until all is idle; then every byte is what the model says, and a client writes some."""
        for bo in self.memory:
            await bo.resv.wait(Usage.BOOKKEEP)
        for queue in QUEUES:
            if queue in self.last:
                point = self.vdev.find_fence(f"{queue}:{self.last[queue].point}")
                assert point is None or await point.wait(60)
        for queued, _ in self.jobs[self.settled :]:
            assert queued.fence.signaled
            if not queued.fence.error:
                _apply(queued.job, self.memory)
        self.settled = len(self.jobs)
        for bo, expected in self.memory.items():
            assert bytes(await access.read(bo, 0, bo.size)) == bytes(expected), f"{bo.name}: wrong bytes"
        bo, offset = self._bo(), self.rng.randrange(PAGES * PAGE)
        data = self.rng.randbytes(self.rng.randrange(1, PAGES * PAGE - offset + 1))
        await access.write(bo, offset, data)
        self.memory[bo][offset : offset + len(data)] = data

    def check_order(self) -> None:
        """What the trace says of every job."""
        when: dict[tuple[str, str], int] = {}
        for index, event in enumerate(self.vdev.ttm.trace.ring):
            if event.name in ("job_start", "job_end"):
                when[event.name, str(event.facts["fence"])] = index
        for queued, must in self.jobs:
            for fence in must:
                assert when["job_end", fence] < when["job_start", queued.fence.name], (fence, queued.fence.name)


async def _world(seed: int, steps: int) -> None:
    rng = Random(seed)
    options = {"vram": 128 * PAGE, "gtt": 192 * PAGE, "memory": 1024 * PAGE, "swap": 1024 * PAGE}
    async with device(**options, compute_engines=rng.randrange(1, 4), copy_latency=rng.choice((0.0, 0.01))) as vdev:
        # All of vram is visible: the CPU copies for an engine that fails, and no content is lost.
        for name, percent in (("engine", 20), ("job", 10), ("work_alloc", 10), ("ghost", 10), ("fence_array", 10)):
            vdev.ttm.inject[name].probability = percent
            vdev.ttm.inject[name].times = -1
        vdev.ttm.trace.start()
        world = World(vdev, rng)
        await world.make()
        for _ in range(steps):
            await rng.choice((world.submit, world.submit, world.submit, world.submit, world.move, world.move))()
            if rng.random() < 0.3:
                await trio.sleep(rng.randrange(200) / 1e4)
            if rng.random() < 0.04:
                await world.settle()
        await world.settle()
        world.check_order()
        wrong = vdev.selfcheck()
        assert not wrong, wrong
        for bo in world.memory:
            lifetime.release(bo)
        for name in vdev.ttm.inject:
            vdev.ttm.inject[name].probability = 0


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 32))
@example(1)
def test_jobs_of_several_queues_leave_the_bytes_that_their_order_says(seed: int) -> None:
    run_seeded(_world, seed, 80)


@pytest.mark.stress
@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 32))
def test_jobs_of_several_queues_for_long(seed: int) -> None:
    run_seeded(_world, seed, 400)
