"""Asker: the process that the running task works for: who opened what it reads, writes or commands.

FUSE says who asks. What serves a request says so here before it may have to wait; what is reached on its behalf (fault
injection, the trace) asks here. Tasks of the device itself (engines, reclaim in the background) work for nobody: 0.
"""

from contextvars import ContextVar
from typing import Final

ASKER: Final[ContextVar[int]] = ContextVar("ttmfs_asker", default=0)
"""A process id in the daemon's own pid namespace."""
