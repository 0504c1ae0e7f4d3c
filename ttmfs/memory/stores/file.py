"""FileStore: backed-up pages in a sparse file on a disk, slot i at byte i * 4096.

Gives the host its memory back: the file's part of the page cache is bounded. Writes may wait for the disk, so `write`,
`read`, `run_upkeep` and `sync` belong in a worker thread. With writeback the data is on the disk when `write` returns.
A full disk keeps the pages that fitted. After the last drop the file occupies no blocks.
"""

import numpy as np

from ttmfs.memory.arena import Arena
from ttmfs.memory.runs import PageArray
from ttmfs.memory.stores.checksums import page_hashes
from ttmfs.memory.stores.fixed import FixedStore, GiveBack
from ttmfs.memory.stores.medium import CACHE_BYTES, FileMedium
from ttmfs.memory.stores.transfer import LoadTransfer, StoreTransfer
from ttmfs.units import PAGE_SHIFT

_STEP = 512


class FileStore(FixedStore):
    """Room for `size` bytes of pages in the file at `path`. Raises TtmError as FileMedium does."""

    def __init__(self, path: str, size: int, cache_bytes: int = CACHE_BYTES) -> None:
        super().__init__("file", size)
        self.medium = FileMedium(path, cache_bytes)

    def _write(self, transfer: StoreTransfer, arena: Arena, pages: PageArray, writeback: bool) -> None:
        self.medium.allocate(transfer.slots[: len(pages)])
        for begin in range(0, len(pages), _STEP):
            part = pages[begin : begin + _STEP]
            slots = transfer.slots[begin : begin + len(part)]
            page_hashes(arena, part, transfer.checksums[begin : begin + len(part)])
            for count in self.medium.write_pages(slots, arena, part):
                transfer.written += count
        if writeback:
            try:
                self.medium.sync()
            except OSError:
                transfer.written = 0  # a disk that is full only now has kept nobody knows what
                raise

    def _read(self, transfer: LoadTransfer, arena: Arena, pages: PageArray) -> None:
        found = np.empty(_STEP, np.uint32)
        for begin in range(0, len(pages), _STEP):
            part = pages[begin : begin + _STEP]
            slots = transfer.slots[begin : begin + len(part)]
            got = 0
            error: OSError | None = None
            try:
                for count in self.medium.read_pages(slots, arena, part):
                    got += count
            except OSError as raised:
                error = raised
            page_hashes(arena, part[:got], found[:got])
            wrong = np.flatnonzero(found[:got] != self.checksums[slots[:got]])
            if wrong.size:
                good = int(wrong[0])
                arena.zero(part[good:])  # what is not right is not handed out
                transfer.loaded = begin + good
                raise self._wrong(int(slots[good]))
            transfer.loaded = begin + got
            if error is not None:
                raise error

    def end_upkeep(self, work: GiveBack) -> None:
        super().end_upkeep(work)
        if not self.slots.used:
            self.medium.truncate()

    def _give_back(self, first: int, count: int) -> None:
        self.medium.punch(first << PAGE_SHIFT, count << PAGE_SHIFT)

    def sync(self) -> None:
        try:
            self.medium.sync()
        except OSError as error:
            raise self._as_ttm(error, "writing back") from error

    @property
    def on_disk(self) -> int:
        return self.used

    def _close(self) -> None:
        self.medium.close()
