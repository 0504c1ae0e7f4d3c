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

from .device import NOBODY, ROOT, ScriptError

DEVICE = Path("/dev/fuse")
PREFIX = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--", "env"]
"""Runs a command without root. setpriv's own exec still has root's capabilities, env's has not."""

_CLONE_NEWNS = 0x00020000


def why_not() -> str | None:
    """None if a mount without root can be tried from here, else the reason and what mends it."""
    if os.geteuid() != 0:
        return "already without root: every pass was"
    for tool, package in (("setpriv", "util-linux"), ("fusermount3", "fuse3")):
        if not shutil.which(tool):
            return f"there is no {tool} (mend: apt-get install {package})"
    if not os.stat(shutil.which("fusermount3") or "").st_mode & stat.S_ISUID:
        return "fusermount3 is not setuid root (mend: chmod u+s $(command -v fusermount3))"
    return None


def prepare() -> list[str]:
    """Clear the way for PREFIX; sentences about what had to be done. ScriptError with the reason when it cannot be."""
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
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise ScriptError(f"cannot make a mount namespace: {os.strerror(ctypes.get_errno())}")
    _must("mount", "--make-rprivate", "/")


def _open_device() -> None:
    """Bind a node of mode 0666 over /dev/fuse."""
    with _tmpfs() as folder:
        node = folder / "fuse"
        try:
            os.mknod(node, stat.S_IFCHR, os.stat(DEVICE).st_rdev)
        except OSError as error:
            raise ScriptError(f"{DEVICE} is closed to uid {NOBODY} and another node cannot be made: {error}") from error
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
def _tmpfs() -> Iterator[Path]:
    """A temporary file system, detached at the end; what was bound from it elsewhere stays."""
    folder = Path(tempfile.mkdtemp(prefix="ttmfs-script-"))
    try:
        _must("mount", "-t", "tmpfs", "-o", "mode=0700,size=1m", "ttmfs-script", str(folder))
        try:
            yield folder
        finally:
            _must("umount", "-l", str(folder))
    finally:
        folder.rmdir()


def _must(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise ScriptError(f"{shlex.join(command)}: {done.stderr.strip()}")


def _fails(*command: str) -> str | None:
    """None if the command succeeds as that user, else its last words."""
    try:
        done = subprocess.run([*PREFIX, *command], capture_output=True, text=True, timeout=60, check=False, cwd="/")
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = done.stderr.strip().splitlines()
    return (lines[-1] if lines else f"status {done.returncode}") if done.returncode else None
