"""AsCaller: files that a user of the mount has named, opened and written with that user's rights and not the daemon's.

The kernel decides, by the file-system ids of the one thread that works, which has no capability meanwhile: no right
over others' files, and no room beyond a quota. Beside that `granted` looks at owner, group and bits of every folder on
the way and of the file. Which supplementary groups somebody has, the daemon does not know: the thread has none
meanwhile, and somebody of another primary group gets what both the group and all others may. No link is followed, so
that nobody comes through one of /proc to where the daemon is; what another machine or process serves is refused before
it is asked.

All of this may wait for a disk: it belongs in a worker thread.
"""

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ttmfs.errors import TtmError

_READ: Final = 4
_WRITE: Final = 2
_SEARCH: Final = 1
_ONLY_READABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY)
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FAR: Final = (b"fuse", b"nfs", b"cifs", b"smb", b"9p", b"ceph", b"afs")
"""Beginnings of the types of file systems whose answers another process or machine gives."""
_AT_EMPTY_PATH: Final = 0x1000
_HANDLE_HEAD: Final = 8
_HANDLE_MOST: Final = 128
"""Bytes of a struct file_handle: two numbers, and at most so many (MAX_HANDLE_SZ)."""
_SETGROUPS: Final = {"x86_64": 116, "aarch64": 159, "riscv64": 159}
"""The number of the system call, by machine."""
_NOBODY: Final = -1
"""No id: setfsuid changes nothing, and returns what is."""
_PATH_MAX: Final = 4096

_CAPABILITY_VERSION: Final = 0x20080522
_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4

_libc: Final = ctypes.CDLL(None)


class _Dumpable:
    """Dumps of this process, and its files in /proc: the kernel takes them from its user when a thread changes ids.

    It has them back when the last thread is itself again. No other user ever gets at them: what counts there are the
    real and effective ids, which do not change.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = 0
        """Threads that have other ids now."""
        self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._changed:
                self._before = _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
            self._changed += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._changed -= 1
            if not self._changed and self._before == 1:
                _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


_dumpable: Final = _Dumpable()


class _Capabilities(ctypes.Structure):
    """Half of a thread's (struct __user_cap_data_struct)."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: ids in the daemon's own user namespace."""

    uid: int
    gid: int

    @property
    def is_daemon(self) -> bool:
        """Has the daemon no more rights than the caller: is it the same user, or is the caller root?"""
        return self.uid in (0, os.geteuid())


def granted(caller: Caller, info_uid: int, info_gid: int, mode: int) -> int:
    """The bits (4 read, 2 write, 1 search) that somebody without known supplementary groups has, by owner and mode."""
    group, others = mode >> 3 & 7, mode & 7
    if caller.uid == 0:
        return 7
    if caller.uid == info_uid:
        return mode >> 6 & 7
    return group if caller.gid == info_gid else group & others


@contextlib.contextmanager
def acting_as(caller: Caller) -> Iterator[None]:
    """What this thread does with files meanwhile it does as the caller. TtmError(EPERM) where the daemon may not."""
    if caller.is_daemon:
        yield
        return
    with _dumpable:
        yield from _acting_as(caller)


def _acting_as(caller: Caller) -> Iterator[None]:
    groups = os.getgroups()
    if groups and not _set_groups([]):
        raise _may_not(caller)
    group, user = _libc.setfsgid(caller.gid), _libc.setfsuid(caller.uid)
    effective: tuple[int, int] | None = None
    try:
        effective = _set_effective((0, 0))
        if (_libc.setfsuid(_NOBODY), _libc.setfsgid(_NOBODY)) != (caller.uid, caller.gid):
            raise _may_not(caller)
        yield
    finally:
        if effective is not None:
            _set_effective(effective)
        _libc.setfsuid(user)
        _libc.setfsgid(group)
        if groups:
            _set_groups(groups)


def _set_groups(groups: list[int]) -> bool:
    """Of this thread: what the library's setgroups does, it does to all."""
    number = _SETGROUPS.get(os.uname().machine)
    ids = (ctypes.c_uint32 * len(groups))(*groups)
    return number is not None and not _libc.syscall(ctypes.c_long(number), ctypes.c_size_t(len(groups)), ids)


def _set_effective(wanted: tuple[int, int]) -> tuple[int, int]:
    """The effective capabilities of this thread are these from now on; what they were."""
    header, data = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (_Capabilities * 2)()
    _libc.capget(header, data)
    before = data[0].effective, data[1].effective
    data[0].effective, data[1].effective = wanted
    if _libc.capset(header, data):
        raise TtmError(errno.EPERM, "the daemon cannot give its capabilities up: it opens no file for others")
    return before


def _may_not(caller: Caller) -> TtmError:
    said = "a mount of one user opens files for that user and root only"
    return TtmError(errno.EPERM, f"the daemon cannot act as user {caller.uid}: {said}")


