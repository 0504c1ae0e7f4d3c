"""`ttmfs list` and `ttmfs status`: what is mounted, and how it is."""

import json
import sys

import click

from ttmfs import mounts
from ttmfs.cli.common import fail, mountpoint_argument
from ttmfs.errors import TtmError
from ttmfs.status import read_text, show


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_mounts(as_json: bool) -> None:
    """List the ttmfs mounts: mount point, source, FUSE connection. Exit status 1 when there is none."""
    found = list(mounts.rows())
    for path, source, connection in found:
        if as_json:
            click.echo(json.dumps({"mountpoint": path, "source": source, "connection": connection}))
        else:
            click.echo(f"{path}\t{source}\t{connection}")
    sys.exit(0 if found else 1)


@click.command()
@mountpoint_argument
@click.option("--json", "as_json", is_flag=True, help="The whole `stats` object.")
def status(mountpoint: str | None, as_json: bool) -> None:
    """Show the regions, requests and moves of the mount at MOUNTPOINT. Without it: $TTMFS_MOUNT, or the only one."""

    path = mounts.meant(mountpoint)
    mounts.connection(path)
    try:
        text = read_text(path, "stats")
    except TtmError as error:
        fail(error)
    if as_json:
        click.echo(text, nl=False)
    else:
        show(text)
