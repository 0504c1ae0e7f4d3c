"""Userptr: memory of a file of another file system, bound in a VM (xe's DRM_XE_VM_BIND_OP_MAP_USERPTR).

The file is opened with the rights of who binds it. While it is open it is *pinned*, in the words of xe: a job that
touches it looks first whether it is what it was. A file that has another size since is found anew; one that was cut
short is EIO until it is long enough again. Of the files of a user only so many are open at a time: those that no job
has used for longest are let go, and opened again, as who bound them, when a job wants them; what is another file by
then is EFAULT. The bytes are those of a `ForeignTT`.

A BO without a file of its own stands for the mapping, in one VM, and goes with the last page that is bound of it.
"""

import errno
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from ttmfs.driver.foreign_tt import ForeignTT, open_in_thread
from ttmfs.driver.hardware import Hardware
from ttmfs.errors import TtmError
from ttmfs.memory.as_caller import Caller, acting_as, identity, open_as
from ttmfs.memory.foreign_file import ForeignFile
from ttmfs.sync.offload import Lane
from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.funcs import DriverFuncs
from ttmfs.ttm.placement import SYSTEM, Place
from ttmfs.units import PAGE_SHIFT, pages_of

USERPTR: Final = "userptr"
"""What tables call the place of such memory."""
MAX_PINNED: Final = 512
"""Files that the device has open."""
MAX_PINNED_OF_A_USER: Final = 32
"""Those that one user has bound who is neither root nor the one who mounted."""

_AGAIN: Final = {errno.ENOENT: errno.EFAULT, errno.EINVAL: errno.EIO}
"""What it is that a bound file is gone, or has not the bytes any more, where binding it would say the key."""

_THREADS: Final = 4
"""Threads that may wait for the files of one user at a time."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for: `length` bytes of a file from `offset` on, both in whole pages."""

    caller: Caller
    path: str
    offset: int
    length: int
    read_only: bool


