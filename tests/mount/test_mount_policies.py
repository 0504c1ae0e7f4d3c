"""policies/ of a mount: put into office, watched, changed while programs run, thrown out for what they do."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.mount_harness import MIB, PAGE, Device
from tests.mount.trace_reading import drain, events, record

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--vram", "4M", "--gtt", "32M", "--memory", "64M", "--placement", "vram gtt")

YOUNGEST = """
from ttmfs.policy import Evict

class Youngest(Evict):
    \"\"\"The one that came last goes first. No more.\"\"\"

    def __init__(self, fail: bool = False) -> None:
        self.here = []
        self.fail = fail

    def added(self, bo):
        self.here.append(bo)

    def removed(self, bo, why):
        self.here.remove(bo)

    def victims(self, request):
        if self.fail:
            return self.hare
        return self.here[::-1]
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place for policy files."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def nobody_in_office(device: Device) -> Iterator[None]:
    yield
    evict = [("evict", f"{region} lru") for region in ("system", "gtt", "vram")]
    for name, words in (*evict, ("prefetch", "none"), ("promote", "none")):
        assert device.command(f"policies/{name}", words) == "ok"


def text(device: Device, name: str) -> str:
    found = device.shell.do(f"open(path({name!r})).read()")
    assert isinstance(found, str)
    return found


def policy_stats(device: Device, kind: str, region: str = "") -> dict[str, object]:
    found = json.loads(text(device, "policies/stats"))[kind]
    return dict(found[region] if region else found)


def last_error(device: Device) -> str:
    return text(device, "error_log").splitlines()[-1].split("\t")[3]


