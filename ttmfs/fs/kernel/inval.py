"""INVAL: dropping what clients have cached of an inode, the kernel's unmap_mapping_range of this file system.

`SessionFd` writes the notification, a 40-byte message on the session's /dev/fuse (pyfuse3 can only name
whole inodes); `PageCache` does it in worker threads, after starting writeback through the mount. Promises:

* nothing here blocks the loop's thread: the kernel answers an INVAL only after the daemon has answered the READs
  and WRITEs of the pages concerned, so an INVAL on that thread would wait for itself;
* "nobody has it cached" (ENOENT) and "the connection is gone" are no errors: in both, no client sees the pages;
* NOTIFY_DELETE is not offered: it waits, with its folder locked, for a lock that a parked write holds.

The kernel side is fuse_notify_inval_inode (and fuse_notify_store, of a text that grows as it is opened). It does not
tell when a page that was dirtied again meanwhile stays.
"""

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.fs.kernel.sure_thread import SureThread
from ttmfs.fs.kernel.tuning import connection_number

_NOTIFY_INVAL_INODE: Final = 2
_NOTIFY_INVAL_ENTRY: Final = 3
_NOTIFY_STORE: Final = 4
_INVAL_INODE: Final = struct.Struct("=IiQQqq")
_INVAL_ENTRY: Final = struct.Struct("=IiQQII")
_STORE: Final = struct.Struct("=IiQQQII")
_ROOT_INO: Final = 1
_SYNC_FILE_RANGE_WRITE: Final = 2
_SYNC_FILE_RANGE_WAIT_AFTER: Final = 4
_SYNC_FILE_RANGE_WRITE_AND_WAIT: Final = 1 | _SYNC_FILE_RANGE_WRITE | _SYNC_FILE_RANGE_WAIT_AFTER
_ALIASES: Final = 64
"""Descriptors of clients' files that may be open at once."""
_ALIASES_OF_ONE: Final = 4
"""Those of one file."""
_CLOSES_SECONDS: Final = 1.0
_LOOK_AGAIN_SECONDS: Final = 0.002
_THREADS: Final = 8
_INODES_COUNTED: Final = 4096

_libc: Final = ctypes.CDLL(None, use_errno=True)  # CDLL, not PyDLL: the call runs without the interpreter lock
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_sync_file_range.restype = ctypes.c_int


