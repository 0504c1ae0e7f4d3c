"""Why a mount cannot be made, and what doctor says, on a machine that lacks things (made up by monkeypatching)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner

from ttmfs import cli, doctor
from ttmfs.errors import TtmError
from ttmfs.fs.kernel import tuning
from ttmfs.fs.mount import check_mountpoint

REAL_EXISTS = os.path.exists
REAL_ACCESS = os.access


@pytest.fixture
def closed_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/dev/fuse" and REAL_ACCESS(path, mode))


def without(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: path != missing and REAL_EXISTS(path))


def reason(path: Path) -> str:
    with pytest.raises(TtmError) as caught:
        check_mountpoint(str(path))
    return caught.value.message


def test_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without("/dev/fuse", monkeypatch)
    assert "modprobe fuse" in reason(tmp_path)


@pytest.mark.usefixtures("closed_device")
def test_closed_device(tmp_path: Path) -> None:
    assert "chmod 666 /dev/fuse" in reason(tmp_path)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not there: apt-get install util-linux")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up the right to mount")
def test_a_container_that_may_not_mount_says_what_it_takes(tmp_path: Path) -> None:
    assert tuning.may_mount()
    for words, status in (["doctor"], 1), (["mount", str(tmp_path)], 1), (["run", "true"], 125):
        done = subprocess.run(
            ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-m", "ttmfs", *words],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == status, done
        assert "nobody in here has the right to mount (CAP_SYS_ADMIN)" in done.stdout + done.stderr
        assert "--cap-add SYS_ADMIN" in done.stdout + done.stderr
    with mock.patch("builtins.open", side_effect=OSError):
        assert tuning.may_mount(), "what cannot be known is tried"


def test_no_fusermount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "apt-get install fuse3" in reason(tmp_path)


def test_without_root_what_fusermount_reads_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else the mount could be made, and nobody but root could take it down."""
    without("/etc/mtab", monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    assert "ln -s ../proc/self/mounts /etc/mtab" in reason(tmp_path)
    assert "/etc/mtab is missing" in findings("missing")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert check_mountpoint(str(tmp_path))
    assert "/etc/mtab is missing" in findings("loses")


def test_mountpoint_must_be_an_empty_folder(tmp_path: Path) -> None:
    assert "mkdir -p" in reason(tmp_path / "missing")
    (tmp_path / "file").touch()
    assert "is no directory" in reason(tmp_path / "file")
    assert "is not empty" in reason(tmp_path)


def findings(level: str) -> str:
    return "\n".join(f"{f.what}\n{f.mend}" for f in doctor.examine() if f.level == level)


def test_doctor_names_what_is_missing_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without("/dev/fuse", monkeypatch)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "modprobe fuse" in findings("missing")
    assert "apt-get install fuse3" in findings("missing")
    assert "apt-get install fio" in findings("loses")
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.exit_code == 1


def test_doctor_says_what_a_mount_without_root_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    text = findings("loses")
    assert "max_background" in text
    assert "readahead" in text
    assert "dirty" in text


@pytest.mark.usefixtures("closed_device")
def test_doctor_closed_device() -> None:
    assert "chmod 666 /dev/fuse" in findings("missing")


def test_doctor_status_is_0_when_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttmfs.cli.doctor.examine", lambda: iter([doctor.Finding(0, "all"), doctor.Finding(1, "some")]))
    assert CliRunner().invoke(cli.main, ["doctor"]).exit_code == 0
