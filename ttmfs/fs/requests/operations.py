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
from ttmfs.ttm.at_once import Buffer


class Operations(pyfuse3.Operations):
    """What pyfuse3 calls."""

    enable_writeback_cache = False
    enable_acl = False
    supports_dot_lookup = False

    def __init__(self, served: Served) -> None:
        super().__init__()
        replies, opens = Replies(served), OpenRequests(served)
        self.data = DataRequests(served)
        self.parts = (
            InodeRequests(served, replies),
            opens,
            NameRequests(served, replies, opens),
            ListRequests(served, replies),
            self.data,
        )
        self.take_parts()

    def take_parts(self) -> None:
        """Answer every request with the part that has it: a call of pyfuse3 goes there without a detour."""
        for part in self.parts:
            vars(self).update(requests_of(part))

    def before_next(self, call: Callable[[], None]) -> None:
        """The first thing that happens when pyfuse3 next asks for an answer is `call`."""

        def after_call(answer: Callable[..., Any]) -> Callable[..., Any]:
            def called(*arguments: Any) -> Any:
                self.take_parts()
                call()
                return answer(*arguments)

            return called

        for part in self.parts:
            vars(self).update({name: after_call(answer) for name, answer in requests_of(part).items()})

    def read_at_once(self, fh: int, off: int, size: int) -> Buffer | None:
        """See DataRequests."""
        return self.data.read_at_once(fh, off, size)

    def write_at_once(self, fh: int, off: int, data: Buffer) -> bool:
        """See DataRequests."""
        return self.data.write_at_once(fh, off, data)


def requests_of(part: object) -> dict[str, Callable[..., Any]]:
    """The requests that `part` answers, by pyfuse3's names."""
    names = [name for name in vars(pyfuse3.Operations) if not name.startswith("_")]
    return {name: getattr(part, name) for name in names if callable(getattr(part, name, None))}