class SessionFd:
    """The /dev/fuse through which this process serves the mount at `mountpoint`.

    `fd` is libfuse's descriptor of it, found by connection number in /proc/self/fdinfo, and `device` one of our own,
    which is the device whatever stands in libfuse's place (StandIn). As long as it is open, an unmount waits for us:
    `close` it first. Raises TtmError(ENOENT) when nothing of this process serves that mount point.
    """

    def __init__(self, mountpoint: str) -> None:
        self.connection = connection_number(mountpoint)
        self.fd = _find(self.connection)
        self.device = os.dup(self.fd)
        self._rdev = os.fstat(self.device).st_rdev
        self._closed = False

    def invalidate_inode(self, ino: int, offset_bytes: int = 0, length_bytes: int = 0) -> bool:
        """Drop cached pages and attributes of `ino`; True when the kernel knew it. **Blocks**: never on the loop.

        The byte range is rounded outwards to pages; length 0 means to the end of the file; `offset_bytes` -1 drops
        the attributes only, which cannot block. Dirty pages in the range are written to the daemon first, one page
        a WRITE. False: no client has the inode (ENOENT), or the session ended. Raises TtmError with the kernel's
        errno for anything else.
        """
        message = _INVAL_INODE.pack(_INVAL_INODE.size, _NOTIFY_INVAL_INODE, 0, ino, offset_bytes, length_bytes)
        return self._notify(message, f"inode {ino} from byte {offset_bytes}, {length_bytes} bytes")

    def invalidate_entry(self, folder_ino: int, name: bytes) -> bool:
        """Drop a name of a folder, and what is below it, from the kernel's cache; True when it was there. **Blocks**:
        never on the loop, for it waits for the LOOKUPs and READDIRPLUSes of the folder. Returns and raises as
        `invalidate_inode`.
        """
        size = _INVAL_ENTRY.size + len(name) + 1
        message = _INVAL_ENTRY.pack(size, _NOTIFY_INVAL_ENTRY, 0, folder_ino, len(name), 0) + name + b"\0"
        return self._notify(message, f"the name {os.fsdecode(name)!r} in folder {folder_ino}")

    def extend(self, ino: int, size_bytes: int) -> bool:
        """Have the kernel take the text file `ino`, that is being opened, for so many bytes long if it takes it for a
        shorter one. **Blocks**: never on the loop, for it waits for READs of its last page.

        It stores the last byte, a newline as in every text, in a page that the reply to the OPEN drops. Returns and
        raises as `invalidate_inode`.
        """
        message = _STORE.pack(_STORE.size + 1, _NOTIFY_STORE, 0, ino, size_bytes - 1, 1, 0) + b"\n"
        return self._notify(message, f"the size of inode {ino}, {size_bytes} bytes")

    def _notify(self, message: bytes, what: str) -> bool:
        if self._gone():
            return False
        try:
            os.write(self.device, message)
        except OSError as exc:
            if exc.errno == errno.ENOENT or self._gone():
                return False
            raise TtmError(
                exc.errno or errno.EIO, f"the kernel refused a notification about {what}: {exc.strerror}"
            ) from exc
        return True

    def close(self) -> None:
        """Close `device` (before `pyfuse3.close()`): later notifications do nothing."""
        if not self._closed:
            self._closed = True
            os.close(self.device)

    @property
    def connected(self) -> bool:
        """False once the connection was aborted or unmounted, or the session closed."""
        return not self._gone()

    def _gone(self) -> bool:
        if self._closed:
            return True
        try:
            # The number may belong to another file by now, and 40 bytes written there would be damage.
            status = os.fstat(self.device)
        except OSError:
            return True
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != self._rdev:
            return True
        poller = select.poll()
        poller.register(self.device, 0)
        return any(events & (select.POLLERR | select.POLLNVAL) for _, events in poller.poll(0))


def _find(connection: int) -> int:
    """The lowest descriptor of this process that serves `connection`."""
    candidates = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                candidates.append(int(name))
        except OSError:  # the directory's own descriptor is closed by now
            continue
    unknown = []
    for fd in sorted(candidates):
        number = _fuse_connection(fd)
        if number == connection:
            return fd
        if number is None:
            unknown.append(fd)
    if len(unknown) == 1:  # kernels before 6.16 do not say which connection a descriptor serves
        return unknown[0]
    raise TtmError(
        errno.ENOENT, f"no descriptor of this process serves FUSE connection {connection}: mount it in this process"
    )


def _fuse_connection(fd: int) -> int | None:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"fuse_connection:"):
                return int(line.split()[1])
    return None


@dataclass(frozen=True)
class PageCacheStatistics:
    """Counts of INVALs: `invals` finished, `outstanding` now, `not_cached` of them without effect.

    `flushes` were preceded by writeback through the mount, `flush_failures` could not be; `seconds` is the sum and
    `max_seconds` the longest of the time from call to return, including the wait for a thread.
    """

    invals: int
    outstanding: int
    not_cached: int
    flushes: int
    flush_failures: int
    seconds: float
    max_seconds: float


