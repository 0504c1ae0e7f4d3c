"""SwapStore: where backed-up pages are (struct ttm_backup), as one interface that moves arrays of pages.

A handle is slot + 1, so 0 is never one; the lowest free slots go out first. What comes back is checked against a
checksum, and a wrong byte is an error, never content.

**Threads.** A store has no locks. Its books belong to the loop thread; the bytes may move in a worker thread. Every
operation therefore has three parts, of which only the middle one may run elsewhere:

=================  ====================================  ==================
loop thread        any thread                            loop thread
=================  ====================================  ==================
`begin_store`      `write`                               `end_store`
`begin_load`       `read`                                `end_load`
`begin_upkeep`     `run_upkeep`                          `end_upkeep`
`drop`             (gives back by upkeep, see there)
\\                  `sync`
=================  ====================================  ==================

Several middle parts may run at once. Whoever began must end (or `cancel_store`), also when cancelled, but not before
the middle part has returned; a load or upkeep whose middle part never ran is ended just so. The arena pages of a
`write` must not change meanwhile, and handles of a running `read` must not be dropped. `store`, `load` and `writeback`
are all three parts in one call, for who has nothing to overlap.
"""

import errno
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.runs import BoolArray, Int64Array, PageArray, Uint32Array
from ttmfs.memory.stores.slots import SlotMap
from ttmfs.memory.stores.transfer import (
    FULL,
    FailHook,
    LoadError,
    LoadTransfer,
    StoreStatistics,
    StoreTransfer,
    check_pages,
)
from ttmfs.units import PAGE_SHIFT

log = logging.getLogger(__name__)


