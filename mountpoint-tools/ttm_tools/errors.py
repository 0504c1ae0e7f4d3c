"""What can go wrong with a mount, as one exception whose text a person can act on."""

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


class CommandFailed(Exception):  # noqa: N818 - it says what happened
    """A command was refused by the device. `code` is the errno's name, `why` the device's own words."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code = code
        self.why = why
