"""Writers who fill more than there is vram for: each fill takes space from others, and none may fail.

Four writers own BOs of 1.5 times the vram together. A fill makes a BO empty and writes it anew, so its first WRITE has
to evict. Meanwhile INVALs take their time, moves cross a slow link, engines pause, and others reserve the very BOs
that are wanted, for longer than anybody would spin. One seeded schedule, on a clock that jumps.
"""

import random
from collections import Counter
from dataclasses import dataclass

import trio

from tests.core.together_machine import SteppingClock
from tests.sync.inline import Inline
from tests.turns import seed_turns
from ttmfs.driver import calls
from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.sync import offload
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import set_size

KIB = 1 << 10
MIB = 1 << 20


@dataclass(frozen=True)
class Plan:
    """What one run is like. Sizes are bytes, times seconds."""

    vram: int = 4 * MIB
    gtt: int = 16 * MIB
    writers: int = 4
    bos: int = 3
    """Of each writer."""
    fills: int = 20
    """Of each writer."""
    longest_inval: float = 0.05
    longest_hold: float = 0.2
    """How long others keep a BO reserved."""
    bandwidth: float = 0.0
    pauses: bool = False
    jobs: bool = False
    """Every other fill is a job instead of a WRITE."""
    large: int = 0
    """Bytes of one more BO, filled by one more writer."""

    @property
    def size(self) -> int:
        """Of each BO: all together are 1.5 times the vram."""
        return self.vram * 3 // 2 // (self.writers * self.bos) & -4096


class SlowUnmapper:
    """INVALs of clients that have a lot to write back."""

    def __init__(self, rng: random.Random, longest: float) -> None:
        self.rng, self.longest = rng, longest

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        await trio.sleep(self.rng.random() * self.longest)


class Contention:
    """One run. `counts` says what happened, `slowest` how long the slowest fill took."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan = plan
        self.rng = random.Random(seed)
        config = Config(
            vram=plan.vram, gtt=plan.gtt, memory=64 * MIB, swap=0, placement="vram", copy_bandwidth=plan.bandwidth,
            command_timeout=60.0,
        )  # fmt: skip
        self.vdev = VirtualDevice(config)
        self.vdev.ttm.unmapper = SlowUnmapper(self.rng, plan.longest_inval)
        self.bos: list[BufferObject] = []
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0

    async def writer(self, name: str, bos: int, size: int) -> None:
        """Fill its BOs in turn."""
        mine = [self.vdev.create_bo(f"{name}.{number}") for number in range(bos)]
        self.bos += mine
        for number in range(self.plan.fills):
            bo, value = mine[number % bos], number % 251 + 1
            started = trio.current_time()
            try:
                await self._fill(bo, size, value, by_job=self.plan.jobs and number % 2 == 1)
            except TtmError as error:
                self.counts[f"fill {error.name}"] += 1
                self.counts["failed"] += 1
                print(f"{name}: {error}")
            self.counts["fills"] += 1
            self.slowest = max(self.slowest, trio.current_time() - started)
            await trio.sleep(self.rng.random() * 0.01)

    async def _fill(self, bo: BufferObject, size: int, value: int, *, by_job: bool) -> None:
        set_size(bo, 0)
        set_size(bo, size)
        if by_job:
            with trio.fail_after(60):
                queued = await submit_job(self.vdev, Job("fill", dst=bo, value=value), OperationContext())
            await queued.fence.wait()
        else:
            for at in range(0, size, 128 * KIB):
                await access.write(bo, at, bytes([value]) * min(128 * KIB, size - at))
        assert bytes(await access.read(bo, 0, size)) == bytes([value]) * size, f"wrong bytes in {bo.name}"
        self.counts[f"ended in {bo.mem_type}"] += 1

    async def holder(self) -> None:
        """Reserves BOs for a while, as a long command does; until cancelled."""
        while True:
            await trio.sleep(self.rng.random() * 0.02)
            if not self.bos:
                continue
            bo = self.rng.choice(self.bos)
            await bo.resv.lock()
            try:
                await trio.sleep(self.rng.random() * self.plan.longest_hold)
            finally:
                bo.unreserve()

    async def mover(self) -> None:
        """Commands that change no byte; until cancelled."""
        while True:
            await trio.sleep(self.rng.random() * 0.05)
            if not self.bos:
                continue
            bo, what = self.rng.choice(self.bos), self.rng.choice(("vram", "gtt", "evict", "unmap"))
            try:
                if what == "evict":
                    await calls.evict_one(self.vdev, bo, OperationContext())
                elif what == "unmap":
                    await calls.unmap(self.vdev, bo, 0, 0)
                else:
                    await calls.validate_bo(self.vdev, bo, self.vdev.parse_placement([what]), OperationContext())
                self.counts[what] += 1
            except TtmError as error:
                self.counts[f"{what} {error.name}"] += 1

    async def pauser(self) -> None:
        """Engines stand still now and then; until cancelled."""
        while True:
            await trio.sleep(self.rng.random())
            for engine in self.vdev.engines:
                engine.paused = not engine.paused

    async def run(self) -> None:
        """All of it."""
        plan, turns = self.plan, random.Random(self.rng.random())
        # The clock that jumps does not wait for threads.
        offload.use(Inline(lambda _lane, _when: turns.randrange(4)))
        try:
            async with trio.open_nursery() as device:
                await device.start(self.vdev.run)
                async with trio.open_nursery() as background:
                    for _ in range(2):
                        background.start_soon(self.holder)
                        background.start_soon(self.mover)
                    if plan.pauses:
                        background.start_soon(self.pauser)
                    async with trio.open_nursery() as nursery:
                        for number in range(plan.writers):
                            nursery.start_soon(self.writer, f"w{number}", plan.bos, plan.size)
                        if plan.large:
                            nursery.start_soon(self.writer, "large", 1, plan.large)
                    background.cancel_scope.cancel()
                for engine in self.vdev.engines:
                    engine.paused = False
                wrong = self.vdev.selfcheck()
                assert not wrong, wrong
                device.cancel_scope.cancel()
        finally:
            self.vdev.close()


def contend(plan: Plan, seed: int) -> Contention:
    """Run it."""
    seed_turns(seed)
    run = Contention(plan, seed)
    trio.run(run.run, clock=SteppingClock())
    return run
