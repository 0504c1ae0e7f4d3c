"""docs/testing.md: its tests pass as they stand and are short, its script runs; and the plugin without a device."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.docs_console import REPOSITORY

pytestmark = pytest.mark.mount

DOCUMENT = REPOSITORY / "docs" / "testing.md"
MOST_LINES = 8


def printed() -> str:
    """The tests of the document, as one file."""
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = re.findall(r"(<!-- file: \S+ -->\n)?^```python\n(.*?)^```$", text, re.M | re.S)
    return "\n\n".join(code for of_a_file, code in blocks if not of_a_file)


def run_pytest(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """pytest in a folder of its own, with the plugins that are installed."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers", *arguments],
        capture_output=True, text=True, timeout=120, check=False, cwd=folder,
        env={"PATH": "/usr/bin:/bin", **variables},
    )  # fmt: skip


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """pytest's own count of them."""
    return {word: int(count) for count, word in re.findall(r"(\d+) (\w+)(?=,| in )", done.stdout.splitlines()[-1])}


def test_what_is_printed_passes_and_is_short(tmp_path: Path) -> None:
    code = printed()
    tests = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    assert [test.name for test in tests if (test.end_lineno or 0) - test.lineno >= MOST_LINES] == []
    (tmp_path / "test_printed.py").write_text(code)
    done = run_pytest(tmp_path, "--ttmfs-require")
    assert outcomes(done) == {"passed": len(tests)}, done.stdout
    assert len(tests) >= 6


def test_the_script_runs_and_shows_who_had_to_go(tmp_path: Path) -> None:
    script = REPOSITORY / "docs" / "examples" / "device.py"
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["gtt", "gtt", "vram", "vram", "vram", "vram"]
    assert last.startswith(("ENOMEM: ", "EINVAL: "))
    assert (tmp_path / "pages.png").read_bytes().startswith(b"\x89PNG")


def test_a_failing_test_is_reported_with_what_the_device_says(tmp_path: Path) -> None:
    (tmp_path / "test_fails.py").write_text(
        "import pytest\n"
        "@pytest.mark.ttmfs(vram='4M')\n"
        "class TestIt:\n"
        "    @pytest.mark.ttmfs(copy_latency=0)\n"
        "    def test_it(self, ttmfs_device):\n"
        "        ttmfs_device.bo('big one', size='8M').validate('vram')\n"
    )
    done = run_pytest(tmp_path)
    assert outcomes(done) == {"failed": 1}, done.stdout
    parts = ("error_log", "trace", "BOs")
    log, trace, bos = (done.stdout.split(f" ttmfs {part} ")[1].split("\n---")[0] for part in parts)
    assert "\tENOMEM\tbig one validate vram\t" in log
    assert 'validated: bo="big\\040one"' in trace or 'validated: bo="big one"' in trace
    assert bos.split("\n")[1].startswith("big one: ")
    # The exception itself has the device's sentence, not the C library's.
    sentence = log.rstrip().split("\t")[3]
    assert f"CommandFailed: ENOMEM: {sentence}" in done.stdout.replace("\nE   ", "")


def test_where_nothing_can_be_mounted_tests_are_skipped_with_the_reason_or_fail(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(ttmfs_device):\n    pass\ndef test_other():\n    pass\n")
    # A machine without ttmfs: neither beside this Python nor on the PATH.
    (tmp_path / "conftest.py").write_text("import sys\nsys.executable = '/no/such/folder/python'\n")
    done = run_pytest(tmp_path, "-rs")
    assert outcomes(done) == {"passed": 1, "skipped": 1}, done.stdout
    assert "no ttmfs device: ttmfs is not installed: `pip install` a checkout of it" in done.stdout
    done = run_pytest(tmp_path, "--ttmfs-require")
    assert outcomes(done) == {"passed": 1, "error": 1}, done.stdout


def test_what_doctor_misses_is_the_reason(tmp_path: Path) -> None:
    program = tmp_path / "ttmfs"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    doctor = json.loads(line) == ['doctor']\n"
        "    found = 'ok      fio\\nmissing /dev/fuse does not exist\\n        modprobe fuse\\n'\n"
        "    print(json.dumps({'status': 1, 'said': found if doctor else 'Error: no'}), flush=True)\n"
    )
    program.chmod(0o755)
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_it.py").write_text("def test_it(ttmfs_device):\n    pass\n")
    (tests / "conftest.py").write_text("import sys\nsys.executable = '/no/such/folder/python'\n")
    done = run_pytest(tests, "-rs", PATH=str(tmp_path))
    assert outcomes(done) == {"skipped": 1}, done.stdout
    assert "no ttmfs device: no (ttmfs doctor: /dev/fuse does not exist)" in done.stdout
