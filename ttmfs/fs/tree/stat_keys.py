"""The keys of `stats`: one table, from which docs/STATS.md and the names of `metrics` come.

A key is a path with `.` between its parts; `*` stands for a name (a region; of `groups` a group, then a
region). Keys are never renamed or given another unit: SCHEMA rises if that must ever be.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

SCHEMA: Final = 1
"""Version of the keys: `schema` in stats."""

COUNTER: Final = "counter"
GAUGE: Final = "gauge"


@dataclass(frozen=True, slots=True)
class Key:
    """`unit`: bytes, pages, ms, or what is counted. `kind`: counter (only rises) or gauge, "" for what is no number."""

    unit: str
    kind: str
    does: str

    @property
    def metric_unit(self) -> str:
        """The unit in `metrics`, which has base units only; "" for what is counted."""
        return {"bytes": "bytes", "ms": "seconds", "ratio": "ratio"}.get(self.unit, "")

    def metric_value(self, value: float) -> float:
        """A number of `stats` in that unit."""
        return value / 1000 if self.unit == "ms" else value


def _section(prefix: str, **keys: tuple[str, str, str]) -> dict[str, Key]:
    return {f"{prefix}.{name}": Key(*facts) for name, facts in keys.items()}


KEYS: Final[Mapping[str, Key]] = {
    "version": Key("text", "", "Version of ttmfs."),
    "schema": Key("number", "", "Version of these keys."),
    **_section(
        "state",
        suspended=("yes or no", "", "Every BO is in system and the device does no work."),
        unplugged=("yes or no", "", "The device is gone."),
        engines_paused=("yes or no", "", "debug/pause_engine holds the copy engines."),
        injecting=("places", "", "Where debug/fail_* is armed; a list."),
        policies=("policies", "", "Who is in office, as the words that chose it: `evict vram fifo`; a list."),
        tracing=("events", "", "What is recorded: off, all, or the events."),
        says=("phrases", "", "All of this in words, a phrase for each that is out of the ordinary; a list."),
    ),
    **_section(
        "regions.*",
        size=("bytes", GAUGE, "Size of the region; of system: all memory."),
        used=("bytes", GAUGE, "How much is taken; of system: all memory that BOs hold, of gtt too."),
        visible_size=("bytes", GAUGE, "What of the size the CPU can reach."),
        visible_used=("bytes", GAUGE, "What of that is taken."),
        usage=("bytes", GAUGE, "What the region's manager counts: in system BOs with their holes."),
        bos=("BOs", GAUGE, "BOs that have space there, ghosts and moves under way included."),
    ),
    **_section(
        "pool",
        in_use_pages=("pages", GAUGE, "Pages of system memory that BOs hold."),
        pooled_pages=("pages", GAUGE, "Freed pages that stay in the pool."),
        limit_pages=("pages", GAUGE, "How many may stay there."),
        populated_limit_pages=("pages", GAUGE, "Populated pages beyond which others are swapped out first."),
        free_by_order=("blocks", GAUGE, "Free blocks by order, 0 to 10; a list."),
    ),
    **_section(
        "swap",
        store=("text", "", "The swap store: shmem, file, zstd, or none."),
        size=("bytes", GAUGE, "What the store may take, as stored."),
        used=("bytes", GAUGE, "What it holds, as stored."),
        pages=("pages", GAUGE, "Pages that it holds."),
        ratio=("ratio", GAUGE, "Bytes of those pages by bytes stored."),
        on_disk=("bytes", GAUGE, "What the store takes on a disk."),
        waste=("slots", GAUGE, "Free slots that still take memory or disk."),
        pages_out=("pages", COUNTER, "Pages written to it."),
        pages_in=("pages", COUNTER, "Pages read from it."),
    ),
    **_section(
        "users",
        count=("users", GAUGE, "Users who have something that is counted."),
        refused=("attempts", COUNTER, "What was refused (EDQUOT) for a user's limit."),
    ),
    **_section(
        "groups.*.*",
        current=("bytes", GAUGE, "What the group and those below it have of a region."),
        peak=("bytes", GAUGE, "The most that they ever had."),
        max=("bytes", GAUGE, "The most that they may have; without a limit, all that there is."),
        min=("bytes", GAUGE, "So much is never evicted for others."),
        low=("bytes", GAUGE, "So much goes only when nothing unprotected is left."),
        effective_min=("bytes", GAUGE, "What those above and beside it leave of min."),
        effective_low=("bytes", GAUGE, "What they leave of low."),
        low_events=("BOs", COUNTER, "BOs of it that went although low protected them."),
        max_events=("times", COUNTER, "Times that its max was met."),
        evictions=("BOs", COUNTER, "BOs of it that were evicted."),
    ),
    **_section(
        "bos",
        count=("BOs", GAUGE, "BO files, unlinked but open ones included."),
        ghosts=("BOs", GAUGE, "What moves left behind until their fences signal."),
        zombies=("BOs", GAUGE, "Deleted BOs that are still busy."),
    ),
    **_section(
        "reservations",
        edeadlk=("locks", COUNTER, "Tickets that had to back off."),
        slow_locks=("locks", COUNTER, "Locks taken again after that."),
        contended=("locks", COUNTER, "Locks that somebody held."),
        ticketed_waits=("locks", COUNTER, "Waits under a ticket."),
    ),
    **_section(
        "swapout",
        bos_out=("BOs", COUNTER, "BOs swapped out whole."),
        failed=("BOs", COUNTER, "Attempts that failed."),
    ),
    **_section(
        "faults",
        count=("faults", COUNTER, "READs of BO files that were answered."),
        pages=("pages", COUNTER, "Pages that they named."),
        prefault_pages=("pages", COUNTER, "Pages populated beyond those."),
        retries=("faults", COUNTER, "Times that a fault met a reserved BO."),
        errors=("faults", COUNTER, "READs and WRITEs that had to wait and failed."),
        max_ms=("ms", GAUGE, "The longest of those that could not be answered at once."),
        window_moves=("moves", COUNTER, "Moves into the CPU's reach for a fault."),
    ),
    **_section(
        "requests",
        read=("requests", COUNTER, "READs of BO files."),
        write=("requests", COUNTER, "WRITEs."),
        read_bytes=("bytes", COUNTER, "Bytes answered."),
        write_bytes=("bytes", COUNTER, "Bytes taken."),
        handler_errors=("requests", COUNTER, "Requests that failed in a way that nobody foresaw."),
        write_errors=("requests", COUNTER, "WRITEs that failed."),
        waiting=("requests", GAUGE, "READs and WRITEs that wait now."),
        oldest_ms=("ms", GAUGE, "For how long the oldest of them does."),
        invals=("messages", COUNTER, "Invalidations of clients' page caches."),
    ),
    **_section(
        "moves",
        count=("moves", COUNTER, "Moves of BOs; a bounce counts as two."),
        bytes=("bytes", COUNTER, "What they moved."),
        evictions=("BOs", COUNTER, "BOs evicted."),
        cleared=("bytes", COUNTER, "Zeroed for fresh BOs: what was not zero already."),
        exchanged=("bytes", COUNTER, "Of these, in frames of 2 MiB that changed hands instead of being copied."),
        failed=("moves", COUNTER, "Moves that failed."),
        promotions=("BOs", COUNTER, "BOs that came home by themselves (policies/promote)."),
        unmaps=("calls", COUNTER, "Times that a BO's cached pages were dropped."),
    ),
    **_section(
        "fences",
        emitted=("fences", COUNTER, "Fences made by engines."),
        signaled=("fences", COUNTER, "Those that have signaled."),
        pending=("fences", GAUGE, "Those that have not."),
    ),
    **_section(
        "backup",
        pages_out=("pages", COUNTER, "Pages written to the store."),
        pages_in=("pages", COUNTER, "Pages restored."),
        purged_pages=("pages", COUNTER, "Pages dropped without storing them."),
        failed=("BOs", COUNTER, "Backups that stopped half way."),
        shrinks=("calls", COUNTER, "Runs of the shrinker."),
    ),
    **_section(
        "defrag",
        runs=("passes", COUNTER, "Passes of the worker."),
        moved=("BOs", COUNTER, "BOs re-backed."),
        failed=("BOs", COUNTER, "Attempts that failed."),
        listed=("BOs", GAUGE, "BOs on its list."),
    ),
    **_section(
        "vms",
        count=("VMs", GAUGE, "VMs: folders in vm/."),
        mappings=("mappings", GAUGE, "What is bound in them."),
        local_bos=("BOs", GAUGE, "BOs that share the reservation of a VM."),
        execs=("jobs", COUNTER, "Jobs of VMs."),
        rebound=("BOs", COUNTER, "Bound BOs that had to come back, or be found anew, for such a job."),
        userptrs=("pieces", GAUGE, "Pieces of other files that are bound in them."),
        pinned_files=("files", GAUGE, "Those whose file is open."),
    ),
    **_section(
        "svm",
        spaces=("spaces", GAUGE, "Shared address spaces."),
        ranges=("ranges", GAUGE, "Ranges in them."),
        system_pages=("pages", GAUGE, "System pages that they have."),
        backed_up_pages=("pages", GAUGE, "Pages of theirs that are in the swap store."),
        migrations_in=("ranges", COUNTER, "Ranges that went to the device."),
        migrations_out=("ranges", COUNTER, "Ranges that came back."),
        migrations_failed=("ranges", COUNTER, "Migrations whose copy failed."),
        migrations_busy=("ranges", COUNTER, "Migrations that were put off because their pages were busy."),
        bytes_in=("bytes", COUNTER, "Bytes that went to the device."),
        bytes_out=("bytes", COUNTER, "Bytes that came back."),
        gpu_faults=("faults", COUNTER, "Faults of the device."),
        gpu_restarts=("faults", COUNTER, "Times that such a fault started over."),
        gpu_jobs=("jobs", COUNTER, "Accesses of the device."),
        mixed=("faults", COUNTER, "Ranges met half in system and half in VRAM."),
        cpu_faults=("faults", COUNTER, "READs of svm files: touches by the CPU."),
        cpu_fault_pages=("pages", COUNTER, "Pages that they named."),
        served_in_place=("pieces", COUNTER, "Pieces in VRAM that were answered without moving."),
        writes=("requests", COUNTER, "WRITEs of svm files."),
        invalidations=("calls", COUNTER, "Times that the device had to forget a range."),
        unmaps=("calls", COUNTER, "Times that cached pages of a range were dropped."),
        evictions=("BOs", COUNTER, "Allocations of ranges that were evicted from VRAM."),
        alloc_failures=("BOs", COUNTER, "Ranges that found no VRAM."),
        alloc_retries=("BOs", COUNTER, "Times that this was tried again."),
    ),
    **_section(
        "trace",
        recorded=("events", COUNTER, "Events recorded."),
        dropped=("events", COUNTER, "Those that fell out of the full ring before they were consumed."),
        buffered=("events", GAUGE, "Those in the ring."),
    ),
}

OPTIONAL: Final = frozenset({"swap", "requests.invals"})
"""Sections and keys that a device may do without."""


def leaves(stats: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything that is no object."""
    for name, value in stats.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from leaves(value, path + ".")
        else:
            yield path, value


