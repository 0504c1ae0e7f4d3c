"""Members: which process is of which group (what cgroup.procs is to the kernel).

A process is of the group that its parent was of when it forked, where the kernel tells who forks (`ttmfs.driver.forks`,
asked from the first process on that is moved). Elsewhere, as FUSE tells of a process only what it asks for, a group is
looked up when a process makes a BO: its own entry, that of its nearest living ancestor, that of the leader of its
process group or session (which may be dead), else the root group. What was found is kept with (pid, start time): a
reused pid is another process.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from ttmfs.driver.clients import out_of_descriptors, process_id
from ttmfs.driver.forks import Forks
from ttmfs.errors import TtmError
from ttmfs.ttm.dmem import Group

_KEPT: Final = 4096
"""Entries beyond which those of dead processes go, the oldest first."""
_ANCESTORS: Final = 64
_ENDED: Final = (b"Z", b"X")
_START_TIME: Final = 19
_CATCH_UP_INTERVAL: Final = 0.1
"""Seconds between two looks at what was forked, where nobody asks."""


@dataclass(frozen=True, slots=True)
class Process:
    """What /proc says of a process that lives; times in clock ticks."""

    pid: int
    started: int
    parent: int
    leaders: tuple[int, int]
    """Of its process group, and of its session."""


class Members:
    """The processes of one device's groups; `root` is the root group. `listen`: who tells of forks, if anybody does."""

    def __init__(self, root: Group, listen: Callable[[], Forks | None] = Forks.listen) -> None:
        self._root = root
        self._listen = listen
        self._asked = trio.Event()
        self._forks: Forks | None = None
        self._exact: dict[int, Group] = {}
        """While forks are told: the processes of groups, by pid; all others are of the root group."""
        self._of: dict[tuple[int, int], Group] = {}
        self._latest: dict[int, int] = {}
        """Start times by pid of those in `_of`."""

    def place(self, pid: int, group: Group) -> None:
        """It is of `group` from now on; what it has made stays charged as it is.

        TtmError(ESRCH): there is none. OSError(EMFILE): the daemon has no descriptor left to look with.
        """
        process = _look(process_id(pid))
        if process is None:
            os.close(os.open("/proc/self", os.O_PATH | os.O_CLOEXEC))
            raise TtmError(errno.ESRCH, f"there is no process {pid}")
        if not self._asked.is_set():
            # Until now all were of the root group.
            self._forks = self._listen()
            self._asked.set()
        self._catch_up()
        if self._forks is None:
            self._keep(process, group)
        else:
            self._exact[process.pid] = group

    def group_of(self, thread: int) -> Group:
        """Whose group is charged for what this thread makes."""
        if not self._root.dmem.count or thread <= 0:
            return self._root
        self._catch_up()
        if self._forks is not None:
            return self._exact.get(process_id(thread), self._root).live
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
        self._catch_up()
        if self._forks is not None:
            return sorted(pid for pid, its in self._exact.items() if its.live is group and _look(pid) is not None)
        found = [key for key, its in self._of.items() if its.live is group]
        return sorted(pid for pid, started in found if (there := _look(pid)) is not None and there.started == started)

    async def run(self) -> None:
        """Reads what is told of forks before it is too much to be queued; until cancelled, then nothing is told."""
        await self._asked.wait()
        try:
            while self._forks is not None:
                await trio.lowlevel.wait_readable(self._forks.fileno())
                self._catch_up()
                await trio.sleep(_CATCH_UP_INTERVAL)
        except trio.ClosedResourceError:
            pass
        finally:
            self._without_forks()

    def _catch_up(self) -> None:
        """Whoever was forked until now is known, whoever has ended is not."""
        if self._forks is None:
            return
        try:
            for process, child in self._forks.events():
                if child:
                    self._forked(process, child)
                elif process in self._exact and not _runs(process):
                    del self._exact[process]
        except OSError:
            self._without_forks()

    def _forked(self, process: int, child: int) -> None:
        group = self._exact.get(process)
        if group is not None:
            self._exact[child] = group
        else:
            self._exact.pop(child, None)

    def _without_forks(self) -> None:
        """From now on groups are looked up, from what is known."""
        if self._forks is None:
            return
        trio.lowlevel.notify_closing(self._forks.fileno())
        self._forks.close()
        self._forks = None
        for pid, group in self._exact.items():
            if (there := _look(pid)) is not None:
                self._keep(there, group)
        self._exact.clear()

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
    fields = _fields(pid)
    if not fields or fields[0] in _ENDED:
        return None
    return Process(pid, int(fields[_START_TIME]), int(fields[1]), (int(fields[2]), int(fields[3])))


def _runs(pid: int) -> bool:
    """Has it a thread that has not ended? Its first one may have. True while it cannot be seen."""
    try:
        fields = _read_fields(pid)
    except OSError as error:
        return out_of_descriptors(error)
    return bool(fields) and (fields[0] not in _ENDED or int(fields[17]) > 1)


def _fields(pid: int) -> list[bytes]:
    """/proc/PID/stat from the state on; nothing for one that is gone."""
    try:
        return _read_fields(pid)
    except OSError:
        return []


def _read_fields(pid: int) -> list[bytes]:
    with open(f"/proc/{pid}/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    return fields if pid > 0 and len(fields) > _START_TIME else []
