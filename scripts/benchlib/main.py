"""`scripts/bench`: finds the subcommands, runs one, writes its result as JSON if asked to.

A subcommand is a module of this package (none of NOT_SUBCOMMANDS) with a docstring whose first line is its help,
`add_arguments(parser)` and `run(options) -> common.Report`. It is named like its module, with dashes for underscores.
`all` runs every one of them.
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
from typing import TypeAlias

from lib.device import ScriptError

from . import against, common, every, plot, profiler

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
NOT_SUBCOMMANDS = {"main", "common", "meanwhile", "against", "profiler", "every", "plot"}


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
        sub = _parser(choice, name, module)
        sub.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there as well")
        sub.add_argument("--strict", action=argparse.BooleanOptionalAction, help="exit status 1 when a goal is missed")
        sub.add_argument("--against", metavar="COMMIT", help="measure that commit too, in turns with this checkout")
        sub.add_argument("--profile", type=Path, metavar="FOLDER", help="profile the daemons with py-spy or perf")
        sub.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios (needs matplotlib)")
        module.add_arguments(sub)
    every.add_arguments(_parser(choice, "all", every))
    options = parser.parse_args()
    if options.subcommand == "all":
        return _all(options, parser, list(modules))
    if options.against and options.plot:
        parser.error("--plot and --against: what is drawn is one commit's")
    if options.against and options.profile:
        parser.error("--profile and --against: profile one commit at a time")
    report: common.Report | against.Comparison
    try:
        if options.plot:
            plot.check()
        if options.profile:
            profiler.beside_every_device(options.profile)
        measure = modules[options.subcommand].run
        report = against.run(options, sys.argv[1:]) if options.against else measure(options)
    except ScriptError as error:
        print(error, file=sys.stderr)
        return 1
    report.print()
    found = {"subcommand": options.subcommand, "cpus": os.cpu_count(), **report.as_json()}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        try:
            plot.draw([found], options.plot)
        except ScriptError as error:
            print(error, file=sys.stderr)
            return 1
    return 1 if options.strict and report.missed() else 0


def _parser(choice: Subparsers, name: str, module: ModuleType) -> argparse.ArgumentParser:
    doc = (module.__doc__ or "").strip()
    return choice.add_parser(
        name, help=doc.splitlines()[0], description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _all(options: argparse.Namespace, parser: argparse.ArgumentParser, names: list[str]) -> int:
    if unknown := set(options.only or []) - set(names):
        parser.error(f"no subcommand {sorted(unknown)[0]!r}; there are {', '.join(names)}")
    try:
        return every.run(options, options.only or names)
    except ScriptError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
