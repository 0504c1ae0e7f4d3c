"""docs/policies.md says of every shipped policy what its class says."""

import inspect

from tests.docs.docs_console import REPOSITORY
from ttmfs.policy.registry import available

TEXT = (REPOSITORY / "docs" / "policies.md").read_text(encoding="utf-8")


def test_every_shipped_policy_has_its_row() -> None:
    entries, _ = available()
    for entry in entries:
        parameters = " ".join(map(str, entry.parameters))
        source = " ".join((inspect.getdoc(entry.cls) or "").split()).partition("Source: ")[2]
        code = f"`{parameters}`" if parameters else ""
        assert f"| `{entry.name}` | {code} | {entry.sentence} | {source} |\n" in TEXT, entry.name


def test_every_hook_is_named() -> None:
    for hook in ("attach", "added", "used", "removed", "victims", "fault", "displaced", "settled", "submitted", "tick"):
        assert f"`{hook}(" in TEXT or f", `{hook}(" in TEXT
