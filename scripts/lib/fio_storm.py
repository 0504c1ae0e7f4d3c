"""`scripts/fio-storm`: each job of scripts/fio under a storm of commands on its own BOs.

Promise: commands go only to BOs that the job itself made; exit status 0 only if fio verified all and no command failed
in an unexpected way.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .device import Device, ScriptError
from .fio import FIO_JOBS, Storm, run_fio

JOB_SECONDS = 240.0
console = Console(stderr=True)


def main() -> int:
    """Run the jobs; returns the exit status."""
    p = argparse.ArgumentParser(prog="scripts/fio-storm", description=__doc__)
    p.add_argument("jobs", nargs="*", type=Path, metavar="JOBFILE", help="default: all but the one of scripts/run")
    p.add_argument("--mount", type=Path, help="a device that is mounted already (its owner runs this)")
    options = p.parse_args()
    jobs: list[Path] = options.jobs or sorted(j for j in FIO_JOBS.glob("*.fio") if j.name != "overcommit.fio")
    device = Device(["--vram=16M", "--gtt=32M", "--memory=128M"])
    if options.mount:
        device.mount.rmdir()
        device.mount = options.mount
    try:
        if options.mount:
            return run_jobs(device, jobs)
        with device:
            return run_jobs(device, jobs)
    except ScriptError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    finally:
        if options.mount:
            device.directory.rmdir()


def run_jobs(device: Device, jobs: list[Path]) -> int:
    """All jobs, and the table."""
    columns = ("job", "written", "verified", "longest, ms", "commands", "result")
    table = Table(*columns, title="fio under a storm of commands")
    failed = False
    for job in jobs:
        console.print(f"{job.name} ...")
        problem = run_job(device, job, table)
        if problem:
            failed = True
            console.print(problem, style="red", markup=False)
    Console().print(table)
    if failed:
        console.print(device.diagnosis(), markup=False, highlight=False)
    return 1 if failed else 0


def run_job(device: Device, job: Path, table: Table) -> str | None:
    """One job under the storm, its BOs removed afterwards; returns what went wrong."""
    before = bo_names(device)
    made = run_fio(device, job.resolve(), seconds=JOB_SECONDS, arguments=["--create_only=1"])
    names = sorted(bo_names(device) - before)
    if not names:
        return f"{job.name} made no BO: {made.failed}"
    with Storm(device, int(JOB_SECONDS), names, random.randrange(1 << 15)) as storm:
        result = run_fio(device, job.resolve(), seconds=JOB_SECONDS)
    problem = result.failed or storm.failed
    counts = ", ".join(f"{key} {value}" for key, value in sorted(storm.total.get("results", {}).items()))
    table.add_row(
        job.name,
        f"{result.written_bytes >> 20} MiB",
        f"{result.verified_bytes >> 20} MiB",
        f"{result.max_latency_ms:.0f}",
        counts,
        "[red]FAILED[/]" if problem else "[green]verified[/]",
    )
    device.run(["rm", "-f", *[str(device.mount / "bo" / name) for name in names]], 60)
    return f"{job.name}: {problem}" if problem else None


def bo_names(device: Device) -> set[str]:
    """The BOs there are."""
    done = device.run(["find", str(device.mount / "bo"), "-type", "f", "-printf", "%P\\n"], 30)
    return set(done.stdout.split("\n")) - {""}


if __name__ == "__main__":
    sys.exit(main())
