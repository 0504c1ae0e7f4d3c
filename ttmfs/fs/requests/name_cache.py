"""NameCache: what the kernel keeps of names that are gone, where it was not the kernel that took them away.

A name below bo/ is removed by the kernel, which forgets it. The folder in objects/ that stands for it is only known to
be gone here, as is what clients/ had of a process that ended. The kernel would ask before it uses such a name again,
but until memory is short it keeps it, and so the nodes and the BO behind it stay. INVAL_ENTRY makes it drop them.

The message waits for the folder's lock in the kernel, which is held across LOOKUP and READDIRPLUS: so it is written in
a thread, while the loop serves these, and nobody waits for it. That the kernel is to keep such names without asking was
tried, with numbers that mean nothing from the change until it has heard: under a storm of renames it still showed a
name for a moment that was gone.
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
from ttmfs.fs.kernel.sure_thread import SureThread
from ttmfs.fs.requests.inodes import Inodes
from ttmfs.fs.tree.mirrors import dentry_key, folder_key
from ttmfs.fs.tree.nodes import VirtualDir
from ttmfs.sync.bell import Bell

log = logging.getLogger(__name__)

_AT_ONCE: Final = 1000
_LOOK_AGAIN_SECONDS: Final = 0.5
_LOOK_AGAIN_AT_MOST_SECONDS: Final = 60.0


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
        self._gone: list[Dentry] = []
        self._left: list[_Name] = []
        self._dropped: dict[str, Dentry] = {}
        """By key, those that the kernel may know all the same: somebody was in there."""
        self._wanted = Bell()
        self._threads = SureThread("ttmfs-names", 1)

    def gone(self, dentry: Dentry) -> None:
        """A name was taken away, or means something else now. Costs nothing if the kernel does not know its mirror."""
        if self._inodes.find(dentry_key(dentry)) is not None:
            self._gone.append(dentry)
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
            await self._send(self._noted())
            if trio.current_time() >= look_again:
                await self._send(self._inside())
                patience = min(2 * patience, _LOOK_AGAIN_AT_MOST_SECONDS)
                look_again = math.inf
            if self._dropped:
                look_again = min(look_again, trio.current_time() + patience)

    def _noted(self) -> list[_Name]:
        batch, self._gone = self._gone[:_AT_ONCE], self._gone[_AT_ONCE:]
        if self._gone:
            self._wanted.ring()
        names, self._left = self._left, []
        for dentry in batch:
            folder, key = self._inodes.find(folder_key(dentry.folder)), dentry_key(dentry)
            # If the kernel has forgotten it by itself, another may have its name by now: that is not to lose its place.
            if folder is not None and self._inodes.find(key) is not None:
                names.append(_Name(folder, dentry.name))
                self._dropped[key] = dentry
        return names

    def _inside(self) -> list[_Name]:
        """For those that are known still: a name in a folder keeps it, if somebody was in there as it lost its own."""
        self._dropped = {key: dentry for key, dentry in self._dropped.items() if self._stays(key, dentry)}
        names: list[_Name] = []
        for key in self._dropped:
            ino = self._inodes.find(key)
            folder = None if ino is None else self._inodes.get(ino)
            if ino is not None and isinstance(folder, VirtualDir):
                names.extend(_Name(ino, os.fsencode(name)) for _number, name in folder.names.after(0))
        return names

    def _stays(self, key: str, dentry: Dentry) -> bool:
        if self._inodes.find(key) is None:
            return False
        entry = dentry.entry
        # A folder that was renamed has the same mirror; a BO may have got the same name again.
        return entry.unlinked if isinstance(entry, Folder) else dentry.folder.get(dentry.name) is not entry

    async def _send(self, names: list[_Name]) -> None:
        if names:
            await self._threads.run(self._in_thread, names, abandon_on_cancel=True)

    def _in_thread(self, names: list[_Name]) -> None:
        """What the kernel refuses is tried no more: it drops those names when memory is short."""
        for name in names:
            try:
                self._session.invalidate_entry(name.folder, name.name)
            except TtmError as error:
                log.warning("%s", error.message)
