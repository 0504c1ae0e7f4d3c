"""ttm-map: a picture of each region's pages, coloured by BO or by order."""

import json
from typing import Final

import click
from rich.console import Console

from ttm_tools.device import Device
from ttm_tools.errors import NO_MOUNT, MountError
from ttm_tools.mounts import find_mount
from ttm_tools.options import HELP, completion_help, mount_argument, version_option, with_errors
from ttm_tools.pagemap import Region, fragmentation, parse_map
from ttm_tools.picture import draw, terminal

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
) -> None:
    """Show where the pages of each region are: a cell per page (or some), coloured by BO or by order.

    Without -o the picture is drawn on the terminal. With it, matplotlib writes a file. The dashed line is the end of
    what the CPU can see. Where a cell is several pages it has their mean colour. `system` is the memory of the device:
    its pages also serve the BOs in gtt, whose map shows addresses.

    \b
    ttm-map                                  all regions, on the terminal
    ttm-map /tmp/gpu -r vram --by order      how broken the blocks in vram are
    ttm-map /tmp/gpu -o map.png              a picture
    ttm-map --json | jq .unusable_for_order_9
    """
    if output is not None and not output.endswith(FORMATS):
        raise click.UsageError(f"-o {output}: say a name that ends in {', '.join(FORMATS)}")
    with Device(find_mount(mount)) as device:
        found = [read_region(device, name) for name in regions or device.regions()]
        where = device.mount
    if not regions:
        found = [region for region in found if len(region.first)] or found
    if json_:
        for region in found:
            click.echo(json.dumps(as_json(region)))
    elif output is not None:
        draw(found, output, by, title or f"{where}: pages by {'order' if by == 'order' else 'buffer object'}")
    else:
        console = Console(highlight=False)
        for part in terminal(found, by, console.width, rows):
            console.print(part)


if __name__ == "__main__":
    main()
