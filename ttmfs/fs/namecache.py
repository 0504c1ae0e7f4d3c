"""NameCache: what the kernel keeps of names that are gone, where it was not the kernel that took them away.

A name below bo/ is removed by the kernel, which forgets it. The folder in objects/ that stands for it is only known to
be gone here. The kernel would ask before it uses it again, but until memory is short it keeps the names in it, and so
the nodes and the BO behind them stay. INVAL_ENTRY makes it drop them.

The message waits for the folder's lock in the kernel, which is held across LOOKUP and READDIRPLUS: so it is written in
a thread, while the loop serves these.

The other way round, a name that no client has made (`ctl/import`) moves the times of a folder, which the kernel keeps.
"""

from typing import Final

import trio

from ttmfs.driver.entries import Dentry, Folder
from ttmfs.fs.inodes import Inodes
from ttmfs.fs.mirrors import dentry_key, folder_key
from ttmfs.fs.notify import SessionFd

_AT_ONCE: Final = 1000
_ATTRIBUTES: Final = b""
"""Stands where a name would: the attributes of the folder itself."""


class NameCache:
    """Drops the mirrors of names that are gone. Make it on the loop's thread and start `run`."""

    def __init__(self, session: SessionFd, inodes: Inodes) -> None:
        self._session = session
        self._inodes = inodes
        self._work: list[tuple[int, bytes]] = []
        self._wanted = trio.Event()
        self._limiter = trio.CapacityLimiter(1)

    def gone(self, dentry: Dentry) -> None:
        """A name was taken away, or means something else now. Costs nothing if the kernel does not know its mirror."""
        folder = self._inodes.find(folder_key(dentry.folder))
        if folder is not None and self._inodes.find(dentry_key(dentry)) is not None:
            self._note(folder, dentry.name)

    def changed(self, folder: Folder) -> None:
        """The times of a folder moved, and not because a client made a name there."""
        if folder.known:
            self._note(folder.ino, _ATTRIBUTES)

    def _note(self, folder: int, name: bytes) -> None:
        self._work.append((folder, name))
        self._wanted.set()

    async def run(self) -> None:
        """Send what was noted, until cancelled."""
        while True:
            await self._wanted.wait()
            batch, self._work = self._work[:_AT_ONCE], self._work[_AT_ONCE:]
            if not self._work:
                self._wanted = trio.Event()
            await trio.to_thread.run_sync(self._send, batch, limiter=self._limiter, abandon_on_cancel=True)

    def _send(self, batch: list[tuple[int, bytes]]) -> None:
        for folder, name in batch:
            if name == _ATTRIBUTES:
                self._session.invalidate_inode(folder, -1)
            else:
                self._session.invalidate_entry(folder, name)
