"""Selfcheck: each kind of damage is planted, and named; what is all right makes no finding (test_together, too).

`vdev.selfcheck` is asked for the findings themselves; a device that is damaged is thrown away.
"""

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import trio

from tests.core.harness import MIB, PAGE, device, idle, make, move
from ttmfs.driver import calls
from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.limits import account_check_steps, group_check_steps
from ttmfs.driver.name_check import check_bos, check_names
from ttmfs.driver.namespace import Namespace
from ttmfs.memory.account import Account
from ttmfs.svm import cpu
from ttmfs.svm.audit import check_svm
from ttmfs.svm.spaces import Svm
from ttmfs.ttm import access, audit
from ttmfs.ttm.audit import believed
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import set_account, set_group
from ttmfs.ttm.placement import Place


class Damaged:
    """A device with BOs in system, in VRAM and in the store, and an address space."""

    def __init__(self, vdev: VirtualDevice, svm: Svm) -> None:
        self.vdev = vdev
        self.svm = svm
        self.names = Namespace(vdev, uid=0, gid=0)

    async def fill(self) -> None:
        self.system = await make(self.vdev, "system", MIB)
        self.other = await make(self.vdev, "other", MIB)
        self.vram = await make(self.vdev, "vram", MIB)
        await move(self.vdev, self.vram, "vram")
        await idle(self.vram)
        while self.vdev.ttm.num_ghosts:
            await trio.lowlevel.checkpoint()
        self.stored = await make(self.vdev, "stored", MIB)
        await calls.backup_one(self.vdev, self.stored, BackupFlags(), OperationContext())
        self.space = self.svm.create("a")
        await cpu.write(self.space, 0, bytes(4 * PAGE))
        self.file = self.names.create(self.names.root, b"named", 0o644, 0, 0)

    def findings(self) -> list[str]:
        return [*self.vdev.selfcheck(), *check_svm(self.svm)]

    def tt(self, bo: BufferObject):  # type: ignore[no-untyped-def]
        assert bo.tt is not None
        return bo.tt

    # Pages.

    def leak_a_page(self) -> None:
        tt = self.tt(self.system)
        tt.clear(np.array([3]))
        tt.populated_pages -= 1

    def leak_what_nobody_ever_had(self) -> None:
        self.vdev.pool.alloc(5)

    def free_a_page_that_is_had(self) -> None:
        self.vdev.pool.free(self.tt(self.system).pages_at(np.array([7])), split=True)

    def have_a_page_twice(self) -> None:
        tt, other = self.tt(self.system), self.tt(self.other)
        tt.put(np.array([0]), other.at(np.array([0])))

    def leak_a_page_of_a_space(self) -> None:
        chunk = self.space.chunks[0]
        chunk.pages.take(1)
        chunk.changed()

    def count_a_space_wrong(self) -> None:
        assert self.space.num_blocks() == 4
        self.space.chunks[0].pages.take(1)

    # The store.

    def leak_a_slot(self) -> None:
        tt = self.tt(self.stored)
        tt.clear(np.array([2]))
        tt.backed_up_pages -= 1

    def drop_a_slot_that_is_had(self) -> None:
        store = self.vdev.ttm.swap_store
        assert store is not None
        store.drop(self.tt(self.stored).handles()[:1])

    def take_a_slot_for_nothing(self) -> None:
        store = self.vdev.ttm.swap_store
        assert store is not None
        store.slots.take(1)

    # Regions.

    def leak_vram(self) -> None:
        self.vdev.ttm.managers["vram"].unassigned.clear()
        resource = self.vram.resource
        self.vram.resource = None
        assert resource is not None

    def count_a_region_wrong(self) -> None:
        self.vdev.ttm.managers["gtt"].num_bos += 1

    def leak_a_range(self) -> None:
        gtt = self.vdev.ttm.managers["gtt"]
        del gtt.unassigned[gtt.alloc(self.system, Place("gtt"))]

    # Fences and BOs.

    def emit_a_fence_for_nobody(self) -> None:
        self.vdev.compute.queues.default.timeline.next_fence("nobody's")

    def count_a_fence_wrong(self) -> None:
        self.vdev.fence_counters.emitted += 1

    def leave_a_zombie(self) -> None:
        self.system.deleted = self.system.zombie = True
        self.vdev.ttm.num_zombies += 1

    def count_a_ghost(self) -> None:
        self.vdev.ttm.num_ghosts += 1


