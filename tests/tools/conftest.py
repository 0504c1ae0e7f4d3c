"""Fixtures of the tools' tests: the devices of tests/mount, and the tools as processes."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MOUNT_TESTS = Path(__file__).resolve().parents[1] / "mount"
sys.path.insert(0, str(MOUNT_TESTS))
_spec = importlib.util.spec_from_file_location("mount_fixtures", MOUNT_TESTS / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

device = _fixtures.device
module_device = _fixtures.module_device
mounted = _fixtures.mounted

Done = subprocess.CompletedProcess[str]


@pytest.fixture
def run() -> Callable[..., Done]:
    """Run a tool: `run("ls", "-l", MNT)`. Its output goes to pipes; $TTMFS_MOUNT is not set unless `mount` is given."""

    def run_tool(
        tool: str,
        *arguments: str,
        mount: str | None = None,
        seconds: float = 40,
        stdin: str | None = None,
        **variables: str,
    ) -> Done:
        environment = {key: value for key, value in os.environ.items() if key != "TTMFS_MOUNT"} | variables
        if mount is not None:
            environment["TTMFS_MOUNT"] = mount
        return subprocess.run(
            [str(Path(sys.executable).with_name(f"ttm-{tool}")), *arguments],
            capture_output=True,
            text=True,
            input=stdin,
            timeout=seconds,
            check=False,
            env=environment,
        )

    return run_tool
