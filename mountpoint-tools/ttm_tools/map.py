"""ttm-map: a picture of each region's pages, coloured by BO or by order; what has changed since an earlier one."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ttm_tools import mapdiff, mapletters
from ttm_tools.device import Device
from ttm_tools.errors import NO_MOUNT, MountError
from ttm_tools.mounts import find_mount
from ttm_tools.options import HELP, completion_help, mount_argument, version_option, with_errors
from ttm_tools.pagemap import Region, fragmentation, parse_map
from ttm_tools.picture import draw, terminal
from ttm_tools.words import shown

FORMATS: Final = (".png", ".svg", ".pdf")


def read_region(device: Device, name: str) -> Region:
    """One region of a mount. MountError when it has no map."""
    try:
        lines = device.text(f"regions/{name}/map").splitlines()
    except FileNotFoundError:
        if name in device.entries("regions"):
            raise MountError(f"{device.mount}/regions/{name} has no map: this ttmfs is too old", NO_MOUNT) from None
        regions = " ".join(device.regions())
        raise MountError(f"{name!r} is no region of {device.mount}: say some of {regions}", NO_MOUNT) from None
    size, visible, used = (int(device.text(f"regions/{name}/{what}")) for what in ("size", "visible_size", "used"))
    return parse_map(name, lines, size, visible, used)


def as_json(region: Region) -> dict[str, object]:
    """Figures of a region: pages by BO and by order, and how broken its free space is."""
    broken = fragmentation(region)
    return {
        "region": region.name,
        "pages": region.pages,
        "visible_pages": region.visible,
        "used_bytes": region.used,
        "free_pages": broken.free,
        "free_runs": broken.runs,
        "largest_free_run_pages": broken.largest,
        "unusable_for_order_9": round(broken.unusable, 4),
        "used_in_order_9": round(broken.beneficial, 4),
        "pages_by_order": region.pages_by_order(),
        "pages_by_bo": region.pages_of(),
    }


def read_regions(device: Device, names: tuple[str, ...]) -> list[Region]:
    """These regions, or all that anybody is in (all when nobody is anywhere)."""
    found = [read_region(device, name) for name in names or device.regions()]
    return found if names else [region for region in found if len(region.first)] or found


def drawn(regions: list[Region], by: str, console: Console, rows: int, letters: bool) -> list[Any]:
    """What a console prints: cells in colour, or letters where it has no colours."""
    if letters or console.color_system is None or "NO_COLOR" in os.environ:
        wide = console.width if console.is_terminal else 80
        return [Text(line, no_wrap=True) for line in mapletters.lines(regions, by, wide, rows)]
    return terminal(regions, by, console.width, rows)


Drawer = Callable[[list[Region], int], list[Any]]


def watch(read: Callable[[], list[Region]], draw_: Drawer, console: Console, interval: float) -> None:
    """Draw anew until ^C. MountError when the mount ends; while it only does not answer, what was last seen stays."""
    regions: list[Region] = []
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            said: list[Any] = []
            try:
                regions = read()
            except MountError as error:
                if not error.hung:
                    raise
                said = [Text(error.message, "bold red")]
            rows = max(1, (console.height - 4) // max(1, len(regions)) - 3)
            live.update(Group(*said, *draw_(regions, rows)), refresh=True)
            time.sleep(interval)


def print_changes(changes: list[mapdiff.Change], as_json_: bool) -> None:
    """As a table on a terminal, else tab-separated; or one JSON object a line."""
    header = ("region", "what", "name", "before", "after", "change")
    rows = [tuple(map(shown, row)) for row in mapdiff.rows(changes)]
    if as_json_:
        for each in changes:
            click.echo(json.dumps({key: getattr(each, key) for key in ("region", "what", "name", "before", "after")}))
    elif sys.stdout.isatty():
        table = Table(*header[:3], box=None, header_style="bold", pad_edge=False)
        for name in header[3:]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*row)
        Console(highlight=False, markup=False).print(table if rows else "nothing has changed")
    else:
        click.echo("".join(f"{line}\n" for line in ["\t".join(header), *map("\t".join, rows)]), nl=False)


@click.command(context_settings=HELP, epilog=completion_help("ttm-map"))
@mount_argument
@click.option(
    "-r", "--region", "regions", multiple=True, metavar="NAME", help="Only this region. [default: all in use]"
)
@click.option("--by", type=click.Choice(["bo", "order"]), default="bo", show_default=True, help="What colours say.")
@click.option("-o", "--output", metavar="FILE", help="A picture: FILE.png, FILE.svg or FILE.pdf.")
@click.option("--title", help="Its title.")
@click.option("--json", "json_", is_flag=True, help="The figures, one JSON object a region, no picture.")
@click.option("--rows", type=click.IntRange(1, 200), default=12, show_default=True, help="Lines a region (terminal).")
@click.option("--watch", "watch_", is_flag=True, help="Draw it anew until ^C.")
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds, of --watch.")
@click.option("--letters", is_flag=True, help="Letters instead of colours. [default: where there are no colours]")
@click.option("--diff", "before", metavar="BEFORE.json", help="What has changed since `--json > BEFORE.json`.")
@version_option
@with_errors
def main(
    mount: str | None,
    regions: tuple[str, ...],
    by: str,
    output: str | None,
    title: str | None,
    json_: bool,
    rows: int,
    watch_: bool,
    interval: float,
    letters: bool,
    before: str | None,
) -> None:
    """Show where the pages of each region are: a cell per page (or some), coloured by BO or by order.

    Without -o the picture is drawn on the terminal: in colours, or as letters where there are none (a pipe, NO_COLOR).
    With it, matplotlib writes a file. The dashed line is the end of what the CPU can see. Where a cell is several pages
    it has their mean colour, or the letter of most. `system` is the memory of the device: its pages also serve the BOs
    in gtt, whose map shows addresses.

    \b
    ttm-map                                  all regions, on the terminal
    ttm-map /tmp/gpu -r vram --by order      how broken the blocks in vram are
    ttm-map /tmp/gpu -o map.png              a picture
    ttm-map --json | jq .unusable_for_order_9
    ttm-map --watch                          live
    ttm-map --json > before.json; ...; ttm-map --diff before.json
    """
    if output is not None and not output.endswith(FORMATS):
        raise click.UsageError(f"-o {output}: say a name that ends in {', '.join(FORMATS)}")
    if sum((watch_, before is not None, output is not None)) > 1:
        raise click.UsageError("say one of --watch, --diff and -o")
    console = Console(highlight=False)
    if watch_ and not console.is_terminal:
        raise MountError("not a terminal: --watch draws over what it has drawn", NO_MOUNT)
    earlier = None if before is None else mapdiff.read(before)
    with Device(find_mount(mount)) as device:
        where = device.mount
        found = read_regions(device, tuple(earlier) if earlier and not regions else regions)
        if watch_:
            try:
                watch(
                    lambda: read_regions(device, regions),
                    lambda now, high: drawn(now, by, console, high, letters),
                    console,
                    interval,
                )
            except KeyboardInterrupt:
                return
    if earlier is not None:
        print_changes(mapdiff.compare(earlier, {region.name: as_json(region) for region in found}), json_)
    elif json_:
        for region in found:
            click.echo(json.dumps(as_json(region)))
    elif output is not None:
        draw(found, output, by, title or f"{where}: pages by {'order' if by == 'order' else 'buffer object'}")
    else:
        for part in drawn(found, by, console, rows, letters):
            console.print(part, soft_wrap=not console.is_terminal)


if __name__ == "__main__":
    main()
