"""ZstdFileStore: compressed memory in front of a file. Cold compressed pages are written behind, the oldest first.

Pages arrive compressed in memory as in ZstdStore. When the memory part exceeds its share of the size, whole segments
of 2 MiB go to the file, in the order they were filled; that is a piece of upkeep, and belongs in a worker thread.
When the disk is full, memory holds its share and the store is full with it. With writeback everything goes to the file.
"""

from dataclasses import dataclass
from typing import Final

from ttmfs import clock
from ttmfs.memory.runs import PageArray
from ttmfs.memory.stores.base import log
from ttmfs.memory.stores.medium import CACHE_BYTES, FileMedium
from ttmfs.memory.stores.segments import GRAIN_SHIFT, SEGMENT, Segment
from ttmfs.memory.stores.zstd import LEVEL, ZstdStore

SHARE: Final = 0.25
_BLOCKS: Final = 16
_RETRY_SECONDS: Final = 1.0


@dataclass(slots=True)
class WriteBehind:
    """A segment on its way to a block of the file."""

    segment: Segment
    block: int
    flush: bool
    error: OSError | None = None
    done: bool = False


@dataclass(slots=True)
class Punch:
    """Blocks of the file that are to become holes."""

    blocks: list[int]


class ZstdFileStore(ZstdStore):
    """Room for `size` stored bytes, of which about `memory_size` (a quarter, and 4 MiB at least) stay in memory.

    Raises TtmError as ZstdStore and FileMedium do.
    """

    medium: FileMedium

    def __init__(
        self, path: str, size: int, memory_size: int = 0, level: int = LEVEL, cache_bytes: int = CACHE_BYTES
    ) -> None:
        super().__init__(size, level, name="zstd+file")
        self.medium = FileMedium(path, cache_bytes)
        self.memory_size = max(memory_size or int(size * SHARE), 2 * SEGMENT)
        self._trouble = ""
        self._retry_at = 0.0
        self._writing = 0

    @property
    def on_disk(self) -> int:
        return self._segments.live[True] << GRAIN_SHIFT

    @property
    def memory_used(self) -> int:
        """Bytes of memory that the store holds."""
        return self._segments.held[False] * SEGMENT

    @property
    def available_pages(self) -> int:
        if self._disk_is_bad() and self.memory_used > self.memory_size:
            return 0
        return super().available_pages

    @property
    def full_because(self) -> str:
        if self._disk_is_bad():
            why = f"{self.medium.path} takes no more ({self._trouble})"
            return f"the memory part of the swap store is full and {why}: free some disk"
        return super().full_because

    def _disk_is_bad(self) -> bool:
        return bool(self._trouble) and clock.monotonic() < self._retry_at

    def drop(self, handles: PageArray, upkeep: bool = True) -> None:
        super().drop(handles, upkeep=False)
        self._retry_at = 0.0
        if upkeep:
            self._do_upkeep(flush=False)

    def begin_upkeep(self, flush: bool = False) -> object | None:
        if self._closed:
            return None
        log_ = self._segments
        if log_.free_blocks:
            blocks = log_.free_blocks[:_BLOCKS]
            del log_.free_blocks[: len(blocks)]
            log_.blocks_at_work += len(blocks)
            return Punch(blocks)
        compaction = super().begin_upkeep(flush)
        if compaction is not None:
            return compaction
        if flush:
            log_.seal()
        elif self._disk_is_bad() or self.memory_used <= self.memory_size:
            return None
        segment = log_.oldest()
        if segment is None:
            return None
        segment.busy = True
        self._writing += 1
        return WriteBehind(segment, log_.take_block(), flush)

    def run_upkeep(self, work: object) -> None:
        try:
            if isinstance(work, Punch):
                for block in work.blocks:
                    self.medium.punch(block * SEGMENT, SEGMENT)
            elif isinstance(work, WriteBehind):
                self.medium.write_bytes(work.block * SEGMENT, self._segments.bytes_of(work.segment, None))
                work.done = True
            else:
                super().run_upkeep(work)
        except OSError as error:
            log.warning("%s: %s", self.medium.path, error)
            if isinstance(work, WriteBehind):
                work.error = error

    def end_upkeep(self, work: object) -> None:
        log_ = self._segments
        if isinstance(work, Punch):
            log_.put_blocks(work.blocks)
            if not log_.held[True] and not self._writing and not log_.free_blocks:
                self.medium.truncate()
            return
        if not isinstance(work, WriteBehind):
            super().end_upkeep(work)
            return
        segment = work.segment
        segment.busy = False
        self._writing -= 1
        if work.done and segment.live:
            log_.moved(segment, work.block)
            self._trouble = ""
            return
        log_.blocks_at_work -= 1
        log_.free_blocks.append(work.block)
        if not segment.live:
            log_.free(segment)
        if work.error is not None:
            self._trouble = str(work.error.strerror or work.error)
            self._retry_at = clock.monotonic() + _RETRY_SECONDS
            if work.flush:
                raise self._as_ttm(work.error, "writing back")

    def sync(self) -> None:
        try:
            self.medium.sync()
        except OSError as error:
            raise self._as_ttm(error, "writing back") from error

    def _close(self) -> None:
        super()._close()
        self.medium.close()
