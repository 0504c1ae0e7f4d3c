"""Fixtures of the tools' tests: the devices of tests/mount, and the tools as processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import device, module_device, mounted

__all__ = ["device", "module_device", "mounted"]
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
