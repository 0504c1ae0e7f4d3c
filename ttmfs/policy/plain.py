"""PlainBO: a BO view that is nothing but its values. For replay, and for tests of one's own policies.

Its owner writes the fields with the underscore; a policy has the read-only names.
"""

from operator import attrgetter
from typing import Any

from ttmfs.policy.api import BO


def _read(field: str) -> Any:
    return property(attrgetter(field))


class PlainBO(BO):
    """A BO of `size` bytes in `region`."""

    __slots__ = (
        "_client",
        "_group",
        "_last_use",
        "_name",
        "_pinned",
        "_priority",
        "_region",
        "_size",
        "_uses",
    )

    def __init__(
        self,
        name: str,
        size: int,
        *,
        region: str = "",
        priority: int = 1,
        group: str = "",
        client: str = "",
        pinned: bool = False,
    ) -> None:
        self._name = name
        self._size = size
        self._region = region
        self._priority = priority
        self._group = group
        self._client = client
        self._pinned = pinned
        self._uses = self._last_use = 0

    name = _read("_name")
    size = _read("_size")
    region = _read("_region")
    priority = _read("_priority")
    group = _read("_group")
    client = _read("_client")
    pinned = _read("_pinned")
    uses = _read("_uses")
    last_use = _read("_last_use")

    def __repr__(self) -> str:
        return f"<BO {self._name}, {self._size} bytes, {self._region or 'nowhere'}>"
