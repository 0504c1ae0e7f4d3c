"""Jobs: what the compute engine does to the bytes of BOs (a command submission).

A job is submitted under one ticket over all its BOs: each is validated to its placement and given all its memory, the
job is queued behind their fences, and its own fence is left on them (WRITE on what it writes, READ on what it reads).
It works on the memory that the BOs had at submission; a later move waits for it or leaves that memory alive. CPU
caches are flushed when the engine starts it; at the end its bytes are published: INVAL, then signal (rule R7).
"""

import errno
import zlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import trio
from numpy.typing import NDArray

from ttmfs import clock
from ttmfs.driver.queues import DEFAULT, Priority
from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.copy import gather, scatter
from ttmfs.sync.fence import Fence
from ttmfs.sync.offload import Lane
from ttmfs.sync.resv import Reservation, Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.external import ExternalTT
from ttmfs.units import PAGE_MASK, PAGE_SHIFT

DTYPES: Final[Mapping[str, type[np.generic]]] = {
    "u8": np.uint8,
    "u32": np.uint32,
    "i64": np.int64,
    "f32": np.float32,
    "f64": np.float64,
}
INLINE_BYTES: Final = 256 << 10
"""Smaller jobs run on the loop: a thread hop costs more than they do."""
_STEP: Final = 1 << 20
"""Bytes that a job works on at a time."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job. `offset` and `size` are bytes and the same in all BOs; `size` None means to the end of the shortest."""

    kind: str
    dst: BufferObject | None = None
    srcs: tuple[BufferObject, ...] = ()
    factor: float = 0.0
    seconds: float = 0.0
    value: int = 0
    offset: int = 0
    size: int | None = None
    dtype: str = "u8"
    after: Fence | None = None
    queue: str = DEFAULT
    uid: int = 0
    """Whose queue it is, if there is none yet."""
    priority: Priority = Priority.NORMAL
    point: int | None = None
    """What it is on the queue's timeline; None: the point after the last."""

    @property
    def bos(self) -> tuple[BufferObject, ...]:
        """All BOs, what it writes first; one that is named twice comes once."""
        named = (self.dst, *self.srcs) if self.dst is not None else self.srcs
        return tuple(dict.fromkeys(named))


@dataclass(slots=True)
class Span:
    """The memory of one BO as it was at submission: `parts` of (arena, page numbers uint32), in the BO's order.

    An imported BO has none: its bytes are the `exporter`'s, and had by `fetch` and `put` only.
    """

    parts: list[tuple[Arena, NDArray[np.uint32]]] = field(default_factory=list)
    exporter: ExternalTT | None = None

    def pieces(self, offset: int, size: int) -> list[tuple[Arena, NDArray[np.uint32], int, int]]:
        """(arena, page numbers, offset in the first page, bytes) that make up bytes [offset, offset + size)."""
        found = []
        start = 0
        for arena, numbers in self.parts:
            end = start + len(numbers)
            low, high = max(offset, start << PAGE_SHIFT), min(offset + size, end << PAGE_SHIFT)
            if low < high:
                first, last = low >> PAGE_SHIFT, (high - 1) >> PAGE_SHIFT
                found.append((arena, numbers[first - start : last - start + 1], low & PAGE_MASK, high - low))
            start = end
        return found

    def load(self, offset: int, size: int) -> memoryview:
        """The bytes: the memory itself where it is one run, else a copy."""
        pieces = self.pieces(offset, size)
        if len(pieces) == 1:
            return gather(*pieces[0])
        return memoryview(b"".join(gather(*piece) for piece in pieces))

    def store(self, offset: int, data: memoryview) -> None:
        """Put bytes."""
        done = 0
        for arena, numbers, skip, length in self.pieces(offset, len(data)):
            scatter(arena, numbers, skip, data[done : done + length])
            done += length

    async def fetch(self, offset: int, size: int) -> memoryview:
        """As `load`. TtmError(EIO) when the exporter has lost them."""
        if self.exporter is None:
            return self.load(offset, size)
        return memoryview(await self.exporter.read(offset, size))

    async def put(self, offset: int, data: memoryview) -> None:
        """As `store`; `data` is the caller's no more. TtmError(EIO) when the exporter does not take them."""
        if self.exporter is None:
            self.store(offset, data)
        else:
            await self.exporter.write(offset, data)


