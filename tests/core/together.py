"""All of the device under one seeded schedule, without a mount: BOs, address spaces, jobs, backup, suspend, failures.

Beside the clients and storms of `exercise` run clients that keep pages of BOs and of address spaces in a page cache (as
the kernel does: locked and dirty folios, INVALs that wait for them), a device that writes and adds in the same
address spaces, jobs over BOs and in a VM, eviction, suspend and resume. The page is the unit of coherence, so every
page of a space belongs to one actor, which works on it from both sides and knows each of its bytes.

The seed is in every message, and a failure repeats: what would run in threads takes its turns on the loop.
"""

import itertools
import random
from functools import partial

import trio

from tests.core.exercise import Client, storm
from tests.core.together_actors import CachedClient, Owner, device_jobs
from tests.core.together_groups import grouping, make_groups
from tests.core.together_machine import BLOCKS, HANG_SECONDS, INJECTED, MIB, SPACE_PAGES, Machine
from tests.core.together_vms import vm_jobs
from tests.svm.page_cache import PAGE
from tests.sync.inline import Inline
from tests.turns import seed_turns
from ttmfs import clock
from ttmfs.driver import calls
from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.svm import calls as svm_calls
from ttmfs.svm.audit import check_svm
from ttmfs.svm.space import AddressSpace
from ttmfs.sync import offload
from ttmfs.ttm import lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext


async def auditor(machine: Machine) -> None:
    """Selfcheck, now in one go, now bit by bit beside everything else: it finds nothing. Until cancelled."""
    rng = random.Random(f"auditor {machine.seed}")
    while True:
        patient = rng.random() < 0.5
        for sentence in machine.vdev.selfcheck_steps():
            assert sentence is None, f"selfcheck, {'bit by bit' if patient else 'in one go'}: {sentence}"
            if patient:
                for _ in range(rng.randrange(3)):
                    await trio.lowlevel.checkpoint()
        wrong = check_svm(machine.svm)
        assert not wrong, wrong
        machine.count("selfcheck")
        for _ in range(rng.randrange(20, 200)):
            await trio.lowlevel.checkpoint()


async def workers(machine: Machine, bos: list[BufferObject]) -> None:
    """Jobs that change nothing, over the clients' BOs; until cancelled."""
    rng, vdev = machine.rng, machine.vdev
    while True:
        some = tuple(rng.sample(bos, 2))
        kind = rng.choice(("checksum", "busy", "reduce"))
        try:
            job = Job(kind, srcs=some, seconds=0.0)
            queued = await submit_job(vdev, job, OperationContext())
            if rng.random() < 0.5:
                await queued.fence.wait()
            machine.count("jobs")
        except TtmError as error:
            machine.expect("job", error, "ENOMEM", "EBUSY", "ENOSPC", "EIO")
        for _ in range(rng.randrange(8)):
            await trio.lowlevel.checkpoint()


async def power(machine: Machine) -> None:
    """Suspend and resume now and then; until cancelled, and then resumed."""
    rng, vdev = machine.rng, machine.vdev
    while True:
        for _ in range(rng.randrange(200)):
            await trio.lowlevel.checkpoint()
        machine.powered = True
        with trio.CancelScope(shield=True):
            try:
                await vdev.power.suspend(OperationContext())
                machine.count("suspend")
            except TtmError as error:
                machine.expect("suspend", error, "ENOMEM", "EBUSY")
            for _ in range(rng.randrange(100)):
                await trio.lowlevel.checkpoint()
            if vdev.ttm.suspended:
                await vdev.power.resume(OperationContext())
        machine.powered = False


async def failures(machine: Machine) -> None:
    """Places fail a few times; until cancelled."""
    rng, inject = machine.rng, machine.vdev.ttm.inject
    while True:
        attr = inject[rng.choice(INJECTED)]
        attr.probability, attr.times, attr.space = rng.choice((20, 100)), rng.choice((1, 1, 3)), rng.choice((0, 7, 100))
        for _ in range(rng.randrange(40)):
            await trio.lowlevel.checkpoint()
        attr.probability = 0


async def mover(machine: Machine, space: AddressSpace) -> None:
    """Changes no byte: advice, eviction; until cancelled."""
    rng = machine.rng
    while True:
        first = rng.randrange(SPACE_PAGES)
        count = min(rng.choice((1, 16, 512)), SPACE_PAGES - first)
        try:
            act = rng.choice(("evict", "madvise", "prefetch", "prefetch"))
            if act == "evict":
                await calls.evict_region(machine.vdev, "vram", MIB, OperationContext())
            elif act == "madvise":
                where = rng.choice(("vram", "system", "fault", "vram"))
                whole = rng.random() < 0.5
                first, count = (0, SPACE_PAGES) if whole else (first, count)
                await svm_calls.madvise(space, first * PAGE, count * PAGE, preferred=where)
            else:
                await svm_calls.prefetch(space, first * PAGE, count * PAGE, rng.choice(("vram", "system")))
            machine.count(act)
        except TtmError as error:
            machine.expect("mover", error, "ENODATA", "EBUSY", "ENOMEM", "ENOSPC")
        for _ in range(rng.randrange(20)):
            await trio.lowlevel.checkpoint()


