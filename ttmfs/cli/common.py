"""What several commands have in common: how they fail, and the mount that they are about."""

from typing import Final, NoReturn

import click

from ttmfs import mounts
from ttmfs.errors import TtmError

mountpoint_argument: Final = click.argument("mountpoint", required=False, shell_complete=mounts.complete)
"""MOUNTPOINT, or without it $TTMFS_MOUNT, or the only mount there is."""


def fail(error: OSError) -> NoReturn:
    """End the command with status 1 and the sentence of an error."""
    message = error.message if isinstance(error, TtmError) else str(error)
    raise click.ClickException(message) from None


def say_where(path: str, url: str) -> None:
    """Say where the metrics of a mount are served."""
    click.echo(f"ttmfs: the metrics of {path} are at {url}", err=True)
