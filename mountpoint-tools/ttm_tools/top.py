"""ttm-top: regions, rates and BOs of a mount, live; keys steer the selected BO."""

import asyncio
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Final

import click

from ttm_tools.device import Device
from ttm_tools.errors import FAILED, NO_MOUNT, MountError
from ttm_tools.extras import needed
from ttm_tools.groups import COLUMNS as GROUP_COLUMNS
from ttm_tools.groups import grouped, shares
from ttm_tools.mounts import find_mount
from ttm_tools.options import HELP, completion_help, mount_argument, version_option, with_errors
from ttm_tools.topmodel import COLUMNS, Model
from ttm_tools.words import shown

if TYPE_CHECKING:
    from ttm_tools.topview import Top

SORT: Final = {column.name.lower(): number for number, column in enumerate(COLUMNS)}
READ_SECONDS: Final = 5.0
_PATIENCE: Final = 60.0
"""Seconds that a picture may take, where the machine is busy."""


def once(device: Device, interval: float, column: int, pattern: str, most: int) -> str:
    """One screen as tab-separated lines: what, then its columns. Rates are those of one interval."""
    model = Model(device)
    for number in range(2):
        if number:
            time.sleep(interval)
        model.take(model.read([], False))
    rows = model.ordered(COLUMNS[column], COLUMNS[column].descending, pattern)
    if COLUMNS[column].needs_status:
        # The order depends on details of all: read them all, this is not a screen.
        model.take(model.read([row.name for row in rows], True))
        rows = model.ordered(COLUMNS[column], COLUMNS[column].descending, pattern)
    rows = rows[:most]
    statuses = device.statuses([row.name for row in rows])
    lines = ["region\tname\tsize\tused\tvisible_size\tvisible_used\tbos"]
    for name, region in model.stats.get("regions", {}).items():
        values = (region.get(key, 0) for key in ("size", "used", "visible_size", "visible_used", "bos"))
        lines.append("\t".join(("region", name, *map(str, values))))
    if grouped(model.stats):
        lines.append("\t".join(("group", "name", "region", *GROUP_COLUMNS)))
        for share in shares(model.stats):
            lines.append("\t".join(("group", shown(share.group), *map(str, share.row()[1:]))))
    lines.append("rate\tname\tper_second")
    lines += [f"rate\t{rate.name}\t{rate.now:.1f}" for rate in model.rates]
    lines.append("bo\tname\tsize\tplace\tpopulated_pages\tpins\tfences\tmoves\tevictions\tfaults")
    for row in rows:
        status = statuses.get(row.name)
        if status is not None:
            counts = (status.get(key, 0) for key in ("pin_count", "fences", "moves", "evictions", "faults"))
            numbers = (len(value) if isinstance(value, list) else value for value in counts)
            fields = (shown(row.name), status["size"], status["mem_type"], status["populated_pages"], *numbers)
            lines.append("\t".join(("bo", *map(str, fields))))
    return "\n".join(lines)


def is_terminal() -> bool:
    """Whether there is a screen: a terminal, or the page of --serve."""
    return "TEXTUAL_DRIVER" in os.environ or (sys.stdin.isatty() and sys.stdout.isatty())


def _view() -> "type[Top]":
    """The screen. textual takes a while to import: not for --once."""
    with needed("ttm-top", "textual", "tools", "say --once, which prints one screen"):
        from ttm_tools.topview import Top  # noqa: PLC0415
    return Top


def picture_of(app: "Top") -> str:
    """The screen as SVG."""
    picture = app.export_screenshot(title=f"ttm-top {app.model.device.mount}")
    # Without the fonts that it would have a viewer fetch: any monospace one does, the widths are in the text.
    return re.sub(r"@font-face\s*\{.*?\}", "", picture, flags=re.DOTALL)


