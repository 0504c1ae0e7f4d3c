"""Opening: one OPEN of a virtual file: who asks, by the ids that the kernel gave with it, and for what."""

import os
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Opening:
    """`uid` and `gid` are file-system ids in the daemon's own user namespace, `flags` those of open(2)."""

    pid: int
    uid: int
    gid: int
    flags: int

    @property
    def reads(self) -> bool:
        """May what is opened be read?"""
        return self.flags & os.O_ACCMODE != os.O_WRONLY


JUST_LOOKING: Final = Opening(0, 0, 0, os.O_RDONLY)
"""Nobody's: what is opened is only looked at here, for its size."""