def open_as(path: str, caller: Caller, *, read_only: bool) -> tuple[int, bool]:
    """A descriptor of the regular file at an absolute path, and whether it is for reading only.

    It is that where `read_only` asks for it, and where the caller may only read. TtmError: EINVAL no absolute path, no
    regular file; ENAMETOOLONG; ENOTDIR, ELOOP a link on the way; EACCES, ENOENT; ENODEV a file system whose answers
    others give; EPERM as `acting_as`.
    """
    parts = [part for part in path.split("/") if part and part != "."]
    if not path.startswith("/") or not parts or "\0" in path:
        raise TtmError(errno.EINVAL, f"{path[:300]!r} is no absolute path of a file")
    if len(os.fsencode(path)) >= _PATH_MAX:
        raise TtmError(errno.ENAMETOOLONG, f"{path[:80]!r}…: a path has less than {_PATH_MAX} bytes")
    with acting_as(caller):
        types = _types()
        at = _opened("/", None, _FOLDER, path)
        try:
            for part in parts[:-1]:
                _step(at, part, _FOLDER, path, caller, types)
            _step(at, parts[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, path, caller, types)
            return _reopen(at, path, caller, read_only=read_only)
        finally:
            os.close(at)


def identity(fd: int) -> tuple[int, int, bytes]:
    """What no other file has, nor one that comes later: a number is given again, but with another generation.

    Where the file system has no handles (overlays), the number alone.
    """
    info = os.fstat(fd)
    handle = (ctypes.c_uint8 * (_HANDLE_HEAD + _HANDLE_MOST))()
    ctypes.c_uint32.from_buffer(handle).value = _HANDLE_MOST
    mount = ctypes.c_int()
    failed = _libc.name_to_handle_at(fd, b"", handle, ctypes.byref(mount), _AT_EMPTY_PATH)
    return info.st_dev, info.st_ino, b"" if failed else bytes(handle)


def _opened(name: str, folder: int | None, flags: int, path: str) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        raise _refused(path, error) from None


def _step(at: int, name: str, flags: int, path: str, caller: Caller, types: dict[bytes, bytes]) -> None:
    """`at` is one further on the way from now on: at most two descriptors are open, whatever the path."""
    _check_search(at, path, caller)
    found = _opened(name, at, flags, path)
    try:
        _check_near(found, path, types)
        os.dup2(found, at, inheritable=False)
    finally:
        os.close(found)


def _reopen(file: int, path: str, caller: Caller, *, read_only: bool) -> tuple[int, bool]:
    info = os.fstat(file)
    if stat.S_ISLNK(info.st_mode):
        raise TtmError(errno.ELOOP, f"{path[:300]!r} is a symbolic link: name the file itself")
    if not stat.S_ISREG(info.st_mode):
        raise TtmError(errno.EINVAL, f"{path[:300]!r} is no regular file: only such a file has memory to bind")
    bits = 7 if caller.is_daemon else granted(caller, info.st_uid, info.st_gid, info.st_mode)
    if not bits & _READ:
        raise TtmError(errno.EACCES, f"you may not read {path[:300]!r}")
    again, flags = f"/proc/self/fd/{file}", os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    if not read_only and bits & _WRITE:
        try:
            return os.open(again, os.O_RDWR | flags), False
        except OSError as error:
            if error.errno not in _ONLY_READABLE:
                raise _refused(path, error) from None
    try:
        return os.open(again, os.O_RDONLY | flags), True
    except OSError as error:
        raise _refused(path, error) from None


def _check_search(folder: int, path: str, caller: Caller) -> None:
    info = os.fstat(folder)
    if not caller.is_daemon and not granted(caller, info.st_uid, info.st_gid, info.st_mode) & _SEARCH:
        raise TtmError(errno.EACCES, f"{path[:300]!r}: you may not search a folder on the way there")


def _refused(path: str, error: OSError) -> TtmError:
    number = error.errno or errno.EIO
    reason = os.strerror(number)
    if number == errno.ENOTDIR:
        reason = "a folder on the way is none, or a symbolic link: say the real path"
    return TtmError(number, f"{path[:300]!r} cannot be opened: {reason}")


def _check_near(found: int, path: str, types: dict[bytes, bytes]) -> None:
    """Before anything is asked of a file system: is it one that answers by itself?"""
    # In bytes: a codec would be loaded now, as the caller, who may not be able to read it.
    with open(f"/proc/self/fdinfo/{found}", "rb") as lines:
        mount = next(line.split()[1] for line in lines if line.startswith(b"mnt_id:"))
    # One that is not listed holds the root of a chroot, the daemon's own.
    kind = types.get(mount, b"")
    if kind.startswith(_FAR):
        said = "memory that is bound is that of a local disk or /dev/shm"
        raise TtmError(errno.ENODEV, f"{path[:300]!r} is in a file system of type {os.fsdecode(kind)}: {said}")


def _types() -> dict[bytes, bytes]:
    """The types of the mounted file systems by the number of their mount."""
    with open("/proc/self/mountinfo", "rb") as table:
        return {line.split(b" ", 1)[0]: line.partition(b" - ")[2].split(b" ", 1)[0] for line in table}
