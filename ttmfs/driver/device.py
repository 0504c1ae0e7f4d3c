"""VirtualDevice: the hardware, the policy that drives TTM, and the work that goes on in the background."""

from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import trio

from ttmfs.driver.config import Config
from ttmfs.driver.defrag import DefragWorker
from ttmfs.driver.drivers import make_driver
from ttmfs.driver.hardware import Hardware
from ttmfs.driver.limits import account_check_steps, group_check_steps, set_user_limit
from ttmfs.driver.policies import Policies
from ttmfs.driver.suspend import PowerState
from ttmfs.driver.userptr import Userptrs
from ttmfs.driver.vm import Vms
from ttmfs.memory.leftovers import IN_A_LULL
from ttmfs.memory.warm import MAX_DROP_PAGES
from ttmfs.observe import points
from ttmfs.observe.counters import Lull
from ttmfs.ttm import kswapd
from ttmfs.ttm.account import Account
from ttmfs.ttm.audit import believed
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.clear import clear_idle
from ttmfs.ttm.io_mem import IoMemFuncs
from ttmfs.ttm.lifetime import release
from ttmfs.ttm.placement import SYSTEM, Place
from ttmfs.ttm.shrinker import shrink_for
from ttmfs.ttm.zero_pages import reclaim_zero_pages

POOL_TRIM_INTERVAL = 1.0
_BETWEEN_REQUESTS = 0.002
"""Seconds from one step of housekeeping to the next while there are requests."""
_CLEAN_WINDOWS = 16
"""Windows of memory without anything to give back that are passed over at once."""


class VirtualDevice(Hardware):
    """The device of one mount."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ttm.shrinkers.append(partial(shrink_for, self.ttm))
        self.ttm.reclaimers.append(partial(reclaim_zero_pages, self.ttm))
        set_user_limit(self, config.user_limit)
        self.ttm.dmem.protection = config.dmem_protection
        self.power = PowerState(self)
        self.defrag = DefragWorker(self)
        self.vms = Vms(self.ttm)
        self.userptrs = Userptrs(self)
        self.policies = Policies(self)
        self.funcs = make_driver(config.driver, self)
        self.ttm.io_mem.funcs = self.funcs if isinstance(self.funcs, IoMemFuncs) else None
        self.default_placement = self.parse_placement(config.placement.split())
        self.ttm.default_placement = self.default_placement or (Place(SYSTEM),)

    def create_bo(self, name: str, account: Account | None = None) -> BufferObject:
        """A new, empty BO in system, unpopulated, for which `account`, or the device itself, pays.

        Its first use takes it to its placement. Raises what the driver's `bo_created` does, and there is none then.
        """
        bo = BufferObject(self.ttm, self.funcs, name=name, placement=self.default_placement, account=account)
        bo.assign(self.ttm.managers[SYSTEM].alloc(bo, Place(SYSTEM)))
        bo.placed = bo.placement == (Place(SYSTEM),)
        try:
            self.funcs.bo_created(bo)
        except BaseException:
            release(bo)
            raise
        if name:
            points.bo_create(self.ttm.trace, bo, ino=0, uid=0)
        return bo

    def selfcheck_steps(self) -> Iterator[str | None]:
        """As of the hardware, and whether VMs, accounts and groups agree with what there is."""
        yield from super().selfcheck_steps()
        yield from self.vms.check()
        yield from self.userptrs.check({bo for vm in self.vms for bo in vm.bos})
        yield from believed(lambda: account_check_steps(self))
        yield from believed(lambda: group_check_steps(self))

    def destroy_bo(self, bo: BufferObject) -> None:
        """Its last reference is gone: it is bound nowhere any more, and goes once its fences have signaled."""
        self.vms.forget(bo)
        release(bo)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The engines and the housekeeping; runs until cancelled."""
        try:
            await self._run(task_status)
        finally:
            self.policies.close()
            self.userptrs.close()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            tasks: list[Callable[[], Awaitable[None]]] = [*(engine.run for engine in self.engines), self.compute.run]
            for task in (*tasks, self._tidy, self._take_apart, self.defrag.run, self.policies.promoter.run):
                nursery.start_soon(task)
            nursery.start_soon(kswapd.watermark, self.ttm)
            nursery.start_soon(kswapd.upkeep, self.ttm)
            task_status.started()

    async def _tidy(self) -> None:
        """Once an interval: idle memory of the pool goes to the host, freed memory of regions becomes zero again."""
        requests = self.ttm.counters.requests
        served = 0

        def idle() -> bool:
            quiet = requests.read + requests.write == served and not requests.parked
            return quiet and not self.fence_counters.pending

        while True:
            await trio.sleep(POOL_TRIM_INTERVAL)
            await self._trim_pool()
            # Not in an interval in which somebody wanted something.
            await clear_idle(self.ttm, idle)
            served = requests.read + requests.write

    async def _take_apart(self) -> None:
        """What was given back in one go becomes free blocks, unless somebody needs them at once."""
        leftovers, lull = self.pool.leftovers, Lull(self.ttm.counters.requests)
        while True:
            await leftovers.bell.heard()
            quiet = lull()
            while all(leftovers.step() for _ in range(IN_A_LULL if quiet else 1)):
                # Nobody waits for it: while there are requests, few of them meet a step.
                await trio.sleep(0 if quiet else _BETWEEN_REQUESTS)
                quiet = lull()

    async def _trim_pool(self) -> None:
        for number in range(self.pool.idle_windows):
            while (dropped := self.pool.drop_idle()) >= MAX_DROP_PAGES:
                await trio.lowlevel.checkpoint()
            if dropped or not number % _CLEAN_WINDOWS:
                await trio.lowlevel.checkpoint()
