"""`ttmfs batch`: command lines from standard input."""

import click

from ttmfs.batch import serve
from ttmfs.cli import load, main


@click.command(hidden=True)
def batch() -> None:
    """Run commands from standard input: a line is a JSON list of words, as in ["mount", "/tmp/gpu"]; each is answered
    by a line {"status": EXIT STATUS, "said": WHAT IT PRINTED}. Ends when standard input does.

    It has loaded what mounting needs and forks for each command: a mount is ready in a tenth of a second.
    """
    for name in ("mount", "umount"):
        load(name)
    serve(lambda words: main.main(words, prog_name="ttmfs"))
