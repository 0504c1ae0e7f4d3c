"""What the actors in the chaos of a mount ask of the run."""

from pathlib import Path
from typing import Protocol

from tests.mount.mount_harness import Client

MAY_FAIL = "EIO,ENOMEM,ENOSPC"
"""What a call on a BO file may say when something was made to fail."""


class Run(Protocol):
    """A run: see chaos.py."""

    folder: Path
    inject: bool
    seconds: float

    def client(self) -> Client: ...
    def count(self, what: str, more: int = 1) -> None: ...
    def going_on(self) -> bool: ...
    def sleep(self, seconds: float) -> None: ...
