"""A virtual device with address spaces and clients' page cache, without a mount, on a clock that jumps."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
import trio.testing

from tests.svm.page_cache import PageCache
from tests.sync.inline import Inline
from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.svm.audit import check_svm
from ttmfs.svm.space import AddressSpace
from ttmfs.svm.spaces import Svm
from ttmfs.svm.tables import ranges_text
from ttmfs.sync import offload

MIB = 1 << 20


class SvmDevice:
    """`vdev` with `svm`; clients go through `cache`."""

    def __init__(self, vdev: VirtualDevice) -> None:
        self.vdev = vdev
        self.svm = Svm(vdev)
        self.cache = PageCache()
        self.svm.unmapper = self.cache

    def space(self, size: int, name: str = "a") -> AddressSpace:
        space = self.svm.create(name)
        space.set_size(size)
        return space

    @property
    def vram_used(self) -> int:
        return self.vdev.ttm.managers["vram"].usage

    def locations(self, space: AddressSpace) -> list[tuple[int, str, str]]:
        """(start, size, location) of every range."""
        rows = [line.split("\t") for line in ranges_text(space).splitlines()[1:]]
        return [(int(row[0], 16), row[2], row[3]) for row in rows]

    async def check_nothing_left(self) -> None:
        """All spaces are released: everything is back where it was."""
        self.svm.close()
        for _ in range(100):
            if not self.vdev.fence_counters.pending:
                break
            await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked()
        assert self.vdev.fence_counters.pending == 0
        assert self.vram_used == 0
        assert self.vdev.pool.in_use_pages == 0
        assert (self.vdev.ttm.num_bos, self.vdev.ttm.num_zombies, self.vdev.ttm.num_ghosts) == (0, 0, 0)
        assert self.vdev.selfcheck() == []


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[SvmDevice]:
    # The clock that jumps does not wait for threads.
    offload.use(Inline(lambda _lane, _when: 1))
    device = SvmDevice(VirtualDevice(config))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(device.vdev.run)
            nursery.start_soon(device.svm.run)
            yield device
            assert check_svm(device.svm) == []
            assert device.vdev.selfcheck() == []
            nursery.cancel_scope.cancel()
    finally:
        device.vdev.close()


MakeDevice = Callable[..., AbstractAsyncContextManager[SvmDevice]]


@pytest.fixture
def svm_device() -> MakeDevice:
    """`async with svm_device(vram=…) as device:`; the test asks for `autojump_clock` besides."""

    def make(**options: object) -> AbstractAsyncContextManager[SvmDevice]:
        values: dict[str, object] = {"vram": 16 * MIB, "gtt": 64 * MIB, "memory": 64 * MIB, "swap": 0, **options}
        return running(Config(**values))  # type: ignore[arg-type]

    return make
