"""Kernel-side knobs of one FUSE connection: fusectl, the backing device's writeback and readahead, the unmount.

Everything here is best effort and works without touching the mount itself (a `stat` of a wedged mount hangs): the
connection is found in /proc/self/mountinfo. What could not be set comes back as sentences, for `ttmfs doctor` and
the log. Imports only the standard library, because the watchdog process uses it too.
"""

import ctypes
import errno
import os
import re
import subprocess
from dataclasses import dataclass, field
from typing import Final

from ttmfs.errors import TtmError

FUSECTL: Final = "/sys/fs/fuse/connections"
MTAB: Final = "/etc/mtab"
"""fusermount3 looks up in it whether a mount is the user's to unmount."""
MEND_MTAB: Final = "ln -s ../proc/self/mounts /etc/mtab"
NO_RIGHT_TO_MOUNT: Final = "nobody in here has the right to mount (CAP_SYS_ADMIN)"
MEND_RIGHT_TO_MOUNT: Final = "start the container with --device /dev/fuse --cap-add SYS_ADMIN"
_SYS_ADMIN: Final = 21
_BDI: Final = "/sys/class/bdi"
_MODULE: Final = "/sys/module/fuse/parameters"
DEFAULT_BACKGROUND: Final = 12
"""max_background of a connection that did not ask for more."""
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass
class TuningReport:
    """What was set (`key=value`) and what could not be (sentences), in the order it was tried."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def merge(self, other: "TuningReport") -> "TuningReport":
        """This report with `other`'s entries appended."""
        self.done += other.done
        self.failed += other.failed
        return self

    def write(self, path: str, value: str) -> int:
        """Write `value` to a control file and record the outcome: 0 when it was accepted, else the errno."""
        key = "/".join(path.rsplit("/", 2)[-2:])
        try:
            _write(path, value)
        except OSError as exc:
            self.failed.append(f"could not set {key} to {value}: {exc.strerror}")
            return exc.errno or errno.EIO
        self.done.append(f"{key}={value}")
        return 0


@dataclass(frozen=True)
class _Mount:
    major: int
    minor: int
    mountpoint: str
    fstype: str
    source: str


def _mounts() -> list[_Mount]:
    """The lines of /proc/self/mountinfo, in mount order."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split()
            major, minor = fields[2].split(b":")
            path = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
            fstype, source = fields[(after := fields.index(b"-", 6) + 1) : after + 2]
            source = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), source)
            found.append(_Mount(int(major), int(minor), *map(os.fsdecode, (path, fstype, source))))
    return found


def connection_number(mountpoint: str) -> int:
    """The FUSE connection (and device minor number) mounted at `mountpoint`, from /proc/self/mountinfo.

    Never stats the mount point; its parent directories are resolved. The topmost mount counts. Raises
    TtmError(ENOENT) when nothing is mounted there, TtmError(EINVAL) when it is no FUSE file system.
    """
    path = _absolute(mountpoint)
    here = [mount for mount in _mounts() if mount.mountpoint == path]
    if not here:
        raise TtmError(errno.ENOENT, f"nothing is mounted at {mountpoint}")
    top = here[-1]
    if not top.fstype.startswith("fuse") or top.fstype == "fusectl":
        raise TtmError(errno.EINVAL, f"{mountpoint} is a mount of type {top.fstype}, not of FUSE")
    return top.major << 20 | top.minor


def is_mounted_at(connection: int, mountpoint: str) -> bool:
    """Is that FUSE connection what is on top there?"""
    try:
        return connection_number(mountpoint) == connection
    except OSError:
        return False


def mountpoint_of(connection: int) -> str | None:
    """Where that FUSE connection is mounted, on top, now: a folder above may have been renamed since. None: nowhere."""
    on_top = {mount.mountpoint: mount for mount in _mounts()}
    found = (path for path, mount in on_top.items() if (mount.major << 20 | mount.minor) == connection)
    return next(found, None)


def filesystem_type(mountpoint: str) -> str | None:
    """The type of what is mounted on top at `mountpoint`, as in `fuse.ttmfs`; None for nothing. Never stats it."""
    path = _absolute(mountpoint)
    found = [mount.fstype for mount in _mounts() if mount.mountpoint == path]
    return found[-1] if found else None


def source_of(mountpoint: str) -> str:
    """What the mount table says is mounted on top at `mountpoint`; "" for nothing."""
    path = _absolute(mountpoint)
    return next((mount.source for mount in reversed(_mounts()) if mount.mountpoint == path), "")


def may_mount() -> bool:
    """Whether anybody in here can: fusermount3 is root's, and root has no right that is not in the bounding set."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            bounds = [int(line.split()[1], 16) for line in file if line.startswith("CapBnd:")]
    except OSError:
        return True
    return all(bound >> _SYS_ADMIN & 1 for bound in bounds)


