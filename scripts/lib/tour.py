"""Tour: the checked commands of a document, one after another in one shell, each when somebody presses Enter."""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from tests.docs.docs_console import END, REPOSITORY, checked_commands, in_folder, let_mounts_go


def sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, commands) of each section that has some."""
    for part in ("\n" + text).split("\n## ")[1:]:
        commands = [command for command, _expected in checked_commands(part)]
        if commands:
            yield part.splitlines()[0], commands


def say(text: str, style: str) -> None:
    """On a terminal in that style (an ANSI number)."""
    print(f"\033[{style}m{text}\033[0m" if sys.stdout.isatty() else text, flush=True)


def run(shell: "subprocess.Popen[str]", command: str) -> None:
    """Run one command in the shell and show what it prints, as it comes."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write(f"{command}\necho '{END}'\n")
    shell.stdin.flush()
    for line in shell.stdout:
        if line.endswith(f"{END}\n"):
            sys.stdout.write(line.removesuffix(f"{END}\n"))
            break
        sys.stdout.write(line)
        sys.stdout.flush()


def step(text: str, folder: str, *, wait: bool) -> None:
    """All sections, with `folder` for /tmp."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    shell = subprocess.Popen(
        ["bash", "-s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        env={**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    try:
        for heading, commands in sections(text):
            say(f"\n{heading}\n", "1")
            for command in commands:
                say("$ " + command.replace("\n", "\n> "), "36")
                if wait and input().strip() == "q":
                    return
                run(shell, in_folder(command, folder))
    except (EOFError, KeyboardInterrupt):
        return
    finally:
        shell.kill()
        shell.wait()


def main() -> None:
    """See scripts/tour."""
    parser = argparse.ArgumentParser(prog="scripts/tour", description=__doc__)
    parser.add_argument("name", nargs="?", default="tour", help="a document of docs/, without its .md [tour]")
    parser.add_argument("--run", action="store_true", help="do not wait for Enter")
    options = parser.parse_args()
    document = REPOSITORY / "docs" / f"{options.name}.md"
    if not document.is_file() or not checked_commands(text := document.read_text(encoding="utf-8")):
        names = (path.stem for path in sorted(document.parent.glob("*.md")) if checked_commands(path.read_text()))
        sys.exit(f"scripts/tour: {options.name} has no commands to step through: say one of {' '.join(names)}")
    folder = os.path.realpath(tempfile.mkdtemp(prefix="ttmfs-tour-", dir="/tmp"))
    try:
        step(text, folder, wait=not options.run)
    finally:
        let_mounts_go(folder)
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