def fill(device: Device, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        device.make(f"b{number}", MIB, number, "vram")


def where(device: Device, count: int) -> str:
    """A letter for each BO: v vram, g gtt, s system."""
    return "".join(device.status(f"b{number}")["mem_type"][0] for number in range(count))


def test_a_policy_is_chosen_asked_and_watched(device: Device) -> None:
    assert text(device, "policies/evict") == "system lru\ngtt lru\nvram lru\n"
    assert text(device, "policies/prefetch") == text(device, "policies/promote") == "none\n"
    lines = text(device, "policies/available").splitlines()
    assert [line.split("\t")[:3] for line in lines if "s3fifo" in line] == [
        ["evict", "s3fifo", "small=0.1 ghost=0.9 promote_at=2"]
    ]
    assert {line.split("\t")[0] for line in lines} == {"evict", "prefetch", "promote"}
    fill(device, 4)
    ejected = policy_stats(device, "evict", "vram")["ejected"]
    assert device.transact("policies/evict", "vram mru") == ("ok", [{"ok": True, "policy": "mru"}])
    fill(device, 1, 4)
    assert where(device, 5) == "vvvgv"
    found = policy_stats(device, "evict", "vram")
    assert (found["name"], found["asked"], found["taken"], found["ejected"]) == ("mru", 1, 1, ejected)
    # While programs run: the next victim is another policy's.
    assert device.command("policies/evict", "vram fifo") == "ok"
    assert text(device, "policies/evict") == "system lru\ngtt lru\nvram fifo\n"
    fill(device, 1, 5)
    assert where(device, 6) == "gvvgvv"
    for number in range(6):
        assert device.shell.do(f"sorted(set(open(path('bo/b{number}'), 'rb').read()))") == [number]


REFUSED = (
    ("evict", "vram nope", "'nope' is no evict policy: say one of lru"),
    ("evict", "vram tree", "'tree' is no evict policy"),
    ("evict", "vram", "say REGION NAME"),
    ("evict", "\n", "NAME one of lru fifo"),
    ("evict", "nowhere fifo", "is no region"),
    ("evict", "vram s3fifo small", "key=value"),
    ("evict", "vram s3fifo big=1", "has no parameter 'big'"),
    ("evict", "vram s3fifo small=much", "say a number"),
    ("evict", "vram lru size=1", "has no parameter 'size'"),
    ("evict", "vram mine.py:Mine", "say the whole path"),
    ("evict", "vram os:path", "is no evict policy"),
    ("prefetch", "vram", "'vram' is no prefetch policy"),
    ("prefetch", "vram tree", "key=value"),
    ("prefetch", "\n", "no prefetch policy is named: say one of"),
    ("promote", "moverate rate=-1", "whole number of bytes a second"),
)


def test_what_cannot_be_says_why_and_changes_nothing(device: Device) -> None:
    assert device.command("policies/evict", "vram sieve") == "ok"
    for name, words, why in REFUSED:
        assert device.command(f"policies/{name}", words) == "EINVAL"
        assert why in last_error(device)
    assert text(device, "policies/evict") == "system lru\ngtt lru\nvram sieve\n"
    assert text(device, "policies/prefetch") == text(device, "policies/promote") == "none\n"


def test_a_file_is_read_anew_breaks_and_is_mended(device: Device, folder: Path) -> None:
    mine = folder / "mine.py"
    mine.write_text(YOUNGEST)
    fill(device, 4)
    assert device.command("policies/evict", f"vram {mine}:Youngest") == "ok"
    fill(device, 1, 4)
    assert where(device, 5) == "vvvgv"
    # What it says does not change until it is written again.
    mine.write_text(YOUNGEST.replace("[::-1]", ""))
    fill(device, 1, 5)
    assert where(device, 6) == "vvvggv"
    assert device.command("policies/evict", f"vram {mine}:Youngest fail=yes") == "ok"
    assert device.command("objects/b4/validate", "vram") == "ok"
    # Ejected; the oldest of TTM's list went for that very request.
    assert where(device, 6) == "gvvgvv"
    assert text(device, "policies/evict") == "system lru\ngtt lru\nvram lru\n"
    why = last_error(device)
    assert "Youngest fail=yes is ejected: raised AttributeError: 'Youngest' object has no attribute 'hare'" in why
    assert f"at {mine}:19 in victims; lru is back" in why
    assert policy_stats(device, "evict", "vram")["last_error"] == why
    mine.write_text("class Youngest:\n    pass\n")
    assert device.command("policies/evict", f"vram {mine}:Youngest") == "EINVAL"
    mine.write_text("def broken(:\n")
    assert device.command("policies/evict", f"vram {mine}:Youngest") == "EINVAL"
    assert f"{mine}:1" in last_error(device)
    assert device.command("policies/evict", f"vram {mine}x.py:Youngest") == "ENOENT"


def test_a_file_that_others_may_write_is_not_run(device: Device, folder: Path) -> None:
    mine = folder / "mine.py"
    mine.write_text(YOUNGEST)
    mine.chmod(0o666)
    assert device.command("policies/evict", f"vram {mine}:Youngest") == "EACCES"
    assert "chmod go-w" in last_error(device)
    if os.geteuid() == 0:
        mine.chmod(0o600)
        os.chown(mine, 1234, 1234)
        assert device.command("policies/evict", f"vram {mine}:Youngest") == "EACCES"


def test_the_files_are_the_owner_s(device: Device) -> None:
    device.shell.do("top = path(b'policies')")
    device.shell.do("mode = lambda name: os.stat(top + b'/' + os.fsencode(name)).st_mode & 0o777")
    modes = device.shell.do("{os.fsdecode(name): mode(name) for name in os.listdir(top)}")
    assert modes == {"available": 0o444, "evict": 0o600, "prefetch": 0o600, "promote": 0o600, "stats": 0o400}


def test_one_that_hangs_while_it_is_loaded_or_asked_holds_nobody(device: Device, folder: Path) -> None:
    mine = folder / "mine.py"
    mine.write_text("while True:\n    pass\n")
    assert device.command("policies/evict", f"vram {mine}:Youngest") == "EINVAL"
    assert "took more than" in last_error(device)
    mine.write_text(YOUNGEST.replace("return self.here", "import time; time.sleep(60)"))
    assert device.command("policies/evict", f"vram {mine}:Youngest") == "ok"
    fill(device, 5)
    assert where(device, 5) == "gvvvv"
    assert "took more than" in last_error(device)


def test_who_was_evicted_comes_home(device: Device) -> None:
    fill(device, 6)
    assert where(device, 6) == "ggvvvv"
    assert policy_stats(device, "promote")["displaced"] == 2
    assert device.command("policies/promote", "moverate rate=0") == "ok"
    device.shell.do("[os.unlink(path('bo/b%d' % n)) for n in (2, 3)]")
    device.until(lambda: where(device, 2) == "vv")
    assert policy_stats(device, "promote")["taken"] == 2
    assert device.stats()["moves"]["promotions"] >= 2
    for number in (0, 1):
        assert device.shell.do(f"open(path('bo/b{number}'), 'rb').read() == bytes([{number}]) * {MIB}")


def test_a_fault_takes_along_what_the_policy_says(device: Device) -> None:
    assert device.command("policies/prefetch", "window pages=64") == "ok"
    device.shell.do("fd = os.open(path('bo/sparse'), os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 1 << 20)")
    assert device.command("objects/sparse/placement", "system") == "ok"
    device.shell.do("os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)")
    assert device.shell.do("os.pread(fd, 1, 200 * 4096)") == b"\0"
    assert device.status("sparse")["populated_pages"] == 64
    assert policy_stats(device, "prefetch")["asked"] == 1


GREEDY = """
from ttmfs.policy import Prefetch

class Greedy(Prefetch):
    \"\"\"All of it.\"\"\"

    def fault(self, bo, first, count, why):
        return 0, bo.pages
"""


def test_prefetch_takes_free_memory_and_evicts_nobody(device: Device, folder: Path) -> None:
    (folder / "greedy.py").write_text(GREEDY)
    fill(device, 2)
    device.make("other", 8 * MIB, 7)
    for name, size in (("bo/sparse", 64), ("bo/small", 8), ("svm/s", 256)):
        device.shell.do(f"make('{name}', {size * MIB})")
    for name in ("sparse", "small"):
        assert device.command(f"objects/{name}/placement", "system") == "ok"
    assert device.command("policies/prefetch", f"{folder / 'greedy.py'}:Greedy") == "ok"
    before = device.stats()
    # A fault of the device evicts nobody from vram, and takes along one range at most.
    assert device.command("svm_objects/s/gpu", f"fill {128 * MIB} 4096 1") == "ok"
    assert device.stats()["svm"]["migrations_in"] == before["svm"]["migrations_in"] + 1
    # A BO that does not fit into what is free: its own pages only. One that fits: whole.
    assert device.shell.do("[os.pread(opened(f'bo/{name}'), 1, 0) for name in ('sparse', 'small')]") == [b"\0", b"\0"]
    assert device.status("sparse")["populated_pages"] < 4096
    assert device.status("small")["populated_pages"] == 8 * MIB // PAGE
    # A client's fault in an address space: as far as it reaches.
    assert device.shell.do("os.pread(opened('svm/s'), 1, 0)") == b"\0"
    assert device.shell.do("os.stat(path('svm/s')).st_blocks * 512") > 16 * MIB
    assert policy_stats(device, "prefetch")["asked"] == 4
    # The next fault finds room.
    assert device.shell.do(f"os.pread(opened('bo/sparse'), 1, {32 * MIB})") == b"\0"
    after = device.stats()
    assert after["moves"]["evictions"] == before["moves"]["evictions"]
    assert after["backup"]["pages_out"] == before["backup"]["pages_out"], "nobody shrinks for it, ahead of need neither"
    assert where(device, 2) == "vv"
    for number in range(2):
        assert device.shell.do(f"open(path('bo/b{number}'), 'rb').read() == bytes([{number}]) * {MIB}")
    assert device.shell.do(f"open(path('bo/other'), 'rb').read() == b'\\7' * {8 * MIB}")


@pytest.mark.parametrize(("policy", "reads"), [("lru", 0), ("fifo", 0), ("lfu", 3)])
def test_reads_and_writes_answered_at_once_are_uses_where_a_policy_cares(
    device: Device, policy: str, reads: int
) -> None:
    device.make("a", MIB, 1, "vram:contiguous")
    assert device.command("policies/evict", f"vram {policy}") == "ok"
    client = device.client(f"fd = opened('bo/a'); m = mapped(fd, {MIB})")
    client.do("m[0]")
    record(device, "use")
    client.do(f"[m[page * {PAGE}] for page in (100, 150, 200)]")
    device.shell.do(f"os.pwrite(opened('bo/a'), b'x' * {PAGE}, {7 * PAGE})")
    record(device, "off")
    found = [line["rest"] for line in events(drain(device).decode())]
    assert len([rest for rest in found if "why=read" in rest]) == reads, found
    assert all(f"bytes={MIB}" in rest and "region=vram" in rest for rest in found)
    assert ["first=7 pages=1 " in rest for rest in found if "why=write" in rest] == [True] * bool(reads), found


def test_a_group_has_a_policy_of_its_own(device: Device) -> None:
    device.shell.do("os.makedirs(path('groups/game/level'))")
    device.shell.do("os.mkdir(path('groups/two words'))")
    try:
        fill(device, 4)
        for number in (1, 2):
            assert device.command(f"objects/b{number}/group", "/game/level") == "ok"
        assert device.transact("policies/evict", "game:vram mru") == ("ok", [{"ok": True, "policy": "mru"}])
        assert device.command("policies/evict", "'two words:gtt' fifo") == "ok"
        lines = "system lru\ngtt lru\nvram lru\n'two words:gtt' fifo\ngame:vram mru\n"
        assert text(device, "policies/evict") == lines
        for words, code, why in (
            ("gone:vram fifo", "ENOENT", "there is no group 'gone': see groups/, mkdir makes one"),
            ("game:vrm fifo", "EINVAL", "'vrm' is no region: did you mean vram?"),
            ("game:system fifo", "EINVAL", "is no region that groups are charged for: say one of gtt vram"),
        ):
            assert device.command("policies/evict", words) == code
            assert why in last_error(device)
        assert text(device, "policies/evict") == lines
        # The LRU says b0, which is of no group; then that it is the group's turn.
        fill(device, 2, 4)
        assert where(device, 6) == "gvgvvv"
        assert policy_stats(device, "evict", "game:vram")["taken"] == 1
        assert device.command("groups/game/dmem.max", "vram 0") == "ok"
        assert where(device, 6) == "gggvvv"
        assert policy_stats(device, "evict", "game:vram")["taken"] == 2
        assert device.transact("policies/evict", "game:vram lru") == ("ok", [{"ok": True, "policy": "lru"}])
        assert "game" not in text(device, "policies/evict") + text(device, "policies/stats")
        assert device.command("policies/evict", "game:vram sieve") == "ok"
        for number in range(6):
            assert device.shell.do(f"sorted(set(open(path('bo/b{number}'), 'rb').read()))") == [number]
            device.shell.do(f"os.unlink(path('bo/b{number}'))")
    finally:
        device.shell.do("[os.rmdir(path('groups/' + name)) for name in ('game/level', 'game', 'two words')]")
    assert text(device, "policies/evict") == "system lru\ngtt lru\nvram lru\n"
    assert text(device, "ctl/selfcheck") == "ok\n"


def test_policies_from_the_command_line(mounted: object, folder: Path) -> None:
    mine = folder / "mine.py"
    mine.write_text(YOUNGEST)
    options = (f"evict:vram={mine}:Youngest", "evict:gtt=s3fifo,small=0.2", "prefetch=tree", "promote=moverate")
    words = [word for option in options for word in ("--policy", option)]
    device = mounted("--vram", "4M", "--gtt", "32M", "--memory", "64M", *words)  # type: ignore[operator]
    assert text(device, "policies/evict") == f"system lru\ngtt s3fifo small=0.2\nvram {mine}:Youngest\n"
    assert text(device, "policies/prefetch") + text(device, "policies/promote") == "tree\nmoverate\n"
    fill(device, 5)
    assert where(device, 5) == "vvvgv"