def mountpoints(fstype: str) -> list[str]:
    """Where file systems of this type are mounted."""
    return [mount.mountpoint for mount in _mounts() if mount.fstype == fstype]


def all_mountpoints() -> list[str]:
    """Where anything is mounted."""
    return [mount.mountpoint for mount in _mounts()]


def _absolute(mountpoint: str) -> str:
    """`mountpoint` with its parent resolved but the last component untouched: that one may hang."""
    parent, name = os.path.split(os.path.abspath(mountpoint))
    return os.path.join(os.path.realpath(parent), name)


def ensure_fusectl() -> str | None:
    """Mount the fusectl file system when it is not; None when it is there afterwards, else the reason."""
    if any(mount.fstype == "fusectl" and mount.mountpoint == FUSECTL for mount in _mounts()):
        return None
    if _libc.mount(b"none", FUSECTL.encode(), b"fusectl", ctypes.c_ulong(0), None) == 0:
        return None
    code = ctypes.get_errno()
    if code == errno.EBUSY:  # another process was faster
        return None
    return f"fusectl is not mounted and cannot be: {os.strerror(code)} (as root: mount -t fusectl none {FUSECTL})"


def raise_background_limits(connection: int, limit: int = 65535) -> TuningReport:
    """Set max_background and congestion_threshold of `connection` to `limit` requests, or as high as allowed.

    The kernel's defaults (12 and 9) let a dozen parked readaheads of one file stop all others. Without CAP_SYS_ADMIN
    the kernel refuses more than the module's max_user_* parameters: those are set then, and the report says so.
    """
    report = TuningReport()
    reason = ensure_fusectl()
    if reason is not None:
        report.failed.append(f"max_background stays at the kernel's default: {reason}")
        return report
    for name, cap in (("max_background", "max_user_bgreq"), ("congestion_threshold", "max_user_congthresh")):
        path = f"{FUSECTL}/{connection}/{name}"
        if report.write(path, str(limit)) != errno.EINVAL:
            continue
        allowed = _read_int(f"{_MODULE}/{cap}")
        if allowed and allowed < limit:
            report.write(path, str(allowed))
    return report


def user_background_limit() -> int:
    """Background requests that the kernel grants a mount without root; 12, its default, when that cannot be known."""
    return _read_int(f"{_MODULE}/max_user_bgreq") or DEFAULT_BACKGROUND


def tune_bdi(device: int) -> TuningReport:
    """Let clients dirty memory freely: max_ratio=100, strict_limit=0 on the mount's backing device `0:device`.

    FUSE's default of 1 % with a strict limit makes a writer of a few MiB wait for writeback. Needs root.
    """
    report = TuningReport()
    base = f"{_BDI}/{_bdi_name(device)}"
    report.write(f"{base}/max_ratio", "100")
    if os.path.exists(f"{base}/strict_limit"):
        report.write(f"{base}/strict_limit", "0")
    else:
        report.failed.append("this kernel has no strict_limit for a backing device")
    return report


