"""`scripts/test-matrix`: `scripts/test` with every Python and every set of versions, and in odd surroundings.

Promise: each combination runs in a copy of the checkout as it is now, with a `.venv` of its own, so that nothing of
one is seen by another or by the checkout. The exit status is 1 when one failed; what could not be tried is said.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from .device import ROOT, ScriptError

SETS = {
    "oldest": "what pyproject.toml names, as old as it allows",
    "locked": "what requirements/ says",
    "newest": "the newest of today",
}
LOCK_OPTIONS = {"oldest": "--oldest", "newest": "--upgrade"}


@dataclass(frozen=True)
class Surrounding:
    """Something that no test may depend on."""

    what: str
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


SURROUNDINGS = {
    "C": Surrounding("the C locale", {"LC_ALL": "C"}),
    "de": Surrounding("a German locale", {"LC_ALL": "de_DE.UTF-8", "LANGUAGE": "de"}),
    "narrow": Surrounding("a terminal of 40 columns", {"COLUMNS": "40", "LINES": "10"}),
    "wide": Surrounding("a terminal of 200 columns", {"COLUMNS": "200", "LINES": "60"}),
    "colour": Surrounding("colours asked for", {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TERM": "xterm-256color"}),
    "dumb": Surrounding("a terminal that can nothing", {"TERM": "dumb", "NO_COLOR": "1"}),
    "zone": Surrounding("a time zone of odd minutes", {"TZ": "Asia/Kathmandu"}),
    "hash": Surrounding("another order of sets", {"PYTHONHASHSEED": "4711"}),
    "blank": Surrounding("a temporary folder with a blank in its path"),
    "umask": Surrounding("files that are closed to others", prefix=("sh", "-c", 'umask 077; exec "$@"', "sh")),
    "nohup": Surrounding("signals ignored, as behind nohup and &", prefix=("env", "--ignore-signal=INT,QUIT,HUP,PIPE")),
    "order": Surrounding("tests in random order", arguments=("--random-order",)),
    "alone": Surrounding("every file of tests by itself"),
}


@dataclass
class Combination:
    """One run of the suite."""

    python: str | None
    versions: str
    surrounding: str | None = None

    @property
    def title(self) -> str:
        """Also the name of its log."""
        return self.surrounding or f"{Path(self.python or 'python3').name}-{self.versions}"


class Matrix:
    """Runs combinations, below one temporary folder."""

    def __init__(self, folder: Path, logs: Path, arguments: list[str]) -> None:
        self.folder, self.logs, self.arguments = folder, logs, arguments
        self._locks: dict[str, Path] = {"locked": ROOT / "requirements"}

    def run(self, combination: Combination) -> tuple[int, str]:
        """The exit status and the last line of the output."""
        log = self.logs / combination.title
        surrounding = SURROUNDINGS[combination.surrounding] if combination.surrounding else Surrounding("")
        environment = {**os.environ, **surrounding.environment}
        if combination.python:
            environment["PYTHON"] = combination.python
        if combination.surrounding == "blank":
            environment["TMPDIR"] = str(self.folder / "a blank")
            Path(environment["TMPDIR"]).mkdir(mode=0o777, exist_ok=True)
        if combination.surrounding == "de":
            environment["LOCPATH"] = str(german(self.folder))
        command = ["./scripts/test", *surrounding.arguments, *self.arguments]
        with self._copy(combination.versions) as copy, log.open("w") as output:
            if combination.surrounding == "alone":
                return alone(copy, environment, self.arguments, log)
            done = subprocess.run(
                [*surrounding.prefix, *command], cwd=copy, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        return done.returncode, last_line(log)

    @contextlib.contextmanager
    def _copy(self, versions: str) -> Iterator[Path]:
        """The checkout with the locks of that set, deleted at the end."""
        locks = self._locks_of(versions)
        copy = Path(tempfile.mkdtemp(prefix=f"{versions}-", dir=self.folder))
        try:
            copy_checkout(copy)
            for lock in locks.glob("*.lock"):
                shutil.copy(lock, copy / "requirements")
            yield copy
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def _locks_of(self, versions: str) -> Path:
        """The folder with the locks of a set; `scripts/lock` makes them, once."""
        if versions not in self._locks:
            copy = self.folder / f"locks-{versions}"
            copy.mkdir()
            copy_checkout(copy)
            made = subprocess.run(
                ["./scripts/lock", LOCK_OPTIONS[versions]], cwd=copy, capture_output=True, text=True, check=False
            )
            if made.returncode:
                raise ScriptError(f"scripts/lock {LOCK_OPTIONS[versions]} failed: {made.stderr.strip()}")
            self._locks[versions] = copy / "requirements"
        return self._locks[versions]


def copy_checkout(target: Path) -> None:
    """All files that are or could be committed, as they are now."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, os.fsdecode(listed).split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def alone(copy: Path, environment: dict[str, str], arguments: list[str], log: Path) -> tuple[int, str]:
    """Every file of tests in a pytest of its own."""
    failed = []
    with log.open("w") as output:
        run = partial(
            subprocess.run, cwd=copy, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        run(["./scripts/setup"], check=True)
        files = sorted(path.relative_to(copy) for path in (copy / "tests").rglob("test_*.py"))
        for file in files:
            command = [str(copy / ".venv/bin/python"), "-m", "pytest", "-m", "not stress", *arguments, str(file)]
            status = run(command, check=False).returncode
            if status not in (0, 5):  # 5: nothing in it is selected
                failed.append(str(file))
    words = [f"{len(files) - len(failed)} files passed", *(f"{name} failed" for name in failed)]
    return int(bool(failed)), ", ".join(words)


def last_line(log: Path) -> str:
    """The last line that is not empty."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def german(folder: Path) -> Path:
    """A folder for LOCPATH with de_DE.UTF-8; ScriptError when it cannot be made here."""
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        raise ScriptError("there is no source of de_DE (mend: apt-get install locales)")
    made = folder / "locale"
    made.mkdir(exist_ok=True)
    subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", made / "de_DE.UTF-8"], check=True)
    return made


def minors() -> list[str]:
    """The Python versions that have a lock."""
    found = [path.stem for path in (ROOT / "requirements").glob("3.*.lock")]
    return sorted(found, key=lambda minor: int(minor.split(".")[1]))


def find_python(minor: str) -> str | None:
    """A Python of that version that can make a .venv and build in it, from PATH or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = sorted(pyenv.glob(f"{minor}.*"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    candidates = [shutil.which(f"python{minor}"), *(str(path / "bin" / f"python{minor}") for path in reversed(places))]
    able = (
        "import ensurepip, os, sys, sysconfig, venv\n"
        "header = os.path.join(sysconfig.get_paths()['include'], 'Python.h')\n"
        f"sys.exit('{minor}' != '%d.%d' % sys.version_info[:2] or not os.path.exists(header))"
    )
    for candidate in filter(None, candidates):
        with contextlib.suppress(OSError):
            if subprocess.run([candidate, "-c", able], capture_output=True, check=False).returncode == 0:
                return candidate
    return None


def parse() -> argparse.Namespace:
    """The options."""
    p = argparse.ArgumentParser(
        prog="scripts/test-matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            [
                "sets:",
                *(f"  {name:8} {what}" for name, what in SETS.items()),
                "surroundings:",
                *(f"  {name:8} {around.what}" for name, around in SURROUNDINGS.items()),
                "",
                "One combination takes as long as the suite; without options that is every Python times every set.",
            ]
        ),
    )
    add = p.add_argument
    add("--python", action="append", choices=minors(), help="only this version (may be given again); else all found")
    add("--set", action="append", choices=SETS, help="only this set of versions (may be given again); else all")
    add("--around", nargs="?", action="append", const="all", choices=[*SURROUNDINGS, "all"], metavar="NAME",
        help="in this surrounding (may be given again; all without a name), with the locked versions")  # fmt: skip
    add("--logs", type=Path, help="keep the output of every combination in this folder")
    add("arguments", nargs="*", metavar="-- ARGUMENTS", help="for ./scripts/test: files, -k, --all, ...")
    return p.parse_args()


def combinations(options: argparse.Namespace) -> Iterator[Combination | str]:
    """What to run, or why something is not."""
    names = options.around or []
    around = list(SURROUNDINGS) if "all" in names else names
    pythons: list[str | None] = [None] if around and not options.python else []
    for minor in options.python or ([] if around else minors()):
        if python := find_python(minor):
            pythons.append(python)
        else:
            yield f"Python {minor}: not on this machine, or without venv or Python.h"
    for each in pythons:
        for name in around:
            yield Combination(each, "locked", name)
        for versions in () if around else options.set or SETS:
            yield Combination(each, versions)


def main() -> int:
    """Run the combinations; returns the exit status."""
    options = parse()
    results: list[str] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="ttmfs-matrix-", ignore_cleanup_errors=True) as directory:
        logs = options.logs or Path(directory) / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        matrix = Matrix(Path(directory), logs.resolve(), options.arguments)
        for combination in combinations(options):
            if isinstance(combination, str):
                results.append(f"skipped\t{combination}")
                continue
            print(f"{combination.title} ...", file=sys.stderr, flush=True)
            begin = time.monotonic()
            try:
                status, words = matrix.run(combination)
            except ScriptError as error:
                results.append(f"skipped\t{combination.title}\t{error}")
                continue
            failed |= status != 0
            results.append(f"{'FAILED' if status else 'ok'}\t{combination.title}\t{words}")
            print(f"{results[-1]} ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)
            if status:
                print(failures(logs / combination.title), file=sys.stderr, flush=True)
    print("\n".join(results))
    return int(failed)


def failures(log: Path) -> str:
    """The lines of the output that say what failed."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if re.match(r"FAILED|ERROR|E   |.*: error:|setup: |.* -->", line)][:60])


if __name__ == "__main__":
    sys.exit(main())
