"""Sweeps: the same rows on one processor, on several, and on a Dask cluster."""

import os
from pathlib import Path

import pytest

from tests.replay.traces import KV, trace_of, written, zipf
from ttmfs.errors import TtmError
from ttmfs.replay import sweep
from ttmfs.replay.formats import read_trace
from ttmfs.replay.sweep import Cell, run_here, run_on_dask
from ttmfs.replay.trace import Trace

PAGE = 4096
POLICIES = ("lru", "fifo", "clock", "sieve", "slru", "arc", "s3fifo", "belady")
MINE = "from ttmfs.policy.shipped.order import Mru\n\n\nclass Mine(Mru):\n    pass\n"


def traces() -> list[Trace]:
    return [read_trace(str(KV), PAGE), trace_of(zipf(3000, 300, 0.9, seed=17))]


def cells(*more: str) -> list[Cell]:
    none = written("prefetch", "none")
    return [
        Cell(trace, written("evict", policy), none, size * PAGE, "sizes")
        for trace in range(2)
        for size in (40, 160)
        for policy in (*POLICIES, *more)
    ]


def counts(done: object) -> list[object]:
    assert hasattr(done, "__iter__")
    return [row.counts() for _, row in sorted(done, key=lambda item: item[0])]


def test_several_processes_count_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    wanted = cells(f"{path}:Mine")
    # What was read counts, not what becomes of the file meanwhile.
    path.write_text("raise SystemExit\n")
    here = counts(run_here(traces(), wanted, 1))
    assert len(here) == len(wanted)
    assert counts(run_here(traces(), wanted, 2)) == here


def test_they_are_other_processes() -> None:
    pids = set()
    with sweep.ProcessPoolExecutor(2, sweep.multiprocessing.get_context("spawn")) as pool:  # type: ignore[attr-defined]
        pids.add(pool.submit(os.getpid).result())
    assert os.getpid() not in pids


def test_what_a_cell_cannot_do_is_said() -> None:
    none = written("prefetch", "tree")
    bad = [Cell(1, written("evict", "lru"), none, PAGE, "device")] * 2
    for jobs in (1, 2):
        with pytest.raises(TtmError, match="no prefetch"):
            list(run_here(traces(), bad, jobs))


def test_a_dask_cluster_counts_the_same(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is an extra: pip install 'ttmfs[dask]'")
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    wanted = cells(f"{path}:Mine")
    path.unlink()
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1", local_directory=str(tmp_path)
    )
    with cluster:
        there = counts(run_on_dask(traces(), wanted, cluster.scheduler_address))
        assert there == counts(run_here(traces(), wanted, 1))
        none = written("prefetch", "tree")
        with pytest.raises(TtmError, match="no prefetch"):
            list(run_on_dask(traces(), [Cell(1, wanted[0].evict, none, PAGE, "device")], cluster.scheduler_address))


def test_no_cluster_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="Dask is an extra: pip install 'ttmfs[dask]'")
    monkeypatch.setattr(sweep, "CONNECT_SECONDS", 0.5)
    with pytest.raises(TtmError, match="no Dask scheduler answers at tcp://127"):
        list(run_on_dask(traces(), cells(), "tcp://127.0.0.1:9"))


def test_no_dask_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(sweep.importlib, "import_module", absent)  # type: ignore[attr-defined]
    with pytest.raises(TtmError, match=r"pip install 'ttmfs\[dask\]'"):
        list(run_on_dask(traces(), cells(), "tcp://127.0.0.1:9"))
