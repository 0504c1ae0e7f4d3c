"""Status: what `ttmfs status` shows of a mount."""

import errno
import json
import os
import sys

from rich.console import Console
from rich.table import Table

from ttmfs.errors import TtmError
from ttmfs.units import format_size


def read_text(path: str, name: str) -> str:
    """A file of the mount at `path`. TtmError with what to do when it does not answer."""
    try:
        with open(os.path.join(path, name), encoding="utf-8") as file:
            return file.read()
    except PermissionError:
        raise TtmError(
            errno.EACCES, f"{path} belongs to another user, who has mounted it without --allow-other: ask as that user"
        ) from None
    except OSError as error:
        raise TtmError(
            error.errno or errno.EIO,
            f"{path} does not answer ({error.strerror}): `ttmfs umount --force {path}` takes it down",
        ) from None


def show(text: str) -> None:
    """Print the regions as a table, and what else counts as lines."""
    values = json.loads(text)
    console = Console()
    if not sys.stdout.isatty():
        console.width = 1000  # nobody's terminal: what reads a pipe gets whole lines, whatever COLUMNS says
    table = Table("region", "size", "used", "visible", "visible used", "BOs")
    for name, region in values["regions"].items():
        sizes = [format_size(region[key]) for key in ("size", "used", "visible_size", "visible_used")]
        table.add_row(name, *sizes, str(region["bos"]))
    console.print(table)
    said = values.get("state", {}).get("says")
    if said:
        console.print(f"{'state':9} {', '.join(said)}", highlight=False, markup=False)
    for part in ("bos", "pool", "faults", "requests", "moves", "fences"):
        plain = {key: value for key, value in values.get(part, {}).items() if not isinstance(value, list)}
        counts = "  ".join(f"{key} {value}" for key, value in plain.items())
        console.print(f"{part:9} {counts}", highlight=False)