class ReadAhead:
    """The readahead window of one mount: read_ahead_kb of its backing device, copied by the kernel at each open.

    Keeps the sysfs file open and skips unchanged values, so that it may be called before every OPEN reply. Create it
    when the first request has come: the kernel lowers the window again when it takes the INIT reply.
    `reason` is None while it works, else why the window cannot be set.
    """

    def __init__(self, device: int) -> None:
        self.reason: str | None = None
        self._fd = -1
        self._kb = -1
        path = f"{_BDI}/{_bdi_name(device)}/read_ahead_kb"
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._kb = int(os.pread(self._fd, 32, 0))
        except OSError as exc:
            self._failed(exc)

    @property
    def kb(self) -> int:
        """The window in KiB as last set or read; -1 when unknown."""
        return self._kb

    def set_read_ahead(self, kb: int) -> bool:
        """Make files opened from now on read ahead `kb` KiB; False (and `reason`) when that cannot be done."""
        if kb == self._kb:
            return True
        if self._fd < 0:
            return False
        try:
            os.pwrite(self._fd, b"%d" % kb, 0)
        except OSError as exc:
            self._failed(exc)
            return False
        self._kb = kb
        return True

    def close(self) -> None:
        """Close the sysfs file; later calls of `set_read_ahead` do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _failed(self, exc: OSError) -> None:
        self.reason = f"readahead stays at the mount's window: read_ahead_kb cannot be set ({exc.strerror})"
        self.close()


def waiting(connection: int) -> int | None:
    """Requests of `connection` that the kernel has not got an answer to; None when fusectl does not tell."""
    return _read_int(f"{FUSECTL}/{connection}/waiting")


def open_abort(connection: int) -> int:
    """The connection's fusectl abort file, open for writing; it stays bound to this very connection.

    Numbers are given to new connections as soon as they are free: who will abort much later should hold this
    descriptor, on which a write after the connection's end does nothing. Raises OSError.
    """
    ensure_fusectl()
    return os.open(f"{FUSECTL}/{connection}/abort", os.O_WRONLY | os.O_CLOEXEC)


def is_same_connection(abort_fd: int, connection: int) -> bool:
    """Whether `connection` still names the connection whose abort file is open as `abort_fd`."""
    try:
        return os.fstat(abort_fd).st_ino == os.stat(f"{FUSECTL}/{connection}/abort").st_ino
    except OSError:
        return False


def abort_connection(connection: int) -> str | None:
    """End `connection` now: every pending and later request fails. None when done (or gone), else the reason."""
    reason = ensure_fusectl()
    if reason is not None:
        return reason
    try:
        _write(f"{FUSECTL}/{connection}/abort", "1")
    except FileNotFoundError:
        return None
    except OSError as exc:
        return f"connection {connection} could not be aborted: {exc.strerror}"
    return None


def unmount(mountpoint: str) -> str | None:
    """Unmount what nobody uses, as umount(8) does, but without a stat that would hang on a wedged mount.

    Clients' dirty pages are written back first. None when it is gone, else the reason as a sentence.
    """
    code = _umount2(mountpoint, 0)
    if code == errno.EPERM:
        done = subprocess.run(
            ["fusermount3", "-u", "--", mountpoint], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        code = errno.EBUSY if "busy" in done.stderr else code
        if done.returncode == 0:
            return None
        if code == errno.EPERM:
            return f"{mountpoint} could not be unmounted: {done.stderr.strip()}"
    if code == errno.EBUSY:
        return f"{mountpoint} is busy: a process has a file of it open, or stands inside"
    return f"{mountpoint} could not be unmounted: {os.strerror(code)}" if code else None


def force_unmount(mountpoint: str) -> str | None:
    """`umount -f`: aborts the connection, needs root; whether the mount itself goes is another matter.

    None when the connection was aborted, else the reason.
    """
    code = _umount2(mountpoint, _MNT_FORCE)
    # EBUSY: the mount is in use and stays, but the abort has happened before the kernel looked.
    return None if code in (0, errno.EBUSY) else f"umount -f {mountpoint}: {os.strerror(code)}"


def lazy_unmount(mountpoint: str) -> str | None:
    """Detach the mount (`umount -l`, or `fusermount3 -uz` without root). None when it is gone, else the reason.

    Detaching does not abort: clients that wait for an answer go on waiting. Abort first.
    """
    code = _umount2(mountpoint, _MNT_DETACH)
    if code == 0:
        return None
    if code in (errno.EINVAL, errno.ENOENT):
        return f"nothing is mounted at {mountpoint}"
    try:
        done = subprocess.run(
            ["fusermount3", "-u", "-z", "--", mountpoint],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"umount -l {mountpoint}: {os.strerror(code)}, and fusermount3 did not help: {exc}"
    return None if done.returncode == 0 else f"{mountpoint} could not be unmounted: {done.stderr.strip()}"


def _umount2(mountpoint: str, flags: int) -> int:
    """The errno of umount2(2), 0 for success."""
    if _libc.umount2(os.fsencode(_absolute(mountpoint)), flags | _UMOUNT_NOFOLLOW) == 0:
        return 0
    return ctypes.get_errno()


def _bdi_name(device: int) -> str:
    return f"{device >> 20}:{device & 0xFFFFF}"


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _read_int(path: str) -> int | None:
    try:
        with open(path, "rb") as file:
            return int(file.read(32))
    except (OSError, ValueError):
        return None
