"""A sweep: every trace under every eviction policy, prefetch policy and size, on all processors or a Dask cluster.

A cell is one run of it, and knows all that it needs: the number of its trace, how its policies are written and the text
of their files, so that another process, or another machine, runs the same code. What is counted does not depend on
where a cell runs, or on how long it takes.
"""

import errno
import importlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Final, Literal

from ttmfs.errors import TtmError
from ttmfs.policy import Evict, Policy, Prefetch
from ttmfs.policy.deadline import run_unwatched
from ttmfs.policy.files import compile_source
from ttmfs.policy.parameters import Spec
from ttmfs.policy.registry import Entry, Prepared, prepare
from ttmfs.policy.seat import Seat
from ttmfs.replay.belady import with_future
from ttmfs.replay.rows import Row
from ttmfs.replay.sizes import SizesEngine
from ttmfs.replay.trace import Trace

Engine = Literal["sizes", "device"]

BELADY: Final = "belady"
CONNECT_SECONDS: Final = 10
"""How long a Dask scheduler may take to answer."""


@dataclass(frozen=True, slots=True)
class Written:
    """A policy as it was written, with the text of its file if it has one."""

    spec: Spec
    text: bytes | None = None

    @classmethod
    def of(cls, spec: Spec) -> "Written":
        """TtmError(EINVAL) when there is no such policy, or it cannot be made."""
        if spec.kind == "evict" and spec.name == BELADY:
            if spec.args:
                raise TtmError(errno.EINVAL, "belady takes no parameters")
            return cls(spec)
        prepared = prepare(spec)
        Seat.fill(prepared, run_unwatched)
        return cls(spec, None if prepared.source is None else prepared.source.text)

    def prepared(self, trace: Trace) -> Prepared:
        """Ready to be made, for a run of this trace."""
        spec = self.spec
        if spec.kind == "evict" and spec.name == BELADY:
            return Prepared(spec, Entry("evict", BELADY, with_future(trace.next_uses().tolist()), (), ""))
        if self.text is not None and spec.where is not None:
            return Prepared(spec, source=compile_source(*spec.where, self.text))
        return prepare(spec)

    def make(self, trace: Trace) -> Policy:
        """A new one, for a run of this trace."""
        return Seat.fill(self.prepared(trace), run_unwatched).policy


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: trace number, policies, bytes of the region, engine."""

    trace: int
    evict: Written
    prefetch: Written
    size: int
    engine: Engine


def run_cell(traces: Sequence[Trace], cell: Cell) -> Row:
    """Run it. TtmError where the engine cannot."""
    trace = traces[cell.trace]
    if cell.engine == "device":
        from ttmfs.replay.device import run_device  # noqa: PLC0415 - the core is heavy, and `sizes` has no use for it

        return run_device(trace, cell.size, cell.evict.prepared(trace), cell.prefetch.prepared(trace))
    evict, prefetch = cell.evict.make(trace), cell.prefetch.make(trace)
    assert isinstance(evict, Evict)
    assert isinstance(prefetch, Prefetch)
    engine = SizesEngine(trace, cell.size, evict, prefetch)
    counts = engine.run()
    return Row.of(trace.name, cell.evict.spec, cell.prefetch.spec, cell.size, "sizes", counts, engine.ejected)


def run_here(traces: Sequence[Trace], cells: Sequence[Cell], jobs: int) -> Iterator[tuple[int, Row]]:
    """(number of the cell, its row), as they are done, in up to `jobs` processes."""
    jobs = min(jobs, len(cells))
    if jobs < 2:
        for number, cell in enumerate(cells):
            yield number, run_cell(traces, cell)
        return
    # Spawned, not forked: a fork would copy whatever threads hold at that moment.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _keep_traces, (traces,)) as pool:
        futures = {pool.submit(_run_kept, cell): number for number, cell in _longest_first(traces, cells)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def run_on_dask(traces: Sequence[Trace], cells: Sequence[Cell], address: str) -> Iterator[tuple[int, Row]]:
    """The same on the Dask cluster whose scheduler is at `address`. TtmError where there is none, or no Dask."""
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise TtmError(errno.ENOENT, "--dask needs Dask: pip install 'ttmfs[dask]'") from None
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise TtmError(errno.ECONNREFUSED, f"no Dask scheduler answers at {address}: {error}") from None
    with client, client.as_current():
        there = client.scatter([list(traces)], broadcast=True)[0]
        futures = {
            client.submit(run_cell, there, cell, pure=False): number for number, cell in _longest_first(traces, cells)
        }
        for future, row in distributed.as_completed(list(futures), with_results=True):
            yield futures[future], row


def _longest_first(traces: Sequence[Trace], cells: Sequence[Cell]) -> list[tuple[int, Cell]]:
    """The cells that take longest first, so that no processor is left with one of them at the end."""
    return sorted(enumerate(cells), key=lambda item: -traces[item[1].trace].requests)


_kept: list[Trace] = []


def _keep_traces(traces: Sequence[Trace]) -> None:
    """In each process of a pool, once."""
    _kept[:] = traces


def _run_kept(cell: Cell) -> Row:
    return run_cell(_kept, cell)
