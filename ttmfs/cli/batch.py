"""`ttmfs batch`: command lines from standard input."""

import click

from ttmfs.batch import serve
from ttmfs.cli import COMMANDS, main


@click.command(hidden=True)
def batch() -> None:
    """Run commands from standard input: a line is a JSON list of words, as in ["mount", "/tmp/gpu"]; each is answered
    by a line {"status": EXIT STATUS, "said": WHAT IT PRINTED}. Ends when standard input does.

    It has everything loaded and forks for each command: a mount is ready in a tenth of a second.
    """
    for entry in COMMANDS:
        entry.load()
    serve(lambda words: main.main(words, prog_name="ttmfs"))
