"""The whole device against a simple model: bytes, places, owners of pages, sums, order on the lists."""

import errno
from typing import Any

import numpy as np
import trio
import trio.lowlevel
import trio.testing
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.core.harness import MIB, PAGE
from ttmfs.driver import calls
from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.limits import set_max
from ttmfs.errors import TtmError
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.dmem import UNLIMITED
from ttmfs.ttm.placement import SYSTEM
from ttmfs.ttm.resource import Resource

PLACES = (
    *("vram", "gtt", "system", "vram gtt"),
    *("vram:contiguous gtt", "vram:topdown", "vram@0-63 gtt", "vram:desired gtt"),
)
SIZES = st.integers(0, 160 * PAGE)
GROUPS = ("", "a", "b", "a/c")
ALLOWED = {errno.ENOMEM, errno.ENOSPC, errno.EBUSY, errno.EINVAL}


class Model:
    """One BO and its bytes."""

    def __init__(self, bo: BufferObject) -> None:
        self.bo = bo
        self.bytes = bytearray()
        self.pins = 0
        self.deleted = False


class DeviceMachine(RuleBasedStateMachine):
    """Each step runs to the end of its copies, so that books can be compared."""

    bos = Bundle("bos")

    def __init__(self) -> None:
        super().__init__()
        config = Config(vram=MIB, visible_vram=MIB // 2, gtt=2 * MIB, memory=8 * MIB, swap=2 * MIB, pages_limit=3 * MIB)
        self.vdev = VirtualDevice(config)
        root = self.vdev.ttm.dmem.root
        a, b = root.make("a"), root.make("b")
        self.groups = {"": root, "a": a, "b": b, "a/c": a.make("c")}
        self.models: list[Model] = []
        self.count = 0

    def do(self, call: Any, *args: Any, allowed: int = errno.ENOMEM) -> Any:
        """Run one call with the engines on; None when it was refused as it may be."""

        async def run() -> Any:
            result = None
            async with trio.open_nursery() as nursery:
                await nursery.start(self.vdev.run)
                try:
                    with trio.fail_after(20):
                        result = await call(*args)
                        for engine in self.vdev.engines:
                            for fence in engine.pending():
                                await fence.wait()
                except TtmError as error:
                    if error.errno not in ALLOWED | {allowed}:
                        raise
                    for engine in self.vdev.engines:
                        for fence in engine.pending():
                            await fence.wait()
                nursery.cancel_scope.cancel()
            return result

        return trio.run(run)

    @rule(target=bos, size=SIZES, priority=st.integers(0, 3))
    def create(self, size: int, priority: int) -> Model:
        bo = self.vdev.create_bo(f"bo{self.count}")
        self.count += 1
        model = Model(bo)
        self.models.append(model)
        bo.priority = priority
        bo.relist()
        self.resize(model, size)
        return model

    @rule(model=bos, size=SIZES)
    def resize(self, model: Model, size: int) -> None:
        lifetime.set_size(model.bo, size)
        del model.bytes[size:]
        model.bytes.extend(bytes(size - len(model.bytes)))

    @rule(model=bos, offset=st.integers(0, 130 * PAGE), size=st.integers(1, 20 * PAGE), byte=st.integers(1, 255))
    def write(self, model: Model, offset: int, size: int, byte: int) -> None:
        offset = min(offset, len(model.bytes))
        data = bytes([byte]) * size
        # What is appended to a BO that is pinned out of the CPU's reach has no memory, and cannot be given any.
        out_of_reach = model.pins > 0 and not model.bo.visible
        allowed = errno.EIO if out_of_reach else errno.ENOMEM
        if self.do(access.write, model.bo, offset, data, allowed=allowed) is not None:
            model.bytes.extend(bytes(max(0, offset + size - len(model.bytes))))
            model.bytes[offset : offset + size] = data
        assert model.bo.size == len(model.bytes)

    @rule(model=bos, offset=st.integers(0, 150 * PAGE), size=st.integers(1, 30 * PAGE))
    def read(self, model: Model, offset: int, size: int) -> None:
        async def read() -> bytes:
            return bytes(await access.read(model.bo, offset, size))

        out_of_reach = model.pins > 0 and not model.bo.visible
        got = self.do(read, allowed=errno.EIO if out_of_reach else errno.ENOMEM)
        assert got is None or got == bytes(model.bytes[offset : offset + size])
        # 8 MiB of memory, 2 MiB of swap: only then may a READ find none.
        assert got is not None or out_of_reach or self.vdev.pool.free_pages < 160

    @rule(model=bos, place=st.sampled_from(PLACES))
    def validate(self, model: Model, place: str) -> None:
        placement = self.vdev.parse_placement(place.split())
        before = model.bo.mem_type
        if self.do(calls.validate_bo, self.vdev, model.bo, placement, OperationContext()) is None:
            assert model.bo.mem_type == before
        else:
            assert model.bo.mem_type in {p.mem_type for p in placement}

    @rule(a=bos, b=bos, place=st.sampled_from(PLACES))
    def validate_both(self, a: Model, b: Model, place: str) -> None:
        placement = self.vdev.parse_placement(place.split())
        before = [m.bo.mem_type for m in (a, b)]
        if self.do(calls.validate_many, self.vdev, [a.bo, b.bo], placement, OperationContext()) is None:
            assert [m.bo.mem_type for m in (a, b)] == before

    @rule(model=bos)
    def evict(self, model: Model) -> None:
        before = model.bo.evictions
        self.do(calls.evict_one, self.vdev, model.bo, OperationContext())
        assert not model.pins or model.bo.evictions == before

    @rule(model=bos)
    def gut(self, model: Model) -> None:
        if self.do(calls.validate_bo, self.vdev, model.bo, (), OperationContext()) is not None:
            model.bytes[:] = bytes(len(model.bytes))

    @rule(model=bos)
    def swapout(self, model: Model) -> None:
        self.do(calls.swapout_one, self.vdev, model.bo, OperationContext())

    @rule(pages=st.integers(1, 600))
    def swapout_device(self, pages: int) -> None:
        self.do(calls.swapout_all, self.vdev, pages, OperationContext())

    @rule(model=bos)
    def pin(self, model: Model) -> None:
        self.do(calls.pin, self.vdev, model.bo)
        model.pins += 1

    @rule(model=bos)
    def unpin(self, model: Model) -> None:
        assert (self.do(calls.unpin, self.vdev, model.bo) is not None) == (model.pins > 0)
        model.pins = max(0, model.pins - 1)

    @rule(model=consumes(bos))
    def delete(self, model: Model) -> None:
        self.models.remove(model)
        lifetime.release(model.bo)
        assert model.bo.resource is None

    @rule(model=bos, name=st.sampled_from(GROUPS))
    def move_to_group(self, model: Model, name: str) -> None:
        async def move() -> Any:
            lifetime.set_group(model.bo, self.groups[name])
            return True

        before = model.bo.group
        moved = self.do(move)
        assert model.bo.group is (before if moved is None else self.groups[name])

    @rule(name=st.sampled_from(GROUPS[1:]), region=st.sampled_from(("vram", "gtt")), low=SIZES, min=SIZES)
    def protect(self, name: str, region: str, low: int, min: int) -> None:
        self.groups[name].pools[region].protect(low=low, min=min)

    @rule(name=st.sampled_from(GROUPS[1:]), region=st.sampled_from(("vram", "gtt")), most=SIZES | st.just(UNLIMITED))
    def limit(self, name: str, region: str, most: int) -> None:
        pool = self.groups[name].pools[region]
        self.do(set_max, self.vdev, pool, most)
        pinned = any(model.pins for model in self.models)
        # What goes needs memory where it goes to.
        assert pool.usage <= most or pinned or self.vdev.pool.free_pages < 160

    @rule()
    def suspend_and_resume(self) -> None:
        pins = {model.bo.name: model.bo.pin_count for model in self.models}
        if self.do(self.vdev.power.suspend, OperationContext()) is None:
            return
        assert all(model.bo.mem_type == SYSTEM for model in self.models)
        assert self.do(self.vdev.power.resume, OperationContext()) is not None
        assert pins == {model.bo.name: model.bo.pin_count for model in self.models}

    @invariant()
    def books(self) -> None:
        vdev = self.vdev
        assert not vdev.selfcheck()
        for group in self.groups.values():
            for region, pool in group.pools.items():
                mine = [m.bo for m in self.models if m.bo.mem_type == region and pool in m.bo.group.pools[region].chain]
                assert pool.usage == sum(bo.resource.num_pages for bo in mine if bo.resource) * PAGE
        assert (vdev.ttm.num_bos, vdev.ttm.num_ghosts, vdev.ttm.num_zombies) == (len(self.models), 0, 0)
        live = [model.bo for model in self.models]
        owned = [bo.tt.pages_at(bo.tt.present()) for bo in live if bo.tt is not None]
        pages = np.concatenate(owned) if owned else np.zeros(0, np.uint32)
        assert len(np.unique(pages)) == len(pages) == vdev.pool.in_use_pages
        assert vdev.ttm.swap_store is not None
        assert sum(bo.tt.backed_up_pages for bo in live if bo.tt is not None) == vdev.ttm.swap_store.slots.stored
        for manager in vdev.ttm.managers.values():
            here = [bo for bo in live if bo.resource is not None and bo.resource.manager is manager]
            assert manager.usage == sum(bo.resource.num_pages for bo in here if bo.resource) * PAGE
            assert manager.num_bos == len(here)
            assert not manager.unassigned
            assert not manager.lru.check()
            listed = {item.bo.name for item in manager.lru}
            assert listed == {bo.name for bo in here if not (bo.pin_count or bo.swapped)}
            priorities = [item.bo.priority for item in manager.lru]
            assert priorities == sorted(priorities)
            if manager.arena is not None and here:
                parts = [bo.resource.pages for bo in here if bo.resource and bo.resource.pages is not None]
                numbers = np.concatenate(parts)
                assert len(np.unique(numbers)) == len(numbers)
        unevictable = {item.bo.name for item in vdev.ttm.unevictable if isinstance(item, Resource)}
        assert unevictable == {bo.name for bo in live if bo.resource is not None and (bo.pin_count or bo.swapped)}
        for model in self.models:
            assert model.bo.pin_count == model.pins
            assert model.bo.size == len(model.bytes)

    def teardown(self) -> None:
        for model in self.models:
            while model.pins:
                self.unpin(model)
            for offset in range(0, len(model.bytes), 64 * PAGE):

                async def read(bo: BufferObject = model.bo, offset: int = offset) -> bytes:
                    return bytes(await access.read(bo, offset, 64 * PAGE))

                got = self.do(read)
                assert got is None or got == bytes(model.bytes[offset : offset + 64 * PAGE])
        for model in self.models:
            lifetime.release(model.bo)
        assert self.vdev.pool.in_use_pages == 0
        assert all(manager.usage == 0 for manager in self.vdev.ttm.managers.values())
        self.vdev.close()


TestDevice = DeviceMachine.TestCase
TestDevice.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