def capture(bo: BufferObject) -> Span:
    """The memory of a reserved BO whose pages all have memory."""
    if isinstance(bo.tt, ExternalTT):
        return Span(exporter=bo.tt)
    parts = bo.parts(0, bo.num_pages)
    return Span([(backing.arena, backing.numbers(first, count).copy()) for backing, first, count in parts])


def check(job: Job) -> int:
    """The bytes that the job works on. TtmError(EINVAL) for a range outside a BO or not a multiple of the type."""
    if job.kind == "busy":
        return 0
    shortest = min(bo.size for bo in job.bos)
    size = max(shortest - job.offset, 0) if job.size is None else job.size
    if job.offset + size > shortest:
        raise TtmError(errno.EINVAL, f"{job.offset}+{size} is not within {shortest} bytes, the shortest of the BOs")
    width = np.dtype(DTYPES[job.dtype]).itemsize
    if job.size is None:
        size -= size % width
    if size % width or job.offset % width:
        raise TtmError(errno.EINVAL, f"offset and bytes must be multiples of {width}, the size of a {job.dtype}")
    return size


# -- what runs in the worker thread: memory only, nothing of TTM -------------------------------------------------------


def _typed(data: memoryview, dtype: str) -> NDArray[Any]:
    return np.frombuffer(data, DTYPES[dtype])


