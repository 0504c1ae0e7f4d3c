#!/usr/bin/env python3
"""A model-checked exerciser of files: ``exerciser.py FILE... --seconds S --seed N --clients N``.

Every client process owns one file, or a region of one with ``--shared``, and keeps a model of every byte in it. Each
byte it ever reads back is compared with the model. It uses the files and nothing else (the standard library and numpy),
so it runs on any file system; ``--ctl MNT`` adds a storm of ttmfs commands on the same files.

Exit status 0: every byte was right, and nothing took longer than allowed. 1: something was wrong, and the report says
what, with the seed, the operation's number and the last operations before it. 2: it could not run as asked.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.exerciserlib.main import main

if __name__ == "__main__":
    sys.exit(main())
