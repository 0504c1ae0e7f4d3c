"""`ttmfs metrics`: what a mount says of itself, printed, and served for as long as there is a mount."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ttmfs.errors import TtmError
from ttmfs.metrics_process import parse_address

TTMFS = [sys.executable, "-m", "ttmfs"]


def ttmfs(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*TTMFS, *arguments], capture_output=True, text=True, timeout=60, check=False)


def samples(url: str) -> dict[tuple[str, str], float]:
    """(name, region) and value of each."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read().decode()
    return {
        (sample.name, sample.labels.get("region", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def until_refused(url: str) -> None:
    """Wait until nobody listens there."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            samples(url)
        except OSError:
            return
        time.sleep(0.1)
    raise AssertionError(f"{url} still answers")


@pytest.fixture
def mnt(folder: str) -> Iterator[str]:
    done = ttmfs("mount", folder, "--vram", "8M", "--gtt", "16M", "--memory", "32M")
    assert done.returncode == 0, done.stderr
    yield folder
    ttmfs("umount", "--force", folder)


@pytest.mark.mount
def test_it_serves_what_the_mount_says_until_that_is_gone(mnt: str) -> None:
    listen = [*TTMFS, "metrics", mnt, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(listen, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = server.stderr.readline()
            url = said.split()[-1]
            found = samples(url)
            assert found["ttmfs_regions_size_bytes", "vram"] == 8 << 20
            assert (found["ttmfs_up", ""], found["ttmfs_bos", ""]) == (1, 0)
            with open(f"{mnt}/bo/a", "wb") as file:
                file.write(b"x")
            assert samples(url)["ttmfs_bos", ""] == 1
            again = ttmfs("metrics", mnt, "--listen", url.split("/")[2])
            assert (again.returncode, "Address already in use" in again.stderr) == (1, True)
            assert ttmfs("umount", mnt).returncode == 0
            assert server.wait(60) == 0
        finally:
            server.kill()


@pytest.mark.mount
def test_a_mount_serves_its_own_until_it_is_gone(folder: str) -> None:
    done = ttmfs("mount", folder, "--vram", "8M", "--metrics-listen", "127.0.0.1:0")
    url = done.stderr.split()[-1]
    try:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1)
        assert samples(url)["ttmfs_up", ""] == 1
        assert samples(url)["ttmfs_regions_size_bytes", "vram"] == 8 << 20
    finally:
        ttmfs("umount", "--force", folder)
    until_refused(url)


@pytest.mark.mount
def test_no_mount_where_its_metrics_cannot_be_served(folder: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for address, status, why in (
            (f"127.0.0.1:{port}", 1, "Address already in use: say another port"),
            ("9464", 2, "'9464' is no address: say HOST:PORT"),
        ):
            done = ttmfs("mount", folder, "--metrics-listen", address)
            assert (done.returncode, why in done.stderr) == (status, True)
            assert not os.path.ismount(folder)


@pytest.mark.mount
def test_it_goes_with_a_mount_that_fails(folder: str) -> None:
    done = ttmfs("mount", folder, "--metrics-listen", "127.0.0.1:0", "--log", f"{folder}/no/such/log")
    assert (done.returncode, "no/such/log" in done.stderr) == (1, True)
    with pytest.raises(urllib.error.URLError):
        samples(done.stderr.splitlines()[0].split()[-1])


@pytest.mark.mount
def test_one_in_the_foreground_serves_when_it_is_ready_and_ends_with_it(folder: str) -> None:
    command = [*TTMFS, "mount", folder, "--foreground", "--metrics-listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stderr is not None
            url = daemon.stderr.readline().split()[-1]
            assert any("is ready" in line for line in daemon.stderr)
            assert samples(url)["ttmfs_up", ""] == 1
            assert ttmfs("umount", folder).returncode == 0
            assert daemon.wait(60) == 0
        finally:
            daemon.kill()
            ttmfs("umount", "--force", folder)
    with pytest.raises(urllib.error.URLError):
        samples(url)


@pytest.mark.mount
def test_it_prints_them(mnt: str) -> None:
    done = ttmfs("metrics", mnt)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'ttmfs_regions_size_bytes{region="vram"} 8.388608e+06' in done.stdout.splitlines()
    assert done.stdout.endswith("# EOF\n")


def test_addresses() -> None:
    assert parse_address("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert parse_address("[::1]:0") == ("::1", 0)
    for text in ("", "9464", ":9464", "localhost:", "localhost:70000", "localhost:-1", "localhost:\u0661"):
        with pytest.raises(TtmError, match="say HOST:PORT"):
            parse_address(text)
