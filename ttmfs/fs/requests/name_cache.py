"""NameCache: what the kernel keeps of names that it did not take away itself.

A name below bo/ is removed by the kernel, which forgets it. The folder in objects/ that stands for it is only known to
be gone here, as is what clients/ had of a process that ended. The kernel keeps such a folder's name for long without
asking, and that of others until memory is short, and with it the nodes and the BO behind it. INVAL_ENTRY drops them.

The message waits for the folder's lock in the kernel, which is held across LOOKUP and READDIRPLUS: so it is written in
a thread, while the loop serves these, and nobody waits for it: a rename from bo/ to objects/, in vain, holds that lock
while it waits for whoever changes a name. Nothing right depends on it. From the moment that a name is lost until the
kernel has heard of it the number of its folder means nothing (Inodes.late, ESTALE). The kernel keeps no attributes of
it, so it asks for these on any way through, and then walks the path once more and asks for each name.
"""

import logging
import math
import os
from dataclasses import dataclass
from typing import Final

import trio

from ttmfs.driver.entries import Dentry, Folder
from ttmfs.errors import TtmError
from ttmfs.fs.kernel.inval import SessionFd
from ttmfs.fs.requests.inodes import Inodes
from ttmfs.fs.tree.mirrors import dentry_key, folder_key
from ttmfs.fs.tree.nodes import VirtualDir
from ttmfs.sync.bell import Bell

log = logging.getLogger(__name__)

_AT_ONCE: Final = 1000
_LOOK_AGAIN_SECONDS: Final = 0.5
_LOOK_AGAIN_AT_MOST_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class _Mirror:
    """A folder that stands for `dentry`, which is gone."""

    dentry: Dentry
    ino: int


@dataclass(frozen=True, slots=True)
class _Name:
    """A name in a folder that the kernel is to drop."""

    folder: int
    name: bytes


class NameCache:
    """Drops the mirrors of names that are gone. Make it on the loop's thread and start `run`."""

    def __init__(self, session: SessionFd, inodes: Inodes) -> None:
        self._session = session
        self._inodes = inodes
        self._untold: list[_Mirror] = []
        """Oldest first."""
        self._left: list[_Name] = []
        self._dropped: dict[str, Dentry] = {}
        """By key, those that the kernel may know all the same: somebody was in there."""
        self._wanted = Bell()
        self._limiter = trio.CapacityLimiter(1)

    def gone(self, dentry: Dentry) -> None:
        """A name was taken away, or means something else now. Costs nothing if the kernel does not know its mirror."""
        ino = self._inodes.find(dentry_key(dentry))
        if ino is not None:
            mirror = _Mirror(dentry, ino)
            self._untold.append(mirror)
            if not isinstance(dentry.entry, Folder):
                self._inodes.late(ino, mirror)
            self._wanted.ring()

    def left(self, folder_key: str, name: str) -> None:
        """A name that a folder made up is not there any more."""
        folder = self._inodes.find(folder_key)
        if folder is not None:
            self._left.append(_Name(folder, os.fsencode(name)))
            self._wanted.ring()

    async def run(self) -> None:
        """Send what was noted, until cancelled."""
        patience = _LOOK_AGAIN_SECONDS
        look_again = math.inf
        while True:
            with trio.move_on_at(look_again):
                await self._wanted.heard()
                patience = _LOOK_AGAIN_SECONDS
            await self._tell()
            if trio.current_time() >= look_again:
                await self._send(self._inside())
                patience = min(2 * patience, _LOOK_AGAIN_AT_MOST_SECONDS)
                look_again = math.inf
            if self._dropped:
                look_again = min(look_again, trio.current_time() + patience)

    async def _tell(self) -> None:
        left, self._left = self._left, []
        batch = self._untold[:_AT_ONCE]
        names = [self._name(mirror) for mirror in batch]
        refused = await self._send([*left, *(name for name in names if name is not None)])
        del self._untold[: len(batch)]
        if self._untold:
            self._wanted.ring()
        for mirror, name in zip(batch, names, strict=True):
            if name in refused:
                continue
            if not _is_replaced(mirror.dentry):
                self._inodes.told(mirror.ino, mirror)
            if name is not None:
                self._dropped[dentry_key(mirror.dentry)] = mirror.dentry

    def _name(self, mirror: _Mirror) -> _Name | None:
        """None if the kernel has forgotten it by itself: another may have its name by now, and is not to lose it."""
        dentry = mirror.dentry
        folder, known = self._inodes.find(folder_key(dentry.folder)), self._inodes.find(dentry_key(dentry))
        return None if folder is None or known is None else _Name(folder, dentry.name)

    def _inside(self) -> list[_Name]:
        """For those that are known still: a name in a folder keeps it, if somebody was in there as it lost its own."""
        self._dropped = {key: dentry for key, dentry in self._dropped.items() if self._stays(key, dentry)}
        names: list[_Name] = []
        for key in self._dropped:
            ino = self._inodes.find(key)
            folder = None if ino is None else self._inodes.known(ino)
            if ino is not None and isinstance(folder, VirtualDir):
                names.extend(_Name(ino, os.fsencode(name)) for _number, name in folder.names.after(0))
        return names

    def _stays(self, key: str, dentry: Dentry) -> bool:
        if self._inodes.find(key) is None:
            return False
        entry = dentry.entry
        # A folder that was renamed has the same mirror; a BO may have got the same name again.
        return entry.unlinked if isinstance(entry, Folder) else dentry.folder.get(dentry.name) is not entry

    async def _send(self, names: list[_Name]) -> set[_Name]:
        """Those that the kernel did not take."""
        if not names:
            return set()
        try:
            return await trio.to_thread.run_sync(self._in_thread, names, limiter=self._limiter, abandon_on_cancel=True)
        except RuntimeError as error:
            log.warning("no thread to tell the kernel of names: %s", error)
            return set(names)

    def _in_thread(self, names: list[_Name]) -> set[_Name]:
        refused = set()
        for name in names:
            try:
                self._session.invalidate_entry(name.folder, name.name)
            except TtmError as error:
                log.warning("%s", error.message)
                refused.add(name)
        return refused


def _is_replaced(dentry: Dentry) -> bool:
    """Has it no name any more, and something else this one? Who had just looked it up is to look again, and not to find
    nothing where there was always something."""
    return dentry.entry.unlinked and dentry.folder.get(dentry.name) is not None
