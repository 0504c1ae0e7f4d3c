"""The daemon's messages: to a file, to the system's log without ever waiting for it, or nowhere."""

import io
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from logging.handlers import SysLogHandler
from pathlib import Path

import pytest

from ttmfs import logs


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, with nobody's handlers; as it was afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    logger.handlers[:] = []
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_warnings_go_to_the_systems_log_which_is_never_waited_for(root: logging.Logger, tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
        system.bind(path)
        system.settimeout(10)
        logs.set_up(None, stderr=False, syslog=path)
        logging.getLogger("ttmfs.x").info("not this")
        logging.getLogger("ttmfs.x").warning("but this")
        said = system.recv(1000)
        assert said.startswith(b"<12>ttmfs[")
        assert said.rstrip(b"\0").endswith(b"]: WARNING ttmfs.x: but this")
        # Nobody reads any more: what does not fit is lost, and the caller goes on.
        root.handlers[0].handleError = lambda record: None  # type: ignore[method-assign]
        for _ in range(500):
            logging.getLogger("ttmfs.x").error("%s", "x" * 1000)


def test_without_a_log_of_the_system_there_is_none(root: logging.Logger, tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    for name in ("log", "missing"):
        logs.set_up(None, stderr=False, syslog=str(tmp_path / name))
        logging.getLogger("ttmfs.x").error("nobody hears it")
    assert not any(isinstance(handler, SysLogHandler) for handler in root.handlers)
    assert sum(isinstance(handler, logging.NullHandler) for handler in root.handlers) == 2


@pytest.mark.parametrize(("level", "heard"), [(None, "info warning"), ("error", ""), ("debug", "debug info warning")])
def test_the_level_is_what_is_asked_for(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch, level: str | None, heard: str
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.set_up(level, stderr=True)
    for name in ("debug", "info", "warning"):
        getattr(root, name)(name)
    assert " ".join(line.rsplit(" ", 1)[1] for line in stream.getvalue().splitlines()) == heard


@pytest.mark.mount
def test_a_log_begins_with_version_and_options_and_one_that_cannot_be_is_named(tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    small = ("--vram", "8M", "--memory", "32M")

    def ttmfs(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ttmfs", *words], capture_output=True, text=True, timeout=60, check=False
        )

    done = ttmfs("mount", str(mountpoint), *small, "--log", str(tmp_path / "no" / "log"))
    assert done.returncode == 1
    assert f"{tmp_path}/no/log: No such file or directory" in done.stderr
    try:
        assert ttmfs("mount", str(mountpoint), *small, "--log", str(tmp_path / "log")).returncode == 0
        first = (tmp_path / "log").read_text().splitlines()[0]
        assert f" INFO ttmfs.cli.mount: ttmfs 0.1.0 on {mountpoint}: Config(vram=8388608" in first
    finally:
        ttmfs("umount", str(mountpoint))
