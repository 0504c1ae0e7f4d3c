"""scripts/docs: write the generated documents, or say which of them are stale."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from docslib.kernel_map import kernel_map
from docslib.reference import reference
from docslib.schemas import SCHEMAS, text
from ttmfs.fs.tree.stat_keys import markdown

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
GENERATED: Final[Mapping[str, Callable[[], str]]] = {
    "reference.md": reference,
    "STATS.md": markdown,
    "kernel-map.md": kernel_map,
    **{f"schemas/{name}.json": partial(text, name) for name in SCHEMAS},
}
"""Files below docs/ and what writes them."""


def stale() -> list[str]:
    """Names of the files whose text is not what the tables say now."""
    found = []
    for name, make in GENERATED.items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != make():
            found.append(name)
    return found


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0; 1 when --check finds one stale; 2 for other words."""
    if list(arguments) == ["--check"]:
        names = stale()
        for name in names:
            print(f"docs/{name} is stale: run scripts/docs")
        return 1 if names else 0
    if arguments:
        print("scripts/docs [--check]", file=sys.stderr)
        return 2
    for name, make in GENERATED.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
