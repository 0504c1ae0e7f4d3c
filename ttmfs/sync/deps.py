"""Collecting what a move must wait for (i915_deps).

A small growable collection of fences that are handed to the engine, either one by one (iterate it) or as a single
fence (`to_fence`). Where memory for it is short it waits instead of failing. Any error empties the collection
("finalised on error"): the caller may, but need not, call `fini` after it.
"""

import errno
from collections.abc import Iterator
from typing import NoReturn, Protocol

import trio

from ttmfs.errors import TtmError
from ttmfs.observe.inject import FailureHook, should_fail
from ttmfs.sync.containers import FenceArray
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Reservation, Usage

MIN_ALLOC_CHUNK = 8
"""Slots of the first allocated table (I915_DEPS_MIN_ALLOC_CHUNK); one slot is inline."""

WAIT_SECONDS = 15.0
"""How long a fence is waited for where it cannot be stored; the kernel waits for ever."""


class OperationCtx(Protocol):
    """What Deps needs of a ttm_operation_ctx."""

    @property
    def no_wait_gpu(self) -> bool:
        """EBUSY where a wait for the device would be."""
        ...

    @property
    def interruptible(self) -> bool:
        """Whether cancelling the task ends its waits."""
        ...


class Deps:
    """i915_deps: fences of different contexts, of each context the latest.

    `fail_grow` and `fail_array` inject allocation failures: of the growing table, and of the array that
    `to_fence` makes. A wait with `ctx.interruptible` false is shielded from cancellation; each ends after WAIT_SECONDS.
    """

    __slots__ = ("_deps", "_fail_array", "_fail_grow", "capacity")

    def __init__(self, *, fail_grow: FailureHook | None = None, fail_array: FailureHook | None = None) -> None:
        self._fail_grow = fail_grow
        self._fail_array = fail_array
        self._deps: list[Fence] = []
        self.capacity = 1

    def __len__(self) -> int:
        return len(self._deps)

    def __iter__(self) -> Iterator[Fence]:
        """The fences, in the order in which their contexts came; a snapshot."""
        return iter(tuple(self._deps))

    def fini(self) -> None:
        """Drops everything; the collection is as new and may be used again. A second time is harmless."""
        self._deps = []
        self.capacity = 1

    async def add_dependency(self, fence: Fence | None, ctx: OperationCtx) -> None:
        """Adds a fence (i915_deps_add_dependency); None adds nothing.

        One that is signaled is not stored, only its error looked at. Of the same context, other than 0, only the
        later is kept. When the table cannot grow the fence is waited for here, or with `ctx.no_wait_gpu` the
        call fails. TtmError(EBUSY) for that and for a fence that is not signaled in time, TtmError(the fence's error)
        for a signaled fence that failed; all empty the collection, and so does a cancelled wait.
        """
        if fence is None:
            return
        if fence.signaled:
            self._check(fence)
            return
        if fence.context:
            for index, entry in enumerate(self._deps):
                if entry.context == fence.context:
                    if fence.is_later(entry):
                        self._deps[index] = fence
                    return
        if len(self._deps) >= self.capacity:
            if should_fail(self._fail_grow):
                await self._wait(fence, ctx)
                return
            self.capacity = max(2 * self.capacity, MIN_ALLOC_CHUNK)
        self._deps.append(fence)

    async def add_resv(self, resv: Reservation, usage: Usage, ctx: OperationCtx) -> None:
        """`add_dependency` for each fence of `usage` and stronger in a held reservation (i915_deps_add_resv).

        Stops at the first error. AssertionError when the reservation is not held.
        """
        if not resv.locked:
            raise AssertionError("the reservation must be held while its fences are collected")
        for fence in resv.fences(usage):
            await self.add_dependency(fence, ctx)

    async def sync(self, ctx: OperationCtx) -> None:
        """Waits for all, in order (i915_deps_sync), up to the first error; afterwards all that is left is signaled.

        TtmError(EBUSY) with `ctx.no_wait_gpu` when one is pending, or when one is not signaled in time, TtmError(the
        fence's error) when one has failed; all empty the collection, and so does a cancelled wait. Success leaves it.
        """
        for fence in self:
            await self._wait(fence, ctx)

    async def to_fence(self, ctx: OperationCtx) -> Fence | None:
        """Everything as one fence, leaving the collection empty (i915_deps_to_fence).

        None when there is nothing to wait for, the fence itself when there is one, otherwise an array. When the
        array cannot be allocated: `sync`, with its errors, and None.
        """
        if len(self._deps) > 1 and should_fail(self._fail_array):
            await self.sync(ctx)
            self.fini()
            return None
        deps = self._deps
        self.fini()
        if not deps:
            return None
        return deps[0] if len(deps) == 1 else FenceArray(deps)

    async def _wait(self, fence: Fence, ctx: OperationCtx) -> None:
        if not fence.signaled:
            if ctx.no_wait_gpu:
                self._fail(errno.EBUSY, f"fence {fence.name} is pending, and no_wait_gpu was asked")
            try:
                with trio.CancelScope(shield=not ctx.interruptible):
                    in_time = await fence.wait(WAIT_SECONDS)
            except BaseException:
                self.fini()
                raise
            if not in_time:
                self._fail(errno.EBUSY, f"fence {fence.name} was not signaled within {WAIT_SECONDS:g} s")
        self._check(fence)

    def _check(self, fence: Fence) -> None:
        if fence.error:
            self._fail(fence.error, f"fence {fence.name} {fence.what}".rstrip() + " has failed")

    def _fail(self, code: int, message: str) -> NoReturn:
        self.fini()
        raise TtmError(code, message)
