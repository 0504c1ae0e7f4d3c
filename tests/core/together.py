"""All of the device under one seeded schedule, without a mount: BOs, address spaces, jobs, backup, suspend, failures.

Beside the clients and storms of `exercise` run clients that keep pages of BOs and of address spaces in a page cache (as
the kernel does: locked and dirty folios, INVALs that wait for them), a device that writes and adds in the same
address spaces, jobs over BOs, eviction, suspend and resume. The page is the unit of coherence, so every page of a
space belongs to one actor, which works on it from both sides and knows each of its bytes.

The seed is in every message, and a failure repeats: what would run in threads takes its turns on the loop.
"""

import itertools
import random
import zlib
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from tests.core.exercise import Client, storm
from tests.svm.page_cache import PAGE, PageCache
from tests.sync.inline import Inline
from ttmfs import clock
from ttmfs.driver import calls
from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.observe.inject import PLACES
from ttmfs.svm import calls as svm_calls
from ttmfs.svm.space import AddressSpace
from ttmfs.svm.svm import Svm
from ttmfs.sync import offload
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.looking import after_stores, before_stores
from ttmfs.ttm.unmap import unmap_virtual

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
            await self.cache.invalidate(
                self.cached[bo], first_page * PAGE, num_pages * PAGE if num_pages else 1 << 40  # type: ignore[arg-type]
            )


class Machine:
    """The device of one run and what all actors share."""

    def __init__(self, config: Config, seed: int, *, faults: bool) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.vdev = VirtualDevice(config)
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
        if self.faults and error.name in MAY_FAIL:
            return
        if self.powered and error.name == "ENODEV":
            return
        raise error


    def took(self, who: str, started: float) -> None:
        """An operation has ended: it did not wait for a timeout."""
        seconds = trio.current_time() - started
        assert seconds < SLOWEST, f"{who}: {self.log[-1]} took {seconds:g} s"


