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

from . import common

NOT_SUBCOMMANDS = {"main", "common", "meanwhile"}


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
        sub.add_argument("--strict", action="store_true", help="exit status 1 when a goal is missed")
        module.add_arguments(sub)
    options = parser.parse_args()
    try:
        report: common.Report = modules[options.subcommand].run(options)
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
