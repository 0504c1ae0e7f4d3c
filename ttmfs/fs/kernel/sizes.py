"""KernelSizes: a text that is opened is as long for the kernel as it is.

The kernel asks for the attributes of a text (GETATTR), opens it, and does not ask again unless its opener does:
sendfile, splice and copy_file_range end where the text ended that was there before. A text that is shorter by then
needs nothing, its READ is answered short; one that has grown is told to the kernel before OPEN is answered.
"""

import logging
from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.fs.kernel.inval import SessionFd

log = logging.getLogger(__name__)

_THREADS: Final = 2


class KernelSizes:
    """Of one mount. Make it on the loop's thread."""

    def __init__(self, session: SessionFd) -> None:
        self._session = session
        self._limiter = trio.CapacityLimiter(_THREADS)
        """An own one: the threads of others may all be waiting for pages."""

    async def extend(self, ino: int, size_bytes: int) -> None:
        """Text file `ino`, whose OPEN is not answered yet, is so many bytes long, which is more than the kernel was
        told. READs of the file are to be served meanwhile.
        """
        try:
            await trio.to_thread.run_sync(self._session.extend, ino, size_bytes, limiter=self._limiter)
        except TtmError as error:
            log.warning("%s", error.message)
        except RuntimeError as error:
            log.warning("no thread to tell the kernel a size: %s", error)