class Owner:
    """Owns some pages of a space: stores, loads, device writes and atomics in them, and knows their bytes."""

    def __init__(self, machine: Machine, space: AddressSpace, name: str, pages: list[tuple[int, int]]) -> None:
        self.machine = machine
        self.space = space
        self.name = name
        self.rng = machine.rng
        self.runs = pages
        self.model = {page: bytearray(PAGE) for first, count in pages for page in range(first, first + count)}

    def pick(self) -> tuple[int, int]:
        """(address, length) within one run."""
        first, count = self.rng.choice(self.runs)
        start = self.rng.randrange(count * PAGE)
        if self.rng.random() < 0.3:
            start &= -PAGE
        return first * PAGE + start, self.rng.choice((1, 8, 100, PAGE, count * PAGE))

    def expected(self, address: int, length: int) -> bytes:
        out = bytearray()
        while length:
            page, at = divmod(address, PAGE)
            take = min(length, PAGE - at)
            out += self.model[page][at : at + take]
            address, length = address + take, length - take
        return bytes(out)

    def put(self, address: int, data: bytes) -> None:
        while data:
            page, at = divmod(address, PAGE)
            part = data[: PAGE - at]
            self.model[page][at : at + len(part)] = part
            address, data = address + len(part), data[len(part) :]

    def range(self) -> tuple[int, int]:
        address, length = self.pick()
        first, count = next((f, c) for f, c in self.runs if f * PAGE <= address < (f + c) * PAGE)
        return address, max(1, min(length, (first + count) * PAGE - address))

    def compare(self, got: bytes, address: int, who: str) -> None:
        wanted = self.expected(address, len(got))
        if got != wanted:
            at = next(n for n in range(len(got)) if got[n] != wanted[n])
            raise AssertionError(
                f"{self.name}: {who} sees wrong bytes in {address:#x}+{len(got)}, the first at {address + at:#x} "
                f"(page {(address + at) >> 12}): {got[at]} is not {wanted[at]}"
            )

    async def run(self, steps: int) -> None:
        kinds: list[Callable[[int, int], Awaitable[None]]] = [
            self.store, self.store, self.load, self.load, self.pwrite, self.gpu_write, self.gpu_fill, self.gpu_read,
            self.gpu_atomic, self.gpu_checksum, self.unmap, self.prefetch, self.sync,
        ]  # fmt: skip
        for _ in range(steps):
            address, length = self.range()
            kind = self.rng.choice(kinds)
            self.machine.log.append(f"{self.name} {kind.__name__} {address:#x}+{length}")
            started = trio.current_time()
            try:
                await kind(address, length)
                self.machine.count(kind.__name__)
            except TtmError as error:
                self.machine.expect(kind.__name__, error)
                await self.learn(address, length)
            self.machine.took(self.name, started)
            for _ in range(self.rng.randrange(3)):
                await trio.lowlevel.checkpoint()

    async def learn(self, address: int, length: int) -> None:
        """A call failed half way: what is there now goes on. Old or new bytes; nothing else of the page may differ."""
        first, last = address // PAGE * PAGE, -(-(address + length) // PAGE) * PAGE
        for _ in range(200):
            try:
                got = await self.machine.cache.load(self.space, first, last - first)
                break
            except TtmError as error:
                self.machine.expect("load", error)
        else:
            raise AssertionError(f"{self.name}: {first:#x} cannot be read any more")
        low, high = address - first, address + length - first
        wanted = self.expected(first, last - first)
        assert (got[:low], got[high:]) == (wanted[:low], wanted[high:]), f"{self.name}: bytes beside a failed call"
        self.put(first, got)

    async def store(self, address: int, length: int) -> None:
        data = self.rng.randbytes(length)
        await self.machine.cache.store(self.space, address, data)
        self.put(address, data)

    async def load(self, address: int, length: int) -> None:
        self.compare(await self.machine.cache.load(self.space, address, length), address, "a client")

    async def pwrite(self, address: int, length: int) -> None:
        data = self.rng.randbytes(min(length, PAGE - address % PAGE))
        await self.machine.cache.pwrite(self.space, address, data)
        self.put(address, data)

    async def gpu_write(self, address: int, length: int) -> None:
        data = self.rng.randbytes(length)
        await svm_calls.gpu_write(self.space, address, data)
        self.put(address, data)

    async def gpu_fill(self, address: int, length: int) -> None:
        byte = self.rng.randrange(256)
        result = await svm_calls.gpu_fill(self.space, address, length, byte, wait=self.rng.random() < 0.7)
        fence = self.machine.vdev.find_fence(result["fence"])
        if fence is not None:
            await fence.wait()
        self.put(address, bytes([byte]) * length)

    async def gpu_read(self, address: int, length: int) -> None:
        got = bytes.fromhex((await svm_calls.gpu_read(self.space, address, length))["data"])
        self.compare(got, address, "the device")

    async def gpu_checksum(self, address: int, length: int) -> None:
        value = (await svm_calls.gpu_checksum(self.space, address, length))["value"]
        assert value == zlib.crc32(self.expected(address, length)), f"{self.name}: checksum of {address:#x}+{length}"

    async def gpu_atomic(self, address: int, length: int) -> None:
        del length
        address &= ~7
        more = self.rng.getrandbits(64)
        old = int.from_bytes(self.expected(address, 8), "little")
        result = await svm_calls.gpu_atomic_add(self.space, address, more)
        assert result["value"] == old, f"{self.name}: the atomic at {address:#x} saw something else"
        self.put(address, ((old + more) % (1 << 64)).to_bytes(8, "little"))

    async def unmap(self, address: int, length: int) -> None:
        page = address // PAGE
        await svm_calls.unmap(self.space, page * PAGE, PAGE)
        self.model[page] = bytearray(PAGE)
        if self.rng.random() < 0.8:
            await svm_calls.map_range(self.space, page * PAGE, PAGE, read_only=False)
        else:
            # A CPU store maps its page anew, when its WRITE comes.
            await self.pwrite(page * PAGE, 8)

    async def prefetch(self, address: int, length: int) -> None:
        del length
        first = address // PAGE // 512 * 512
        count = min(self.rng.choice((1, 16, 512, 1024)), self.space.num_pages - first)
        try:
            await svm_calls.prefetch(self.space, first * PAGE, count * PAGE, self.rng.choice(("vram", "system")))
        except TtmError as error:
            self.machine.expect("prefetch", error, "ENODATA")

    async def sync(self, address: int, length: int) -> None:
        del address, length
        if self.rng.random() < 0.2:
            await self.machine.cache.writeback(self.space)

    async def verify(self) -> None:
        for first, count in self.runs:
            got = await self.machine.cache.load(self.space, first * PAGE, count * PAGE)
            self.compare(got, first * PAGE, "a client, at the end,")