_LABELS: Final[Mapping[str, tuple[str, ...]]] = {"regions.*": ("region",), "groups.*.*": ("group", "region")}
"""What the `*` of a section stand for. Only the first name may have a `.` in it."""


def labels_of(key: str) -> tuple[str, ...]:
    """What the `*` of one of KEYS stand for, in order."""
    return _LABELS.get(key.rpartition(".")[0], ())


def key_of(path: str) -> tuple[str, tuple[str, ...]]:
    """(the table's key of a path, the names that its `*` stand for)."""
    if path in KEYS:
        return path, ()
    section, _, rest = path.partition(".")
    for pattern, labels in _LABELS.items():
        names = rest.rsplit(".", len(labels))
        if pattern.partition(".")[0] == section and len(names) == len(labels) + 1:
            return f"{pattern}.{names[-1]}", tuple(names[:-1])
    return path, ()


def metric_name(path: str) -> str:
    """The metric of one of KEYS: its parts joined by `_`, the unit last where it has one (`regions.*.used`:
    `ttmfs_regions_used_bytes`); a counter's samples have `_total` besides. A gauge does not end in `_count`, which is a
    histogram's word: `bos.count` is `ttmfs_bos`."""
    section, _, name = path.rpartition(".")
    if name == "count" and KEYS[path].kind == GAUGE:
        name = ""
    unit = KEYS[path].metric_unit
    if unit:
        words = [word for word in name.split("_") if word not in (unit, "ms")]
        name = "_".join([*words, unit])
    return "_".join(filter(None, ("ttmfs", section.replace(".*", "").replace(".", "_"), name)))


