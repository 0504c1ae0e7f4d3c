"""The parent: starts the clients, kills and restarts them if asked to, watches for hangs, reports.

Promise: it never touches the files itself (but to make a shared one), so it cannot hang with them; a client that is
stuck for `--hang-seconds` ends the run with a report, even if that client cannot be killed. The last line of output is
one JSON object of totals.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import ops
from .client import ClientPlan, failure_report, run_client
from .model import SideFiles, State, monotonic_ns
from .storm import run_storm

PAGE = ops.PAGE
POLL_SECONDS = 0.01


def parse_bytes(text: str) -> int:
    """8M, 64K, 1G or a number of bytes."""
    unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper())
    return int(text[:-1]) << unit if unit else int(text)


def parse_errnos(text: str) -> frozenset[int]:
    """A comma-separated list of errno names."""
    return frozenset(getattr(errno, name.strip()) for name in text.split(",") if name.strip())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="exerciser.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("files", nargs="+", type=Path, metavar="FILE")
    p.add_argument("--seconds", type=float, help="run this long (default 10, unless --ops is given)")
    p.add_argument("--ops", type=int, help="run this many operations per client: the same ones for the same seed")
    p.add_argument("--seed", type=int, help="default: a new one, which is printed")
    p.add_argument("--clients", type=int, help="processes (default: one per file); more than files: FILE.1, FILE.2")
    p.add_argument("--shared", action="store_true", help="all clients on the given files, each in a region of its own")
    p.add_argument("--max-size", type=parse_bytes, default=8 << 20, help="most a file grows to (default 8M)")
    p.add_argument("--only", help="comma-separated operations: " + " ".join(ops.OPERATIONS))
    p.add_argument("--ctl", type=Path, metavar="MNT", help="a ttmfs mount: a storm of commands on the same files")
    p.add_argument("--ctl-words", help="comma-separated commands of the storm (default: all that change no byte)")
    p.add_argument("--no-ctl", dest="ctl", action="store_const", const=None, help="no storm (default)")
    p.add_argument("--kill", action="store_true", help="SIGKILL clients at random and restart them")
    p.add_argument("--max-op-seconds", type=float, help="a longer operation is a failure")
    p.add_argument("--hang-seconds", type=float, default=60, help="a client stuck this long ends the run (default 60)")
    p.add_argument("--allow-errno", type=parse_errnos, default=frozenset(), help="errnos that operations may fail with")
    p.add_argument("--unlink", action="store_true", help="remove the files at the end")
    return p


@dataclass
class Running:
    """A client and its process."""

    plan: ClientPlan
    state: State
    pid: int = 0
    finished: bool = False
    kills: int = 0


@dataclass
class Run:
    """Everything about one run of the exerciser."""

    options: argparse.Namespace
    side: Path
    clients: list[Running] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    storm_pid: int = 0
    started: float = field(default_factory=time.monotonic)

    def spawn(self, client: Running, *, fresh: bool) -> None:
        """Fork the client's process. The parent has no threads and no file of the mount open."""
        client.pid = fork_and(lambda: run_client(client.plan, self.side, fresh=fresh))

    def finish(self, client: Running, status: int) -> None:
        """Take note of how a client ended by itself."""
        client.finished = True
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        report = self.side / f"client{client.plan.number}.report"
        if report.exists():
            self.failures.append(report.read_text())
        else:
            how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status >> 8}"
            self.failures.append(self._report(client, f"the client died of {how}"))

    def _report(self, client: Running, what: str) -> str:
        return failure_report(client.plan, client.state.op, what, client.state.last_operations())

    def find_hung(self) -> None:
        """A client that is in one operation for too long fails the run."""
        for client in self.clients:
            begun = client.state.op_started_ns
            if client.finished or not begun:
                continue
            stuck = (monotonic_ns() - begun) / 1e9
            if stuck > self.options.hang_seconds:
                self.failures.append(self._report(client, f"stuck for {stuck:.1f} s, process {client.pid} is alive"))

    def kill_one(self, rng: random.Random) -> None:
        """SIGKILL one client that is at work and start it again on what it left."""
        alive = [c for c in self.clients if not c.finished and c.state.op > 0]
        if not alive:
            return
        victim = rng.choice(alive)
        os.kill(victim.pid, signal.SIGKILL)
        status = wait_bounded(victim.pid, self.options.hang_seconds)
        if status is None:
            self.failures.append(self._report(victim, f"process {victim.pid} does not die of SIGKILL"))
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            victim.kills += 1
            self.spawn(victim, fresh=False)
        else:
            self.finish(victim, status)

    def loop(self) -> None:
        """Until all clients are done or something failed."""
        rng = random.Random(f"kill {self.options.seed}")
        next_kill = time.monotonic() + 0.2
        while not self.failures and any(not c.finished for c in self.clients):
            for client in self.clients:
                if not client.finished:
                    pid, status = os.waitpid(client.pid, os.WNOHANG)
                    if pid:
                        self.finish(client, status)
            self.find_hung()
            if self.options.kill and not self.failures and time.monotonic() >= next_kill:
                self.kill_one(rng)
                next_kill = time.monotonic() + rng.uniform(0.02, 0.5)
            time.sleep(POLL_SECONDS)

    def stop(self) -> dict[str, Any]:
        """End what still runs; returns what the storm counted."""
        for client in self.clients:
            if not client.finished:
                os.kill(client.pid, signal.SIGKILL)
                wait_bounded(client.pid, 5)
        if not self.storm_pid:
            return {}
        os.kill(self.storm_pid, signal.SIGTERM)
        if wait_bounded(self.storm_pid, self.options.hang_seconds) is None:
            os.kill(self.storm_pid, signal.SIGKILL)
            self.failures.append(f"the storm is stuck in a command for {self.options.hang_seconds} s\n")
            return {}
        result = self.side / "storm.json"
        if not result.exists():
            self.failures.append("the storm process died\n")
            return {}
        storm: dict[str, Any] = json.loads(result.read_text())
        if storm["unexpected"]:
            lines = "".join(f"  {line}\n" for line in storm["unexpected"])
            self.failures.append(f"commands failed with unexpected errors:\n{lines}")
        return storm

    def totals(self, storm: dict[str, Any]) -> dict[str, Any]:
        """The JSON line."""
        states = [c.state for c in self.clients]
        slowest = max(self.clients, key=lambda c: c.state.max_op_ns)
        kinds: Counter[str] = Counter()
        for state in states:
            kinds.update(state.kind_counts(list(ops.OPERATIONS)))
        combined = 0
        for state in states:
            combined = (combined * 1_000_003 + state.op_crc) & 0xFFFFFFFF
        return {
            "ok": not self.failures,
            "seed": self.options.seed,
            "clients": len(states),
            "seconds": round(time.monotonic() - self.started, 2),
            "ops": sum(s.op for s in states),
            "read_bytes": sum(s.read_bytes for s in states),
            "written_bytes": sum(s.written_bytes for s in states),
            "verified_bytes": sum(s.verified_bytes for s in states),
            "max_op_ms": round(slowest.state.max_op_ns / 1e6, 2),
            "max_op": f"client {slowest.plan.number} operation {slowest.state.max_op}",
            "kills": sum(c.kills for c in self.clients),
            "recoveries": sum(s.recoveries for s in states),
            "allowed_errors": sum(s.errors for s in states),
            "op_crc": f"{combined:08x}",
            "kinds": dict(kinds),
            "ctl": storm,
        }


