"""Groups: what each has of each region, and what protects and bounds it there (the dmem controller), from `stats`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

COLUMNS: Final = (
    "current", "peak", "min", "low", "effective_min", "effective_low", "max", "evictions", "low_events", "max_events",
)  # fmt: skip
"""What stats says of a group in a region, in order; bytes, and the last three counts."""
COUNTS: Final = frozenset(COLUMNS[-3:])


@dataclass(frozen=True, slots=True)
class Share:
    """A group's part of a region. `values` has COLUMNS, `size` is that of the region."""

    group: str
    region: str
    size: int
    values: dict[str, int]

    @property
    def quiet(self) -> bool:
        """Has it nothing there, and does nothing protect or bound it?"""
        values = self.values
        return not any(values[key] for key in ("current", "min", "low")) and values["max"] >= self.size

    def row(self) -> list[Any]:
        """Group, region, and COLUMNS."""
        return [self.group, self.region, *(self.values[column] for column in COLUMNS)]


def shares(stats: dict[str, Any]) -> Iterator[Share]:
    """All of them, a group after those above it."""
    regions = stats.get("regions", {})
    for group, parts in stats.get("groups", {}).items():
        for region, values in parts.items():
            yield Share(group, region, regions.get(region, {}).get("size", 0), values)


def grouped(stats: dict[str, Any]) -> bool:
    """Are there any beside the root?"""
    return len(stats.get("groups", {})) > 1