def _metric_cell(path: str) -> str:
    total = "_total" if KEYS[path].kind == COUNTER else ""
    return f"`{metric_name(path)}{total}`" if KEYS[path].kind else "-"


def markdown() -> str:
    """docs/STATS.md."""
    lines = [
        "# stats and metrics",
        "",
        "`stats` is one JSON object; this is every key of it. `*` stands for the name of a region; in `groups` the "
        "first is a group, and `/` the root. Counters only rise "
        "while the mount lives. A key whose part this device has not is absent. No key is ever renamed or given "
        f"another unit; `schema` ({SCHEMA}) would say so.",
        "",
        "`metrics` has the same as OpenMetrics text, in base units (bytes, seconds), which its names end in: "
        "`regions.*.used` is `ttmfs_regions_used_bytes{region=\"vram\"}`, a counter's samples end in `_total`. "
        "Besides, there are histograms:",
        "",
        "| metric | unit | what is observed |",
        "|---|---|---|",
        "| `ttmfs_fault_latency_seconds` | s | READs and WRITEs that could not be answered at once, until their "
        "answer; those that can are not timed |",
        "| `ttmfs_gate_wait_seconds` | s | each time that a READ or WRITE was parked on its BO |",
        "| `ttmfs_move_bytes` | bytes | each move of a BO |",
        "",
        "| key | unit | kind | meaning | metric |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {key.unit} | {key.kind or '-'} | {key.does} | {_metric_cell(name)} |"
        for name, key in KEYS.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
