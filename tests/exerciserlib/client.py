"""One client: the process that owns a file (or a region of one), does operations on it and checks every byte.

Promise: `run` returns at its deadline or after `ops` operations with every byte verified, or raises: MismatchError for
a wrong byte, SlowOperationError for an operation over its limit, OSError for one that failed with an errno that is not
allowed.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import ops
from .model import MismatchError, Model, Phase, SideFiles, monotonic_ns

_SETTLE_ATTEMPTS = 50


class SlowOperationError(AssertionError):
    """An operation took longer than --max-op-seconds."""


@dataclass
class ClientPlan:
    """What one client is to do. Sizes and offsets are bytes, whole pages."""

    number: int
    path: Path
    capacity: int
    seed: int
    deadline: float | None = None  # time.monotonic(), the same for a client that was killed and restarted
    ops: int | None = None
    base: int = 0
    shared: bool = False
    max_op_seconds: float | None = None
    allowed_errnos: frozenset[int] = frozenset()
    only: list[str] | None = None
    after_op: Callable[[Client, str], None] | None = field(default=None, repr=False)


class Client:
    """The open descriptors and the mapping of one file, and the model of what must be in it."""

    def __init__(self, plan: ClientPlan, side_directory: Path) -> None:
        self.plan = plan
        self.path = plan.path
        self.model = Model(SideFiles(side_directory, plan.number), plan.capacity, plan.base)
        self.fd = -1
        self.direct_fd: int | None = None
        self._mapping: mmap.mmap | None = None
        self._direct_buffer: mmap.mmap | None = None

    # -- descriptors and the mapping

    def create(self) -> None:
        """Start from an empty file (from a zeroed region where the file is shared)."""
        if self.plan.shared:
            self.model.state.size = self.model.capacity
        else:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666))
        self.open()

    def open(self) -> None:
        """Open the file, and a second time with O_DIRECT where that works."""
        self.fd = os.open(self.path, os.O_RDWR)
        try:
            self.direct_fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.direct_fd = None

    def close(self) -> None:
        """Close everything that is open."""
        self.drop_mapping()
        for fd in (self.fd, self.direct_fd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.fd, self.direct_fd = -1, None

    def drop_mapping(self) -> None:
        """Unmap; the next use maps again at the size of then."""
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None

    @property
    def mapping(self) -> mmap.mmap:
        """The shared mapping of the region, made when first used and kept across changes of the size."""
        if self._mapping is None:
            self._mapping = mmap.mmap(self.fd, self.model.size, offset=self.model.base)
        return self._mapping

    def mapped_bytes(self) -> int:
        """How many bytes may be touched through the mapping: mapped, and not beyond the end of the file."""
        if not self.model.size:
            return 0
        return min(len(self.mapping), self.model.size)

    def map_private(self, offset: int, length: int) -> mmap.mmap:
        """A MAP_PRIVATE mapping; `offset` is a whole number of pages in the region."""
        return mmap.mmap(self.fd, length, flags=mmap.MAP_PRIVATE, offset=self.model.base + offset)

    # -- bytes

    def read_limit(self, offset: int) -> int:
        """How much may be asked for at `offset`: a shared file has somebody else's bytes after the region."""
        return self.model.capacity - offset if self.plan.shared else self.model.capacity

    def read_at(self, offset: int, length: int) -> bytes:
        """pread until `length` bytes or the end of the file."""
        at = self.model.base + offset
        got = os.pread(self.fd, length, at)
        while 0 < len(got) < length and (more := os.pread(self.fd, length - len(got), at + len(got))):
            got += more
        return got

    def write_at(self, offset: int, data: np.ndarray) -> None:
        """pwrite all of `data`."""
        rest, at = data.data, self.model.base + offset
        while rest:
            done = os.pwrite(self.fd, rest, at)
            rest, at = rest[done:], at + done
        self.count_written(len(data))

    def _buffer(self, length: int) -> memoryview:
        if self._direct_buffer is None:
            self._direct_buffer = mmap.mmap(-1, self.model.capacity + mmap.PAGESIZE)
        return memoryview(self._direct_buffer)[:length]

    def direct_read_at(self, offset: int, length: int) -> bytes:
        """Read with O_DIRECT; offset and length are whole pages. Ends at the end of the file."""
        assert self.direct_fd is not None
        done, at = 0, self.model.base + offset
        with self._buffer(length) as buffer:
            while done < length:
                got = os.preadv(self.direct_fd, [buffer[done:]], at + done)
                done += got
                if not got or got % mmap.PAGESIZE:
                    break
            return bytes(buffer[:done])

    def direct_write_at(self, offset: int, data: np.ndarray) -> None:
        """Write with O_DIRECT; offset and length are whole pages."""
        assert self.direct_fd is not None
        done, at = 0, self.model.base + offset
        with self._buffer(len(data)) as buffer:
            buffer[:] = data.data
            while done < len(data):
                done += os.pwritev(self.direct_fd, [buffer[done:]], at + done)
        self.count_written(len(data))

    def count_written(self, length: int) -> None:
        """Account bytes handed to the file."""
        self.model.state.written_bytes += length

    def check_size(self, how: str) -> None:
        """The file's size must be the model's (a shared file is only as long as all its regions)."""
        size = os.fstat(self.fd).st_size
        if not self.plan.shared and size != self.model.size:
            raise MismatchError(f"{how}: the file's size is {size}, expected {self.model.size}")
        if self.plan.shared and size < self.model.base + self.model.capacity:
            raise MismatchError(f"{how}: the shared file shrank to {size}")

    def note(self, text: str) -> None:
        """Record what is about to be done, for the report and for comparing two runs."""
        state = self.model.state
        state.op_crc = zlib.crc32(text.encode(), state.op_crc)
        state.remember(f"{state.op} {text}")

    # -- the loop

    def run(self) -> None:
        """Do operations until the plan's end, then verify the whole file every way."""
        plan, state = self.plan, self.model.state
        while (plan.ops is None or state.op < plan.ops) and (plan.deadline is None or time.monotonic() < plan.deadline):
            rng = random.Random(f"{plan.seed}.{plan.number}.{state.op}")
            name = ops.choose(rng, shared=plan.shared, direct=self.direct_fd is not None, only=plan.only)
            self._timed(lambda name=name, rng=rng: self.attempt(name, rng))  # type: ignore[misc]
            state.count_kind(list(ops.OPERATIONS).index(name))
            state.op += 1
            if plan.after_op is not None:
                plan.after_op(self, name)
        for way in ("pread", "load") + (("direct",) if self.direct_fd is not None else ()):
            self._timed(lambda way=way: self.final_verify(way))  # type: ignore[misc]
        self.close()
        state.done = 1

    def final_verify(self, way: str) -> None:
        """The last comparison, also of what comes back after the cache was dropped."""
        self.note(f"final verify by {way}")
        os.fsync(self.fd)
        os.posix_fadvise(self.fd, self.model.base, self.model.capacity, os.POSIX_FADV_DONTNEED)
        ops.verify_whole(self, way)

    def attempt(self, name: str, rng: random.Random) -> None:
        """One operation. An allowed errno ends it early: its bytes are old or new, and the model takes them over."""
        try:
            ops.OPERATIONS[name](self, rng)
        except OSError as error:
            if error.errno not in self.plan.allowed_errnos:
                raise
            self.model.state.errors += 1
            self.note(f"{name} failed: {errno.errorcode.get(error.errno or 0, '?')}")
            self._settle_again()

    def _settle_again(self) -> None:
        """What makes operations fail may go on for a while, and settling reads."""
        for _ in range(_SETTLE_ATTEMPTS):
            try:
                self.settle(redo=False)
                return
            except OSError as error:
                if error.errno not in self.plan.allowed_errnos:
                    raise
        self.settle(redo=False)

    def _timed(self, action: Callable[[], None]) -> None:
        state = self.model.state
        started = monotonic_ns()
        state.op_started_ns = started
        action()
        taken = monotonic_ns() - started
        state.op_started_ns = 0
        if taken > state.max_op_ns:
            state.max_op_ns, state.max_op = taken, state.op
        limit = self.plan.max_op_seconds
        if limit is not None and taken > limit * 1e9:
            raise SlowOperationError(f"an operation took {taken / 1e9:.2f} s, more than {limit} s")

    # -- after a kill

    def recover(self) -> None:
        """Continue after a kill: check what is there, then finish the operation that was in flight."""
        self.model.state.recoveries += 1
        self.open()
        self._timed(lambda: self.settle(redo=True))

    def settle(self, *, redo: bool) -> None:
        """Check a file whose last operation may be half done. `redo` finishes it; else the model takes over."""
        model, state = self.model, self.model.state
        phase = model.recover_state()
        if self.fd < 0:
            self.open()
        size = self._settled_size(phase)
        for offset in range(0, size, 1 << 20):
            length = min(1 << 20, size - offset)
            got = self.read_at(offset, length)
            if len(got) != length:
                raise MismatchError(f"recovery: {len(got)} bytes came at {model.base + offset}, {length} are there")
            model.check_allowed(offset, got, "recovery")
        state.verified_bytes += size
        if phase == Phase.WRITE:
            first, length = state.offset, state.length
            if redo:
                self.write_at(first, model.intent[:length].copy())
            else:
                there = self.read_at(first, min(length, max(0, size - first)))
                model.intent[: len(there)] = np.frombuffer(there, dtype=np.uint8)
                state.length, state.new_size = len(there), size
            model.commit()
        elif phase == Phase.RESIZE:
            if redo:
                os.ftruncate(self.fd, state.new_size)
            else:
                state.new_size = size
            model.commit()
        self.check_size("recovery")

    def _settled_size(self, phase: Phase) -> int:
        """The size of the region now (bytes), checked against what the operation in flight allows."""
        state = self.model.state
        if self.plan.shared:
            return self.model.capacity
        size = os.fstat(self.fd).st_size
        if phase == Phase.WRITE:
            right = state.size <= size <= state.new_size
        elif phase == Phase.RESIZE:
            right = size in (state.size, state.new_size)
        else:
            right = size == state.size
        if not right:
            raise MismatchError(
                f"recovery: the file's size is {size}; it was {state.size}"
                + (f", {phase.name} in flight to {state.new_size}" if phase else "")
            )
        return size


def run_client(plan: ClientPlan, side_directory: Path, *, fresh: bool) -> int:
    """Body of a client process: returns its exit status and leaves the report in its side file."""
    client = Client(plan, side_directory)
    report = side_directory / f"client{plan.number}.report"
    try:
        if fresh:
            client.create()
        else:
            client.recover()
        client.run()
    except (MismatchError, SlowOperationError, OSError) as error:
        state = client.model.state
        with contextlib.suppress(OSError):
            what = f"{type(error).__name__}: {error}"
            report.write_text(failure_report(plan, state.op, what, state.last_operations()))
        return 1
    return 0


def failure_report(plan: ClientPlan, op: int, what: str, last: list[str]) -> str:
    """What a person needs to find and repeat the failure."""
    lines = [
        f"client {plan.number}, {plan.path}, seed {plan.seed}, operation {op}: {what}",
        f"last {len(last)} operations (the last one is the one that failed):",
        *(f"  {line}" for line in last),
        f"repeat with: --seed {plan.seed} --ops {op + 1} and the same clients and --max-size",
    ]
    return "\n".join(lines) + "\n"
