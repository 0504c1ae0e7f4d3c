"""Console blocks of documents: run their commands in one shell, in order, and compare the output.

A block counts when the line before it is `<!-- checked -->`. `$ ` begins a command. In the expected output `[...]`
stands for anything within a line, and alone on a line for any number of lines. What differs between any two runs
(times of day and since the boot, microseconds, the daemon's pid, lines of the shell) is compared as if it did not.
/tmp becomes a folder of the test; docs/examples/ and tests/data/ are found wherever a command stands. The language is
the documents'.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from ttmfs.fs.kernel import tuning

SECONDS = 280
"""For a whole document, so that one that hangs is named; on a busy machine the tour takes more than 100."""
END: Final = "-- end of a command --"
_OF_A_TERMINAL: Final = ("FORCE_COLOR", "CLICOLOR_FORCE", "NO_COLOR", "LINES", "LANGUAGE", "TZ")
REPOSITORY: Final = Path(__file__).resolve().parents[2]

_VOLATILE: Final = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"^bash: line \d+: ", re.M), "bash: "),
    (re.compile(r"^ *\S+-\d+ +(?=\[)", re.M), "TASK "),
    (re.compile(r"\t[\w.<>-]+-\d+$", re.M), "\tTASK"),
    (re.compile(r" *\b\d+\.\d{6}: "), " STAMP: "),
    (re.compile(r"_us(=|: )\d+"), "_us N"),
)


def checked_commands(text: str) -> list[tuple[str, str]]:
    """(command, expected output) of all checked blocks, in order."""
    found = []
    for block in re.findall(r"^<!-- checked -->\n```console\n(.*?)^```$", text, re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            lines = part.splitlines(keepends=True)
            # `> ` goes on with the command, as a shell's second prompt.
            count = 1
            while count < len(lines) and lines[count].startswith("> "):
                count += 1
            command = lines[0] + "".join(line[2:] for line in lines[1:count])
            found.append((command.rstrip("\n"), "".join(lines[count:])))
    return found


def steady(text: str) -> str:
    """The text without what differs between any two runs."""
    for what, word in _VOLATILE:
        text = what.sub(word, text)
    return text


def pattern(expected: str) -> str:
    """A regular expression for the expected output."""
    lines = []
    for line in expected.splitlines():
        if line == "[...]":
            lines.append(r"(?:.*\n)*")
        else:
            lines.append(".*".join(re.escape(part) for part in line.split("[...]")) + r"\n")
    return "".join(lines)


def matches(expected: str, output: str) -> bool:
    """Is this the output that a document shows?"""
    return re.fullmatch(pattern(steady(expected)), steady(output)) is not None


def in_folder(command: str, folder: str) -> str:
    """The command with `folder` for /tmp and this repository's docs/examples and tests/data."""
    command = command.replace("/tmp", folder)
    # After that: the repository itself may lie in /tmp.
    for part in ("docs/examples/", "tests/data/"):
        command = command.replace(f" {part}", f" {REPOSITORY}/{part}")
    return command


def let_mounts_go(folder: str) -> None:
    """Abort and detach what is mounted below a folder."""
    for path in tuning.mountpoints("fuse.ttmfs"):
        if path.startswith(folder + "/"):
            with contextlib.suppress(OSError):
                tuning.abort_connection(tuning.connection_number(path))
            tuning.lazy_unmount(path)


def run_commands(commands: list[tuple[str, str]]) -> list[str]:
    """The output of each command. Whatever they leave mounted is aborted and detached."""
    # In /tmp, as the documents have it: a blank in the path of $TMPDIR would have to be quoted there.
    with tempfile.TemporaryDirectory(prefix="ttmfs-test-", dir="/tmp") as directory:
        folder = os.path.realpath(directory)
        script = "".join(f"{in_folder(command, folder)}\necho '{END}'\n" for command, _ in commands)
        environment = {
            **{name: value for name, value in os.environ.items() if name not in _OF_A_TERMINAL},
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            "COLUMNS": "100",
            "LC_ALL": "C.UTF-8",
            "TMPDIR": "/tmp",
        }
        try:
            done = subprocess.run(
                ["bash", "-s"],
                input=script,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS,
                check=False,
                env=environment,
                cwd=folder,
            )
        finally:
            let_mounts_go(folder)
        return done.stdout.replace(folder, "/tmp").split(f"{END}\n")[:-1]


def run_document(path: Path) -> int:
    """Run the checked blocks of a document and compare; how many commands there were. AssertionError names the first
    whose output is another one."""
    commands = checked_commands(path.read_text(encoding="utf-8"))
    outputs = run_commands(commands)
    for (command, expected), output in zip(commands, outputs, strict=True):
        assert matches(expected, output), f"{path.name}: $ {command}\n{output}expected:\n{expected}"
    return len(commands)
