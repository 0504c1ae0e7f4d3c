"""The README's tour: every command of its checked blocks is run in order, in one shell, and its output compared.

A block counts when the line before it is `<!-- checked -->`. In the expected output `[...]` stands for anything within
a line, and alone on a line for any number of lines. /tmp/gpu becomes a folder of the test.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ttmfs.fs import tuning

pytestmark = pytest.mark.mount

README = Path(__file__).parents[2] / "README.md"
END = "-- end of a command --"


def checked_commands(text: str) -> list[tuple[str, str]]:
    """(command, expected output) of all checked blocks, in order."""
    found = []
    for block in re.findall(r"^<!-- checked -->\n```console\n(.*?)^```$", text, re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def pattern(expected: str) -> str:
    """A regular expression for the expected output."""
    lines = []
    for line in expected.splitlines():
        if line == "[...]":
            lines.append(r"(?:.*\n)*")
        else:
            lines.append(".*".join(re.escape(part) for part in line.split("[...]")) + r"\n")
    return "".join(lines)


def test_patterns() -> None:
    assert re.fullmatch(pattern("a\n[...]\nb[...]c\n"), "a\nx\ny\nb12c\n")
    assert not re.fullmatch(pattern("a\n[...]\n"), "b\n")
    assert not re.fullmatch(pattern("...\n"), "sss\n")


def test_the_tour() -> None:
    commands = checked_commands(README.read_text(encoding="utf-8"))
    assert len(commands) > 20
    with tempfile.TemporaryDirectory(prefix="ttmfs-test-") as directory:
        folder = os.path.realpath(directory)
        script = "".join(f"{command.replace('/tmp', folder)}\necho '{END}'\n" for command, _ in commands)
        environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
        try:
            done = subprocess.run(
                ["bash", "-s"],
                input=script,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
                check=False,
                env=environment,
                cwd=folder,
            )
        finally:
            path = os.path.join(folder, "gpu")
            if path in tuning.mountpoints("fuse.ttmfs"):
                with contextlib.suppress(OSError):
                    tuning.abort_connection(tuning.connection_number(path))
                tuning.lazy_unmount(path)
        outputs = done.stdout.replace(folder, "/tmp").split(f"{END}\n")[:-1]
        for (command, expected), output in zip(commands, outputs, strict=True):
            assert re.fullmatch(pattern(expected), output), f"$ {command}\n{output}expected:\n{expected}"


def test_every_script_and_option_named_exists() -> None:
    text = README.read_text(encoding="utf-8")
    for script in set(re.findall(r"\./scripts/([a-z-]+)", text)):
        assert os.access(README.parent / "scripts" / script, os.X_OK), script
    done = subprocess.run(
        [sys.executable, "-m", "ttmfs", "mount", "--help"], capture_output=True, text=True, timeout=20, check=True
    )
    table = text[text.index("The\nmost used:") : text.index("## What differs")]
    for option in set(re.findall(r"`(--[a-z-]+)", table)):
        assert option in done.stdout, option
