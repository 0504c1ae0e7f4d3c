"""Which mount is meant: MNT, $TTMFS_MOUNT, or the only ttmfs mount there is.

Only /proc/self/mountinfo is read here, never the mount. A path is compared as text; symbolic links are resolved by a
child with a time limit (access), and only when the text is no mount point.
"""

import os
import re
import shlex
from typing import Final

from ttm_tools.access import Access, NotAnswered
from ttm_tools.errors import NO_MOUNT, MountError

TYPE: Final = "fuse.ttmfs"
VARIABLE: Final = "TTMFS_MOUNT"
_OCTAL: Final = re.compile(rb"\\([0-3][0-7]{2})")


def unescape(text: str) -> str:
    r"""`\ooo` as in /proc/mounts back into characters."""
    data = _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), text.encode("utf-8", "surrogateescape"))
    return data.decode("utf-8", "surrogateescape")


def mountpoints(mountinfo: str = "/proc/self/mountinfo") -> dict[str, str]:
    """Mount point → file system type. Where several are stacked, the one on top."""
    found = {}
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.rstrip("\n").split(" ")
            if "-" in fields[6:]:
                found[unescape(fields[4])] = fields[fields.index("-", 6) + 1]
    return found


def ttmfs_mounts() -> list[str]:
    """All ttmfs mount points that this process sees."""
    return sorted(path for path, kind in mountpoints().items() if kind == TYPE)


def looks_like_a_path(word: str) -> bool:
    """Whether the first argument of ttm-ls can only be MNT: absolute, or from `.` or `~`."""
    return word.startswith(("/", "./", "../", "~")) or word in (".", "..") or word in _relative(ttmfs_mounts())


def bo_file(word: str) -> tuple[str, str] | None:
    """(mount point, BO) when `word` is the path of a BO's file, as text: MNT/bo/NAME."""
    path = os.path.abspath(os.path.expanduser(word))
    inside = [mount for mount in ttmfs_mounts() if path.startswith(f"{mount}/bo/")]
    mount = max(inside, key=len, default="")
    return (mount, path.removeprefix(f"{mount}/bo/")) if mount else None


def _relative(mounts: list[str]) -> set[str]:
    here = os.getcwd()
    return {form for path in mounts for form in (os.path.relpath(path, here), os.path.relpath(path, here) + "/")}


def find_mount(given: str | None) -> str:
    """The mount point that is meant. MountError (status 2) that says what to do."""
    source = ""
    if given is None:
        given = os.environ.get(VARIABLE) or None
        source = f"${VARIABLE}: "
    mounts = ttmfs_mounts()
    if given is None:
        if len(mounts) == 1:
            return mounts[0]
        if mounts:
            raise MountError(f"which mount? There are {_listed(mounts)}: say MNT, or set ${VARIABLE}", NO_MOUNT)
        raise MountError("ttmfs is not mounted anywhere: `ttmfs mount MNT` mounts it", NO_MOUNT)
    path = os.path.abspath(os.path.expanduser(given))
    if path in mounts:
        return path
    there = f"ttmfs is mounted on {_listed(mounts)}" if mounts else "ttmfs is mounted nowhere: `ttmfs mount MNT`"
    access = Access()
    try:
        real, there_is, is_folder = access.call("real", os.fsencode(path), seconds=3.0)
        real = os.fsdecode(real)
        if real in mounts:
            return str(real)
        inside = next((mount for mount in mounts if real.startswith(mount + "/")), None)
        if inside is not None:
            raise MountError(f"{source}{given} is inside a ttmfs mount: say {inside}", NO_MOUNT)
        what = "is no ttmfs mount" if is_folder else "is no folder" if there_is else "is not there"
    except OSError as error:
        what = f"is no ttmfs mount ({error.strerror})"
    except NotAnswered:
        what = "does not answer, and is no ttmfs mount"
    finally:
        access.close()
    raise MountError(f"{source}{given} {what}; {there}", NO_MOUNT)


def _listed(mounts: list[str]) -> str:
    return ", ".join(map(shlex.quote, mounts[:5])) + (f" and {len(mounts) - 5} more" if len(mounts) > 5 else "")