class _CallersFile(ForeignFile):
    """What `asked.caller` may use of a file; `size` is how much it must have. It is written as the caller."""

    __slots__ = ("_asked", "_length", "identity", "read_only")

    def __init__(self, asked: Asked) -> None:
        fd, self.read_only = open_as(asked.path, asked.caller, read_only=asked.read_only)
        self.identity = identity(fd)
        super().__init__(asked.path, fd)
        self._asked = asked
        self._length = self.size
        """Of the file when it was last looked at."""
        try:
            self._cover(asked)
        except BaseException:
            self.close()
            raise

    def _cover(self, asked: Asked) -> None:
        if asked.offset + asked.length > pages_of(self.size) << PAGE_SHIFT:
            said = f"{asked.offset:#x}+{asked.length:#x} is not within the {self.size} bytes of {asked.path!r}"
            raise TtmError(errno.EINVAL, said)
        self.size = min(self.size, asked.offset + asked.length)

    def changed(self) -> bool:
        """Has it another size than when this was last asked? TtmError(EIO) when it was cut short."""
        before, self._length = self._length, self.look().st_size
        return self._length != before

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See ForeignFile. What a write of the caller takes from the file (set-user-ID bits), this one takes, too."""
        with acting_as(self._asked.caller):
            super().write(offset, data)

    def _cut(self) -> TtmError:
        return TtmError(errno.EIO, f"{self.path} was truncated: {self.size} bytes of it have to be there")


class UserptrTT(ForeignTT):
    """What is bound of a file. `pinned` is another object each time that jobs can use it anew; None: they cannot."""

    __slots__ = ("_asked", "_callers_file", "_identity", "_owner", "bo", "pinned")

    def __init__(self, owner: "Userptrs", hw: Hardware, asked: Asked, file: _CallersFile, lane: Lane) -> None:
        size = file.size - asked.offset
        super().__init__(hw, file, lane, base=asked.offset, size=size, mappable=False)
        self.bo: BufferObject | None = None
        self.pinned: object = object()
        self._asked = asked
        self._callers_file: _CallersFile | None = file
        self._identity = file.identity
        self._owner = owner

    @property
    def uid(self) -> int:
        """Who has bound it."""
        return self._asked.caller.uid

    @property
    def path(self) -> str:
        """The file: what its BO is called."""
        return self._asked.path

    @property
    def offset(self) -> int:
        """In the file, of what was bound."""
        return self._base

    @property
    def idle(self) -> bool:
        """Does no job use it, and is none about to?"""
        bo = self.bo
        return bo is not None and not bo.resv.locked and bo.resv.test_signaled(Usage.BOOKKEEP)

    async def check_whole(self) -> None:
        """Jobs can use it, until it is idle again: xe's repin. See ExternalTT.

        TtmError: EFAULT it is another file by now, or none; EIO it was cut short; EACCES.
        """
        file = self._callers_file
        if file is None:
            self._file = self._callers_file = file = await self._open_again()
        self._owner.used(self)
        try:
            changed = await self._in_thread(file.changed)
        except TtmError:
            self.pinned = None
            raise
        if changed or self.pinned is None:
            self.pinned = object()

    async def _open_again(self) -> _CallersFile:
        asked = self._asked
        try:
            file = await self._owner.open(asked)
        except TtmError as error:
            code = _AGAIN.get(error.errno or 0, error.errno or errno.EIO)
            raise TtmError(code, f"what is bound of {asked.path} cannot be had again: {error.message}") from None
        if file.identity == self._identity and file.read_only == asked.read_only:
            return file
        file.close()
        if file.identity == self._identity:
            raise TtmError(errno.EACCES, f"you may not write {asked.path} any more: bind it ro")
        raise TtmError(errno.EFAULT, f"{asked.path} is another file than was bound: bind it again")

    def let_go(self) -> None:
        """Of the file; the next job opens it again."""
        self.pinned = self._callers_file = None
        self._file.close()

    def fini(self) -> None:
        """It is bound no more."""
        self._owner.forget(self)
        super().fini()


class Userptrs:
    """Those of a device, and which of their files are open."""

    def __init__(self, hw: Hardware) -> None:
        self._hw = hw
        self._pinned: dict[UserptrTT, None] = {}
        """Those that are open; who was used last stands last."""
        self._count = 0
        self._lanes: dict[int, Lane] = {}
        """The threads of each user who has ever bound any."""

    def stats(self) -> dict[str, int]:
        """What `stats` says of them."""
        return {"userptrs": self._count, "pinned_files": len(self._pinned)}

    def close(self) -> None:
        """The device is gone: no file stays open."""
        for tt in tuple(self._pinned):
            tt.let_go()
        self._pinned.clear()

    async def make(self, funcs: DriverFuncs[BufferObject], asked: Asked) -> tuple[BufferObject, bool]:
        """A BO for what was asked for, to be bound in one VM, and whether it can only be read.

        TtmError: as `open`, EINVAL not within the file, ENODEV, EACCES, ENOENT and so on as `open_as`.
        """
        file = await self.open(asked)
        if file.read_only:
            asked = replace(asked, read_only=True)
        tt = UserptrTT(self, self._hw, asked, file, self._lane(asked))
        ttm = self._hw.ttm
        bo = BufferObject(ttm, funcs, placement=(Place(SYSTEM),))
        bo.private = bo.named = tt
        bo.size = file.size - asked.offset
        bo.assign(ttm.managers[SYSTEM].alloc(bo, Place(SYSTEM)))
        bo.set_tt(tt)
        bo.placed = True
        tt.bo = bo
        self._count += 1
        self.used(tt)
        return bo, file.read_only

    async def open(self, asked: Asked) -> _CallersFile:
        """The file, with room made for it. TtmError(EBUSY): all that the user may have open are in use."""
        uid = asked.caller.uid
        self._make_room(uid)
        file = await open_in_thread(self._lane(asked), partial(_CallersFile, asked))
        try:
            self._make_room(uid)  # others came meanwhile
        except TtmError:
            file.close()
            raise
        return file

    def used(self, tt: UserptrTT) -> None:
        """A job is about to."""
        self._pinned.pop(tt, None)
        self._pinned[tt] = None

    def forget(self, tt: UserptrTT) -> None:
        """It ends."""
        self._pinned.pop(tt, None)
        self._count -= 1

    def _make_room(self, uid: int) -> None:
        while len(mine := [tt for tt in self._pinned if tt.uid == uid]) >= self._share(uid):
            self._let_go(mine, f"a user has at most {MAX_PINNED_OF_A_USER}")
        while len(self._pinned) >= MAX_PINNED:
            self._let_go(list(self._pinned), f"there are at most {MAX_PINNED}")

    def _share(self, uid: int) -> int:
        return MAX_PINNED if uid in self._hw.ttm.accounts.exempt else MAX_PINNED_OF_A_USER

    def _let_go(self, candidates: list[UserptrTT], limit: str) -> None:
        idle = next((tt for tt in candidates if tt.idle), None)
        if idle is None:
            raise TtmError(errno.EBUSY, f"{len(candidates)} bound files are in use by jobs, and {limit} open: wait")
        del self._pinned[idle]
        idle.let_go()

    def _lane(self, asked: Asked) -> Lane:
        uid = asked.caller.uid
        lane = self._lanes.get(uid)
        if lane is None:
            lane = self._lanes[uid] = Lane(f"userptr {uid}", _THREADS, abandon=True)
        return lane

    def check(self, bound: Container[BufferObject]) -> Iterator[str]:
        """What is wrong with them; `bound`: all BOs that are bound anywhere."""
        if len(self._pinned) > MAX_PINNED:
            yield f"userptr: {len(self._pinned)} files are open"
        for tt in self._pinned:
            if tt.pinned is not None and tt.idle and tt.bo not in bound:
                yield f"userptr: {tt.path} is open, and bound nowhere"


def whereabouts(bo: BufferObject) -> object:
    """What is another object when jobs of a VM have to find a BO anew."""
    return bo.tt.pinned if isinstance(bo.tt, UserptrTT) else bo.resource
