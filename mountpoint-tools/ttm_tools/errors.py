"""What can go wrong with a mount, as exceptions whose text a person can act on."""

import errno
from typing import Final

NO_MOUNT: Final = 2
"""Exit status: MNT is no ttmfs mount, or it is not clear which one is meant."""

FAILED: Final = 1
"""Exit status: the mount is there, but could not do it."""


class MountError(Exception):
    """A mount cannot be used. `status` is the exit status of a program that ends with it; `hung` says that it did not
    answer in time, and may yet.
    """

    def __init__(self, message: str, status: int = FAILED, *, hung: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.hung = hung


class CommandFailed(OSError):  # noqa: N818 - it says what happened
    """A command, a read or a write was refused by the device: `errno`, and in `strerror` the device's own sentence.

    `code` is the errno's name, `why` the sentence; as text it is `ENOMEM: no room ...`.
    """

    def __init__(self, code: str, why: str) -> None:
        super().__init__(getattr(errno, code, errno.EIO), why)
        self.code = code
        self.why = why

    def __str__(self) -> str:
        return f"{self.code}: {self.why}"
