"""docs/rules.md: every number that code and tests speak of has its row, and a row names code and tests that exist."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"\b([RH]\d{1,2})\b")
ROW = re.compile(r"^### ([RH]\d+): (.+)$", re.MULTILINE)
NAME = re.compile(r"`([^`]+)`")
NO_TEST = ("H11",)
"""What no test can show."""


@cache
def rows() -> dict[str, str]:
    """The rows by number: what stands below their heading."""
    parts = ROW.split((REPOSITORY / "docs" / "rules.md").read_text())
    return {number: body for number, _title, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}


def field(number: str, name: str) -> str:
    """What a row says behind `- NAME:`."""
    found = re.search(rf"^- {name}: (.+?)(?=^- |\n\n|\Z)", rows()[number], re.MULTILINE | re.DOTALL)
    assert found, f"{number} has no line “{name}:”"
    return found[1]


def definitions(folder: str) -> Iterator[str]:
    """Functions and classes of a folder, methods as `Class.method` too."""
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name
            if isinstance(node, ast.ClassDef):
                inner = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
                yield from (f"{node.name}.{n.name}" for n in inner)


@cache
def code() -> frozenset[str]:
    return frozenset(definitions("ttmfs"))


@cache
def shown() -> frozenset[str]:
    return frozenset(name for name in definitions("tests") if name.startswith("test_"))


def spoken_of() -> Iterator[tuple[str, str]]:
    """(number, where) of each rule or hazard that the comments and docstrings of code and tests name."""
    for folder in ("ttmfs", "tests", "scripts", "docs"):
        for path in (REPOSITORY / folder).rglob("*.*"):
            if path.suffix in (".py", ".md"):
                for line in path.read_text().splitlines():
                    for number in NUMBER.findall(line):
                        yield number, f"{path.relative_to(REPOSITORY)}: {line.strip()}"


def test_rules_and_hazards_are_all_there() -> None:
    assert [number for number in rows() if number[0] == "R"] == [f"R{n}" for n in range(1, 12)]
    assert [number for number in rows() if number[0] == "H"] == [f"H{n}" for n in range(1, 34)]


def test_every_number_that_is_spoken_of_has_a_row() -> None:
    assert [where for number, where in spoken_of() if number not in rows()] == []


@pytest.mark.parametrize("number", rows())
def test_a_row_names_code_and_tests_that_exist(number: str) -> None:
    kept_by, shown_by = NAME.findall(field(number, "Kept by")), NAME.findall(field(number, "Tests"))
    if number not in NO_TEST:
        assert kept_by, "says what keeps it"
        assert shown_by, "says what fails without it"
    assert [name for name in kept_by if name not in code()] == []
    assert [name for name in shown_by if name not in shown()] == []


def test_where_to_look_names_files_functions_and_tests_that_exist() -> None:
    table = (REPOSITORY / "docs" / "architecture.md").read_text().split("## Where to look")[1].split("\n## ")[0]
    rows_found = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows_found) > 5
    for question, where, test in rows_found:
        words = NAME.findall(where)
        files = [word for word in words if word.endswith(".py")]
        assert files, question
        text = "".join((REPOSITORY / "ttmfs" / file).read_text() for file in files)
        events = ("place_tried", "evict")
        missing = [word for word in words if word not in files + list(events) and f"def {word}(" not in text]
        assert missing == [], question
        assert [name for name in NAME.findall(test) if name not in shown()] == [], question


def test_only_three_notifications_are_ever_sent() -> None:
    """H10, H15: neither pyfuse3's notifications that change pages or names, nor ours beside the two INVALs and the size
    of a text."""
    ours = r"_NOTIFY_(?!INVAL_INODE|INVAL_ENTRY|STORE)\w+"
    calls = re.compile(rf"\bnotify_store\b|\bpyfuse3\.invalidate_entry\b|\bpyfuse3\.syncfs\b|{ours}")
    found = {
        str(path.relative_to(REPOSITORY)): calls.findall(path.read_text())
        for path in (REPOSITORY / "ttmfs").rglob("*.py")
    }
    assert {path: names for path, names in found.items() if names} == {}
