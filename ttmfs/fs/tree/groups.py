"""The nodes of groups/: folders of the dmem controller, with the files and formats of the kernel's cgroup v2.

`mkdir` makes a group, `rmdir` removes one that has nothing. Who owns a folder owns its cgroup.procs and may make groups
in it; what bounds the group (dmem.max, min, low) stays with who made it, as the kernel's delegation has it.
"""

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from ttmfs.driver.limits import set_max
from ttmfs.driver.members import owner_of
from ttmfs.driver.namespace import BoFile
from ttmfs.errors import TtmError
from ttmfs.fs.commands.command import Command, Machine, Result
from ttmfs.fs.commands.handles import TextHandle
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.kernel.opening import Opening
from ttmfs.fs.kernel.rights import AttributeOf, Owner, Rights
from ttmfs.fs.tree.command_file import command_file
from ttmfs.fs.tree.made import MadeDir, OwnRights
from ttmfs.fs.tree.nodes import Node, VirtualFile
from ttmfs.ttm import lifetime
from ttmfs.ttm.dmem import UNLIMITED, Group, Pool
from ttmfs.units import parse_size

GROUPS: Final = "groups"
"""The name of the folder."""
PREFIX: Final = "drm/ttmfs/"
"""Of the names of regions, as the kernel's drivers register them."""
GHOST_WAIT: Final = 1.0
"""Seconds that rmdir waits for what is only held until its last copy has ended."""

MAX_GROUPS_OF_A_USER: Final = 128
MAX_GROUPS_OF_USERS: Final = 896
"""Of all users who are neither root nor the one who mounted: they do not take all that there may be."""

_OF_ALL: Final = ("cgroup.controllers", "cgroup.procs", "cgroup.subtree_control", "dmem.current", "dmem.peak")
_OF_ROOT: Final = ("dmem.capacity",)
_OF_OTHERS: Final = ("dmem.max", "dmem.low", "dmem.min", "dmem.events", "dmem.effective")
_LIMITS: Final = ("max", "low", "min")
_CONTROLLER: Final = "dmem"


@dataclass(frozen=True, slots=True)
class _FileOf:
    """Those of a file in a group's folder: `bits` for the owner of the folder."""

    folder: Rights
    bits: int

    @property
    def uid(self) -> int:
        return self.folder.uid

    @property
    def gid(self) -> int:
        return self.folder.gid