def fork_and(body: Callable[[], int]) -> int:
    """Run `body` in a child process that does nothing else; returns its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 3
    try:
        status = body()
    except BaseException as error:  # the child must never return into the parent's code
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait_bounded(pid: int, seconds: float) -> int | None:
    """The exit status of a child, or None if it is still there after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def make_plans(options: argparse.Namespace) -> list[ClientPlan]:
    """Which client works on what."""
    capacity = max(PAGE, options.max_size & -PAGE)
    files: list[Path] = options.files
    only = options.only.split(",") if options.only else None
    if only and (unknown := set(only) - set(ops.OPERATIONS)):
        raise SystemExit(f"unknown operation {sorted(unknown)[0]!r}; there are: {' '.join(ops.OPERATIONS)}")
    plans = []
    for number in range(options.clients or len(files)):
        path, again = files[number % len(files)], number // len(files)
        if again and not options.shared:
            path = path.with_name(f"{path.name}.{again}")
        plans.append(
            ClientPlan(
                number=number,
                path=path,
                capacity=capacity,
                seed=options.seed,
                deadline=None if options.seconds is None else time.monotonic() + options.seconds,
                ops=options.ops,
                base=again * capacity if options.shared else 0,
                shared=options.shared,
                max_op_seconds=options.max_op_seconds,
                allowed_errnos=options.allow_errno,
                only=only,
            )
        )
    return plans


def make_shared_files(plans: list[ClientPlan]) -> None:
    """A shared file has its full size from the start."""
    for path in {p.path for p in plans}:
        with open(path, "wb") as file:
            file.truncate(max(p.base + p.capacity for p in plans if p.path == path))


def object_names(mount: Path, plans: list[ClientPlan]) -> list[str]:
    """The names of the exercised files below MNT/bo."""
    root = (mount / "bo").absolute()
    return sorted({str(p.path.absolute().relative_to(root)) for p in plans})


def main(arguments: list[str] | None = None) -> int:
    """Run as the command line says; returns the exit status."""
    options = parser().parse_args(arguments)
    if options.seconds is None and options.ops is None:
        options.seconds = 10.0
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {options.seed}", flush=True)
    side = Path(tempfile.mkdtemp(prefix="exerciser-"))
    try:
        plans = make_plans(options)
        names = object_names(options.ctl, plans) if options.ctl else []
        if options.shared:
            make_shared_files(plans)
    except (OSError, ValueError) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        shutil.rmtree(side, ignore_errors=True)
        return 2
    run = Run(options, side, [Running(p, State(SideFiles(side, p.number))) for p in plans])
    for client in run.clients:
        run.spawn(client, fresh=True)
    if options.ctl:
        words = options.ctl_words.split(",") if options.ctl_words else None
        started = wait_for_first_operations(run)
        if started:
            run.storm_pid = fork_and(lambda: run_storm(options.ctl, names, options.seed, side / "storm.json", words))
    try:
        run.loop()
    finally:
        storm = run.stop()
    for failure in run.failures:
        print(failure, file=sys.stderr, end="")
    if options.unlink and not run.failures:
        for path in {p.path for p in plans}:
            path.unlink(missing_ok=True)
    print(json.dumps(run.totals(storm)), flush=True)
    shutil.rmtree(side, ignore_errors=True)
    return 1 if run.failures else 0


def wait_for_first_operations(run: Run) -> bool:
    """Until every client has made its file (a command on a name that is not there yet would fail)."""
    end = time.monotonic() + run.options.hang_seconds
    while time.monotonic() < end:
        if all(c.state.op > 0 or c.state.done for c in run.clients):
            return True
        for client in run.clients:
            if not client.finished:
                pid, status = os.waitpid(client.pid, os.WNOHANG)
                if pid:
                    run.finish(client, status)
        if run.failures:
            return False
        time.sleep(POLL_SECONDS)
    return True
