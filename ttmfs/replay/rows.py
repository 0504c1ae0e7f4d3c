"""A row of results: one trace under one eviction and one prefetch policy in a region of one size."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from ttmfs.units import format_size


@dataclass(slots=True)
class Counts:
    """What an engine counts; see Row."""

    requests: int = 0
    misses: int = 0
    bytes_requested: int = 0
    bytes_missed: int = 0
    bytes_moved: int = 0
    evictions: int = 0
    too_large: int = 0
    policy_ns: int = 0


@dataclass(slots=True)
class Row:
    """What came of it. Sizes are bytes.

    `bytes_requested`, `bytes_missed` are what the requests named, and what of it was not there. `bytes_moved` is what
    went into the region, prefetched or not, and out of it. `us` is the mean time a request spends in the policies'
    code, in microseconds. `too_large`: requests that can never fit. `ejected`: policies that failed, and why.
    `differs`: where the moves are others than those that were recorded, in words.
    """

    trace: str
    evict: str
    prefetch: str
    size: int
    engine: str
    requests: int
    hits: int
    misses: int
    bytes_requested: int
    bytes_missed: int
    bytes_moved: int
    evictions: int
    us: float
    too_large: int
    ejected: str
    differs: str = ""

    @classmethod
    def of(
        cls, trace: str, evict: object, prefetch: object, size: int, engine: str, counts: Counts, ejected: Iterable[str]
    ) -> "Row":
        """From what was counted. `evict` and `prefetch` are the policies as they were written."""
        return cls(
            trace=trace,
            evict=str(evict),
            prefetch=str(prefetch),
            size=size,
            engine=engine,
            requests=counts.requests,
            hits=counts.requests - counts.misses,
            misses=counts.misses,
            bytes_requested=counts.bytes_requested,
            bytes_missed=counts.bytes_missed,
            bytes_moved=counts.bytes_moved,
            evictions=counts.evictions,
            us=round(counts.policy_ns / 1e3 / counts.requests, 3),
            too_large=counts.too_large,
            ejected="; ".join(ejected),
        )

    @property
    def miss_ratio(self) -> float:
        """Of the requests."""
        return self.misses / self.requests if self.requests else 0.0

    @property
    def byte_miss_ratio(self) -> float:
        """Of the bytes that they name."""
        return self.bytes_missed / self.bytes_requested if self.bytes_requested else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def counts(self) -> tuple[Any, ...]:
        """All that is not time: the same wherever it is run."""
        return tuple(value for key, value in self.as_dict().items() if key != "us")


_COLUMNS: Mapping[str, str] = {
    "trace": "left",
    "evict": "left",
    "prefetch": "left",
    "size": "right",
    "requests": "right",
    "hits": "right",
    "miss ratio": "right",
    "byte miss ratio": "right",
    "moved": "right",
    "evictions": "right",
    "policy us": "right",
}


def cells(row: Row) -> list[str]:
    """A row as the table shows it."""
    return [
        row.trace,
        row.evict,
        row.prefetch,
        format_size(row.size),
        str(row.requests),
        str(row.hits),
        f"{row.miss_ratio:.4f}",
        f"{row.byte_miss_ratio:.4f}",
        short_size(row.bytes_moved),
        str(row.evictions),
        f"{row.us:.2f}",
    ]


def shown_columns(rows: Iterable[Row]) -> list[int]:
    """Numbers of the columns worth showing: no trace where there is but one, no prefetch where there is none."""
    found = list(rows)
    left_out = set()
    if len({row.trace for row in found}) < 2:
        left_out.add("trace")
    if {row.prefetch for row in found} <= {"none"}:
        left_out.add("prefetch")
    return [number for number, name in enumerate(_COLUMNS) if name not in left_out]


def heads() -> list[str]:
    """The names of all columns."""
    return list(_COLUMNS)


def table(rows: list[Row]) -> Table:
    """For a terminal."""
    shown = shown_columns(rows)
    found = Table(box=None, header_style="bold", pad_edge=False)
    names = heads()
    for number in shown:
        found.add_column(
            names[number], justify="left" if _COLUMNS[names[number]] == "left" else "right", overflow="fold"
        )
    for row in rows:
        values = cells(row)
        found.add_row(*(values[number] for number in shown))
    return found


def short_size(count: int) -> str:
    """Bytes to three digits: `1.35G`."""
    value = float(count)
    for suffix in ("", "K", "M", "G", "T"):
        if value < 1024 or suffix == "T":
            return f"{value:.3g}{suffix}" if suffix and value < 1000 else f"{value:.0f}{suffix}"
        value /= 1024
    raise AssertionError