class _Aliases:
    """Descriptors of clients' files that the daemon itself has open to write them back. Any thread.

    Closing one waits for the inode's i_rwsem, which a client holds for as long as it likes: its write may come from
    memory that somebody does not give it. So there are only so many; beyond that an INVAL writes back page by page.

    The kernel says once for an inode that writeback has failed, to the first who closes it or waits for its pages. If
    that is the daemon, the next client who closes it is owed the errno.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: Counter[int] = Counter()
        self._taken: OrderedDict[int, int] = OrderedDict()
        """Errnos that are owed, by inode. What no client asks for is not kept for ever."""

    def opens(self, ino: int) -> bool:
        """One may be opened, and counts from now on."""
        with self._lock:
            if self._open[ino] < _ALIASES_OF_ONE and self._open.total() < _ALIASES:
                self._open[ino] += 1
                return True
            return False

    def took(self, ino: int, number: int) -> None:
        """One was told of this errno."""
        with self._lock:
            self._taken[ino] = number
            if len(self._taken) > _INODES_COUNTED:
                self._taken.popitem(last=False)

    def closed(self, ino: int) -> None:
        """It is."""
        with self._lock:
            self._open[ino] -= 1
            self._open = +self._open

    def is_open(self, ino: int) -> bool:
        """Is there one that may be told of an errno yet?"""
        with self._lock:
            return ino in self._open

    def give_back(self, ino: int) -> int:
        """The errno that was taken; 0 when there is none, and from now on."""
        with self._lock:
            return self._taken.pop(ino, 0)


class _Closer:
    """Closes descriptors of aliases in threads of its own, that nobody waits for, and has the kernel forget the names:
    it would keep them, and so the BOs, until memory is short.

    close(2) there sends FLUSH and takes the inode's i_rwsem (H17). A client may hold that in a pwrite whose source
    buffer is a mapping of another BO, which may wait for the very move that an INVAL belongs to. So there is a thread
    for each that does not end at once.
    """

    def __init__(self, session: SessionFd, aliases: _Aliases) -> None:
        self._session = session
        self._aliases = aliases
        self._there_is_one = threading.Condition()
        self._fds: deque[tuple[int, int, bytes]] = deque()
        self._idle = 0
        """Threads that wait for one; each of `_fds` has one of these, or one that was started for it."""
        # The first is there for good: what stays open keeps its BO, and the mount.
        threading.Thread(target=self._run, name="ttmfs-closer", daemon=True).start()

    def close(self, fd: int, ino: int, alias: bytes) -> None:
        """Close `fd` some time soon; it was opened by the name `alias` in the root, and means inode `ino`."""
        with self._there_is_one:
            self._fds.append((fd, ino, alias))
            self._there_is_one.notify()
            enough = self._idle >= len(self._fds)
        if not enough:
            # Without a thread to be had it waits for the next one that is done.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._run, name="ttmfs-closer", daemon=True).start()

    def _next(self) -> tuple[int, int, bytes]:
        with self._there_is_one:
            self._idle += 1
            self._there_is_one.wait_for(lambda: self._fds)
            self._idle -= 1
            return self._fds.popleft()

    def _run(self) -> None:
        while True:
            fd, ino, alias = self._next()
            try:
                os.close(fd)
            except OSError as error:
                self._aliases.took(ino, error.errno or errno.EIO)
            self._aliases.closed(ino)
            with contextlib.suppress(OSError):
                self._session.invalidate_entry(_ROOT_INO, alias)


class PageCache:
    """The clients' cached pages of this mount: what the core's unmap_virtual stands on.

    `alias(ino)` names a path in the mount's root that opens inode `ino` whatever its name (or None), for writing dirty
    pages back in large WRITEs before the INVAL: 18 times faster than page by page when all is dirty. Create it on
    the loop's thread.
    """

    def __init__(
        self, session: SessionFd, alias: Callable[[int], str | None] | None = None, *, threads: int = _THREADS
    ) -> None:
        self._session = session
        self._alias = alias
        # Their own: INVALs that wait for parked requests must not use up the threads of everyone else.
        self._threads = SureThread("ttmfs-inval", threads)
        self._loop_thread = threading.get_ident()
        self._aliases = _Aliases()
        self._closer = _Closer(session, self._aliases)
        self._by_inode: OrderedDict[int, int] = OrderedDict()
        self._invals = self._outstanding = self._not_cached = self._flushes = self._flush_failures = 0
        self._seconds = self._max_seconds = 0.0

    async def invalidate(self, ino: int, first_byte: int = 0, num_bytes: int = 0, *, flush: bool = True) -> bool:
        """Write back (`flush`) and drop what clients cache of `ino`, from `first_byte`, `num_bytes` (0: to the end).

        One thread hop for both. Returns what `SessionFd.invalidate_inode` returns; raises as it does. Once begun it
        is not cancelled half way: a caller may rely on "returned" meaning "over". The BO's READs and WRITEs must go
        on being served meanwhile, its OPEN and FLUSH too.
        """
        if ino < 1 or num_bytes < 0 or first_byte < -1:
            raise TtmError(errno.EINVAL, f"no such range to invalidate: inode {ino}, {first_byte}+{num_bytes}")
        begin = time.perf_counter()
        self._outstanding += 1
        try:
            known, flushed = await self._threads.run(
                self._in_thread, ino, first_byte, num_bytes, flush and first_byte >= 0
            )
        finally:
            self._outstanding -= 1
            spent = time.perf_counter() - begin
            self._seconds += spent
            self._max_seconds = max(self._max_seconds, spent)
        self._invals += 1
        self._not_cached += not known
        self._flushes += flushed is True
        self._flush_failures += flushed is False
        self._by_inode[ino] = self._by_inode.pop(ino, 0) + 1
        if len(self._by_inode) > _INODES_COUNTED:
            self._by_inode.popitem(last=False)
        return known

    async def write_back(self, ino: int) -> bool:
        """Have the kernel write back what clients have dirty of `ino`; True when all of it has come, and was answered.

        The inode's WRITEs and its OPEN must be served meanwhile.
        """
        return await self._threads.run(self._flush_and_wait, ino)

    async def failed_before(self, ino: int) -> int:
        """For a client who closes `ino`: the errno of a failed writeback that the daemon was told of instead, once.

        0: none. Waits for a descriptor of the daemon's own that is being closed, a second at most.
        """
        with trio.move_on_after(_CLOSES_SECONDS):
            while self._aliases.is_open(ino):
                await trio.sleep(_LOOK_AGAIN_SECONDS)
        return self._aliases.give_back(ino)

    def invalidations(self, ino: int) -> int:
        """INVALs finished for `ino`; 0 also when it is not among the 4096 most recent ones."""
        return self._by_inode.get(ino, 0)

    def forget(self, ino: int) -> None:
        """Drop what is known of an inode that no longer exists."""
        self._by_inode.pop(ino, None)
        self._aliases.give_back(ino)

    def statistics(self) -> PageCacheStatistics:
        """All counts now."""
        return PageCacheStatistics(
            self._invals, self._outstanding, self._not_cached, self._flushes, self._flush_failures,
            self._seconds, self._max_seconds,
        )  # fmt: skip

    def _in_thread(self, ino: int, first: int, count: int, flush: bool) -> tuple[bool, bool | None]:
        if threading.get_ident() == self._loop_thread:
            raise AssertionError("INVAL on the loop's thread would wait for itself")
        flushed = None
        if flush and self._alias is not None and self._session.connected:
            flushed = self._flush(ino, first, count)
        return self._session.invalidate_inode(ino, first, count), flushed

    def _flush_and_wait(self, ino: int) -> bool:
        return self._session.connected and self._flush(ino, 0, 0, _SYNC_FILE_RANGE_WRITE_AND_WAIT)

    def _flush(self, ino: int, first: int, count: int, how: int = _SYNC_FILE_RANGE_WRITE) -> bool:
        """Start writeback of the range in WRITEs of up to 1 MiB; False when it could not be, which is no error."""
        path = self._alias(ino) if self._alias is not None else None
        if path is None or not self._aliases.opens(ino):
            return False
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            self._aliases.closed(ino)
            return False
        try:
            if _sync_file_range(fd, first, count, how) == 0:
                return True
            if how & _SYNC_FILE_RANGE_WAIT_AFTER:
                self._aliases.took(ino, ctypes.get_errno())
            return False
        finally:
            self._closer.close(fd, ino, os.fsencode(os.path.basename(path)))
