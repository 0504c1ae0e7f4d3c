"""Asker: the process that the running task works for, and what it has asked.

FUSE says who asks: what serves a request says so here before it may have to wait, and what is reached on its behalf
(fault injection, the trace, the recorder, error_log) looks here. READs and WRITEs do not say it; there it is who has
opened the file. Tasks of the device itself (engines, reclaim in the background) work for nobody: 0.
"""

from contextvars import ContextVar
from typing import Final

ASKER: Final[ContextVar[int]] = ContextVar("ttmfs_asker", default=0)
"""A process id in the daemon's own pid namespace."""

WHY: Final[ContextVar[str]] = ContextVar("ttmfs_why", default="")
"""What was asked, in words: a command as it was written, `READ of tex0`, or whom there was to be room for."""

_MOST: Final = 1024
_names: dict[int, str] = {}


def asker_name() -> str:
    """`COMM-PID` of the process that asks; "" when nobody does."""
    pid = ASKER.get()
    return task_name(pid) if pid else ""


def task_name(pid: int) -> str:
    """`COMM-PID`, as it was when it was first asked for: a process may be gone by now. A `-` in COMM stays."""
    name = _names.get(pid)
    if name is None:
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                comm = file.read().rstrip("\n")
        except OSError:
            comm = "<...>"
        if len(_names) >= _MOST:
            _names.clear()
        name = _names[pid] = f"{comm}-{pid}"
    return name


def asked_anew(pid: int) -> None:
    """A process opens a file: whoever had its number, or its name, before is forgotten."""
    _names.pop(pid, None)