class SwapStore(ABC):
    """A store called `name` for at most `size` stored bytes.

    `fail_write` and `fail_read` are the fault hooks (see FailHook).
    """

    blocking: ClassVar[bool] = True
    """Do the middle parts take longer than moving the bytes? Then threads are the place for them."""
    warm_seconds: ClassVar[float] = 0.1
    """How long the medium keeps what was dropped: drops come in bursts, and it may be stored to again at once."""

    def __init__(self, name: str, size: int, num_slots: int) -> None:
        self.name = name
        self.size = size
        self.slots = SlotMap(num_slots)
        self.fail_write: FailHook | None = None
        self.fail_read: FailHook | None = None
        self.wake: Callable[[], object] | None = None
        """Called when there may be upkeep to do that nobody does."""
        self.pages_out = self.pages_in = 0
        self._storing: dict[int, StoreTransfer] = {}
        """Transfers that have begun and not ended, by their id()."""
        self._write_number = self._read_number = 0
        self._closed = False

    # In one call.

    def store(self, arena: Arena, pages: PageArray, writeback: bool = False) -> Uint32Array:
        """Store these pages of `arena`; their handles, uint32, of a prefix of them when the store fills up.

        With `writeback` the data is on the medium when this returns. Raises TtmError: ENOSPC when not one page could
        be stored; EINVAL for a page beyond the arena; otherwise the medium's error, and then none is stored.
        """
        check_pages(arena, pages)
        if not len(pages):
            return np.empty(0, np.uint32)
        transfer = self.begin_store(len(pages))
        try:
            self.write(transfer, arena, pages, writeback)
        except BaseException:
            self.cancel_store(transfer)
            raise
        try:
            handles = self.end_store(transfer)
        except TtmError:
            self._do_upkeep(flush=False)
            raise
        try:
            self._do_upkeep(flush=writeback)
            if writeback:
                self.sync()
        except BaseException:
            self.drop(handles)
            raise
        return handles

    def load(self, handles: PageArray, arena: Arena, pages: PageArray) -> None:
        """Copy what the handles stand for into these pages of `arena`; the handles stay.

        Raises TtmError(EINVAL), with nothing copied, for what is no handle; LoadError when a page does not come back:
        EIO for a wrong byte.
        """
        if len(handles) != len(pages):
            raise TtmError(errno.EINVAL, f"{len(handles)} handles do not fill {len(pages)} pages")
        check_pages(arena, pages)
        transfer = self.begin_load(handles)
        try:
            self.read(transfer, arena, pages)
        finally:
            self.end_load(transfer)

    def writeback(self) -> None:
        """All that is stored is on the medium when this returns. Raises TtmError with the medium's error."""
        self._do_upkeep(flush=True)
        self.sync()

    # Storing.

    @property
    @abstractmethod
    def used(self) -> int:
        """Stored bytes."""

    @property
    def available_pages(self) -> int:
        """Pages that surely have room; 0 means that backup is impossible (ttm_backup_bytes_avail)."""
        return max(0, min((self.size - self.used) >> PAGE_SHIFT, self.slots.free))

    def begin_store(self, count: int, *, gives: bool = False) -> StoreTransfer:
        """Reserve up to `count` slots. Raises TtmError(ENOSPC) when there is none.

        Ended with `end_store` or `cancel_store`. `gives`: the caller frees the pages that are stored, whose content is
        undefined after `end_store`.
        """
        self._require_open()
        if count > 0 and not self.available_pages:
            raise self._full()
        slots = self.slots.take(count)
        transfer = StoreTransfer(slots, np.empty(slots.size, np.uint32), gives=gives)
        self._storing[id(transfer)] = transfer
        transfer.fail_at, transfer.fail_errno = self._injected(self.fail_write, self._write_number, slots.size)
        self._write_number += slots.size if transfer.fail_at < 0 else transfer.fail_at + 1
        return transfer

    def write(self, transfer: StoreTransfer, arena: Arena, pages: PageArray, writeback: bool = False) -> None:
        """Move the bytes of the first `len(transfer.slots)` of `pages`. Raises nothing: `end_store` does.

        With `writeback` they are on the medium then, except for a store that writes behind: that one still needs all
        upkeep with `flush`, and `sync`.
        """
        for _ in self.write_steps(transfer, arena, pages, writeback):
            pass

    def write_steps(
        self, transfer: StoreTransfer, arena: Arena, pages: PageArray, writeback: bool = False
    ) -> Iterator[None]:
        """As `write`, bit by bit, for who does it on the loop: a store that is not `blocking` stops now and then."""
        try:
            check_pages(arena, pages)
            count = min(len(pages), len(transfer.slots))
            failing = 0 <= transfer.fail_at < count
            count = transfer.fail_at if failing else count
            if count:
                yield from self._write_steps(transfer, arena, pages[:count], writeback)
            if failing:
                what = f"storing a page in {self.name}"
                raise TtmError(transfer.fail_errno, f"{what} failed (injected by debug/fail_store_write)")
        except (OSError, MemoryError) as error:
            transfer.error = error

    def end_store(self, transfer: StoreTransfer, unchanged: BoolArray | None = None) -> Uint32Array:
        """Enter what was written in the books and free the other slots; the handles of the prefix that is stored.

        Pages that are not `unchanged` (all are by default) since they were written are not stored: their handles, and
        perhaps some of their neighbours', are 0. Raises TtmError, with nothing stored, as `store` does.
        """
        assert not transfer.ended, "a store is ended once"
        transfer.ended = True
        del self._storing[id(transfer)]
        transfer.unchanged = unchanged
        error = transfer.error
        partial = error is None or (isinstance(error, OSError) and error.errno in FULL)
        kept = self._commit(transfer, transfer.written) if partial else 0
        self.slots.put(transfer.slots[kept:])
        self.slots.commit(transfer.slots[:kept])
        if not kept and error is not None:
            raise self._as_ttm(error, "storing in")
        if not kept and transfer.written:
            raise self._full()
        handles = transfer.slots[:kept] + np.uint32(1)
        if transfer.unchanged is not None and not transfer.unchanged.all():
            changed = ~transfer.unchanged[:kept]
            self.drop(handles[changed], upkeep=False)
            handles[changed] = 0
        self.pages_out += int(np.count_nonzero(handles))
        return handles

    def cancel_store(self, transfer: StoreTransfer) -> None:
        """Free all slots of a transfer that is not ended, written or not."""
        assert not transfer.ended, "a store is ended once"
        transfer.ended = True
        del self._storing[id(transfer)]
        self.slots.put(transfer.slots)

    # Loading.

    def begin_load(self, handles: PageArray, *, takes: bool = False) -> LoadTransfer:
        """Find the handles' pages and keep them where they are until `end_load`. Raises TtmError(EINVAL).

        `takes`: the caller drops what has come back, right after `end_load`, and nobody else loads it meanwhile but
        between these two.
        """
        self._require_open()
        transfer = LoadTransfer(self.slots.slots_of(handles), takes=takes)
        count = transfer.slots.size
        transfer.fail_at, transfer.fail_errno = self._injected(self.fail_read, self._read_number, count)
        self._read_number += count if transfer.fail_at < 0 else transfer.fail_at + 1
        self._locate(transfer)
        return transfer

    def read(self, transfer: LoadTransfer, arena: Arena, pages: PageArray) -> None:
        """Move the bytes into `pages`, as many as the transfer has. Raises nothing: `end_load` does."""
        for _ in self.read_steps(transfer, arena, pages):
            pass

    def read_steps(self, transfer: LoadTransfer, arena: Arena, pages: PageArray) -> Iterator[None]:
        """As `read`, bit by bit; see `write_steps`."""
        try:
            check_pages(arena, pages)
            if len(pages) != transfer.slots.size:
                message = f"{transfer.slots.size} handles do not fill {len(pages)} pages"
                raise TtmError(errno.EINVAL, message)
            failing = transfer.fail_at >= 0
            count = transfer.fail_at if failing else len(pages)
            if count:
                yield from self._read_steps(transfer, arena, pages[:count])
            if failing:
                handle = int(transfer.slots[transfer.fail_at]) + 1
                what = f"loading handle {handle} from {self.name}"
                raise TtmError(transfer.fail_errno, f"{what} failed (injected by debug/fail_store_read)")
        except (OSError, MemoryError) as error:
            transfer.error = error

    def end_load(self, transfer: LoadTransfer) -> int:
        """The pages may move and be dropped again; how many came back. Raises LoadError when one did not."""
        assert not transfer.ended, "a load is ended once"
        transfer.ended = True
        self._arrived(transfer)
        self.pages_in += transfer.loaded
        if transfer.error is not None:
            error = self._as_ttm(transfer.error, "loading from")
            raise LoadError(error.errno or errno.EIO, error.message, transfer.loaded) from transfer.error
        return transfer.loaded

    # Dropping.

    def drop(self, handles: PageArray, upkeep: bool = True) -> None:
        """These handles are not needed any more (ttm_backup_drop). Raises TtmError(EINVAL) with nothing dropped.

        What no page uses goes back to the host at once; with `upkeep` False only when the caller does the upkeep.
        """
        self._require_open()
        slots = self.slots.slots_of(handles)
        if not slots.size:
            return
        self._forget(slots)
        self.slots.put(slots)
        if upkeep:
            self._do_upkeep(flush=False)
        elif self.wake is not None:
            self.wake()

    def begin_upkeep(self, flush: bool = False) -> Any | None:
        """A piece of work that the store wants done, None when there is none: memory or blocks to give back, cold
        pages to be written behind (with `flush` all pages). Each piece ends with `end_upkeep`.

        Ask after every store and drop, until the answer is None.
        """
        return None

    def run_upkeep(self, work: Any) -> None:  # noqa: B027
        """Do it. Raises nothing."""

    def end_upkeep(self, work: Any) -> None:  # noqa: B027
        """Enter it in the books. Raises TtmError with the medium's error when it was to flush."""

    def _do_upkeep(self, flush: bool) -> None:
        while (work := self.begin_upkeep(flush)) is not None:
            try:
                self.run_upkeep(work)
            finally:
                self.end_upkeep(work)

    def sync(self) -> None:  # noqa: B027
        """What was written to a disk is on it when this returns (fdatasync). Raises TtmError."""

    def statistics(self) -> StoreStatistics:
        """What the store holds now."""
        used, pages = self.used, self.slots.stored
        ratio = (pages << PAGE_SHIFT) / used if used else 1.0
        return StoreStatistics(
            self.name, self.size, used, pages, ratio, self.pages_out, self.pages_in, self.waste, self.on_disk
        )

    @property
    def waste(self) -> int:
        """Bytes of the medium that no page uses."""
        return self.slots.waste << PAGE_SHIFT

    @property
    def on_disk(self) -> int:
        """Stored bytes that are on a disk."""
        return 0

    @property
    def full_because(self) -> str:
        """Why there is no room, as a sentence."""
        used, size = self.used >> 10, self.size >> 10
        return f"the swap store {self.name} is full ({used} of {size} KiB): mount with more --swap"

    def close(self) -> None:
        """Give everything back. Whatever is stored is gone; a second close does nothing."""
        if not self._closed:
            self._closed = True
            self._close()

    def check_steps(self) -> Iterator[None]:
        """As `check`; others may run at each yield."""
        self.check()
        yield

    def check(self) -> None:
        """Raise AssertionError naming what is wrong with the books."""
        self.slots.check()
        reserved = self.slots.used - self.slots.stored - self.slots.held
        known = sum(len(transfer.slots) for transfer in self._storing.values())
        assert reserved == known, f"{reserved} slots are taken and hold no page; transfers under way have {known}"
        assert self.used <= self.size, f"{self.name}: {self.used} bytes are used of {self.size}"

    # What a kind of store does.

    def _write_steps(
        self, transfer: StoreTransfer, arena: Arena, pages: PageArray, writeback: bool
    ) -> Iterator[None]:
        """`_write` in one step, or in several."""
        self._write(transfer, arena, pages, writeback)
        yield

    def _read_steps(self, transfer: LoadTransfer, arena: Arena, pages: PageArray) -> Iterator[None]:
        """`_read` in one step, or in several."""
        self._read(transfer, arena, pages)
        yield

    @abstractmethod
    def _write(self, transfer: StoreTransfer, arena: Arena, pages: PageArray, writeback: bool) -> None:
        """Any thread: write, advancing `transfer.written` and filling `transfer.checksums`."""

    @abstractmethod
    def _commit(self, transfer: StoreTransfer, written: int) -> int:
        """Loop thread: enter the prefix in the books; how much of it has room."""

    @abstractmethod
    def _read(self, transfer: LoadTransfer, arena: Arena, pages: PageArray) -> None:
        """Any thread: read and verify, advancing `transfer.loaded`."""

    def _locate(self, transfer: LoadTransfer) -> None:  # noqa: B027
        """Loop thread: remember where the pages are."""

    def _arrived(self, transfer: LoadTransfer) -> None:  # noqa: B027
        """Loop thread: what came back has; the pages of the store may move."""

    def _forget(self, slots: Int64Array) -> None:  # noqa: B027
        """Loop thread: these slots are about to be freed."""

    @abstractmethod
    def _close(self) -> None:
        """Give everything back."""

    # Errors.

    def _wrong(self, slot: int) -> TtmError:
        message = f"handle {slot + 1} of the swap store {self.name} came back with wrong bytes: its page is lost"
        log.error(message)
        return TtmError(errno.EIO, message)

    def _full(self) -> TtmError:
        return TtmError(errno.ENOSPC, self.full_because)

    def _as_ttm(self, error: Exception, doing: str) -> TtmError:
        if isinstance(error, TtmError):
            return error
        if isinstance(error, MemoryError):
            return TtmError(errno.ENOMEM, f"{doing} {self.name}: the host has no memory left")
        code = (error.errno if isinstance(error, OSError) else None) or errno.EIO
        if code in FULL:
            return TtmError(errno.ENOSPC, f"{doing} {self.name}: the disk is full, free some of it ({error})")
        return TtmError(code, f"{doing} {self.name} failed: {error}")

    def _require_open(self) -> None:
        if self._closed:
            raise TtmError(errno.EINVAL, f"the swap store {self.name} is closed")

    @staticmethod
    def _injected(hook: FailHook | None, number: int, count: int) -> tuple[int, int]:
        """Index and errno of the first page that is to fail; (-1, 0) when none is."""
        if hook is not None:
            for index in range(count):
                code = int(hook(number + index))
                if code:
                    return index, errno.EIO if code == 1 else code
        return -1, 0
