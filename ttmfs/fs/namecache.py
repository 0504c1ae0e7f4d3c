"""NameCache: what the kernel keeps of names that are gone, where it was not the kernel that took them away.

A name below bo/ is removed by the kernel, which forgets it. The folder in objects/ that stands for it is only known to
be gone here. The kernel would ask before it uses it again, but until memory is short it keeps the names in it, and so
the nodes and the BO behind them stay. INVAL_ENTRY makes it drop them.

The message waits for the folder's lock in the kernel, which is held across LOOKUP and READDIRPLUS: so it is written in
a thread, while the loop serves these.
"""

from typing import Final

import trio

from ttmfs.driver.entries import Dentry
from ttmfs.fs.inodes import Inodes
from ttmfs.fs.mirrors import dentry_key, folder_key
from ttmfs.fs.notify import SessionFd

_AT_ONCE: Final = 1000


class NameCache:
    """Drops the mirrors of names that are gone. Make it on the loop's thread and start `run`."""

    def __init__(self, session: SessionFd, inodes: Inodes) -> None:
        self._session = session
        self._inodes = inodes
        self._gone: list[tuple[int, bytes]] = []
        self._wanted = trio.Event()
        self._limiter = trio.CapacityLimiter(1)

    def gone(self, dentry: Dentry) -> None:
        """A name was taken away, or means something else now. Costs nothing if the kernel does not know its mirror."""
        folder = self._inodes.find(folder_key(dentry.folder))
        if folder is not None and self._inodes.find(dentry_key(dentry)) is not None:
            self._gone.append((folder, dentry.name))
            self._wanted.set()

    async def run(self) -> None:
        """Send what `gone` has noted, until cancelled."""
        while True:
            await self._wanted.wait()
            batch, self._gone = self._gone[:_AT_ONCE], self._gone[_AT_ONCE:]
            if not self._gone:
                self._wanted = trio.Event()
            await trio.to_thread.run_sync(self._drop, batch, limiter=self._limiter, abandon_on_cancel=True)

    def _drop(self, batch: list[tuple[int, bytes]]) -> None:
        for folder, name in batch:
            self._session.invalidate_entry(folder, name)