KINDS: list[tuple[Callable[[Damaged], None], str]] = [
    (Damaged.leak_a_page, "memory: 1 pages"),
    (Damaged.leak_what_nobody_ever_had, "memory: 5 pages"),
    (Damaged.free_a_page_that_is_had, "system has 1 pages"),
    (Damaged.have_a_page_twice, "system and other both have 1 pages"),
    (Damaged.leak_a_page_of_a_space, "memory: 1 pages"),
    (Damaged.count_a_space_wrong, "chunk 0 has 3 pages, counted are 4"),
    (Damaged.leak_a_slot, "swap: 1 slots"),
    (Damaged.drop_a_slot_that_is_had, "stored has 1 slots"),
    (Damaged.take_a_slot_for_nothing, "swap: 1 slots are taken and hold no page"),
    (Damaged.leak_vram, "vram: 256 pages in use are counted, and owners have 0"),
    (Damaged.count_a_region_wrong, "gtt: 1 BOs are counted, and owners have 0"),
    (Damaged.leak_a_range, "gtt: 256 pages in use are counted, and owners have 0"),
    (Damaged.emit_a_fence_for_nobody, "is pending, and no engine is going to signal it"),
    (Damaged.count_a_fence_wrong, "1 are counted as pending, and timelines have 0"),
    (Damaged.leave_a_zombie, "system is deleted and idle, and has not been freed"),
    (Damaged.count_a_ghost, "device: 1 ghosts are counted, and owners have 0"),
]


def damaged(test: Callable[[Damaged], None]) -> None:
    """Run `test` on a device without its housekeeping."""

    async def run() -> None:
        vdev = VirtualDevice(Config(vram=8 * MIB, gtt=8 * MIB, memory=32 * MIB, swap=8 * MIB))
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(vdev.run)
                device = Damaged(vdev, Svm(vdev))
                await device.fill()
                assert device.findings() == []
                test(device)
                nursery.cancel_scope.cancel()
        finally:
            vdev.close()

    trio.run(run)


@pytest.mark.parametrize(("plant", "named"), KINDS, ids=[plant.__name__ for plant, _ in KINDS])
def test_what_is_planted_is_named(plant: Callable[[Damaged], None], named: str) -> None:
    def look(device: Damaged) -> None:
        plant(device)
        found = device.findings()
        assert any(named in sentence for sentence in found), found

    damaged(look)


def lose_the_name(device: Damaged) -> None:
    device.names.root.take(b"named")


def lose_the_file(device: Damaged) -> None:
    del device.names.files[device.file.ino]


def lose_the_entry(device: Damaged) -> None:
    device.file.names = ()


def keep_what_is_not_used(device: Damaged) -> None:
    device.file.opens = 1
    device.names.unlink(device.names.root, b"named")
    device.file.opens = 0


def lose_the_bo(device: Damaged) -> None:
    device.file.bo.deleted = True


NAMES: list[tuple[Callable[[Damaged], None], str]] = [
    (lose_the_name, "has the name 'named', which leads elsewhere"),
    (lose_the_file, "which is no file any more"),
    (lose_the_file, "BO named: no file has it"),
    (lose_the_entry, "which has not that name"),
    (keep_what_is_not_used, "nobody has it open or knows it, and it is there"),
    (lose_the_bo, "its BO is gone"),
]


@pytest.mark.parametrize(("plant", "named"), NAMES, ids=[f"{plant.__name__}-{n}" for n, (plant, _) in enumerate(NAMES)])
def test_what_is_planted_among_names_is_named(plant: Callable[[Damaged], None], named: str) -> None:
    def findings(device: Damaged) -> list[str]:
        steps = (*check_names(device.names), *check_bos(device.names))
        # Those of the core's tests have no files.
        return [line for line in steps if line is not None and not line.startswith(tuple(OF_THE_CORE))]

    def look(device: Damaged) -> None:
        assert findings(device) == []
        plant(device)
        found = findings(device)
        assert any(named in sentence for sentence in found), found

    damaged(look)


