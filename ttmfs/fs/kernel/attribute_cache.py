"""KernelAttributes: attributes that the kernel caches, and that are not true any more, are dropped from its cache.

The message (INVAL_INODE with a negative offset) touches no page and waits for no request. It may wait behind an
unmount, so it is written in a thread; one of its own, because those of PageCache may all be waiting for pages.
"""

import logging
from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.fs.kernel.inval import SessionFd
from ttmfs.fs.kernel.sure_thread import SureThread
from ttmfs.sync.bell import Bell

log = logging.getLogger(__name__)

_ATTRIBUTES_ONLY: Final = -1
_AT_ONCE: Final = 1024


class KernelAttributes:
    """The AttributeCache of a mount. Make it on the loop's thread and start `run`."""

    def __init__(self, session: SessionFd) -> None:
        self._session = session
        self._threads = SureThread("ttmfs-attributes", 1)
        self._changed: dict[int, None] = {}
        self._reported = self._dropped = 0
        self._wanted = Bell()
        self._progress = trio.lowlevel.ParkingLot()

    def changed(self, ino: int) -> None:
        """See ttmfs.driver.shown.AttributeCache."""
        self._changed[ino] = None
        self._reported += 1
        self._wanted.ring()

    async def settle(self) -> None:
        """See ttmfs.driver.shown.AttributeCache."""
        reported = self._reported
        while self._dropped < reported:
            await self._progress.park()

    async def run(self) -> None:
        """Tell the kernel what `changed` has noted, until cancelled."""
        while True:
            await self._wanted.heard()
            batch, self._changed, reported = list(self._changed), {}, self._reported
            for first in range(0, len(batch), _AT_ONCE):
                part = batch[first : first + _AT_ONCE]
                await self._threads.run(self._drop, part, abandon_on_cancel=True)
            self._dropped = reported
            self._progress.unpark_all()

    def _drop(self, inos: list[int]) -> None:
        for ino in inos:
            try:
                self._session.invalidate_inode(ino, _ATTRIBUTES_ONLY)
            except TtmError as error:
                log.warning("%s", error.message)
