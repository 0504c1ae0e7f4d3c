"""FileMedium: one sparse file on a disk that is this device's alone, read and written at page offsets.

It promises: only a file that is this user's alone by owner, mode and name is used, and nobody else uses it meanwhile
(flock). There may be one already that is empty, or that a store of a process that is gone left behind; where others
could reach that one it is removed, and a new one made. What has another content is left alone. At the end only a file
that it made is removed. The host's page cache holds no more than `cache_bytes` of it for long; holes are punched where
the disk can, and the file ends with no blocks.
All methods but `close` may be called from any thread.
"""

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.runs import PageArray, common_runs, runs
from ttmfs.memory.stores.cache_window import CacheWindow
from ttmfs.units import PAGE_SHIFT

log = logging.getLogger(__name__)

CACHE_BYTES: Final = min(1 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)
"""1 GiB, or an eighth of the host's memory when that is less."""
_VECTORS: Final = 512  # pages of one system call at most: 2 MiB, and below IOV_MAX
_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_MARK: Final = "user.ttmfs.swap_store"
_KEEP_SIZE: Final = 0x01  # FALLOC_FL_KEEP_SIZE
_PUNCH_HOLE: Final = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_WORTH_ALLOCATING: Final = 256
"""Pages of a stretch for which one more system call pays."""
_NO_HOLES: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class FileMedium:
    """The file at `path`, made if there is none.

    Raises TtmError: EINVAL what is there is no regular file, or has a content that no store wrote; EPERM others could
    reach it, and it cannot be replaced; EBUSY another process uses it; else the error of open, with the path.
    """

    def __init__(self, path: str, cache_bytes: int = CACHE_BYTES) -> None:
        self.path = path
        self.can_punch = self.can_allocate = True
        self._made, self._fd = _open(path)
        try:
            self._claim()
            self._cache = CacheWindow(self._fd, cache_bytes)
        except BaseException:
            if self._made:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            os.close(self._fd)
            raise

    def _claim(self) -> None:
        self._lock()
        status = os.fstat(self._fd)
        if status.st_nlink != 1:
            raise TtmError(errno.EINVAL, f"{self.path} has {status.st_nlink} names: name a file that is nothing else")
        if status.st_size and not self._is_marked():
            message = f"{self.path} has a content that is not of a swap store: name a new file, or remove this one"
            raise TtmError(errno.EINVAL, message)
        mine = status.st_uid == os.geteuid()
        # Left behind by a process that is gone: nobody has the handles of what it holds.
        self._made |= not mine or status.st_size > 0
        if not mine or stat.S_IMODE(status.st_mode) & 0o077:
            self._replace(status)
        elif status.st_size:
            os.ftruncate(self._fd, 0)
        with contextlib.suppress(OSError):  # a file system without attributes: then a leftover is refused
            os.setxattr(self._fd, _MARK, b"1" if self._made else b"0")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TtmError(errno.EBUSY, f"{self.path} is the swap store of another process that runs") from error

    def _replace(self, status: os.stat_result) -> None:
        """Who could reach the file may have it open: a new one takes its place. TtmError(EPERM) where that fails."""
        mode = stat.S_IMODE(status.st_mode)
        try:
            os.unlink(self.path)
            fd = os.open(self.path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            why = f"user {status.st_uid} with mode {mode:04o} could read what is swapped ({error.strerror})"
            raise TtmError(errno.EPERM, f"{self.path} cannot be replaced: {why}: name a new file") from None
        old, self._fd = self._fd, fd
        os.close(old)
        self._lock()

    def _is_marked(self) -> bool:
        try:
            return os.getxattr(self._fd, _MARK) == b"1"
        except OSError:
            return False

    def allocate(self, slots: PageArray) -> None:
        """Blocks for long stretches of these slots, at once: writing to them is a quarter faster then.

        What the disk refuses, `write_pages` finds out.
        """
        _index, first, length = runs(slots)
        for slot, count in zip(first.tolist(), length.tolist(), strict=True):
            if count >= _WORTH_ALLOCATING and self.can_allocate:
                self.can_allocate = (
                    not _libc.fallocate(self._fd, _KEEP_SIZE, slot << PAGE_SHIFT, count << PAGE_SHIFT)
                    or ctypes.get_errno() not in _NO_HOLES
                )

    def write_pages(self, slots: PageArray, arena: Arena, pages: PageArray) -> Iterator[int]:
        """Write `pages` at these slots in long runs; yields how many pages were written by each call.

        Raises OSError: ENOSPC when the disk is full. What was yielded before is written.
        """
        for slot, views in _vectors(slots, arena, pages):
            offset = slot << PAGE_SHIFT
            total = sum(map(len, views))
            done = 0
            while done < total:
                wrote = os.pwritev(self._fd, _after(views, done), offset + done)
                if wrote <= 0:
                    raise OSError(errno.ENOSPC, "the disk took nothing")
                whole = ((done + wrote) >> PAGE_SHIFT) - (done >> PAGE_SHIFT)
                done += wrote
                self._cache.went_through(offset + done - wrote, wrote, dirty=True)
                if whole:
                    yield whole

    def read_pages(self, slots: PageArray, arena: Arena, pages: PageArray) -> Iterator[int]:
        """Read these slots into `pages`; yields pages like `write_pages`. Raises OSError; EIO where the file ends."""
        for slot, views in _vectors(slots, arena, pages):
            offset = slot << PAGE_SHIFT
            total = sum(map(len, views))
            done = 0
            while done < total:
                got = os.preadv(self._fd, _after(views, done), offset + done)
                if got <= 0:
                    raise OSError(errno.EIO, f"{self.path} ends at byte {offset + done}: somebody cut it")
                whole = ((done + got) >> PAGE_SHIFT) - (done >> PAGE_SHIFT)
                done += got
                self._cache.went_through(offset + done - got, got, dirty=False)
                if whole:
                    yield whole

    def write_bytes(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises OSError."""
        done = 0
        while done < len(data):
            wrote = os.pwrite(self._fd, data[done:], offset + done)
            if wrote <= 0:
                raise OSError(errno.ENOSPC, "the disk took nothing")
            done += wrote
        self._cache.went_through(offset, done, dirty=True)

    def read_bytes(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer where the file ends. Raises OSError."""
        parts = []
        while size > 0 and (part := os.pread(self._fd, size, offset)):
            parts.append(part)
            self._cache.went_through(offset, len(part), dirty=False)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def punch(self, offset: int, size: int) -> None:
        """This stretch holds nothing any more. Where the file system cannot, the blocks stay until they are reused."""
        if self.can_punch and _libc.fallocate(self._fd, _PUNCH_HOLE, offset, size):
            code = ctypes.get_errno()
            if code in _NO_HOLES:
                self.can_punch = False
                log.warning("%s: its file system punches no holes: blocks return when the store is empty", self.path)
            elif code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        elif self.can_punch:
            self._cache.punched(offset, size)

    def truncate(self) -> None:
        """Nothing is in it any more: no size, no blocks."""
        os.ftruncate(self._fd, 0)
        self._cache.cleared()

    def sync(self) -> None:
        """All that was written is on the disk when this returns. Raises OSError."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Cut it to nothing, remove it if it is ours, let go of it. A second close does nothing."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
        if self._made:
            with contextlib.suppress(OSError):
                here, there = os.fstat(fd), os.lstat(self.path)
                if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                    os.unlink(self.path)
        else:
            with contextlib.suppress(OSError):
                os.removexattr(fd, _MARK)
        os.close(fd)


def _open(path: str) -> tuple[bool, int]:
    """Whether it was made, and the descriptor. Never follows a link at the end, never waits for a FIFO."""
    try:
        try:
            return True, os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise TtmError(errno.EINVAL, f"{path} is no regular file: name a new file for the swap store") from None
            return False, os.open(path, _FLAGS)
    except TtmError:
        raise
    except OSError as error:
        code = error.errno or errno.EIO
        raise TtmError(code, f"the swap store's file {path} cannot be made: {os.strerror(code)}") from error


def _vectors(slots: PageArray, arena: Arena, pages: PageArray) -> Iterator[tuple[int, list[memoryview]]]:
    """Per stretch of consecutive slots (512 at most): its first slot and the arena's memory, by runs of pages."""
    index, lengths = common_runs(slots, pages)
    first = next_slot = count = 0
    views: list[memoryview] = []
    starts = zip(slots[index].tolist(), pages[index].tolist(), lengths.tolist(), strict=True)
    for slot, page, length in starts:
        while length:
            if views and (slot != next_slot or count >= _VECTORS):
                yield first, views
                views, count = [], 0
            if not views:
                first = slot
            some = min(length, _VECTORS - count)
            views.append(arena.view(page, some))
            count += some
            slot, page, length = slot + some, page + some, length - some  # noqa: PLW2901
            next_slot = slot
    if views:
        yield first, views


def _after(views: Sequence[memoryview], done: int) -> Sequence[memoryview]:
    """What of `views` comes after the first `done` bytes."""
    if not done:
        return views
    rest: list[memoryview] = []
    for view in views:
        if done < len(view):
            rest.append(view[done:])
        done = max(0, done - len(view))
    return rest
