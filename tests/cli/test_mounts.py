"""Which mount is meant: the one that is named, $TTMFS_MOUNT, or the only one; and `ttmfs list`."""

import json

import pytest
from click.testing import CliRunner, Result

from ttmfs import cli, mounts
from ttmfs.fs.kernel import tuning

TABLE = [("/mnt/a", "gpu0"), ("/mnt/with blank", "ttmfs")]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is mounted; tests change it."""
    there = list(TABLE)
    monkeypatch.delenv("TTMFS_MOUNT", raising=False)
    monkeypatch.setattr(
        tuning, "_mounts", lambda: [tuning._Mount(0, 40 + n, *row) for n, row in enumerate(_rows(there))]
    )
    return there


def _rows(there: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    return [("/proc", "proc", "proc"), *((path, "fuse.ttmfs", source) for path, source in there)]


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.main, [*words])


def test_the_only_mount_is_meant_and_of_several_none(table: list[tuple[str, str]]) -> None:
    for command in ("status", "umount"):
        result = run(command)
        assert result.exit_code == 1
        there = "ttmfs is mounted on /mnt/a '/mnt/with blank'"
        assert f"which mount? {there}: say MOUNTPOINT, or set $TTMFS_MOUNT" in result.output
    del table[1]
    assert mounts.meant(None) == "/mnt/a"
    assert mounts.meant("b/../c").endswith("/c")
    del table[0]
    result = run("status")
    assert result.exit_code == 1
    assert "ttmfs is not mounted anywhere: `ttmfs mount MOUNTPOINT` mounts it" in result.output


@pytest.mark.usefixtures("table")
def test_the_environment_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTMFS_MOUNT", "/mnt/b")
    assert mounts.meant(None) == "/mnt/b"
    assert mounts.meant("/mnt/a") == "/mnt/a"
    result = run("status")
    assert result.exit_code == 1
    assert "/mnt/b is no ttmfs mount: ttmfs is mounted on /mnt/a" in result.output


def test_list_shows_them_and_says_by_its_status_whether_there_are_any(table: list[tuple[str, str]]) -> None:
    result = run("list")
    assert (result.exit_code, result.output) == (0, "/mnt/a\tgpu0\t41\n/mnt/with blank\tttmfs\t42\n")
    rows = [json.loads(line) for line in run("list", "--json").output.splitlines()]
    assert rows[1] == {"mountpoint": "/mnt/with blank", "source": "ttmfs", "connection": 42}
    table.clear()
    result = run("list")
    assert (result.exit_code, result.output) == (1, "")


@pytest.mark.usefixtures("table")
def test_the_shell_completes_mount_points() -> None:
    found = mounts.complete(None, None, "/mnt/w")  # type: ignore[arg-type]
    assert [item.value for item in found] == ["/mnt/with blank"]