class CachedClient:
    """A BO whose pages clients have cached and dirty; of a fixed size, or truncated now and then."""

    def __init__(self, machine: Machine, name: str, pages: int) -> None:
        self.machine = machine
        self.rng = machine.rng
        self.bo = machine.vdev.create_bo(name)
        self.file = CachedBo(self.bo)
        machine.unmapper.cached[self.bo] = self.file
        lifetime.set_size(self.bo, pages * PAGE)
        self.model = bytearray(pages * PAGE)
        self.pages = pages

    async def run(self, steps: int) -> None:
        cache, file = self.machine.unmapper.cache, self.file
        for _ in range(steps):
            offset = self.rng.randrange(self.pages * PAGE)
            length = min(self.rng.choice((1, 100, PAGE, 5 * PAGE)), self.pages * PAGE - offset)
            what = self.rng.choice(("store", "load", "pwrite", "sync", "truncate", "close"))
            self.machine.log.append(f"{self.bo.name} {what} {offset:#x}+{length}")
            started = trio.current_time()
            try:
                if what in ("store", "pwrite"):
                    # From here on it may store into what it has cached; a page without memory must not be among that.
                    await before_stores(self.bo, partial(unmap_virtual, self.bo))
                if what == "store":
                    data = self.rng.randbytes(length)
                    while data:
                        # Page by page, so that a failure says how far it came.
                        part = data[: PAGE - offset % PAGE]
                        await cache.store(file, offset, part)  # type: ignore[arg-type]
                        self.model[offset : offset + len(part)] = part
                        offset, data = offset + len(part), data[len(part) :]
                elif what == "load":
                    got = await cache.load(file, offset, length)  # type: ignore[arg-type]
                    self.compare(got, offset)
                elif what == "pwrite":
                    data = self.rng.randbytes(min(length, PAGE - offset % PAGE))
                    await cache.pwrite(file, offset, data)  # type: ignore[arg-type]
                    self.model[offset : offset + len(data)] = data
                elif what == "sync":
                    await cache.writeback(file)  # type: ignore[arg-type]
                elif what == "close":
                    await cache.writeback(file)  # type: ignore[arg-type]
                    after_stores(self.bo)
                elif self.rng.random() < 0.2:
                    size = self.rng.randrange(1, self.pages) * PAGE
                    cache.truncate(file, size)  # type: ignore[arg-type]
                    lifetime.set_size(self.bo, size)
                    lifetime.set_size(self.bo, self.pages * PAGE)
                    self.model[size:] = bytes(len(self.model) - size)
                self.machine.count(f"cached {what}")
            except TtmError as error:
                self.machine.log.append(f"{self.bo.name} failed: {error}")
                self.machine.expect(f"cached {what}", error)
            self.machine.took(self.bo.name, started)
            for _ in range(self.rng.randrange(3)):
                await trio.lowlevel.checkpoint()

    def compare(self, got: bytes, offset: int) -> None:
        wanted = self.model[offset : offset + len(got)]
        if got != wanted:
            at = next(n for n in range(len(got)) if got[n] != wanted[n])
            raise AssertionError(f"{self.bo.name}: {got[at]} is not {wanted[at]} at {offset + at:#x} of {offset:#x}")

    async def verify(self) -> None:
        cache = self.machine.unmapper.cache
        await calls.unmap(self.machine.vdev, self.bo, 0, 0)
        self.compare(await cache.load(self.file, 0, len(self.model)), 0)  # type: ignore[arg-type]


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


