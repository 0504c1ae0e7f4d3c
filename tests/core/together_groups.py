"""Groups in a run of `together`: whose BOs are whose changes, limits change, and what is beyond them goes."""

import trio

from tests.core.advised import let_take_long
from tests.core.together_machine import MIB, Machine
from ttmfs.driver.limits import check_groups, set_max
from ttmfs.errors import TtmError
from ttmfs.svm.space import AddressSpace
from ttmfs.ttm import lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.dmem import UNLIMITED, Group


def make_groups(machine: Machine) -> list[Group]:
    """The root, two below it, and two below one of those."""
    let_take_long(machine.vdev)
    dmem = machine.vdev.ttm.dmem
    dmem.protection = machine.rng.choice(("newer", "released"))
    root = dmem.root
    a, b = root.make("a"), root.make("b")
    return [root, a, b, a.make("c"), a.make("d")]


async def grouping(machine: Machine, groups: list[Group], bos: list[BufferObject], space: AddressSpace) -> None:
    """Until cancelled: moves charges, sets min, low and max, lets groups come and go. It changes no byte."""
    rng = machine.rng
    while True:
        group = rng.choice(groups)
        act = rng.choice(("move", "move", "space", "protect", "protect", "max", "go", "policy"))
        try:
            if act == "move":
                lifetime.set_group(rng.choice(bos), group)
            elif act == "space":
                space.group = group
            elif act == "go":
                await _come_and_go(machine, group, rng.choice(bos))
            elif act == "policy":
                await _policy(machine, group, rng.choice(("lru", "fifo", "mru", "sieve", "arc")))
            elif group.parent is not None:
                pool = group.pools[rng.choice(("vram", "gtt"))]
                if act == "protect":
                    pool.protect(low=rng.choice((0, MIB, 3 * MIB)), min=rng.choice((0, 0, 0, MIB // 2)))
                else:
                    await set_max(machine.vdev, pool, rng.choice((UNLIMITED, UNLIMITED, 2 * MIB, MIB, 0)))
            machine.count(f"group {act}")
        except TtmError as error:
            machine.expect(f"group {act}", error, "ENOMEM", "EBUSY", "ENOSPC", "EIO", "ETIME")
        assert not check_groups(machine.vdev)
        for _ in range(rng.randrange(20)):
            await trio.lowlevel.checkpoint()


async def _policy(machine: Machine, group: Group, name: str) -> None:
    """A policy of the group's own from now on, of the whole region for the root group; none is ever ejected."""
    policies = machine.vdev.policies
    where, spec = policies.parse("evict", [f"{group.name}:{machine.rng.choice(('vram', 'gtt'))}", name])
    await policies.choose("evict", where, policies.prepare(spec))
    for found in policies.stats()["evict"].values():
        assert not found["ejected"], found["last_error"]


async def _come_and_go(machine: Machine, parent: Group, bo: BufferObject) -> None:
    """A group that is removed while a BO still is of it, where it has nothing."""
    group = parent.make(f"short-lived{machine.counts.get('group go', 0)}")
    try:
        lifetime.set_group(bo, group)
        await trio.lowlevel.checkpoint()
    finally:
        # It goes whatever happens: the next one of this name would stand in its place.
        while True:
            try:
                group.remove()
                break
            except TtmError:
                lifetime.set_group(bo, machine.vdev.ttm.dmem.root)
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.001)