async def screenshot(device: Device, commands: Device, size: tuple[int, int], interval: float, sort: int) -> str:
    """The screen as it is after a few refreshes, as SVG. MountError when that does not come about."""
    app = _view()(device, commands, interval, sort)
    end = time.monotonic() + _PATIENCE + 20 * interval
    async with app.run_test(size=size) as pilot:
        while app.model.samples < 12:
            await pilot.pause(interval / 2)
            if app.return_value is not None or time.monotonic() > end:
                raise MountError(str(app.return_value or f"{device.mount} is too slow for a picture"), FAILED)
        return picture_of(app)


@click.command(context_settings=HELP, epilog=completion_help("ttm-top"))
@mount_argument
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds.")
@click.option("--sort", type=click.Choice(list(SORT)), default="name", show_default=True, help="Column to sort by.")
@click.option("--filter", "pattern", default="", help="Only BOs whose name has this in it, or fits its wildcards.")
@click.option("--once", "once_", is_flag=True, help="Print one screen as tab-separated lines, and end.")
@click.option("-n", "--rows", type=click.IntRange(0), default=20, show_default=True, help="BOs with --once.")
@click.option("--screenshot", "picture", metavar="FILE.svg", help="Write the screen into a file, and end.")
@click.option("--serve", "serve_", is_flag=True, help="Show it in a browser, on 127.0.0.1 (needs ttmfs[web]).")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Of --serve.")
@click.option("--size", default="120x36", show_default=True, help="Of the screenshot, in characters.")
@version_option
@with_errors
def main(
    mount: str | None,
    interval: float,
    sort: str,
    pattern: str,
    once_: bool,
    rows: int,
    picture: str | None,
    serve_: bool,
    port: int,
    size: str,
) -> None:
    """Watch a ttmfs mount: regions as bars, rates of faults and moves, its BOs; steer the selected one.

    \b
    e evict    v to vram   g to gtt   d defrag    p pin   u unpin   b backup   r restore   x unmap
    N name  Z size  L place  P populated  O orders  I pins  C fences  M moves  E evictions  F faults  R group
                sort by that column, once more turns it around; < and > go through the columns
    /           filter (part of a name, or wildcards), Escape clears it
    Enter       details of the BO: its pages, who goes before it, its status
    G           groups: what each has, what protects it, how often it was evicted
    space       pause             ?           all keys           q           quit

    When a command fails, the line above the keys says why in the device's words. The mark in a bar is the end of what
    the CPU can see. A `·` is not read yet: details are read for the BOs on the screen only, so tens of thousands do
    no harm.

    \b
    ttm-top
    ttm-top /tmp/gpu --sort faults --filter 'tex*'
    ttm-top --once --sort moves -n 5 | grep '^bo'
    ttm-top --screenshot top.svg --size 100x30
    ttm-top --serve --port 8001
    """
    columns, _, lines = size.partition("x")
    if not (columns.isdecimal() and lines.isdecimal() and 40 <= int(columns) <= 500 and 12 <= int(lines) <= 300):
        raise click.UsageError(f"--size {size}: say COLUMNSxLINES, as in 120x36")
    where = find_mount(mount)
    if serve_:
        from ttm_tools.topserve import serve  # noqa: PLC0415

        options = ("--interval", str(interval), "--sort", sort, "--filter", pattern)
        serve([sys.executable, "-m", "ttm_tools.top", where, *options], where, port)
        return
    with Device(where, read_seconds=READ_SECONDS) as device, Device(where) as commands:
        if once_:
            click.echo(once(device, interval, SORT[sort], pattern, rows))
        elif picture is not None:
            text = asyncio.run(screenshot(device, commands, (int(columns), int(lines)), interval, SORT[sort]))
            with open(picture, "w", encoding="utf-8") as file:
                file.write(text)
        else:
            if not is_terminal():
                raise MountError("not a terminal: --once prints one screen, --screenshot draws one", NO_MOUNT)
            app = _view()(device, commands, interval, SORT[sort], pattern)
            ended = app.run()
            if ended is not None:
                click.echo(f"Error: {ended}", err=True)
            if ended is not None or app.return_code:
                sys.exit(app.return_code or FAILED)


if __name__ == "__main__":
    main()
