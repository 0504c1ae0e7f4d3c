"""The actors of `together` that know each of their bytes: owners of pages of a space, cached BOs, jobs."""

import zlib
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from tests.core.together_machine import CachedBo, Machine
from tests.svm.page_cache import PAGE
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.svm import calls as svm_calls
from ttmfs.svm.space import AddressSpace
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.looking import after_stores, before_stores
from ttmfs.ttm.unmap import unmap_virtual


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
                # A hole that is looked at takes memory, too.
                self.machine.vdev.ttm.accounts.limits.pop("memory", None)
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
        error = self.machine.vdev.fence_error(result["fence"])
        if error:
            raise TtmError(error, "the device had an injected failure")
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
        self.bo = machine.vdev.create_bo(name, machine.account)
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


async def device_jobs(machine: Machine, steps: int) -> None:
    """Jobs on BOs of their own, with a model."""
    rng, vdev = machine.rng, machine.vdev
    bos = [vdev.create_bo(f"job{n}", machine.account) for n in range(2)]
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
