"""Doctor: what this machine lacks for ttmfs, and the command that mends it."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from ttmfs.fs.kernel.tuning import (
    MEND_MTAB,
    MEND_RIGHT_TO_MOUNT,
    MTAB,
    NO_RIGHT_TO_MOUNT,
    may_mount,
    user_background_limit,
)

_FUSECTL = "/sys/fs/fuse/connections"


@dataclass(frozen=True)
class Finding:
    """One thing: severity 0 fine, 1 something is lost, 2 it will not work. `mend` is a command or advice."""

    severity: int
    what: str
    mend: str = ""

    @property
    def level(self) -> str:
        """`ok`, `loses` or `missing`."""
        return ("ok", "loses", "missing")[self.severity]


def examine() -> Iterator[Finding]:
    """All findings, one a check."""
    yield _device()
    if not may_mount():
        yield Finding(2, NO_RIGHT_TO_MOUNT, MEND_RIGHT_TO_MOUNT)
    yield _program("fusermount3", "fuse3", needed=os.geteuid() != 0)
    yield _mtab()
    yield _program("fio", "fio", needed=False)
    yield _pyfuse3()
    yield from _rights()
    yield _huge_pages()


def _device() -> Finding:
    if not os.path.exists("/dev/fuse"):
        return Finding(2, "/dev/fuse does not exist", "modprobe fuse")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return Finding(2, "/dev/fuse is not yours to open", "as root: chmod 666 /dev/fuse")
    return Finding(0, "/dev/fuse")


def _program(name: str, package: str, *, needed: bool) -> Finding:
    if shutil.which(name):
        return Finding(0, name)
    severity = 2 if needed else 1
    return Finding(severity, f"{name} is not installed", f"apt-get update && apt-get install {package}")


def _mtab() -> Finding:
    if os.path.exists(MTAB):
        return Finding(0, MTAB)
    severity = 2 if os.geteuid() != 0 else 1
    return Finding(severity, f"{MTAB} is missing: fusermount3 unmounts nothing without it", f"as root: {MEND_MTAB}")


def _pyfuse3() -> Finding:
    if importlib.util.find_spec("pyfuse3") is None:
        packages = "libfuse3-dev pkg-config gcc python3-dev"
        return Finding(2, "pyfuse3 is not installed", f"apt-get install {packages} && pip install pyfuse3")
    return Finding(0, "pyfuse3")


def _rights() -> Iterator[Finding]:
    if os.geteuid() == 0:
        mounted = os.path.exists(f"{_FUSECTL}/.") and os.path.ismount(_FUSECTL)
        yield Finding(0, "root: background limits, readahead and dirty limits are set for each mount")
        if not mounted:
            yield Finding(0, "fusectl is not mounted; the first mount does that")
        return
    yield Finding(
        1,
        f"not root: max_background stays at the kernel's limit for users, {user_background_limit()} requests; "
        "the readahead window is the mount's own, not each BO's prefault; dirty limits stay at 1 %",
        "run ttmfs as root, or live with more waits under memory pressure",
    )
    if not os.access(f"{_FUSECTL}", os.R_OK):
        yield Finding(1, "fusectl is not readable: a wedged mount is freed by fusermount3 -uz only")
    conf = "/etc/fuse.conf"
    try:
        with open(conf, encoding="utf-8") as file:
            allowed = any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        allowed = False
    if not allowed:
        yield Finding(1, "--allow-other is refused", f"as root: echo user_allow_other >> {conf}")


def _huge_pages() -> Finding:
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    try:
        with open(path, encoding="utf-8") as file:
            never = "[never]" in file.read()
    except OSError:
        return Finding(1, "no transparent huge pages: first touches of memory are slower")
    if never:
        return Finding(1, "transparent huge pages are off", f"as root: echo madvise > {path}")
    return Finding(0, "transparent huge pages")
