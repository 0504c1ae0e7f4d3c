"""`ttmfs doctor`."""

import sys

import click

from ttmfs.doctor import examine


@click.command()
def doctor() -> None:
    """Say what this machine lacks, and the command that mends it.

    One line a check: ok, loses (works without, and what is lost), missing (will not work). Exit status 1 when
    something is missing. Run it as the user who mounts: without root it says what that costs.
    """
    worst = 0
    for finding in examine():
        click.echo(f"{finding.level:7} {finding.what}")
        if finding.mend:
            click.echo(f"        {finding.mend}")
        worst = max(worst, finding.severity)
    sys.exit(1 if worst >= 2 else 0)