def deal(rng: random.Random, actors: int) -> list[list[tuple[int, int]]]:
    """(first, count) of runs of pages for each actor."""
    shares: list[list[tuple[int, int]]] = [[] for _ in range(actors)]
    first = 0
    while first < SPACE_PAGES:
        count = min(rng.choice(BLOCKS), SPACE_PAGES - first)
        if first % 512 == 0 and rng.random() < 0.3 and first + 512 <= SPACE_PAGES:
            count = 512
        rng.choice(shares).append((first, count))
        first += count
    return [share or [(0, 0)] for share in shares]


IN_EACH = {"store", "gpu_write", "cached store", "job fill", "validate", "jobs"}
"""What has happened before a run ends."""


async def together(
    seed: int, *, config: Config, steps: int = 40, faults: bool = False, suspends: bool = False, groups: bool = False
) -> dict[str, int]:
    """Run it on a SteppingClock; returns counts. AssertionError with the seed and the last operations on a finding."""
    seed_turns(seed)
    # What is measured decides how long steps are: measure something that repeats.
    ticks = itertools.count(0, 50_000)
    # The clock that jumps does not wait for threads.
    turns = random.Random(seed)
    offload.use(Inline(lambda _lane, _when: turns.randrange(4)))
    machine = Machine(config, seed, faults=faults)
    rng, vdev = machine.rng, machine.vdev
    try:
        with clock.replaced(lambda: next(ticks), clock.wall_ns), trio.fail_after(HANG_SECONDS):
            await _run(machine, rng, vdev, steps=steps, suspends=suspends, groups=groups)
    except BaseException as failure:
        if isinstance(failure, KeyboardInterrupt | trio.Cancelled):
            raise
        lines = "\n".join((*machine.log[-40:], str(machine.counts)))
        kind = f"seed {seed} faults {faults} suspends {suspends} groups {groups}"
        raise AssertionError(f"{kind}\n{lines}\n{failure!r}") from failure
    finally:
        vdev.close()
    return machine.counts


async def _run(
    machine: Machine, rng: random.Random, vdev: VirtualDevice, *, steps: int, suspends: bool, groups: bool
) -> None:
    async with trio.open_nursery() as device:
        await device.start(vdev.run)
        device.start_soon(machine.svm.run)
        space = machine.svm.create("a", machine.account)
        space.set_size(SPACE_PAGES * PAGE)
        owners = [Owner(machine, space, f"owner{n}", share) for n, share in enumerate(deal(rng, 4)) if share[0][1]]
        clients = [Client(vdev, f"bo{n}", rng, MIB) for n in range(2)]
        cached = [CachedClient(machine, f"cached{n}", (20, 300)[n]) for n in range(2)]
        bos = [client.bo for client in clients] + [client.bo for client in cached]
        async with trio.open_nursery() as background:
            # A suspend moves what is pinned, too.
            background.start_soon(
                partial(storm, vdev, bos, rng, machine.counts, faults=False, quiet=machine.expect, pins=not suspends)
            )
            background.start_soon(mover, machine, space)
            background.start_soon(workers, machine, bos)
            background.start_soon(auditor, machine)
            if groups:
                background.start_soon(grouping, machine, make_groups(machine), bos, space)
            if suspends:
                background.start_soon(power, machine)
            if machine.faults:
                background.start_soon(failures, machine)
            for client in clients:
                client.quiet = machine.expect
            happens = IN_EACH | ({"backed_up"} if vdev.config.swap else set())
            while not all(machine.counts.get(what) for what in happens):
                # With much of its time suspended, the device may have done next to nothing in the first round.
                async with trio.open_nursery() as nursery:
                    for client in clients:
                        nursery.start_soon(client.run, steps)
                    for owner in owners:
                        nursery.start_soon(owner.run, steps)
                    for other in cached:
                        nursery.start_soon(other.run, steps)
                    nursery.start_soon(device_jobs, machine, steps)
                    nursery.start_soon(vm_jobs, machine, steps // 3)
            background.cancel_scope.cancel()
        for place in INJECTED:
            vdev.ttm.inject[place].probability = 0
        for verify in (*[c.verify for c in clients], *[owner.verify for owner in owners], *[c.verify for c in cached]):
            await verify()
        wrong = vdev.selfcheck() + check_svm(machine.svm)
        assert not wrong, wrong
        for bo in bos:
            lifetime.release(bo)
        machine.svm.close()
        with trio.fail_after(20):
            while vdev.ttm.num_bos or vdev.fence_counters.pending or vdev.pool.in_use_pages:
                await trio.sleep(0.001)
        device.cancel_scope.cancel()
    left = {name: manager.usage for name, manager in vdev.ttm.managers.items() if manager.usage}
    assert not left, f"regions in use: {left}, {vdev.ttm.num_zombies} zombies, {vdev.ttm.num_ghosts} ghosts"
    store = vdev.ttm.swap_store
    assert store is None or not store.slots.stored, f"{store.slots.stored} pages left in swap"
    assert not vdev.selfcheck() + check_svm(machine.svm)
