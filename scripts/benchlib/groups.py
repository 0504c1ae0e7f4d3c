"""Cost of create, validate, evict and unlink per BO among very many BOs of many groups, and among few without groups.

As `scale`: processor time, no mount. The groups are nested three deep, and each has a `dmem.low`, so that a charge
passes through all that it ever does.
"""

from __future__ import annotations

import argparse

import trio

from . import scale
from .common import Goal, Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    scale.add_arguments(parser)
    parser.add_argument("--groups", type=int, default=1000, help="groups on the large device (default 1000)")


async def _measure(options: argparse.Namespace, report: Report) -> None:
    few, many = options.few, options.many
    async with scale.running(2 * few) as small, scale.running(many + few, options.groups) as large:
        await scale.compare(small, large, options, report)


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    title = f"Cost of a BO among {options.many} of {options.groups} groups and among {options.few} without groups"
    goals = {step: Goal(1.5) for step in scale.STEPS}
    report = Report(title, f"{options.groups} groups", "no groups", goals=goals)
    trio.run(_measure, options, report)
    return report