def _binary(job: Job, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        if job.kind == "xor":
            result: NDArray[Any] = a.view(np.uint8) ^ b.view(np.uint8)
        elif job.kind == "add":
            result = a + b
        else:
            result = (b + a.dtype.type(job.factor) * a).astype(a.dtype)
    return result


class Work:
    """A job step by step: what it reads, one step of it, and the `value` of a reduce or checksum so far."""

    def __init__(self, job: Job, size: int, dst: Span | None, srcs: tuple[Span, ...]) -> None:
        self.job = job
        self.size = size
        self.dst = dst
        self.reads: tuple[Span, ...] = () if job.kind == "fill" else srcs[:1]
        """Whose bytes a step gets, in this order."""
        if dst is not None and job.kind not in ("fill", "copy"):
            self.reads += (dst,)
        self.value: int | float | None = None
        if job.kind == "checksum":
            self.value = 0
        elif job.kind == "reduce":
            self.value = 0 if job.dtype in ("u8", "u32", "i64") else 0.0

    def steps(self) -> Iterator[tuple[int, int]]:
        """(offset, bytes) of each step."""
        end = self.job.offset + self.size
        return ((start, min(_STEP, end - start)) for start in range(self.job.offset, end, _STEP))

    def step(self, length: int, data: Sequence[memoryview]) -> memoryview | None:
        """One step over the bytes of `reads`: fresh memory with what it writes, if it writes."""
        job = self.job
        if job.kind == "fill":
            return memoryview(bytes([job.value]) * length)
        if job.kind == "copy":
            return memoryview(bytes(data[0]))
        if job.kind == "checksum":
            assert isinstance(self.value, int)
            self.value = zlib.crc32(data[0], self.value)
            return None
        if job.kind == "reduce":
            part, value = _typed(data[0], job.dtype), self.value
            assert value is not None
            self.value = value + (
                int(part.sum(dtype=np.int64)) if isinstance(value, int) else float(part.sum(dtype=np.float64))
            )
            return None
        return memoryview(_binary(job, _typed(data[0], job.dtype), _typed(data[1], job.dtype)).tobytes())


def execute(work: Work) -> int | float | None:
    """Do the job over the device's own memory; returns its value. Runs outside the loop's thread."""
    for start, length in work.steps():
        out = work.step(length, [span.load(start, length) for span in work.reads])
        if out is not None and work.dst is not None:
            work.dst.store(start, out)
    return work.value


async def execute_imported(work: Work, lane: Lane) -> int | float | None:
    """Do a job that names imported memory; returns its value. TtmError(EIO) when an exporter has lost it.

    What an exporter is waited for is done when it has given up, too: only private memory is its threads'.
    """
    for start, length in work.steps():
        data = [await span.fetch(start, length) for span in work.reads]
        out = await lane.run(work.step, length, data)
        if out is not None and work.dst is not None:
            await work.dst.put(start, out)
    return work.value


class BoWork(ABC):
    """A QueuedWork over BOs: what their clients have cached is flushed before, what it wrote is published after."""

    __slots__ = ()
    fence: Fence
    flush: Callable[[BufferObject], Awaitable[None]]

    @property
    @abstractmethod
    def bos(self) -> tuple[BufferObject, ...]:
        """All that it touches."""

    @property
    @abstractmethod
    def writes(self) -> tuple[BufferObject, ...]:
        """Those that it writes to."""

    @abstractmethod
    async def work(self, lane: Lane) -> None:
        """What lies between: the bytes."""

    @property
    def name(self) -> str:
        """Whose memory it is, of the first one."""
        return self.bos[0].name if self.bos else ""

    async def run(self, lane: Lane) -> None:
        """Flush, work, publish; as `QueuedWork.run`."""
        for bo in self.bos:
            await self.flush(bo)
        try:
            if self.bos:
                self.bos[0].device.inject.check("job", errno.EIO, f"job {self.fence.what}", bo=self.name)
            started = clock.monotonic_ns()
            await self.work(lane)
            if self.bos:
                self.bos[0].device.worked("compute", self.bos[0], clock.monotonic_ns() - started)
        except Exception:
            await self.publish()  # it may have written some of it
            raise
        await self.publish()

    async def publish(self) -> None:
        """What the device wrote becomes visible: mtime moves, cached pages and attributes go."""
        for bo in self.writes:
            bo.content_changed()
            await self.flush(bo)
            if bo.watcher is not None:
                await bo.watcher.settle()


@dataclass(slots=True)
class QueuedJob(BoWork):
    """A job in a queue, as `point` of it. `value` is there once its fence has signaled."""

    job: Job
    size: int
    fence: Fence
    dst: Span | None
    srcs: tuple[Span, ...]
    deps: tuple[Fence, ...]
    flush: Callable[[BufferObject], Awaitable[None]]
    point: int
    value: int | float | None = None

    @property
    def kind(self) -> str:
        """The job's."""
        return self.job.kind

    @property
    def bos(self) -> tuple[BufferObject, ...]:
        """The job's."""
        return self.job.bos

    @property
    def writes(self) -> tuple[BufferObject, ...]:
        """What it writes to, if it does."""
        return () if self.job.dst is None else (self.job.dst,)

    async def work(self, lane: Lane) -> None:
        """As `BoWork.work`."""
        if self.kind == "busy":
            await trio.sleep(self.job.seconds)
            return
        work = Work(self.job, self.size, self.dst, self.srcs)
        if self._imported:
            self.value = await execute_imported(work, lane)
        elif self.size <= INLINE_BYTES:
            self.value = execute(work)
        else:
            self.value = await lane.run(execute, work)

    @property
    def _imported(self) -> bool:
        """Does it touch memory of an exporter?"""
        return any(span.exporter is not None for span in (*self.srcs, *((self.dst,) if self.dst else ())))


def leave_fence(fence: Fence, bos: Sequence[BufferObject], writes: Sequence[BufferObject]) -> None:
    """The fence of a job over reserved BOs, in a slot that each has: WRITE on what it writes, READ on what it reads.

    A reservation that several share gets it once, as the stronger of both.
    """
    usages: dict[Reservation, Usage] = {}
    written = dict.fromkeys(writes)
    for bo in bos:
        usage = Usage.WRITE if bo in written else Usage.READ
        usages[bo.resv] = min(usage, usages.get(bo.resv, usage))
    for resv, usage in usages.items():
        resv.add_fence(fence, usage)
