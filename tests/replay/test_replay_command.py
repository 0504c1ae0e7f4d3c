"""`ttmfs replay`: what it prints for people and for programs, and what it refuses."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.replay.traces import KV
from ttmfs.cli import main
from ttmfs.replay.study import Study

KEYS = ("evict", "prefetch", "size", "engine", "requests", "hits", "misses", "bytes_moved", "evictions", "us")


def replay(*words: str) -> Result:
    return CliRunner().invoke(main, ["replay", *words])


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "t.csv"
    path.write_text("".join(f"{number},{key},4096\n" for number, key in enumerate("abcabcdabcd" * 3)))
    return str(path)


def test_lines_with_tabs(trace: str) -> None:
    done = replay(trace, "--size", "12K", "--evict", "lru,clock,bits=2,belady", "--jobs", "1")
    assert done.exit_code == 0, done.output
    head, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert head == "evict size requests hits,miss ratio,byte miss ratio,moved,evictions,policy us".replace(
        " ", ",", 3
    ).split(",")
    assert [row[:3] for row in rows] == [["lru", "12K", "33"], ["clock bits=2", "12K", "33"], ["belady", "12K", "33"]]
    assert rows[0][4] == rows[0][5]


def test_json(trace: str) -> None:
    done = replay(trace, "--sizes", "8K,0x3000", "--evict", "lru,belady", "--json", "--jobs", "1")
    rows = json.loads(done.stdout)["rows"]
    assert [(row["evict"], row["size"]) for row in rows] == [
        ("lru", 8192),
        ("belady", 8192),
        ("lru", 12288),
        ("belady", 12288),
    ]
    for row in rows:
        assert set(KEYS) <= set(row)
        assert row["hits"] + row["misses"] == row["requests"] == 33
        assert row["bytes_moved"] == (row["misses"] + row["evictions"]) * 4096


def test_half_of_what_the_trace_needs_is_the_default(trace: str) -> None:
    done = replay(trace, "--evict", "lru", "--json", "--jobs", "1")
    assert json.loads(done.stdout)["rows"][0]["size"] == 8192
    assert "no --size, so the region has 8K, half of its BOs" in done.stderr


def test_eight_policies_are_the_default(trace: str) -> None:
    done = replay(trace, "--size", "8K", "--jobs", "1")
    names = [line.split("\t")[0] for line in done.stdout.splitlines()[1:]]
    assert names == ["lru", "fifo", "clock", "sieve", "slru", "arc", "s3fifo", "belady"]


def test_several_traces_have_their_names(trace: str) -> None:
    done = replay(trace, str(KV), "--size", "64M", "--evict", "lru", "--jobs", "1")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["trace", trace, str(KV)]


def test_block_bytes() -> None:
    rows = [
        json.loads(replay(str(KV), "--size", "1G", "--block-bytes", size, "--evict", "lru", "--json").stdout)["rows"][0]
        for size in ("2M", "1M")
    ]
    assert rows[0]["bytes_requested"] == 2 * rows[1]["bytes_requested"]
    assert rows[0]["misses"] > rows[1]["misses"]


def test_a_table_for_a_terminal(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study.plan([trace], [8192], "lru,belady", "none,window", "sizes", 4096)
    study.run(1, None)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    study.show(as_json=False)
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert re.search(r"evict +prefetch +size +requests +hits +miss ratio", text)
    assert re.search(r"belady +window +8K +33 ", text)
    assert "\t" not in text
    monkeypatch.setenv("COLUMNS", "60")
    study.show(as_json=False)
    # Lines are broken, but nothing is cut.
    assert "…" not in capsys.readouterr().out


class Links(HTMLParser):
    """Whatever a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if (name in ("src", "href", "xlink:href") and not (value or "").startswith("#")) or tag == "script":
                self.loads.append(f"{tag} {name}={value}")


def test_a_page_that_loads_nothing(trace: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pages need matplotlib: pip install 'ttmfs[replay]'")
    out = tmp_path / "out.html"
    done = replay(trace, "--sizes", "8K,12K", "--evict", "lru,belady", "--html", str(out), "--jobs", "1")
    assert done.exit_code == 0, done.output
    text = out.read_text()
    page = Links()
    page.feed(text)
    assert page.loads == []
    assert page.tags.count("svg") == 1
    assert page.tags.count("tr") == 5
    assert "@import" not in text
    assert "url(http" not in text
    single = replay(trace, "--size", "8K", "--evict", "lru,belady", "--html", str(out), "--jobs", "1")
    assert single.exit_code == 0
    assert replay(trace, "--size", "8K", "--html", str(tmp_path / "no" / "x.html")).exit_code == 1


def test_what_a_policy_did_wrong_is_said(trace: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        "from ttmfs.policy import Evict\n\n\nclass Bad(Evict):\n    def victims(self, request):\n        return []\n"
    )
    done = replay(trace, "--size", "8K", "--evict", f"{path}:Bad", "--json", "--jobs", "1")
    assert done.exit_code == 0
    assert "ejected, eviction: it named nothing usable (request 3)" in done.stderr
    assert json.loads(done.stdout)["rows"][0]["ejected"]


def test_notes_on_what_a_trace_cannot_show(trace: str) -> None:
    done = replay(trace, "--size", "4095", "--evict", "lru", "--prefetch", "tree", "--jobs", "1")
    assert "its requests name whole BOs, so a prefetch policy has nothing to bring in besides" in done.stderr
    assert "33 requests are for more than the region can hold" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["--size", "8K", "--sizes", "8K"], 2, "--size and --sizes exclude each other"),
        (["--size", "0"], 2, "a region of 0 bytes holds nothing"),
        (["--sizes", "8K,x"], 2, "'x' is no size"),
        (["--jobs", "2", "--dask", "tcp://127.0.0.1:9"], 2, "--jobs is for this machine"),
        (["--evict", "best"], 1, "'best' is no evict policy"),
        (["--evict", "clock,bits=many"], 1, "bits=many: say a whole number"),
        (["--evict", "belady,x=1"], 1, "belady takes no parameters"),
        (["--prefetch", "lru"], 1, "'lru' is no prefetch policy"),
        (["--engine", "gpu"], 2, "'gpu' is not one of"),
        (["--engine", "device", "--prefetch", "tree"], 1, "--engine device has no prefetch"),
    ],
)
def test_refusals(trace: str, words: list[str], code: int, why: str) -> None:
    done = replay(trace, *words)
    assert (done.exit_code, why in done.stderr) == (code, True), done.stderr


def test_no_trace(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello\n")
    done = replay(str(tmp_path / "x"))
    assert done.exit_code == 1
    assert "is no trace of a known format" in done.stderr
    assert replay(str(tmp_path / "none")).exit_code == 2
    assert replay().exit_code == 2


def test_help_has_examples() -> None:
    text = CliRunner().invoke(main, ["replay", "--help"], terminal_width=140).output
    for word in ("--sizes 16M,32M,64M,128M --html curves.html", "./mine.py:Mine", "belady", "oracleGeneral", "zstd"):
        assert word in text
