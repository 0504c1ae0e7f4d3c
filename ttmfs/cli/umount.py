"""`ttmfs umount`."""

import click

from ttmfs import mounts
from ttmfs.cli.common import mountpoint_argument
from ttmfs.fs.kernel import busy, tuning


@click.command()
@mountpoint_argument
@click.option("--force", is_flag=True, help="Abort whoever uses it and detach it: dirty client pages are lost.")
def umount(mountpoint: str | None, force: bool) -> None:
    """Take the mount at MOUNTPOINT down; all BOs are gone with it. Without MOUNTPOINT: $TTMFS_MOUNT, or the only one.

    Busy (somebody has a file open, or stands inside) is an error that says who. --force does not ask: their next
    access fails. It also frees a mount whose daemon does not answer.
    """
    path = mounts.meant(mountpoint)
    connection = mounts.connection(path)
    if force:
        problem = tuning.abort_connection(connection)
        problem = tuning.lazy_unmount(path) or problem
        if problem:
            raise click.ClickException(problem)
        return
    problem = tuning.unmount(path)
    if problem:
        below = [other for other in tuning.all_mountpoints() if other.startswith(f"{path}/")]
        if below:
            there = " ".join(below)
            raise click.ClickException(f"{path} is busy: another mount is below it ({there}): take that down first")
        raise click.ClickException(f"{problem}{_who_uses(path)}")


def _who_uses(path: str) -> str:
    """The processes that keep a mount busy, and what can be done."""

    lines = [f"\n  {user}" for user in busy.users_of(path)]
    text = "\nUsed by:" + "".join(lines) if lines else ""
    return f"{text}\n`ttmfs umount --force {path}` takes it down anyway; what clients have not written back is lost."
