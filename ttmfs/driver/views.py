"""Views: BOs as policies see them, one for each BO for its life (see ttmfs.policy.api)."""

from typing import Protocol, runtime_checkable

from ttmfs.policy.api import BO
from ttmfs.ttm.bo import BufferObject


@runtime_checkable
class _Owned(Protocol):
    """What a BO with a client is named by."""

    @property
    def owner(self) -> str:
        """Whose it is."""


class View(BO):
    """A view of `bo`, which only the core uses. A policy may hold it when the BO is long gone."""

    __slots__ = ("bo",)

    def __init__(self, bo: BufferObject) -> None:
        self.bo = bo

    @property
    def name(self) -> str:
        """See BO."""
        return self.bo.name

    @property
    def size(self) -> int:
        """See BO."""
        return self.bo.size

    @property
    def priority(self) -> int:
        """See BO."""
        return self.bo.priority

    @property
    def group(self) -> str:
        """See BO."""
        return self.bo.group.live.name

    @property
    def client(self) -> str:
        """See BO."""
        named = self.bo.named
        return named.owner if isinstance(named, _Owned) else ""

    @property
    def region(self) -> str:
        """See BO."""
        resource = self.bo.resource
        return "" if resource is None or self.bo.deleted else resource.mem_type

    @property
    def pinned(self) -> bool:
        """See BO."""
        return self.bo.pin_count > 0

    @property
    def uses(self) -> int:
        """See BO."""
        return self.bo.uses

    @property
    def last_use(self) -> int:
        """See BO."""
        return self.bo.last_use

    def __repr__(self) -> str:
        return f"<BO {self.name}, {self.size} bytes, {self.region or 'nowhere'}>"


def view_of(bo: BufferObject) -> View:
    """The view of a BO."""
    view = bo.view
    if not isinstance(view, View):
        view = bo.view = View(bo)
    return view
