"""The documents hang together: links lead somewhere, examples are the files they say, programs run as printed."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.docs.docs_console import REPOSITORY

DOCS = REPOSITORY / "docs"
READMES = [REPOSITORY / folder / "README.md" for folder in ("mountpoint-tools", "tests")]
DOCUMENTS = sorted([*DOCS.glob("*.md"), *REPOSITORY.glob("*.md"), *READMES])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_paths_of_a_machine(path: Path) -> None:
    assert not re.search(r"/(home|root|work|Users)/", path.read_text(encoding="utf-8"))


def test_nobody_speaks_of_documents_that_are_elsewhere() -> None:
    """A reader has the repository and nothing else."""
    elsewhere = re.compile(r"\bDESIGN\b|\bdesign2\b|shared/(?:reference|seeds|cases|attack|bench)\b")
    found = []
    for folder in ("ttmfs", "mountpoint-tools", "tests", "scripts", "docs"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".sh", ".c") and path != Path(__file__).resolve():
                found += [str(path)] if elsewhere.search(path.read_text(encoding="utf-8")) else []
    assert found == []


def test_every_document_is_linked_from_the_readme() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for path in DOCS.glob("*.md"):
        assert f"(docs/{path.name})" in text, path.name


def test_an_example_is_the_file_that_it_names() -> None:
    found = 0
    for path in DOCS.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        for name, code in re.findall(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", text, re.M | re.S):
            assert code == (DOCS / name).read_text(encoding="utf-8"), f"{path.name} shows another {name}"
            found += 1
    assert found


def test_the_program_without_a_mount_runs_as_printed() -> None:
    text = (DOCS / "drivers.md").read_text(encoding="utf-8")
    (code,) = (code for code in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "trio.run" in code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "'mem_type': 'vram'" in done.stdout


def test_the_picture_is_svg() -> None:
    root = ElementTree.parse(DOCS / "images" / "architecture.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(root.itertext())
    assert all(word in text for word in ("resident", "unmapping", "moving", "A READ", "A move"))
