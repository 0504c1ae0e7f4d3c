"""Batch: command lines from standard input, each run in a fork of a process that has loaded what mounting needs.

Loading takes most of the time of `ttmfs mount`. Who mounts a device for each of many tests pays it once.
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def serve(command: Callable[[list[str]], object]) -> None:
    """Answer each line of standard input by one on standard output, until it ends.

    `command` runs the words of a line and ends the process by SystemExit, as click's commands do.
    """
    # No fork looks for garbage in what is loaded, nor copies the pages that it lies in for that.
    gc.freeze()
    for line in sys.stdin:
        try:
            words = json.loads(line)
            if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
                raise ValueError
        except ValueError:
            answer = {"status": 2, "said": 'a line is a JSON list of words, as in ["mount", "/tmp/gpu"]'}
        else:
            status, said = run(command, words)
            answer = {"status": status, "said": said}
        print(json.dumps(answer), flush=True)


def run(command: Callable[[list[str]], object], words: list[str]) -> tuple[int, str]:
    """(exit status, what it printed) of a command run in a fork. What it leaves in the background goes on."""
    output = os.memfd_create("ttmfs-batch")
    try:
        child = os.fork()
        if not child:
            _child(command, words, output)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = os.pread(output, os.fstat(output).st_size, 0)
        return status, said.decode("utf-8", "replace")
    finally:
        os.close(output)


def _child(command: Callable[[list[str]], object], words: list[str], output: int) -> NoReturn:
    status = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        command(words)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # whatever it is, it is this command's, and the parent waits for its end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
