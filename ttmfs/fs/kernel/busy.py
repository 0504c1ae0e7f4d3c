"""Users: the processes that keep a mount busy, found without touching the mount.

Only links of /proc are read, never resolved: a stat inside a wedged mount would hang.
"""

import contextlib
import os
from collections.abc import Iterator


def users_of(mountpoint: str) -> list[str]:
    """One line a process: pid, name and what it uses there. Processes of other users may be missing without root."""
    path = os.path.realpath(os.path.dirname(mountpoint)) + "/" + os.path.basename(mountpoint)
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        used = sorted({where for where in _places(pid) if where == path or where.startswith(path + "/")})
        if used:
            more = f" and {len(used) - 3} more" if len(used) > 3 else ""
            found.append(f"{pid} ({_name(pid)}): {' '.join(used[:3])}{more}")
    return found


def _places(pid: int) -> Iterator[str]:
    """Working folder, root, open and mapped files."""
    folder = f"/proc/{pid}"
    links = [f"{folder}/cwd", f"{folder}/root"]
    with contextlib.suppress(OSError):
        links += [f"{folder}/fd/{name}" for name in os.listdir(f"{folder}/fd")]
    for link in links:
        try:
            yield os.readlink(link).removesuffix(" (deleted)")
        except OSError:
            continue
    try:
        with open(f"{folder}/maps", encoding="utf-8", errors="surrogateescape") as maps:
            for line in maps:
                fields = line.rstrip("\n").split(None, 5)
                if len(fields) == 6 and fields[5].startswith("/"):
                    yield fields[5].removesuffix(" (deleted)")
    except OSError:
        return


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"
