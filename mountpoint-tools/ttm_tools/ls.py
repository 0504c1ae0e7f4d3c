"""ttm-ls: the BOs of a mount, as a table for people or as columns for programs."""

import json
import sys
from collections.abc import Callable
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from ttm_tools.device import Device
from ttm_tools.groups import COLUMNS as GROUP_COLUMNS
from ttm_tools.groups import COUNTS as GROUP_COUNTS
from ttm_tools.groups import shares
from ttm_tools.mounts import find_mount, looks_like_a_path
from ttm_tools.options import HELP, complete_mount_or_bo, completion_help, mount_option, version_option, with_errors
from ttm_tools.words import matches, shown, size_text

Status = dict[str, Any]

PAGE: Final = 4096


def orders_text(orders: dict[str, int]) -> str:
    """Page orders, largest first: `9x4 0x17` is four blocks of order 9 and 17 single pages; `-` for none."""
    found = sorted(((int(order), count) for order, count in orders.items() if count), reverse=True)
    return " ".join(f"{order}x{count}" for order, count in found) or "-"


def _populated(status: Status) -> str:
    pages = max(1, -(-int(status["size"]) // PAGE))
    return f"{min(100, 100 * int(status['populated_pages']) // pages)}%"


COLUMNS: Final[dict[str, Callable[[Status], Any]]] = {
    "name": lambda status: shown(status["name"]),
    "size": lambda status: status["size"],
    "place": lambda status: status["mem_type"],
    "populated": lambda status: status["populated_pages"] * PAGE,
    "backed_up": lambda status: status.get("backed_up_pages", 0) * PAGE,
    "orders": lambda status: orders_text(status.get("page_orders", {})),
    "runs": lambda status: status.get("runs", 0),
    "pins": lambda status: status["pin_count"],
    "priority": lambda status: status["priority"],
    "fences": lambda status: len(status.get("fences", [])),
    "moves": lambda status: status.get("moves", 0),
    "moved": lambda status: status.get("bytes_moved", 0),
    "evictions": lambda status: status.get("evictions", 0),
    "faults": lambda status: status.get("faults", 0),
    "state": lambda status: status["state"],
    "caching": lambda status: status.get("caching", ""),
    "placement": lambda status: status.get("placement", ""),
    "defrag": lambda status: int(bool(status.get("beneficial_order_failed"))),
    "last_error": lambda status: shown(status.get("last_error") or ""),
    "group": lambda status: shown(status.get("group", "/")),
}
"""The columns of -l, in order: how each is made of status.json. Sizes are bytes."""

SHORT: Final = ("name", "size", "place", "populated", "orders", "pins", "fences", "moves", "evictions", "faults")
BYTES: Final = frozenset({"size", "populated", "backed_up", "moved"})
NUMBERS: Final = BYTES | {"runs", "pins", "priority", "fences", "moves", "evictions", "faults", "defrag"}


def ordered(statuses: list[Status], key: str) -> list[Status]:
    """By a column: numbers largest first, text ascending; then by name."""
    value = COLUMNS[key]
    by_name = sorted(statuses, key=lambda status: str(status["name"]))
    return sorted(by_name, key=value, reverse=key in NUMBERS)


def _cell(column: str, status: Status) -> str:
    value = COLUMNS[column](status)
    if column == "populated":
        return f"{size_text(value)} {_populated(status):>4}"
    return size_text(value) if column in BYTES else str(value)


_FIT: Final[dict[bool, dict[str, Any]]] = {True: {"overflow": "fold"}, False: {"no_wrap": True}}


def _print_groups(stats: dict[str, Any], header: bool) -> None:
    """What each group has of each region."""
    names = ("group", "region", *GROUP_COLUMNS)
    rows = [share.row() for share in shares(stats)]
    if not sys.stdout.isatty():
        lines = ["\t".join(names)] if header else []
        lines += ["\t".join([shown(str(row[0])), *map(str, row[1:])]) for row in rows]
        click.echo("".join(f"{line}\n" for line in lines), nl=False)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(name.upper(), justify="left" if name in names[:2] else "right", **_FIT[name == "group"])
    for row in rows:
        cells = zip(GROUP_COLUMNS, row[2:], strict=True)
        sizes = (str(value) if name in GROUP_COUNTS else size_text(value) for name, value in cells)
        table.add_row(shown(row[0]), row[1], *sizes)
    Console(highlight=False, markup=False).print(table)


def _print_table(statuses: list[Status], columns: tuple[str, ...]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.upper(), justify="right" if column in NUMBERS else "left", **_FIT[column == "name"])
    for status in statuses:
        table.add_row(*(_cell(column, status) for column in columns))
    Console(highlight=False, markup=False).print(table)


@click.command(context_settings=HELP, epilog=completion_help("ttm-ls"))
@click.argument("words", metavar="[MNT] [PATTERN]", nargs=-1, shell_complete=complete_mount_or_bo)
@mount_option
@click.option("-l", "--long", "long_", is_flag=True, help="All columns.")
@click.option(
    "--sort",
    type=click.Choice(sorted(COLUMNS)),
    default="name",
    metavar="COLUMN",
    help=f"Sort by a column, numbers largest first: {' '.join(COLUMNS)}.",
)
@click.option("--groups", is_flag=True, help="The groups instead, and what each has of each region.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array of the BOs' status.json.")
@click.option("--no-header", is_flag=True, help="Without the line of column names.")
@version_option
@with_errors
def main(
    words: tuple[str, ...], mount: str | None, long_: bool, sort: str, groups: bool, as_json: bool, no_header: bool
) -> None:
    """List the buffer objects of a ttmfs mount: size, place, populated, page orders, pins, fences, moves...

    On a terminal it is a table; into a pipe the columns are separated by tabs and sizes are bytes. PATTERN has shell
    wildcards, and fits the whole name or its last part. ORDERS `9x4 0x17` is four blocks of 2 MiB and 17 single pages.

    \b
    ttm-ls                                   the only mount there is
    ttm-ls /tmp/gpu 'tex*'                   some BOs
    ttm-ls --sort faults | head              who faults most
    ttm-ls -l /tmp/gpu                       all columns
    ttm-ls /tmp/gpu | awk -F'\\t' '$3 == "vram" { bytes += $2 } END { print bytes }'
    ttm-ls --groups                          what each group has of each region
    ttm-ls --json | jq '.[] | select(.pin_count > 0) | .name'
    """
    rest = list(words)
    if mount is None and rest and (len(rest) > 1 or looks_like_a_path(rest[0])):
        mount = rest.pop(0)
    if len(rest) > 1:
        raise click.UsageError("say one PATTERN, in quotes: the shell expands wildcards otherwise")
    if groups and rest:
        raise click.UsageError("--groups has all of them: say no PATTERN")
    with Device(find_mount(mount)) as device:
        if groups:
            stats = device.stats()
            if as_json:
                click.echo(json.dumps(stats.get("groups", {})))
            else:
                _print_groups(stats, not no_header)
            return
        names = [name for name in device.names() if not rest or matches(name, rest[0])]
        # A BO with several names comes once, whichever of them were meant.
        by_name = {status["name"]: status for status in device.statuses(names).values()}
        statuses = ordered(list(by_name.values()), sort)
    columns = tuple(COLUMNS) if long_ else SHORT
    if sort not in columns:
        columns = (*columns, sort)
    if as_json:
        click.echo(json.dumps(statuses))
    elif sys.stdout.isatty():
        _print_table(statuses, columns)
    else:
        lines = [] if no_header else ["\t".join(columns)]
        lines += ["\t".join(str(COLUMNS[column](status)) for column in columns) for status in statuses]
        click.echo("".join(f"{line}\n" for line in lines), nl=False)


if __name__ == "__main__":
    main()
