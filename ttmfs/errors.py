"""The one exception family of ttmfs: an errno and a sentence that a person can act on.

Raised where the trouble is found; turned into a FUSE reply, a JSON result and a line of `error_log` at one
place (`ttmfs.fs`). The codes are the kernel's own, at the kernel's own places.
"""

import errno as _errno


class TtmError(OSError):
    """A failed TTM call: `errno` says what kind, the message says why and what to do.

    >>> TtmError(errno.ENOMEM, "vram is full: evict something first").errno
    12
    """

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(errno, message)

    @property
    def name(self) -> str:
        """The errno's symbolic name, as in `ENOMEM`."""
        return _errno.errorcode.get(self.errno or 0, str(self.errno))

    @property
    def message(self) -> str:
        """The sentence, without the number that OSError's `str` puts before it."""
        return str(self.strerror)
