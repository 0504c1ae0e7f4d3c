"""ttm-report: one HTML file of a run, or of a mount as it is now: maps, curves, tables, events."""

import io
import os
import time
from typing import Any, Final

import click

from ttm_tools.curves import curves
from ttm_tools.device import Device
from ttm_tools.errors import NO_MOUNT, MountError
from ttm_tools.htmlpage import Page
from ttm_tools.ls import COLUMNS, SHORT, ordered
from ttm_tools.map import as_json, read_regions
from ttm_tools.mapdiff import compare, rows
from ttm_tools.mapsample import maps_in
from ttm_tools.mounts import find_mount, ttmfs_mounts
from ttm_tools.options import HELP, completion_help, version_option, with_errors
from ttm_tools.pagemap import Region
from ttm_tools.picture import draw, facts
from ttm_tools.report import report
from ttm_tools.traceformat import Parsed, parse

EVENTS: Final = 5000
BOS: Final = 2000
"""So many are in a report; what is left out is said."""


def of_recording(lines: list[str], page: Page) -> None:
    """What `ttm-trace record` has written. MountError when it is no trace."""
    parsed = parse(lines)
    if not parsed.events and not parsed.samples:
        raise MountError(f"{page.title}: no events, and no samples: is it what `ttm-trace record` writes?", NO_MOUNT)
    _curves(page, parsed)
    moments = maps_in(lines)
    if moments:
        page.section("Maps")
        if len(moments) > 1:
            _map(page, moments[0][1], "before the run", "bo")
        for by in ("bo", "order"):
            _map(page, moments[-1][1], "after the run", by)
    if len(moments) > 1:
        one, other = ({region.name: as_json(region) for region in moments[at][1]} for at in (0, -1))
        page.section("What has changed")
        page.table(("region", "what", "name", "before", "after", "change"), rows(compare(one, other)))
    _tables(page, parsed)


def of_mount(device: Device, page: Page) -> None:
    """A mount as it is now, and what its trace has."""
    stats = device.stats()
    page.section("Regions")
    keys = ("size", "used", "visible_size", "visible_used", "bos")
    page.table(
        ("region", *keys), [[name, *(region.get(key, 0) for key in keys)] for name, region in stats["regions"].items()]
    )
    try:
        regions = read_regions(device, ())
    except OSError as error:
        page.say(f"no maps: {error.strerror}")
    else:
        page.section("Maps")
        for by in ("bo", "order"):
            _map(page, regions, "now", by)
    page.section("Buffer objects")
    names = device.names()
    statuses = ordered(list(device.statuses(names[:BOS]).values()), "faults")
    if len(names) > BOS:
        page.say(f"{BOS} of {len(names)} are shown")
    page.table(SHORT, [[COLUMNS[column](status) for column in SHORT] for status in statuses], searched=True)
    page.section("Numbers")
    page.table(("key", "value"), [(f"{part}.{key}", value) for part, values in stats.items() if part != "regions"
                                  for key, value in _flat(values)])  # fmt: skip
    for name, title in (("error_log", "What has failed"), ("trace", "")):
        try:
            text = device.text(name)
        except (OSError, MountError):
            continue
        if title and text:
            page.section(title)
            page.table(
                ("when", "errno", "what", "why"),
                [line.split("\t", 3) for line in text.splitlines() if line.count("\t") > 2],
            )
        elif not title:
            parsed = parse(text.splitlines())
            _curves(page, parsed)
            _tables(page, parsed)


def _flat(values: Any) -> list[tuple[str, object]]:
    return list(values.items()) if isinstance(values, dict) else [("", values)]


def _map(page: Page, regions: list[Region], when: str, by: str) -> None:
    out = io.BytesIO()
    words = "order" if by == "order" else "buffer object"
    draw(regions, None, by, f"{when}: pages by {words}").savefig(out, format="png")
    said = "; ".join(f"{region.name}: {facts(region)}" for region in regions)
    page.picture(out.getvalue(), f"map {when} by {by}. {said}")


def _curves(page: Page, parsed: Parsed) -> None:
    picture = curves(parsed)
    if picture is not None:
        page.section("Curves")
        page.picture(picture, "what is used, rates, latencies and evictions over time; the tables have numbers")


def _tables(page: Page, parsed: Parsed) -> None:
    if not parsed.events:
        return
    for table in report(parsed, 50):
        page.section({"bos": "BOs"}.get(table.title, table.title.capitalize()))
        page.table(table.columns, table.rows)
    page.section("All events")
    if len(parsed.events) > EVENTS:
        page.say(f"the first {EVENTS} of {len(parsed.events)}")
    start = parsed.events[0].when
    lines = [
        (round(event.when - start, 6), event.name, event.bo, " ".join(f"{key}={it}" for key, it in event.facts.items()))
        for event in parsed.events[:EVENTS]
    ]
    page.table(("seconds", "event", "bo", "facts"), lines, searched=True)


@click.command(context_settings=HELP, epilog=completion_help("ttm-report"))
@click.argument("source", metavar="[TRACE|MNT]", required=False)
@click.option("-o", "--output", metavar="OUT.html", required=True, help="The file to write.")
@click.option("--title", help="Its title.")
@version_option
@with_errors
def main(source: str | None, output: str, title: str | None) -> None:
    """Write one HTML file that shows a run: maps, curves, tables, events. It needs nothing else, and no network.

    TRACE is what `ttm-trace record` wrote: the file has its maps before and after. MNT is a mount as it is now, with
    its BOs, its numbers, and the events in its trace.

    \b
    ttm-trace record -o run.trace -- ./my-test && ttm-report run.trace -o run.html
    ttm-report /tmp/gpu -o now.html
    """
    recorded = not _is_mount(source) and source is not None and os.path.isfile(source)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    if recorded:
        assert source is not None
        page = Page(title or f"ttmfs: {os.path.basename(source)}")
        with open(source, encoding="utf-8", errors="surrogateescape") as file:
            of_recording(file.read().splitlines(), page)
    else:
        where = find_mount(source)
        page = Page(title or f"ttmfs: {where} at {stamp}")
        with Device(where) as device:
            of_mount(device, page)
    with open(output, "w", encoding="utf-8") as file:
        file.write(page.html())
    click.echo(f"ttm-report: {output}", err=True)


def _is_mount(source: str | None) -> bool:
    """Whether this is a mount point, or inside one: then it is not touched from here."""
    if source is None:
        return True
    path = os.path.abspath(source)
    return any(path == mount or path.startswith(mount + "/") for mount in ttmfs_mounts())


if __name__ == "__main__":
    main()
