"""Running part of a script as a user without root, when the script itself is root.

Two things may be in the way of that user on a machine where everything was done as root: /dev/fuse is closed (udev
gives it the mode 0666, a bare container 0600), and the checkout or its Python lies below a closed folder such as
/root. `prepare` opens both in a mount namespace of this script alone: the machine's own node and folders stay as they
are, and the namespace goes with the script.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .device import NOBODY, ROOT, ScriptError, mounts

DEVICE = Path("/dev/fuse")
PREFIX = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--", "env"]
"""Runs a command without root. setpriv's own exec still has root's capabilities, env's has not."""

_CLONE_NEWNS = 0x00020000


class UnavailableError(ScriptError):
    """This machine does not allow what it takes to get out of the way of that user; the message says what."""


def why_not() -> str | None:
    """None if a mount without root can be tried from here, else the reason and what mends it."""
    if os.geteuid() != 0:
        return "already without root: every pass was"
    for tool, package in (("setpriv", "util-linux"), ("fusermount3", "fuse3")):
        if not shutil.which(tool):
            return f"there is no {tool} (mend: apt-get install {package})"
    if not os.stat(shutil.which("fusermount3") or "").st_mode & stat.S_ISUID:
        return "fusermount3 is not setuid root (mend: chmod u+s $(command -v fusermount3))"
    if not os.path.exists("/etc/mtab"):
        return "fusermount3 unmounts nothing without /etc/mtab (mend: ln -s ../proc/self/mounts /etc/mtab)"
    return None


def prepare() -> list[str]:
    """Clear the way for PREFIX; sentences about what had to be done. UnavailableError when this machine does not allow
    that, ScriptError when the way is not clear after it."""
    hidden = closed_folders([ROOT, Path(sys.base_prefix), Path(sys.executable).resolve().parent])
    device_closed = _fails("test", "-r", str(DEVICE), "-a", "-w", str(DEVICE))
    notes = []
    if hidden or device_closed:
        _own_namespace()
    if device_closed:
        _open_device()
        notes.append(f"{DEVICE} is closed to users here; opened (0666, as udev does) in a mount namespace of our own")
    for folder, wanted in hidden.items():
        _reveal(folder, wanted)
        notes.append(f"{folder} is closed to users here; in that namespace it shows only {' '.join(map(str, wanted))}")
    if error := _fails(sys.executable, "-c", "import numpy, pyfuse3, ttmfs.cli"):
        raise ScriptError(f"uid {NOBODY} cannot run this Python with ttmfs: {error}")
    if error := _fails("test", "-w", str(DEVICE)):
        raise ScriptError(f"{DEVICE} stays closed to uid {NOBODY}: {error} (mend: chmod 0666 {DEVICE})")
    return notes


def closed_folders(paths: list[Path]) -> dict[Path, list[Path]]:
    """The outermost folders that others may not pass through, each with those of `paths` that lie below it."""
    found: dict[Path, list[Path]] = {}
    for path in paths:
        for folder in reversed(path.parents):
            if not folder.stat().st_mode & stat.S_IXOTH:
                known = found.setdefault(folder, [])
                if not any(path.is_relative_to(other) for other in known):
                    known.append(path)
                break
    return found


def _own_namespace() -> None:
    """Leave the machine's mount namespace for one of which nothing is seen outside."""
    libc = ctypes.CDLL(None, use_errno=True)
    # A process that stays in the namespace that is left, and says what is mounted at a path there.
    with subprocess.Popen(
        ["sh", "-c", 'read -r path && stat -c %d -- "$path"'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as outside:
        if libc.unshare(_CLONE_NEWNS):
            raise UnavailableError(f"a mount namespace cannot be made here: {os.strerror(ctypes.get_errno())}")
        if _fails_here("mount", "--make-rprivate", "/") is None:
            outside.communicate("/\n", timeout=30)
            return
        # In a chroot / may be no mount point. The mounts that can be seen are made private one by one (one that is
        # hidden below another cannot be, nor can anything be mounted there); the one around / cannot be named.
        for point in dict(mounts()):
            _fails_here("mount", "--make-private", point)
        try:
            with _tmpfs("/") as folder:
                seen, _ = outside.communicate(f"{folder}\n", timeout=30)
                if int(seen) == folder.stat().st_dev:
                    raise UnavailableError(
                        "/ is no mount point, and what is mounted in this chroot is seen outside of it "
                        "(mend, before the chroot: mount --bind DIR DIR; mount --make-private DIR)"
                    )
        except OSError as error:
            raise UnavailableError(f"/ is no mount point, and nothing can be mounted in it: {error}") from error


def _open_device() -> None:
    """Bind a node of mode 0666 over /dev/fuse."""
    with _tmpfs() as folder:
        node = folder / "fuse"
        try:
            os.mknod(node, stat.S_IFCHR, os.stat(DEVICE).st_rdev)
        except OSError as error:
            raise UnavailableError(f"{DEVICE} is closed to users and another node cannot be made: {error}") from error
        node.chmod(0o666)
        _must("mount", "--bind", str(node), str(DEVICE))


def _reveal(closed: Path, wanted: list[Path]) -> None:
    """Replace `closed` by an open folder in which nothing but `wanted` can be found, at the same paths."""
    with _tmpfs() as folder:
        for path in wanted:
            place = folder / path.relative_to(closed)
            place.mkdir(parents=True, exist_ok=True)
            _must("mount", "--rbind", str(path), str(place))
        for made in (folder, *(p for path in wanted for p in (folder / path.relative_to(closed)).parents)):
            if made.is_relative_to(folder):
                made.chmod(0o755)
        _must("mount", "--rbind", str(folder), str(closed))


@contextlib.contextmanager
def _tmpfs(parent: str | None = None) -> Iterator[Path]:
    """A temporary file system, detached at the end; what was bound from it elsewhere stays."""
    folder = Path(tempfile.mkdtemp(prefix="ttmfs-script-", dir=parent))
    try:
        _must("mount", "-t", "tmpfs", "-o", "mode=0700,size=1m", "ttmfs-script", str(folder))
        try:
            yield folder
        finally:
            _must("umount", "-l", str(folder))
    finally:
        folder.rmdir()


def _must(*command: str) -> None:
    if error := _fails_here(*command):
        raise ScriptError(f"{shlex.join(command)}: {error}")


def _fails_here(*command: str) -> str | None:
    """None if the command succeeds, else what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return (done.stderr.strip() or f"status {done.returncode}") if done.returncode else None


def _fails(*command: str) -> str | None:
    """None if the command succeeds as that user, else its last words."""
    try:
        error = _fails_here(*PREFIX, *command)
    except (OSError, subprocess.TimeoutExpired) as failure:
        return str(failure)
    return error.splitlines()[-1] if error else None
