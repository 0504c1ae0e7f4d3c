"""`scripts/bench`: finds the subcommands, runs one, writes its result as JSON if asked to.

A subcommand is a module of this package (not main, not common) with a docstring whose first line is its help,
`add_arguments(parser)` and `run(options) -> common.Report`. It is named like its module, with dashes for underscores.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from lib.device import ScriptError

from . import against, common, profiler

NOT_SUBCOMMANDS = {"main", "common", "meanwhile", "against", "profiler"}


def subcommands() -> dict[str, ModuleType]:
    """All subcommands by name."""
    names = sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name not in NOT_SUBCOMMANDS)
    return {name.replace("_", "-"): importlib.import_module(f"{__package__}.{name}") for name in names}


def main() -> int:
    """Exit status: 0 measured, 1 could not measure. A missed goal is a result, not a failure (but see --strict)."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    choice = parser.add_subparsers(dest="subcommand", required=True)
    modules = subcommands()
    for name, module in modules.items():
        doc = (module.__doc__ or "").strip()
        sub = choice.add_parser(
            name, help=doc.splitlines()[0], description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there as well")
        sub.add_argument("--strict", action=argparse.BooleanOptionalAction, help="exit status 1 when a goal is missed")
        sub.add_argument("--against", metavar="COMMIT", help="measure that commit too, in turns with this checkout")
        sub.add_argument("--profile", type=Path, metavar="FOLDER", help="profile the daemons with py-spy or perf")
        module.add_arguments(sub)
    options = parser.parse_args()
    if options.against and options.profile:
        parser.error("--profile and --against: profile one commit at a time")
    report: common.Report | against.Comparison
    try:
        if options.profile:
            profiler.beside_every_device(options.profile)
        measure = modules[options.subcommand].run
        report = against.run(options, sys.argv[1:]) if options.against else measure(options)
    except ScriptError as error:
        print(error, file=sys.stderr)
        return 1
    report.print()
    if options.json:
        text = json.dumps({"subcommand": options.subcommand, "cpus": os.cpu_count(), **report.as_json()}, indent=1)
        options.json.write_text(text + "\n")
    return 1 if options.strict and report.missed() else 0


if __name__ == "__main__":
    sys.exit(main())
