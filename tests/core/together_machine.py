"""The device of a run of `together`, its page caches, and its clock; what may fail in it."""

import random

import trio

from tests.svm.page_cache import PageCache
from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.errors import TtmError
from ttmfs.observe.inject import PLACES
from ttmfs.svm.spaces import Svm
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject

MIB = 1 << 20
HANG_SECONDS = 10_000
"""Of the clock here: everybody's timeouts are shorter."""
SLOWEST = 12.0
"""Seconds of that clock that one operation may take: less than the fault timeout, more than any other wait."""
TURN = 10e-6
SPACE_PAGES = 1200
BLOCKS = (1, 2, 16, 16, 64)
MAY_FAIL = {"ENOMEM", "EBUSY", "ENODATA", "ENOSPC", "EIO", "ETIME", "EINTR", "ENODEV"}
"""Of calls; which of them when nothing was made to fail is said where they are made."""
INJECTED = [place for place in PLACES if place != "interrupt"]


class SteppingClock(trio.abc.Clock):
    """Time passes by the turn of the loop, and jumps when there is nothing to do: it repeats, and no timeout is long.

    It waits for no thread.
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def start_clock(self) -> None:
        """Nothing to start."""

    def current_time(self) -> float:
        """The loop asks at every turn."""
        self.now += TURN
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Nobody can run until then."""
        if deadline == float("inf"):
            return 1000.0
        self.now = max(self.now, deadline)
        return 0.0


class CachedBo:
    """A BO as the page cache wants it."""

    def __init__(self, bo: BufferObject) -> None:
        self.bo = bo

    @property
    def size(self) -> int:
        return self.bo.size

    async def read(self, offset: int, size: int) -> bytes:
        return bytes(await access.read(self.bo, offset, size))

    async def write(self, offset: int, data: bytes) -> None:
        await access.write(self.bo, offset, data)


class Unmapper:
    """INVAL of BOs: those that are cached through the page cache, others take some checkpoints."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.cached: dict[BufferObject, CachedBo] = {}
        self.cache = PageCache()

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        for _ in range(self.rng.randrange(6)):
            await trio.lowlevel.checkpoint()
        if bo in self.cached:
            await self.cache.invalidate(self.cached[bo], first_page, num_pages)  # type: ignore[arg-type]


class Machine:
    """The device of one run and what all actors share."""

    def __init__(self, config: Config, seed: int, *, faults: bool) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.faults = faults
        self.vdev = VirtualDevice(config)
        self.account = self.vdev.ttm.accounts.of(1000)
        """Of the user whose BOs and spaces are not the clients'."""
        self.svm = Svm(self.vdev)
        self.cache = PageCache()
        self.svm.unmapper = self.cache
        self.unmapper = Unmapper(self.rng)
        self.vdev.ttm.unmapper = self.unmapper
        self.counts: dict[str, int] = {}
        self.log: list[str] = []
        self.powered = False

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def expect(self, what: str, error: TtmError, *allowed: str) -> None:
        """A call failed: may it? While places fail on purpose, or the device is suspended, more may."""
        self.count(f"{what} {error.name}")
        if error.name in allowed or "injected" in error.message or "pinned" in error.message:
            return
        if error.name == "EDQUOT" and self.vdev.ttm.accounts.limits:
            return
        if error.name == "ENOMEM" and self.vdev.ttm.dmem.count:
            return
        if self.faults and error.name in MAY_FAIL:
            return
        if self.powered and error.name == "ENODEV":
            return
        raise error


    def took(self, who: str, started: float) -> None:
        """An operation has ended: it did not wait for a timeout."""
        seconds = trio.current_time() - started
        assert seconds < SLOWEST, f"{who}: {self.log[-1]} took {seconds:g} s"
