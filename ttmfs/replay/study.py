"""A study: what the command line asks for, as cells to run, and what came of it, as table, JSON or page."""

import errno
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ttmfs.errors import TtmError
from ttmfs.policy.parameters import split_list
from ttmfs.replay.formats import read_trace
from ttmfs.replay.html import page
from ttmfs.replay.rows import Row, cells, heads, shown_columns, table
from ttmfs.replay.sweep import Cell, Engine, Written, run_here, run_on_dask
from ttmfs.replay.trace import Trace
from ttmfs.units import PAGE_SIZE, format_size


@dataclass
class Study:
    """Traces, the cells to run, their rows in the same order, and what a reader should know besides."""

    traces: list[Trace]
    cells: list[Cell]
    notes: list[str]
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def plan(
        cls, paths: Sequence[str], sizes: Sequence[int], evict: str, prefetch: str, engine: str, block_bytes: int
    ) -> "Study":
        """Read the traces and find the policies. TtmError says what is wrong with which."""
        if engine not in ("sizes", "device"):
            raise TtmError(errno.EINVAL, f"{engine!r} is no engine: say sizes or device")
        kind: Engine = "device" if engine == "device" else "sizes"
        evictions = [Written.of(spec) for spec in split_list("evict", evict)]
        prefetches = [Written.of(spec) for spec in split_list("prefetch", prefetch)]
        traces = [read_trace(path, block_bytes) for path in paths]
        notes = []
        found = []
        for number, trace in enumerate(traces):
            notes += _notes(trace, prefetch)
            regions = sizes or (_half(trace),)
            if not sizes:
                notes.append(f"{trace.name}: no --size, so the region has {format_size(regions[0])}, half of its BOs")
            found += [Cell(number, e, p, size, kind) for size in regions for p in prefetches for e in evictions]
        return cls(traces, found, notes)

    def run(self, jobs: int, dask: str | None) -> None:
        """All cells, on this machine or a Dask cluster; a terminal sees how far it is."""
        rows: dict[int, Row] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("replay", total=len(self.cells))
            done = (
                run_here(self.traces, self.cells, jobs) if dask is None else run_on_dask(self.traces, self.cells, dask)
            )
            for number, row in done:
                rows[number] = row
                progress.advance(task)
        self.rows = [rows[number] for number in range(len(self.cells))]

    def write_html(self, path: str) -> None:
        """One file that needs no other. TtmError: what open says, or ENOENT without matplotlib."""
        text = page(self.traces, self.rows, self.notes + self._failures())
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise TtmError(error.errno or errno.EIO, f"{path}: {error.strerror}") from None

    def show(self, *, as_json: bool) -> None:
        """To standard output; notes go to standard error."""
        for note in self.notes + self._failures():
            click.echo(f"ttmfs: {note}", err=True)
        if as_json:
            click.echo(json.dumps({"rows": [row.as_dict() for row in self.rows]}))
        elif sys.stdout.isatty():
            Console(highlight=False, markup=False).print(table(self.rows))
        else:
            shown = shown_columns(self.rows)
            for values in (heads(), *map(cells, self.rows)):
                click.echo("\t".join(values[number] for number in shown))

    def _failures(self) -> list[str]:
        found = []
        for row in self.rows:
            of = f"{row.evict} with {row.prefetch} in {format_size(row.size)} of {row.trace}"
            if row.ejected:
                found.append(f"{of}: ejected, {row.ejected}: the row is of what came after it too")
            if row.differs and row.evict == "lru":
                found.append(f"{of}: {row.differs}")
            if row.too_large:
                found.append(f"{of}: {row.too_large} requests are for more than the region can hold")
        return found


def _half(trace: Trace) -> int:
    """Half of the footprint, whole pages where BOs are that large."""
    half = max(trace.footprint // 2, 1)
    return half if half < PAGE_SIZE else half // PAGE_SIZE * PAGE_SIZE


def _notes(trace: Trace, prefetch: str) -> list[str]:
    found = []
    if trace.skipped:
        found.append(f"{trace.name}: {trace.skipped} lines are no events that say which BO is used")
    if trace.first is None and prefetch != "none":
        found.append(f"{trace.name}: its requests name whole BOs, so a prefetch policy has nothing to bring in besides")
    return found
