"""The schemas of docs/schemas/, strict: what they do not name is an error here, and is free for a later version."""

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator

SCHEMAS: Final = Path(__file__).resolve().parents[1] / "docs" / "schemas"


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    _close(schema)
    return Draft202012Validator(schema)


def _close(node: dict[str, Any]) -> None:
    """Forbid what is not named, where a schema says nothing about it."""
    if "properties" in node:
        for inner in node["properties"].values():
            _close(inner)
        more = node.setdefault("additionalProperties", False)
        if isinstance(more, dict):
            _close(more)


def faults(name: str, value: object) -> list[str]:
    """What is wrong with a value by docs/schemas/NAME.json, a sentence each."""
    return [f"{error.json_path}: {error.message}" for error in _validator(name).iter_errors(value)]
