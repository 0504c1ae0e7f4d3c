"""Finding the connection without touching the mount, and the knobs: set, refused, reported."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fs_plumbing.plumbing_harness import HERE, Server
from ttmfs.errors import TtmError
from ttmfs.fs.kernel import tuning

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def read(connection: int, name: str) -> int:
    return int(Path(tuning.FUSECTL, str(connection), name).read_text())


@pytest.mark.mount
def test_the_connection_of_a_mount_point_with_a_space(serve: Callable[..., Server]) -> None:
    server = serve()
    assert " " in server.mountpoint
    number = tuning.connection_number(server.mountpoint)
    assert number == server.connection
    assert tuning.connection_number(server.mountpoint + "/") == number
    server.until(lambda status: status["waiting"] == 0)
    assert tuning.waiting(number) == 0


def test_no_mount_and_another_kind_of_mount(tmp_path: Path) -> None:
    with pytest.raises(TtmError) as caught:
        tuning.connection_number(str(tmp_path))
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(TtmError) as caught:
        tuning.connection_number("/proc")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.mount
@ROOT_ONLY
def test_limits_are_raised(serve: Callable[..., Server]) -> None:
    server = serve()
    assert server.ready["limits"] == []
    assert read(server.connection, "max_background") == 65535
    assert read(server.connection, "congestion_threshold") == 65535
    report = tuning.raise_background_limits(server.connection, 100)
    assert len(report.done) == 2
    assert read(server.connection, "max_background") == 100


@pytest.mark.mount
@ROOT_ONLY
def test_backing_device_and_readahead(serve: Callable[..., Server]) -> None:
    server = serve()
    base = Path(f"/sys/class/bdi/0:{server.connection}")
    report = tuning.tune_bdi(server.connection)
    server.until(lambda status: status["waiting"] == 0)  # INIT is over, which sets the window
    assert int((base / "max_ratio").read_text()) == 100
    assert "max_ratio=100" in report.done[0]
    window = tuning.ReadAhead(server.connection)
    assert window.kb == int((base / "read_ahead_kb").read_text())
    assert window.set_read_ahead(1024)
    assert int((base / "read_ahead_kb").read_text()) == 1024
    (base / "read_ahead_kb").write_text("64")
    assert window.set_read_ahead(1024)  # unchanged as far as it knows: not written
    assert int((base / "read_ahead_kb").read_text()) == 64
    assert window.set_read_ahead(0)
    assert int((base / "read_ahead_kb").read_text()) == 0
    window.close()
    assert not window.set_read_ahead(8)


def test_what_cannot_be_set_is_a_sentence() -> None:
    report = tuning.raise_background_limits(99_999_999)
    report.merge(tuning.tune_bdi(99_999_999))
    assert report.done == []
    assert len(report.failed) >= 3
    assert all(len(sentence.split()) > 4 for sentence in report.failed)
    window = tuning.ReadAhead(99_999_999)
    assert not window.set_read_ahead(4)
    assert window.reason is not None
    assert "read_ahead_kb" in window.reason
    assert tuning.waiting(99_999_999) is None
    assert tuning.abort_connection(99_999_999) is None


@pytest.mark.mount
@ROOT_ONLY
def test_without_privileges_everything_is_reported_and_nothing_raises(serve: Callable[..., Server]) -> None:
    server = serve()
    program = """
import os, sys
from ttmfs.fs.kernel import tuning
os.setgid(65534); os.setuid(65534)
n = int(sys.argv[1])
report = tuning.raise_background_limits(n).merge(tuning.tune_bdi(n))
print(report.done, len(report.failed))
print(tuning.ReadAhead(n).set_read_ahead(64), tuning.waiting(n), bool(tuning.abort_connection(n)))
print(bool(tuning.force_unmount(sys.argv[2])), bool(tuning.lazy_unmount(sys.argv[2])))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(server.connection), server.mountpoint],
        capture_output=True, text=True, timeout=15, cwd=HERE.parents[1], check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["[] 4", "False None True", "True True"]
    assert server.do("status")["connected"]


@pytest.mark.mount
@ROOT_ONLY
def test_waiting_abort_and_unmount_with_a_client_in_a_fault(
    serve: Callable[..., Server], client: Any, mountpoint: str
) -> None:
    server = serve()
    reader = client("park", "1")
    server.until(lambda status: status["parked"] == 1)
    assert tuning.waiting(server.connection) == 1
    assert tuning.abort_connection(server.connection) is None
    reader.wait(3)
    assert tuning.lazy_unmount(mountpoint) is None
    with pytest.raises(TtmError):
        tuning.connection_number(mountpoint)
    assert "nothing is mounted" in str(tuning.lazy_unmount(mountpoint))
