"""scripts/docs: write the generated documents, or say which of them are stale."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from docslib.kernel_map import kernel_map
from docslib.man import pages
from docslib.reference import reference
from docslib.schemas import SCHEMAS, text
from ttmfs.fs.tree.stat_keys import markdown

REPOSITORY: Final = Path(__file__).resolve().parents[2]
GENERATED: Final[Mapping[str, Callable[[], str]]] = {
    "docs/reference.md": reference,
    "docs/STATS.md": markdown,
    "docs/kernel-map.md": kernel_map,
    **{f"docs/schemas/{name}.json": partial(text, name) for name in SCHEMAS},
}
"""Files and what writes them."""
MAN: Final = ("docs/man", "mountpoint-tools/man")
"""Folders of man pages, which hold nothing else."""


def texts() -> dict[str, str]:
    """All generated files by their path in the repository."""
    return {**{name: make() for name, make in GENERATED.items()}, **pages()}


def stale(wanted: Mapping[str, str]) -> list[str]:
    """Names of the files whose text is not what it should be, and of pages of commands that are gone."""
    found = [name for name, text in wanted.items() if not _is(REPOSITORY / name, text)]
    return found + [name for name in _pages_there() if name not in wanted]


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def _pages_there() -> list[str]:
    return [f"{folder}/{path.name}" for folder in MAN for path in sorted((REPOSITORY / folder).glob("*"))]


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0; 1 when --check finds one stale; 2 for other words."""
    if list(arguments) == ["--check"]:
        names = stale(texts())
        for name in names:
            print(f"{name} is stale: run scripts/docs")
        return 1 if names else 0
    if arguments:
        print("scripts/docs [--check]", file=sys.stderr)
        return 2
    wanted = texts()
    for name in _pages_there():
        if name not in wanted:
            (REPOSITORY / name).unlink()
    for name, content in wanted.items():
        (REPOSITORY / name).parent.mkdir(exist_ok=True)
        (REPOSITORY / name).write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