class GroupDir(MadeDir):
    """The folder of a group."""

    def __init__(self, groups: "GroupTree", group: Group, rights: OwnRights, key: str) -> None:
        files = (*_OF_ALL, *(_OF_OTHERS if group.parent is not None else _OF_ROOT))
        super().__init__(key, files, rights, gone=lambda: group.removed)
        self.group = group
        self.made_by = rights.uid
        self._groups = groups
        self._maker = _FileOf(OwnRights(0, rights.uid, rights.gid), 0)

    def make(self, name: str, rights: OwnRights) -> "GroupDir":
        """A new group.

        TtmError: EINVAL for a name that files of the controller could have, or a newline; EDQUOT, EAGAIN too many.
        """
        if "\n" in name or name.startswith(("dmem.", "cgroup.")):
            raise TtmError(errno.EINVAL, f"{name[:80]!r} is no name for a group")
        self._groups.check_made(rights.uid)
        folder = self._groups.folder(self.group.make(name), rights)
        self._groups.made_by[rights.uid] += 1
        return folder

    async def unmake(self, folder: MadeDir) -> None:
        """TtmError(EBUSY) while it has something, or groups below it. Ghosts are waited for, for a second."""
        assert isinstance(folder, GroupDir)
        ttm, group = self._groups.machine.vdev.ttm, folder.group
        with trio.move_on_after(GHOST_WAIT):
            while group.charged and not group.children and ttm.num_ghosts:
                await ttm.ghost_gone.park()
        if group.removed:
            raise TtmError(errno.ENOENT, f"{group} was removed meanwhile")
        group.remove()
        self._groups.made_by[folder.made_by] -= 1

    # -- files ---------------------------------------------------------------------------------------------------

    def file(self, name: str) -> Node | None:
        """One of the controller's."""
        kind, group = name.partition(".")[2], self.group
        if name == "cgroup.procs":
            return self._command(name, "PID", self._procs, self._move, _FileOf(self.own, 0o644))
        if name == "cgroup.subtree_control":
            return self._command(name, f"+{_CONTROLLER}", _controllers, _control, _FileOf(self.own, 0o644))
        if name == "cgroup.controllers":
            return self._read(_controllers)
        if kind in _LIMITS:
            limit = partial(self._limit, kind)
            return self._command(name, "REGION BYTES|max", partial(_limits, group, kind), limit, self._writable)
        if name == "dmem.capacity":
            return self._read(lambda: _lines(group, lambda pool: str(group.dmem.regions[pool.region])))
        return self._read(partial(_lines, group, _SHOWS[kind]))

    @property
    def _writable(self) -> Rights:
        return _FileOf(self._maker.folder, 0o644)

    def _read(self, text: Callable[[], str]) -> VirtualFile:
        return VirtualFile(lambda _opening: TextHandle(text), _FileOf(self._maker.folder, 0o444))

    def _command(
        self, name: str, usage: str, text: Callable[[], str], run: Callable[..., object], rights: Rights
    ) -> VirtualFile:
        where = "/".join(filter(None, (GROUPS, self.group.name, name)))
        return self._groups.command(Command(where, usage, "", (), run), text, rights)  # type: ignore[arg-type]

    def _procs(self) -> str:
        return "".join(f"{pid}\n" for pid in self._groups.machine.names.members.of(self.group))

    async def _move(self, machine: Machine, words: list[str]) -> Result:
        """cgroup.procs: a pid, 0 for the writer."""
        if len(words) != 1 or not words[0].isascii() or not words[0].isdigit() or len(words[0]) > 9:
            raise TtmError(errno.EINVAL, "say a pid, or 0 for the process that writes")
        caller = machine.caller
        pid = int(words[0]) or (0 if caller is None else caller.pid)
        members = machine.names.members
        if caller is not None and caller.uid and owner_of(pid) != caller.uid:
            raise TtmError(errno.EACCES, f"process {pid} is not yours")
        self._groups.check_move(caller, members.group_of(pid), self.group)
        members.place(pid, self._live())
        return {"pid": pid, "group": self.group.path}

    def _live(self) -> Group:
        if self.group.removed:
            raise TtmError(errno.ENODEV, f"{self.group} was removed")
        return self.group

    async def _limit(self, kind: str, machine: Machine, words: list[str]) -> Result:
        """dmem.max, low or min: one line `REGION BYTES`, as dmemcg_limit_write takes it."""
        if len(words) != 2:
            raise TtmError(errno.EINVAL, f"say REGION BYTES, or REGION max, as in {PREFIX}vram 64M")
        region = words[0].removeprefix(PREFIX)
        pool = self._live().pools.get(region)
        if pool is None:
            known = " ".join(self.group.dmem.regions)
            raise TtmError(errno.EINVAL, f"{words[0][:80]!r} is no region that is charged for: say one of {known}")
        value = UNLIMITED if words[1] == "max" else min(parse_size(words[1]), UNLIMITED)
        if kind == "low":
            pool.protect(low=value)
        elif kind == "min":
            pool.protect(min=value)
        else:
            return {"bytes_drained": await set_max(machine.vdev, pool, value)}
        return {}


def _controllers() -> str:
    return f"{_CONTROLLER}\n"


async def _control(machine: Machine, words: list[str]) -> Result:
    """The one controller is always on."""
    del machine
    for word in words:
        if word != f"+{_CONTROLLER}":
            raise TtmError(errno.EINVAL, f"{word[:80]!r}: the one controller is {_CONTROLLER}, and it is always on")
    return {}


def _lines(group: Group, value: Callable[[Pool], str]) -> str:
    return "".join(f"{PREFIX}{region} {value(pool)}\n" for region, pool in group.pools.items())


def _limits(group: Group, kind: str) -> str:
    return _lines(group, lambda pool: _amount(getattr(pool, kind)))


