"""Members: which process is of which group (what cgroup.procs is to the kernel).

FUSE tells of a process only what it asks for, so a group is looked up when a process makes a BO: its own entry, that of
its nearest living ancestor, that of the leader of its process group or session (which may be dead), else the root
group. What was found is kept with (pid, start time): a reused pid is another process.
"""

import errno
import os
from dataclasses import dataclass
from typing import Final

from ttmfs.driver.clients import process_id
from ttmfs.errors import TtmError
from ttmfs.ttm.dmem import Group

_KEPT: Final = 4096
"""Entries beyond which those of dead processes go, the oldest first."""
_ANCESTORS: Final = 64


@dataclass(frozen=True, slots=True)
class Process:
    """What /proc says of a process that lives; times in clock ticks."""

    pid: int
    started: int
    parent: int
    leaders: tuple[int, int]
    """Of its process group, and of its session."""


class Members:
    """The processes of one device's groups; `root` is the root group."""

    def __init__(self, root: Group) -> None:
        self._root = root
        self._of: dict[tuple[int, int], Group] = {}
        self._latest: dict[int, int] = {}
        """Start times by pid of those in `_of`."""

    def place(self, pid: int, group: Group) -> None:
        """It is of `group` from now on; what it has made stays charged as it is. TtmError(ESRCH): there is none."""
        process = _look(process_id(pid))
        if process is None:
            raise TtmError(errno.ESRCH, f"there is no process {pid}")
        self._keep(process, group)

    def group_of(self, thread: int) -> Group:
        """Whose group is charged for what this thread makes."""
        if not self._root.dmem.count or thread <= 0:
            return self._root
        process = at = _look(process_id(thread))
        if process is None:
            return self._root
        for _ in range(_ANCESTORS):
            if at is None:
                break
            group = self._of.get((at.pid, at.started))
            if group is not None:
                self._keep(process, group.live)
                return group.live
            at = _look(at.parent)
        for leader in process.leaders:
            # While a session or a process group lives, the pid of its leader is nobody else's.
            group = self._of.get((leader, self._latest.get(leader, -1)))
            if group is not None and _look(leader) is None:
                self._keep(process, group.live)
                return group.live
        return self._root

    def of(self, group: Group) -> list[int]:
        """The pids of those that live and are known to be of `group`."""
        found = [key for key, its in self._of.items() if its.live is group]
        return sorted(pid for pid, started in found if (there := _look(pid)) is not None and there.started == started)

    def _keep(self, process: Process, group: Group) -> None:
        key = (process.pid, process.started)
        self._of.pop(key, None)
        self._of[key] = group
        self._latest[process.pid] = process.started
        if len(self._of) > _KEPT:
            self._prune()

    def _prune(self) -> None:
        for pid, started in list(self._of):
            there = _look(pid)
            if there is None or there.started != started:
                del self._of[pid, started]
                if self._latest.get(pid) == started:
                    del self._latest[pid]
            if len(self._of) <= _KEPT // 2:
                return


def owner_of(pid: int) -> int:
    """The user of a process. TtmError(ESRCH): there is none."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        raise TtmError(errno.ESRCH, f"there is no process {pid}") from None


def _look(pid: int) -> Process | None:
    """None for one that is gone, or only what is left of one (a zombie)."""
    if pid <= 0:
        return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        if fields[0] in (b"Z", b"X"):
            return None
        return Process(pid, int(fields[19]), int(fields[1]), (int(fields[2]), int(fields[3])))
    except (OSError, ValueError, IndexError):
        return None