OF_THE_CORE = [f"BO {name}: no file has it" for name in ("system", "other", "vram", "stored")]


class Owner:
    def __init__(self, name: str, *numbers: int) -> None:
        self.name = name
        self.numbers = np.array(numbers, np.uint32)


def held(owner: Owner) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return owner.numbers


def test_an_account_blames_nobody_for_what_went_on_meanwhile() -> None:
    account = Account("things", 16)
    one, two, three = Owner("one", 1, 2), Owner("two", 3), Owner("three", 4)
    assert not list(account.belong(one, held))
    # 2 goes from the one to the other, who is asked later; 5 is handed out; 4 is given back after it was asked for.
    one.numbers, two.numbers = one.numbers[:1], np.array([3, 2], np.uint32)
    assert not list(account.belong(two, held))
    assert not list(account.belong(three, held))
    account.excuse(np.array([5], np.uint32))
    three.numbers = three.numbers[:0]
    used = np.zeros(16, np.bool_)
    used[[1, 2, 3, 5]] = True
    assert not list(account.without_owner(used))
    assert not [sentence for sentence in account.used_no_more(lambda: used) if sentence is not None]


def test_an_account_names_runs_of_what_is_wrong() -> None:
    account = Account("things", 32)
    assert list(account.belong(Owner("greedy", 1, 2, 2), held)) == ["greedy has 1 things (2) twice"]
    used = np.zeros(32, np.bool_)
    used[[1, 2, 5, 6, 7, 9, 11, 13]] = True
    assert list(account.without_owner(used)) == ["6 things (5-7, 9, 11 …) of 8 in use belong to nobody"]
    used[2] = False
    lost = [sentence for sentence in account.used_no_more(lambda: used) if sentence is not None]
    assert lost == ["greedy has 1 things (2), not in use"]


# -- with pauses -------------------------------------------------------------------------------------------------------


async def many(vdev: VirtualDevice, count: int = 320) -> list[BufferObject]:
    bos = [vdev.create_bo(f"bo{number}", vdev.ttm.accounts.of(1000 + number % 3)) for number in range(count)]
    for bo in bos:
        await access.write(bo, 0, bytes(PAGE))
    return bos


def books(vdev: VirtualDevice) -> Iterator[str | None]:
    return audit.books(vdev.ttm)


CHECKS = (books, VirtualDevice.check_fences, account_check_steps, group_check_steps)


@pytest.mark.parametrize("check", CHECKS)
async def test_others_run_between_a_few_bos_and_the_next(
    check: Callable[[VirtualDevice], Iterator[str | None]],
) -> None:
    async with device() as vdev:
        bos = await many(vdev)
        assert list(check(vdev)) == [None] * (len(bos) // 64)


async def test_what_others_do_in_its_pauses_is_not_blamed_on_anybody() -> None:
    rng = random.Random(5)
    async with device(vram=MIB, gtt=MIB) as vdev:
        group = vdev.ttm.dmem.root.make("a")
        bos = await many(vdev)
        for sentence in vdev.selfcheck_steps():
            assert sentence is None
            bo = rng.choice(bos)
            if rng.random() < 0.1:
                set_account(bo, vdev.ttm.accounts.of(1000 + rng.randrange(3)))
                set_group(bo, rng.choice((group, vdev.ttm.dmem.root)))
            await move(vdev, bo, rng.choice(("vram", "gtt", "system")))


def test_what_is_wrong_in_passing_only_is_not_said() -> None:
    asked = 0

    def check() -> Iterator[str | None]:
        nonlocal asked
        asked += 1
        yield None
        if asked == 1:
            yield "for the moment"
        yield from lasting

    for lasting in ([], ["for good"]):
        asked = 0
        assert [sentence for sentence in believed(check) if sentence is not None] == lasting