def _amount(value: int) -> str:
    return "max" if value >= UNLIMITED else str(value)


def _effective(pool: Pool) -> str:
    least, low = pool.effective()
    return f"min={_amount(least)} low={_amount(low)}"


_SHOWS: Final[dict[str, Callable[[Pool], str]]] = {
    "current": lambda pool: str(pool.usage),
    "peak": lambda pool: str(pool.peak),
    "events": lambda pool: f"low={pool.low_events} max={pool.max_events} evictions={pool.evictions}",
    "effective": _effective,
}


class GroupTree:
    """Builds them for one mount, whose `owner` is the mounting user."""

    def __init__(self, machine: Machine, runner: Runner, owner: Owner) -> None:
        self.machine = machine
        self._runner = runner
        self._made = 0
        self.made_by: Counter[int] = Counter()
        """How many there are that each user has made."""
        self.root = self.folder(machine.vdev.ttm.dmem.root, OwnRights(0o755, owner.uid, owner.gid))

    def folder(self, group: Group, rights: OwnRights) -> GroupDir:
        """The folder of a new group. No two ever have the same key, or one that is gone would pass for it."""
        self._made += 1
        return GroupDir(self, group, rights, GROUPS if group.parent is None else f"group{self._made}")

    def check_made(self, uid: int) -> None:
        """May the user make one more? TtmError: EDQUOT, EAGAIN all users together have made too many."""
        exempt = self.machine.vdev.ttm.accounts.exempt
        if uid in exempt:
            return
        if self.made_by[uid] >= MAX_GROUPS_OF_A_USER:
            said = f"you have made {MAX_GROUPS_OF_A_USER} groups, and a user has no more: rmdir one"
            raise TtmError(errno.EDQUOT, said)
        if sum(count for maker, count in self.made_by.items() if maker not in exempt) >= MAX_GROUPS_OF_USERS:
            said = f"users have made {MAX_GROUPS_OF_USERS} groups, and the rest is for who owns the device: rmdir some"
            raise TtmError(errno.EAGAIN, said)

    def command(self, command: Command, text: Callable[[], str], rights: Rights) -> VirtualFile:
        """A file that says `text`, and runs what is written to it."""
        return command_file(self._runner, command, text, rights)

    def object_file(self, file: BoFile) -> VirtualFile:
        """objects/NAME/group: who is charged for it; a path that is written moves the charge."""

        async def move(machine: Machine, words: list[str]) -> Result:
            if len(words) != 1:
                raise TtmError(errno.EINVAL, "say the path of one group, / for the root")
            target = self._find(words[0]).group
            caller = machine.caller
            if caller is not None and caller.uid not in (0, file.uid):
                raise TtmError(errno.EACCES, f"{file.bo.name!r} is not yours")
            self.check_move(caller, file.bo.group.live, target)
            file.bo.check_alive()
            lifetime.set_group(file.bo, target)
            return {"group": target.path}

        command = Command(f"objects/{file.bo.name}/group", "GROUP", "", (), move)
        return self.command(command, lambda: file.bo.group.live.path + "\n", AttributeOf(file))

    def _find(self, path: str) -> GroupDir:
        folder: MadeDir | None = self.root
        for name in filter(None, path.split("/")):
            folder = None if folder is None else folder.below(name)
        if not isinstance(folder, GroupDir):
            raise TtmError(errno.ENOENT, f"there is no group {path[:80]!r}: see {GROUPS}/, mkdir makes one")
        return folder

    def check_move(self, caller: Opening | None, source: Group, target: Group) -> None:
        """TtmError(EACCES): the caller may not write cgroup.procs of the target, or of the nearest one above both."""
        if caller is None or caller.uid == 0:
            return
        above = list(_chain(source))
        for group in (target, next(group for group in _chain(target) if group in above)):
            if self._find(group.name).own.uid != caller.uid:
                raise TtmError(errno.EACCES, f"you may not write cgroup.procs of {group}")


def _chain(group: Group | None) -> Iterator[Group]:
    """It and all above it."""
    while group is not None:
        yield group
        group = group.parent
