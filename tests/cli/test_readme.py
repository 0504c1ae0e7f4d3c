"""The README: every command of its checked blocks is run in order, in one shell, and its output compared."""

import os
import re
import subprocess
import sys

import pytest

from tests.docs.docs_console import REPOSITORY, run_document
from ttmfs.fs.commands.objects_and_ctl import CTL_COMMANDS, OBJECT_COMMANDS

pytestmark = pytest.mark.mount

README = REPOSITORY / "README.md"


def test_the_commands_print_what_it_shows() -> None:
    assert run_document(README) > 12


def test_every_script_and_option_named_exists() -> None:
    text = README.read_text(encoding="utf-8")
    for script in set(re.findall(r"\./scripts/([a-z-]+)", text)):
        assert os.access(README.parent / "scripts" / script, os.X_OK), script
    done = subprocess.run(
        [sys.executable, "-m", "ttmfs", "mount", "--help"], capture_output=True, text=True, timeout=20, check=True
    )
    table = text[text.index("The\nmost used:") : text.index("## What differs")]
    options = set(re.findall(r"`(--[a-z-]+)", table))
    assert len(options) > 10
    for option in options:
        assert option in done.stdout, option


def test_every_command_named_exists() -> None:
    text = README.read_text(encoding="utf-8")
    (of_a_bo,) = re.findall(r"\| one BO: `([a-z ]+)`", text)
    (of_the_device,) = re.findall(r"\| the device: `([a-z ]+)`", text)
    assert set(of_a_bo.split()) == set(OBJECT_COMMANDS)
    assert set(of_the_device.split()) == {*CTL_COMMANDS, "trace", "config", "selfcheck"}
