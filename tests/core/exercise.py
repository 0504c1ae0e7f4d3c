"""A model-checked exerciser of the core without a mount: requests and calls interleaved by one seeded schedule."""

import random
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from tests.core.advised import let_take_long
from tests.core.sparse_bytes import SparseBytes
from tests.turns import seed_turns
from ttmfs.driver import calls
from ttmfs.driver.config import Config
from ttmfs.driver.defrag import defrag_bo
from ttmfs.driver.defrag_pass import defrag_pass
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.limits import check_accounts
from ttmfs.errors import TtmError
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.looking import after_stores, before_stores
from ttmfs.ttm.unmap import unmap_virtual

PLACES = ("vram", "gtt", "system", "vram gtt", "vram:topdown", "vram:contiguous gtt", "vram@0-511 gtt")
EXPECTED = {"EBUSY", "ENOMEM", "ENOSPC", "ETIME", "EIO"}
USUAL = 2 << 20
"""What a BO has at most, unless told otherwise."""
FRAMES = (2 << 20, 3 << 20, 5 << 20)
"""WRITEs, besides smaller ones, to larger BOs: so that these have whole frames of 2 MiB."""
CLIENTS = 4

CALLS = (
    *("validate", "validate", "evict", "unmap", "region", "many", "restore", "swapout", "swap_all", "pin"),
    *("backup", "backup", "shrink"),
    *("defrag", "defrag", "defrag_all"),
)


Expect = Callable[..., None]
"""What takes (who, error), and raises the error when it may not be."""


