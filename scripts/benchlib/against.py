"""`scripts/bench SUBCOMMAND --against COMMIT`: this checkout and another commit, measured in turns within one run.

The other commit's files are laid out in a temporary folder and run by the same environment; the bench itself, its
clients and the C server are this checkout's for both. Every round is a run of the subcommand with one round, first for
one tree and then for the other, the order changing from round to round. "now / then" is the median of the rounds'
ratios, beside the smallest and the largest of them: what the machine does between rounds cancels out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from lib.device import IMPORTED_TTMFS, ROOT, ScriptError

from .common import console, output

ONE_ROUND_SECONDS = 1200.0


@contextlib.contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """The files of `commit` in a temporary folder; ScriptError when there is no such commit, or no git."""
    if shutil.which("git") is None:
        raise ScriptError("there is no git (mend: apt-get install git)")
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run(
        [*git, "rev-parse", "--verify", "--quiet", "--end-of-options", commit + "^{commit}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        said = found.stderr.strip()  # nothing for a mere unknown name
        raise ScriptError(said or f"{ROOT} has no commit {commit!r}; `git log --oneline` shows some")
    packed = subprocess.run([*git, "archive", "--format=tar", found.stdout.strip()], capture_output=True, check=True)
    with tempfile.TemporaryDirectory(prefix="ttmfs-against-") as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder)


def environment(tree: Path) -> dict[str, str]:
    """What makes `ttmfs` and `import ttmfs` mean the code in `tree`. ScriptError when they would not."""
    path = os.pathsep.join([str(ROOT / "scripts"), str(tree)])
    found = {**os.environ, "PYTHONPATH": path, "TTMFS_COMMAND": shlex.join(IMPORTED_TTMFS)}
    where = [sys.executable, "-c", "import ttmfs; print(ttmfs.__file__)"]
    done = subprocess.run(where, env=found, cwd="/", capture_output=True, text=True, check=False)
    if Path(done.stdout.strip()).parent != tree / "ttmfs":
        raise ScriptError(f"the code in {tree} cannot be run: {done.stderr.strip() or done.stdout.strip()}")
    return found


@dataclass
class Side:
    """One tree: what to call it, how to run it, and what each round has measured (a report as JSON)."""

    name: str
    environment: dict[str, str]
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def run(self, arguments: list[str]) -> None:
        """One more round."""
        with tempfile.NamedTemporaryFile(prefix="ttmfs-against-", suffix=".json") as result:
            more = ["--against=", "--no-strict", "--rounds=1", f"--json={result.name}"]
            command = [sys.executable, "-m", "benchlib.main", *arguments, *more]
            try:
                done = subprocess.run(
                    command, env=self.environment, stdout=subprocess.PIPE, timeout=ONE_ROUND_SECONDS, check=False
                )
            except subprocess.TimeoutExpired:
                raise ScriptError(f"a round of {self.name} did not end in {ONE_ROUND_SECONDS:.0f} s") from None
            if done.returncode:
                raise ScriptError(f"measuring {self.name} failed; the lines above say why")
            self.rounds.append(json.load(result))

    def samples(self, metric: str, role: str) -> list[float]:
        """One number a round, of the `subject` or of the `reference`: the median of what that round has measured."""
        found = (r["metrics"].get(metric, {}).get("samples", {}).get(r[role]) for r in self.rounds)
        return [statistics.median(samples) for samples in found if samples]

    def ratio(self, metric: str) -> float | None:
        """Median of the subject by median of the reference."""
        mine, reference = self.samples(metric, "subject"), self.samples(metric, "reference")
        return statistics.median(mine) / statistics.median(reference) if mine and any(reference) else None


@dataclass
class Comparison:
    """Both sides, round by round."""

    title: str
    now: Side
    then: Side

    def pairs(self, metric: str) -> list[float]:
        """The subject of each round now, by that of the same round then."""
        both = zip(self.now.samples(metric, "subject"), self.then.samples(metric, "subject"), strict=False)
        return [now / then for now, then in both if then]

    def metrics(self) -> dict[str, str]:
        """What was measured, with its unit."""
        return {name: metric["unit"] for r in self.now.rounds for name, metric in r["metrics"].items()}

    def missed(self) -> list[str]:
        """The metrics whose goals were missed in most rounds, now."""
        met = {n: [r["metrics"].get(n, {}).get("met") for r in self.now.rounds] for n in self.metrics()}
        return [name for name, verdicts in met.items() if verdicts.count(False) * 2 > len(verdicts)]

    def print(self) -> None:
        """The table, for people."""
        table = Table(title=self.title)
        for heading in ("", "unit", self.now.name, "ratio", self.then.name, "ratio", "now / then", "min - max"):
            table.add_column(heading, justify="left" if heading in ("", "unit") else "right")
        for name, unit in self.metrics().items():
            cells: list[str] = []
            for side in (self.now, self.then):
                samples, ratio = side.samples(name, "subject"), side.ratio(name)
                cells.append(f"{statistics.median(samples):.2f}" if samples else "-")
                cells.append("-" if ratio is None else f"{ratio:.2f}")
            if pairs := self.pairs(name):
                cells += [f"{statistics.median(pairs):.2f}", f"{min(pairs):.2f} - {max(pairs):.2f}"]
            table.add_row(name, unit, *cells)
        out = output()
        out.print(table)
        for note in self.now.rounds[-1]["notes"]:
            out.print(note, markup=False, highlight=False, soft_wrap=True)

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs: each round of each side as a report of its own."""
        metrics = {
            name: {
                "unit": unit,
                "now": self.now.ratio(name),
                "then": self.then.ratio(name),
                "now_by_then": self.pairs(name),
            }
            for name, unit in self.metrics().items()
        }
        rounds = {"now": self.now.rounds, "then": self.then.rounds}
        return {"title": self.title, "against": self.then.name, "metrics": metrics, "rounds": rounds}


def run(options: argparse.Namespace, arguments: list[str]) -> Comparison:
    """Measure: `arguments` are the command line that `options` came from."""
    with tree_of(options.against) as tree:
        now, then = Side("now", environment(ROOT)), Side(options.against, environment(tree))
        for number in range(options.rounds):
            for side in (now, then)[:: 1 if number % 2 == 0 else -1]:
                console.print(f"round {number + 1} of {options.rounds}: {side.name}")
                side.run(arguments)
    title = f"{options.subcommand}: this checkout and {options.against}, {options.rounds} rounds in turns"
    return Comparison(title, now, then)
