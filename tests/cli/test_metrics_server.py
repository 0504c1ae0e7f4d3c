"""`ttmfs metrics`: what a mount says of itself, printed, and served for as long as there is a mount."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ttmfs.errors import TtmError
from ttmfs.metrics_server import parse_address

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
            assert (found["ttmfs_up", ""], found["ttmfs_bos_count", ""]) == (1, 0)
            with open(f"{mnt}/bo/a", "wb") as file:
                file.write(b"x")
            assert samples(url)["ttmfs_bos_count", ""] == 1
            again = ttmfs("metrics", mnt, "--listen", url.split("/")[2])
            assert (again.returncode, "Address already in use" in again.stderr) == (1, True)
            assert ttmfs("umount", mnt).returncode == 0
            assert server.wait(60) == 0
        finally:
            server.kill()


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
