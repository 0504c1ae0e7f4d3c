"""Schemas: docs/schemas/*.json, JSON Schemas of what programs read of a mount, from the tables and a device's answers.

What is there may grow, so that no schema forbids keys that it does not name.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from docslib import tables
from docslib.walk import walk
from ttmfs.fs.tree.stat_keys import KEYS, OPTIONAL

Schema = dict[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_KINDS: Final[Mapping[str, Schema]] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "string": {"type": "string"},
    "integers": {"type": "array", "items": {"type": "integer"}},
    "strings": {"type": "array", "items": {"type": "string"}},
    "count or yes": {"type": ["integer", "boolean"]},
    "number": {"type": "number"},
}
"""What tables.RESULTS calls a type."""


def stats() -> Schema:
    """Of `stats`."""
    found = walk()
    root = _object("Everything countable: MNT/stats", {})
    for path, key in KEYS.items():
        # Without a mount there is nobody to count some of them for: those are counts.
        kind = _stat_type(path, found.stats.get(path, 0))
        _put(root, path.split("."), _described(kind, key.does))
    return root


def _stat_type(path: str, value: object) -> Schema:
    """Numbers that a moment may give decimals are numbers whatever they are now."""
    return _KINDS["number"] if KEYS[path].unit in ("ms", "ratio") else _type(value)


def _put(node: Schema, parts: list[str], leaf: Schema) -> None:
    """Set a key; `*` is any name."""
    path = ""
    for part in parts[:-1]:
        path = f"{path}.{part}".lstrip(".")
        inner = _object("", {})
        if part == "*":
            node = node.setdefault("additionalProperties", inner)
            continue
        _require(node, part, path)
        node = node["properties"].setdefault(part, inner)
    node["properties"][parts[-1]] = leaf
    _require(node, parts[-1], ".".join(parts))


def _require(node: Schema, name: str, path: str) -> None:
    if path not in OPTIONAL and path.partition(".")[0] not in OPTIONAL and name not in node["required"]:
        node["required"].append(name)


def status() -> Schema:
    """Of `objects/NAME/status.json`."""
    found = walk()
    values = {key: _described(_type(value), tables.STATUS[key]) for key, value in found.status.items()}
    root = _object("A buffer object: MNT/objects/NAME/status.json", values)
    root["properties"]["dirty_method"] = _described(_KINDS["string"], "how it tracks them; with --driver vmwgfx")
    return root


def space_status() -> Schema:
    """Of `svm_objects/NAME/status.json`."""
    found = walk()
    values = {key: _described(_type(value), tables.SPACE_STATUS[key]) for key, value in found.space_status.items()}
    return _object("An address space: MNT/svm_objects/NAME/status.json", values)


def result() -> Schema:
    """Of a line that is read back from a command file."""
    values = {key: _described(_KINDS[kind], does) for key, (kind, does) in tables.RESULTS.items()}
    root = _object("The result of a command: a line read back from the file that it was written to", values)
    root["required"] = ["ok"]
    root["if"] = {"properties": {"ok": {"const": False}}}
    root["then"] = {"required": ["errno", "error"]}
    return root


SCHEMAS: Final[Mapping[str, Callable[[], Schema]]] = {
    "stats": stats,
    "status": status,
    "space_status": space_status,
    "result": result,
}


def text(name: str) -> str:
    """docs/schemas/NAME.json."""
    return json.dumps({"$schema": DIALECT, **SCHEMAS[name]()}, indent=2) + "\n"


def _object(title: str, properties: Schema) -> Schema:
    head = {"title": title} if title else {}
    return {**head, "type": "object", "properties": properties, "required": list(properties)}


def _described(kind: Schema, does: str) -> Schema:
    return {"description": does, **kind}


def _type(value: object) -> Schema:
    """The type of a value as JSON has it; of what is in an empty list: strings."""
    match value:
        case bool():
            return _KINDS["boolean"]
        case int():
            return _KINDS["integer"]
        case float():
            return _KINDS["number"]
        case str():
            return _KINDS["string"]
        case list():
            return _KINDS["integers"] if value and isinstance(value[0], int) else _KINDS["strings"]
        case dict():
            return {"type": "object", "additionalProperties": {"type": "integer"}}
    raise ValueError(f"{value!r} has no type here")
