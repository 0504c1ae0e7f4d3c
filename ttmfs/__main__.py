"""`python -m ttmfs`."""

from ttmfs.cli import main

main()