class SlowUnmapper:
    """INVAL of a client that caches everything: takes a few checkpoints, during which requests arrive."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.calls = 0

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        self.calls += 1
        for _ in range(self.rng.randrange(6)):
            await trio.lowlevel.checkpoint()


class Client:
    """One BO and what its bytes must be."""

    def __init__(
        self, vdev: VirtualDevice, name: str, rng: random.Random, max_size: int, islands: tuple[int, ...] = (0,)
    ) -> None:
        """`max_size` bytes from each of `islands` on (byte offsets, ascending) is where something is done."""
        self.vdev = vdev
        # Two users, by turns.
        self.bo = vdev.create_bo(name, vdev.ttm.accounts.of(1000 + sum(name.encode()) % 2))
        self.rng = rng
        self.model = SparseBytes()
        self.max_size = max_size
        self.islands = islands
        self.log: list[str] = []
        self.ops = self.failures = 0
        self.quiet: Expect | None = None
        """Says instead of `may_fail` what may."""

    def _within(self, island: int) -> int:
        """How much of the file is on an island."""
        return max(0, min(self.model.size - island, self.max_size))

    def _island(self) -> int:
        """One that the file has bytes of."""
        return self.rng.choice([island for island in self.islands if self._within(island)])

    def _range(self) -> tuple[int, int]:
        island = self._island()
        offset = island + self.rng.randrange(self._within(island))
        if self.rng.random() < 0.3:
            offset &= ~4095
        return offset, min(self.rng.choice((1, 100, 4096, 8192, 70000, 1 << 20)), self.model.size - offset)

    async def read(self) -> None:
        if not self.model.size:
            return
        offset, size = self._range()
        self.log.append(f"read {offset}+{size}")
        expected = self.model.read(offset, size)
        got = bytes(await access.read(self.bo, offset, size))
        assert len(got) == len(expected), f"{self.bo.name}: {len(got)} bytes instead of {len(expected)}"
        if got != expected:
            first = next(i for i in range(len(got)) if got[i] != expected[i])
            last = max(i for i in range(len(got)) if got[i] != expected[i])
            raise AssertionError(
                f"{self.bo.name}: bytes {offset + first}..{offset + last} are wrong (page {(offset + first) >> 12})"
            )

    async def write(self) -> None:
        # To where the file ends, or, if that is far away, anywhere.
        island = self.rng.choice(self.islands)
        offset = self.rng.randrange((self._within(island) if len(self.islands) == 1 else self.max_size) + 1)
        if self.rng.random() < 0.5:
            offset &= ~4095
        size = self.rng.choice((1, 10, 4096, 8192, 4097, 65536, 300000) + (FRAMES if self.max_size > USUAL else ()))
        size = min(size, self.max_size - offset)
        if size <= 0:
            return
        offset += island
        data = self.rng.randbytes(size)
        self.log.append(f"write {offset}+{size}")
        await before_stores(self.bo, partial(unmap_virtual, self.bo))
        await access.write(self.bo, offset, data)
        self.model.write(offset, data)

    async def truncate(self) -> None:
        size = self.rng.choice((0, 1, self.rng.randrange(self.max_size), self.rng.randrange(self.max_size)))
        if size > 1:
            size += self.rng.choice(self.islands)
        self.log.append(f"truncate {self.model.size} to {size}")
        lifetime.set_size(self.bo, size)
        self.model.truncate(size)

    async def close(self) -> None:
        """Until the next WRITE nobody has it open for writing."""
        self.log.append("close")
        after_stores(self.bo)

    async def run(self, steps: int) -> None:
        usual: list[Callable[[], Awaitable[None]]] = [self.read, self.write]
        operations = [*usual * 4, self.truncate, self.close]
        for self.ops in range(steps):
            try:
                await self.rng.choice(operations)()
            except TtmError as error:
                self.log.append(f"failed: {error}")
                if not self.may_fail(error):
                    raise
                self.failures += 1
                assert self.bo.size == self.model.size, f"{self.bo.name} has another size after a failure"
            wrong = check_accounts(self.vdev) if self.vdev.ttm.accounts.limits else []
            assert not wrong, wrong
            for _ in range(self.rng.randrange(3)):
                await trio.lowlevel.checkpoint()

    def may_fail(self, error: TtmError) -> bool:
        """A READ of what is pinned in invisible VRAM cannot be served; nor what has no memory, or fails on purpose."""
        if "pinned where the CPU cannot reach it" in error.message or "injected" in error.message:
            return True
        if self.quiet is not None:
            self.quiet("request", error)
            return True
        if error.name == "EDQUOT" and self.vdev.ttm.accounts.limits:
            return True
        # What all of them want at the same time may be more than there is.
        return error.name == "ENOMEM" and self.vdev.config.memory < CLIENTS * self.max_size * len(self.islands)

    async def verify(self) -> None:
        self.vdev.ttm.accounts.limits.clear()
        for place in ("store_write", "store_read", "page_alloc"):
            self.vdev.ttm.inject[place].probability = 0
        step = 1 << 20
        offsets = list(range(0, self.model.size, step)) if len(self.islands) == 1 else []
        if not offsets:
            # Of a sparse one the pages that were written: holes besides may be more than there is memory for.
            step, self.bo.prefault = 4096, 0
            offsets = [page * step for page in self.model.written()]
        for offset in offsets:
            size = min(step, self.model.size - offset)
            got = bytes(await access.read(self.bo, offset, size))
            assert got == self.model.read(offset, size), f"{self.bo.name}: wrong in {offset}+{size} at the end"


async def storm(  # noqa: PLR0912 - one branch a call
    vdev: VirtualDevice,
    bos: list[BufferObject],
    rng: random.Random,
    counts: dict[str, int],
    *,
    faults: bool,
    quiet: Expect | None = None,
    pins: bool = True,
) -> None:
    """Calls at random until cancelled; with `faults` the store fails now and then. `quiet` says what else may fail."""
    while True:
        if faults:
            attr = vdev.ttm.inject[rng.choice(("store_write", "store_read", "page_alloc"))]
            attr.probability, attr.times, attr.space = rng.choice((0, 30, 100)), 1, rng.choice((0, 0, 7, 100))
        bo = rng.choice(bos)
        what = rng.choice(CALLS)
        if what == "pin" and not pins:
            continue
        ctx = OperationContext(no_wait_gpu=rng.random() < 0.2)
        placement = vdev.parse_placement(rng.choice(PLACES).split())
        try:
            if what == "validate":
                await calls.validate_bo(vdev, bo, placement, ctx)
            elif what == "evict":
                await calls.evict_one(vdev, bo, ctx)
            elif what == "unmap":
                await calls.unmap(vdev, bo, 0, 0)
            elif what == "region":
                await calls.evict_region(vdev, "vram", rng.choice((4096, 1 << 20)), ctx)
            elif what == "swapout":
                await calls.swapout_one(vdev, bo, ctx)
            elif what == "swap_all":
                await calls.swapout_all(vdev, rng.choice((1, 100, 1 << 20)), ctx)
            elif what == "backup":
                flags = BackupFlags(allow_move=True, writeback=rng.random() < 0.1)
                counts["backed_up"] = counts.get("backed_up", 0) + (
                    await calls.backup_one(vdev, bo, flags, ctx)
                )["pages_out"]
            elif what == "shrink":
                await calls.shrink_all(vdev, rng.choice((1, 64, 600)), BackupFlags(), ctx)
            elif what == "pin":
                await _pinned_for_a_while(vdev, bo, rng)
            elif what == "restore":
                await calls.restore(vdev, bo, ctx)
            elif what == "defrag":
                before = vdev.ttm.defrag_list.moved
                await defrag_bo(vdev, bo, ctx)
                counts["defragmented"] = counts.get("defragmented", 0) + vdev.ttm.defrag_list.moved - before
            elif what == "defrag_all":
                await defrag_pass(vdev, bos, planned=rng.random() < 0.5, limit=3)
            else:
                await calls.validate_many(vdev, rng.sample(bos, 2), placement, ctx)
            counts[what] = counts.get(what, 0) + 1
        except TtmError as error:
            # A pinned BO is EINVAL wherever it would have to move.
            expected = {*EXPECTED, "EDQUOT"} if vdev.ttm.accounts.limits else EXPECTED
            if error.name not in expected and not (error.name == "EINVAL" and "pinned" in error.message):
                if quiet is None:
                    raise
                quiet("storm", error)
            counts[error.name] = counts.get(error.name, 0) + 1
        await trio.lowlevel.checkpoint()


async def _pinned_for_a_while(vdev: VirtualDevice, bo: BufferObject, rng: random.Random) -> None:
    await calls.pin(vdev, bo)
    where = bo.mem_type
    try:
        for _ in range(rng.randrange(20)):
            await trio.lowlevel.checkpoint()
        assert bo.mem_type == where, f"{bo.name} was moved from {where} to {bo.mem_type} while it was pinned"
    finally:
        with trio.CancelScope(shield=True):
            await calls.unpin(vdev, bo)


async def exercise(
    seed: int,
    *,
    steps: int = 150,
    config: Config | None = None,
    storms: int = 2,
    faults: bool = False,
    max_size: int = USUAL,
    islands: tuple[int, ...] = (0,),
) -> dict[str, int]:
    """Run it on BOs of at most `max_size` bytes from each of `islands` on; returns counts of calls.

    AssertionError with the seed and the last operations on a wrong byte.
    """
    rng = random.Random(seed)
    seed_turns(seed)
    config = config or Config(vram=4 << 20, gtt=16 << 20, memory=64 << 20, swap=64 << 20)
    vdev = VirtualDevice(config)
    let_take_long(vdev)
    for kind, words in config.policies:
        vdev.policies.choose_now(kind, list(words))
    vdev.ttm.unmapper = SlowUnmapper(rng)
    clients = [Client(vdev, f"bo{n}", rng, max_size, islands) for n in range(CLIENTS)]
    counts: dict[str, int] = {}
    try:
        async with trio.open_nursery() as device:
            await device.start(vdev.run)
            bos = [client.bo for client in clients]
            async with trio.open_nursery() as background:
                for _ in range(storms):
                    background.start_soon(partial(storm, vdev, bos, rng, counts, faults=faults))
                try:
                    async with trio.open_nursery() as nursery:
                        for client in clients:
                            nursery.start_soon(client.run, steps)
                except BaseException as failure:
                    lines = "\n".join(f"{c.bo.name}: " + "; ".join(c.log[-8:]) for c in clients)
                    raise AssertionError(f"seed {seed}\n{lines}") from failure
                background.cancel_scope.cancel()
            for sort in vdev.policies.stats().values():
                for found in [sort] if "name" in sort else sort.values():
                    assert not found["ejected"], f"seed {seed}: {found}"
                    counts["advised"] = counts.get("advised", 0) + found["taken"]
            counts["failures"] = sum(client.failures for client in clients)
            counts["operations"] = sum(client.ops for client in clients)
            for client in clients:
                await client.verify()
            for client in clients:
                lifetime.release(client.bo)
            with trio.fail_after(20):
                while vdev.ttm.num_bos:
                    await trio.sleep(0.001)
            device.cancel_scope.cancel()
        left = [(account.name, account.charged) for account in (vdev.ttm.accounts.root, *vdev.ttm.accounts.users())]
        assert left == [("the device", {})], f"seed {seed}: {left}"
        assert vdev.pool.in_use_pages == 0, f"seed {seed}: {vdev.pool.in_use_pages} pages leaked"
        assert all(manager.usage == 0 for manager in vdev.ttm.managers.values()), f"seed {seed}: usage left"
        store = vdev.ttm.swap_store
        assert store is None or not store.slots.stored, f"seed {seed}: {store.slots.stored} pages left in swap"
        wrong = vdev.selfcheck()
        assert not wrong, f"seed {seed}: {wrong}"
    finally:
        vdev.close()
    return counts
