"""What has changed between two maps: their figures, and who has more pages or fewer."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ttm_tools.errors import NO_MOUNT, MountError

Figures = dict[str, Any]
"""What `ttm-map --json` says of a region."""

FIGURES: Final = (
    "used_bytes",
    "free_pages",
    "free_runs",
    "largest_free_run_pages",
    "unusable_for_order_9",
    "used_in_order_9",
)


@dataclass(frozen=True, slots=True)
class Change:
    """Something of a region that is another value now. `what` is `figure`, `bo` (pages) or `order` (pages)."""

    region: str
    what: str
    name: str
    before: float
    after: float

    @property
    def by(self) -> float:
        """By how much."""
        return round(self.after - self.before, 4)


def read(path: str) -> dict[str, Figures]:
    """Figures by region, from a file that `ttm-map --json` wrote. OSError, or MountError when it is another file."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = file.read().splitlines()
    try:
        found = {str(value["region"]): value for value in map(json.loads, lines)}
        compare(found, found)
    except (ValueError, TypeError, KeyError, AttributeError):
        found = {}
    if not found:
        raise MountError(f"{path} is not what `ttm-map --json > {path}` writes", NO_MOUNT)
    return found


def compare(before: dict[str, Figures], after: dict[str, Figures]) -> list[Change]:
    """What differs, region by region; of BOs and orders what changed most first. A region that is new was empty."""
    changes: list[Change] = []
    for region, now in after.items():
        was = before.get(region, {})
        pairs = [("figure", key, was.get(key, 0), now[key]) for key in FIGURES]
        for what in ("bo", "order"):
            one, other = was.get(f"pages_by_{what}", {}), now[f"pages_by_{what}"]
            one, other = ({str(key): pages for key, pages in side.items()} for side in (one, other))
            names = sorted({*one, *other}, key=lambda name: (-abs(other.get(name, 0) - one.get(name, 0)), name))
            pairs += [(what, name, one.get(name, 0), other.get(name, 0)) for name in names]
        changes += [Change(region, what, name, old, new) for what, name, old, new in pairs if old != new]
    return changes


def rows(changes: Iterable[Change]) -> list[tuple[str, ...]]:
    """As a table: region, what, name, before, after, change."""
    return [(each.region, each.what, each.name, str(each.before), str(each.after), f"{each.by:+}") for each in changes]
