"""ShmemStore: backed-up pages in memory, as the kernel's ttm_backup keeps them in a shmem file.

Anonymous huge pages instead of shmem: touching 4 KiB shmem pages costs ten times what copying them does. The memory
goes back to the host as pages are dropped (see FixedStore for how soon).

What the caller gives away in whole frames of 2 MiB is not copied: it is summed where it is, and its memory changes
hands when the transfer ends (see ttmfs.memory.frames); likewise on the way back.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from ttmfs.memory.arena import FRAME_PAGES, Arena
from ttmfs.memory.copy import copy_pages
from ttmfs.memory.frames import can_move, frames_in, move_frame
from ttmfs.memory.runs import Int64Array, PageArray, Uint32Array
from ttmfs.memory.stores.checksums import copy_and_sum, page_sums
from ttmfs.memory.stores.fixed import FixedStore
from ttmfs.memory.stores.transfer import LoadTransfer, StoreTransfer
from ttmfs.memory.warm import WARM_SECONDS
from ttmfs.units import PAGE_SHIFT

_STEP: Final = 128
"""Pages copied or summed in one step of a short transfer: some tens of microseconds."""
_LONG_COPY: Final = FRAME_PAGES
_LONG_SUM: Final = 2 * FRAME_PAGES
"""Of a long one: one or two tenths of a millisecond."""


class _Frames:
    """The frames of one transfer that change hands: where in it, and at which page of `arena` each begins."""

    __slots__ = ("arena", "at", "page")

    def __init__(self, arena: Arena, at: Int64Array, page: PageArray) -> None:
        self.arena = arena
        self.at = at
        self.page = page


class ShmemStore(FixedStore):
    """Room for `size` bytes of pages in memory. Raises TtmError(ENOMEM) when the host refuses the address space."""

    blocking = False
    warm_seconds = WARM_SECONDS

    def __init__(self, size: int) -> None:
        super().__init__("shmem", size)
        self._arena = Arena("shmem store", self.slots.num_slots)

    def _write(self, transfer: StoreTransfer, arena: Arena, pages: PageArray, writeback: bool) -> None:
        for _ in self._write_steps(transfer, arena, pages, writeback):
            pass

    def _write_steps(
        self, transfer: StoreTransfer, arena: Arena, pages: PageArray, writeback: bool
    ) -> Iterator[None]:
        slots = transfer.slots[: len(pages)]
        frames = self._frames(transfer.gives, arena, pages, slots)
        transfer.payload.append(frames)
        for part, is_frame in _parts(len(pages), frames.at):
            sums = transfer.checksums[part]
            if is_frame:
                page_sums(arena, pages[part], sums)
            else:
                copy_and_sum(self._arena, slots[part], arena, pages[part], sums)
            transfer.written = part.stop
            yield

    def _commit(self, transfer: StoreTransfer, written: int) -> int:
        unchanged = transfer.unchanged if transfer.unchanged is not None and not transfer.unchanged.all() else None
        for frames in transfer.payload:
            for at, page in zip(frames.at.tolist(), frames.page.tolist(), strict=True):
                frame = slice(at, at + FRAME_PAGES)
                if frame.stop > written:
                    # Something failed before all of the frame was summed: none of its bytes are here.
                    written = min(at, written)
                    break
                if unchanged is None or unchanged[frame].all():
                    move_frame(self._arena, int(transfer.slots[at]), frames.arena, page)
                else:
                    unchanged[frame] = False
        return super()._commit(transfer, written)

    def _read(self, transfer: LoadTransfer, arena: Arena, pages: PageArray) -> None:
        for _ in self._read_steps(transfer, arena, pages):
            pass

    def _read_steps(self, transfer: LoadTransfer, arena: Arena, pages: PageArray) -> Iterator[None]:
        slots = transfer.slots[: len(pages)]
        transfer.payload = frames = self._frames(transfer.takes, arena, pages, slots)
        sums = np.empty(len(pages), np.uint32)
        for part, is_frame in _parts(len(pages), frames.at):
            if is_frame:
                page_sums(self._arena, slots[part], sums[part])
            else:
                copy_and_sum(arena, pages[part], self._arena, slots[part], sums[part])
            right = part.start + self._verified(slots[part], sums[part])
            if right < part.stop:
                self._stop_at(right, part.stop, transfer, pages)
                raise self._wrong(int(slots[right]))
            transfer.loaded = part.stop
            yield

    def _stop_at(self, right: int, stop: int, transfer: LoadTransfer, pages: PageArray) -> None:
        """Pages before `right` have come, the next one is wrong. Those of its frame come without their frame."""
        frames: _Frames = transfer.payload
        whole = int(np.searchsorted(frames.at + FRAME_PAGES, right, side="right"))
        if whole < frames.at.size and frames.at[whole] <= right:
            begin = int(frames.at[whole])
            copy_pages(frames.arena, pages[begin:right], self._arena, transfer.slots[begin:right])
        else:
            frames.arena.zero(pages[right:stop])  # what is not right is not handed out
        frames.at = frames.at[:whole]
        transfer.loaded = right

    def _verified(self, slots: PageArray, sums: Uint32Array) -> int:
        """How many pages, from the first on, are what was stored."""
        wrong = np.flatnonzero(sums != self.checksums[slots])
        return int(wrong[0]) if wrong.size else len(slots)

    def _arrived(self, transfer: LoadTransfer) -> None:
        frames: _Frames | None = transfer.payload
        if frames is None:
            return
        for begin, page in zip(frames.at.tolist(), frames.page[: frames.at.size].tolist(), strict=True):
            if begin + FRAME_PAGES > transfer.loaded:
                # Something failed before all of the frame was summed: it stays where it is.
                transfer.loaded = min(begin, transfer.loaded)
                break
            slot = int(transfer.slots[begin])
            move_frame(frames.arena, page, self._arena, slot)
            self.slots.emptied(slot, FRAME_PAGES)

    def _frames(self, change_hands: bool, arena: Arena, pages: PageArray, slots: PageArray) -> _Frames:
        if not change_hands or not can_move(arena, self._arena):
            return _Frames(arena, np.empty(0, np.int64), pages[:0])
        at = frames_in(pages, slots)
        return _Frames(arena, at, pages[at])

    def _give_back(self, first: int, count: int) -> None:
        self._arena.give_back(first, count)

    def corrupt(self, handle: int, offset: int = 0, flip: int = 1) -> None:
        """Flip bits of one stored byte: damage on purpose, for who wants to see it found."""
        self._arena.buf[((handle - 1) << PAGE_SHIFT) + offset] ^= flip

    def _close(self) -> None:
        self._arena.close()


def _parts(count: int, frames: Int64Array) -> list[tuple[slice, bool]]:
    """`range(count)` in order, step by step: what is in frames, and what is not, with which of these it is."""
    copy, sums = (_LONG_COPY, _LONG_SUM) if count > FRAME_PAGES else (_STEP, _STEP)
    runs: list[list[int]] = []
    for at in frames.tolist():
        if runs and runs[-1][1] == at:
            runs[-1][1] += FRAME_PAGES
        else:
            runs.append([at, at + FRAME_PAGES])
    parts: list[tuple[slice, bool]] = []
    done = 0
    for begin, end in (*runs, (count, count)):
        parts.extend((slice(at, min(at + copy, begin)), False) for at in range(done, begin, copy))
        parts.extend((slice(at, min(at + sums, end)), True) for at in range(begin, end, sums))
        done = end
    return parts