async def device_jobs(machine: Machine, steps: int) -> None:
    """Jobs on BOs of their own, with a model."""
    rng, vdev = machine.rng, machine.vdev
    bos = [vdev.create_bo(f"job{n}") for n in range(2)]
    size = 40 * PAGE
    model = [bytes(size) for _ in bos]
    for bo in bos:
        lifetime.set_size(bo, size)
        bo.placement = vdev.parse_placement(rng.choice(("vram gtt", "gtt", "vram", "system")).split())
    for _ in range(steps):
        one, two = rng.sample((0, 1), 2)
        offset = rng.randrange(40) * PAGE
        length = rng.randrange(1, 41 - offset // PAGE) * PAGE
        what = rng.choice(("fill", "copy", "checksum", "read", "write"))
        machine.log.append(f"job{one} {what} {offset:#x}+{length}")
        part = slice(offset, offset + length)
        try:
            new = model[one][part]
            if what == "fill":
                new = bytes([rng.randrange(256)]) * length
                await _job(vdev, Job("fill", dst=bos[one], value=new[0], offset=offset, size=length))
            elif what == "copy":
                new = model[two][part]
                await _job(vdev, Job("copy", dst=bos[one], srcs=(bos[two],), offset=offset, size=length))
            elif what == "checksum":
                value = await _job(vdev, Job("checksum", srcs=(bos[one],), offset=offset, size=length))
                assert value == zlib.crc32(new), f"job{one}: checksum of {offset:#x}+{length}"
            elif what == "read":
                assert bytes(await access.read(bos[one], offset, length)) == new, f"job{one}: {offset:#x}+{length}"
            else:
                new = rng.randbytes(length)
                await access.write(bos[one], offset, new)
            model[one] = model[one][:offset] + new + model[one][offset + length :]
            machine.count(f"job {what}")
        except TtmError as error:
            machine.expect(f"job {what}", error, "ENOMEM", "EBUSY", "ENOSPC", *(("EIO",) if machine.faults else ()))
            for _ in range(200):
                try:
                    if bos[one].unknown_state:
                        # Lost and said so: made anew.
                        await calls.validate_bo(vdev, bos[one], (), OperationContext())
                    data = bytes([rng.randrange(256)]) * size
                    await access.write(bos[one], 0, data)
                    break
                except TtmError as again:
                    machine.expect("job write", again, "ENOMEM", "EBUSY", "ENOSPC")
                    await trio.lowlevel.checkpoint()
            model[one] = data
    for bo in bos:
        lifetime.release(bo)


async def _job(vdev: VirtualDevice, job: Job) -> int | float | None:
    queued = await submit_job(vdev, job, OperationContext())
    await queued.fence.wait()
    if queued.fence.error:
        raise TtmError(queued.fence.error, "the job failed")
    return queued.value


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


async def together(
    seed: int, *, config: Config, steps: int = 40, faults: bool = False, suspends: bool = False
) -> dict[str, int]:
    """Run it on a SteppingClock; returns counts. AssertionError with the seed and the last operations on a finding."""
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]
    trio._core._run._r.seed(seed)  # type: ignore[attr-defined]
    # What is measured decides how long steps are: measure something that repeats.
    ticks = itertools.count(0, 50_000)
    # The clock that jumps does not wait for threads.
    turns = random.Random(seed)
    offload.use(Inline(lambda _lane, _when: turns.randrange(4)))
    machine = Machine(config, seed, faults=faults)
    rng, vdev = machine.rng, machine.vdev
    try:
        with clock.replaced(lambda: next(ticks), clock.wall_ns), trio.fail_after(HANG_SECONDS):
            await _run(machine, rng, vdev, steps=steps, suspends=suspends)
    except BaseException as failure:
        if isinstance(failure, KeyboardInterrupt | trio.Cancelled):
            raise
        lines = "\n".join((*machine.log[-40:], str(machine.counts)))
        raise AssertionError(f"seed {seed} faults {faults} suspends {suspends}\n{lines}\n{failure!r}") from failure
    finally:
        vdev.close()
    return machine.counts


async def _run(
    machine: Machine, rng: random.Random, vdev: VirtualDevice, *, steps: int, suspends: bool
) -> None:
    async with trio.open_nursery() as device:
        await device.start(vdev.run)
        device.start_soon(machine.svm.run)
        space = machine.svm.create("a")
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
            if suspends:
                background.start_soon(power, machine)
            if machine.faults:
                background.start_soon(failures, machine)
            async with trio.open_nursery() as nursery:
                for client in clients:
                    client.quiet = machine.expect
                    nursery.start_soon(client.run, steps)
                for other in (*owners, *cached):
                    nursery.start_soon(other.run, steps)
                nursery.start_soon(device_jobs, machine, steps)
            background.cancel_scope.cancel()
        for place in INJECTED:
            vdev.ttm.inject[place].probability = 0
        for anybody in (*clients, *owners, *cached):
            await anybody.verify()
        wrong = vdev.selfcheck() + machine.svm.check()
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
    assert not vdev.selfcheck() + machine.svm.check()
