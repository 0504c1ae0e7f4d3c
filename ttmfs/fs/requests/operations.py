"""Operations: all FUSE requests of one mount, each answered by the part that knows how.

A part is a class of its own that needs no mount: it is made of what is served, and of the parts that it uses. Its
methods that have the name of a request are those requests.
"""

from collections.abc import Callable
from typing import Any

import pyfuse3

from ttmfs.fs.requests.inode import InodeRequests
from ttmfs.fs.requests.list import ListRequests
from ttmfs.fs.requests.name import NameRequests
from ttmfs.fs.requests.open import OpenRequests
from ttmfs.fs.requests.read_write import DataRequests
from ttmfs.fs.requests.replies import Replies
from ttmfs.fs.requests.served import Served


class Operations(pyfuse3.Operations):
    """What pyfuse3 calls."""

    enable_writeback_cache = False
    enable_acl = False
    supports_dot_lookup = False

    def __init__(self, served: Served) -> None:
        super().__init__()
        replies, opens = Replies(served), OpenRequests(served)
        self._data = DataRequests(served)
        self.parts = (
            InodeRequests(served, replies),
            opens,
            NameRequests(served, replies, opens),
            ListRequests(served, replies),
            self._data,
        )
        self.take_parts()
        self._trace = served.ttm.trace
        self._trace.watch(self._trace_switched)

    def take_parts(self) -> None:
        """Answer every request with the part that has it: a call of pyfuse3 goes there without a detour."""
        for part in self.parts:
            vars(self).update(requests_of(part))

    def _trace_switched(self) -> None:
        """While faults are traced another handler answers READs, so that tracing that is off costs them nothing."""
        vars(self)["read"] = self._data.read_traced if self._trace.wants("fault") else self._data.read


def requests_of(part: object) -> dict[str, Callable[..., Any]]:
    """The requests that `part` answers, by pyfuse3's names."""
    names = [name for name in vars(pyfuse3.Operations) if not name.startswith("_")]
    return {name: getattr(part, name) for name in names if callable(getattr(part, name, None))}
