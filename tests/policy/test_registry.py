"""What there is, how it is written, what is refused and in which words; files and packages of one's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ttmfs.errors import TtmError
from ttmfs.policy import Evict, Prefetch
from ttmfs.policy.deadline import Budget, run
from ttmfs.policy.files import read_source
from ttmfs.policy.parameters import Spec, parameters_of, parse_spec, split_list
from ttmfs.policy.registry import available, entry_of, prepare
from ttmfs.policy.seat import Seat
from ttmfs.policy.shipped import SHIPPED

MINE = """\
from ttmfs.policy import Evict


class Mine(Evict):
    \"\"\"The youngest goes first. And more.\"\"\"

    def __init__(self, depth: int = 4, eager: bool = False, share: float = 0.5, by: str = "client"):
        self.args = (depth, eager, share, by)
        self.here = []

    def added(self, bo):
        self.here.append(bo)

    def victims(self, request):
        return self.here[::-1]
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    path.chmod(0o644)
    return f"{path}:Mine"


def make(text: str, owner: int | None = None) -> object:
    words = re.split(r" (?=\w+=)", text) if "/" in text else text.split()  # a path may have blanks
    return Seat.fill(prepare(parse_spec("evict", words), owner), run).policy


def refusal(text: str, owner: int | None = None) -> str:
    with pytest.raises(TtmError) as caught:
        make(text, owner)
    return f"{caught.value.name} {caught.value.message}"


def test_every_shipped_one_is_listed_with_parameters_and_a_sentence() -> None:
    entries, problems = available()
    lines = {(entry.kind, entry.name): entry.line().split("\t") for entry in entries}
    assert not problems
    for kind, table in SHIPPED.items():
        for name in table:
            assert lines[kind, name][:2] == [kind, name]
            assert lines[kind, name][3].endswith(".")
    assert lines["evict", "clock"][2] == "bits=1"
    assert lines["promote", "moverate"][2] == "rate=8388608"


def test_arguments_have_the_types_of_the_signature(mine: str) -> None:
    policy = make(f"{mine} depth=0x10 eager=yes share=1e-3 by=group")
    assert policy.args == (16, True, 0.001, "group")  # type: ignore[attr-defined]
    assert make(mine).args == (4, False, 0.5, "client")  # type: ignore[attr-defined]
    assert make(f"{mine} depth=64K").args[0] == 65536  # type: ignore[attr-defined]
    assert make(f"{mine} depth=-2").args[0] == -2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nosuch", "EINVAL 'nosuch' is no evict policy: say one of lru fifo"),
        ("tree", "EINVAL 'tree' is no evict policy"),
        ("lru depth=1", "EINVAL lru has no parameter 'depth': it takes no parameters"),
        ("clck", "EINVAL 'clck' is no evict policy: did you mean clock? Say one of lru fifo"),
        ("clock bit=1", "EINVAL clock has no parameter 'bit': did you mean bits? It takes bits=1"),
        ("clock bits=one", "EINVAL bits=one: say a whole number"),
        ("clock bits=1.5", "EINVAL bits=1.5: say a whole number"),
        ("lirs hir=x", "EINVAL hir=x: say a number"),
        ("quota by=size", "EINVAL quota by=size: raised ValueError: by=size: say client or group"),
        ("clock bits", "EINVAL 'bits': parameters of a policy are written key=value"),
        ("clock bits=1 bits=2", "EINVAL bits is given twice"),
        ("no.such.module:Best", "EINVAL no.such.module:Best cannot be imported"),
        ("os:getcwd", "EINVAL os:getcwd is no evict policy"),
        ("ttmfs.policy:Prefetch", "EINVAL ttmfs.policy:Prefetch is no evict policy"),
        ("ttmfs.policy:Evict", "EINVAL ttmfs.policy:Evict has no victims()"),
        ("/nowhere/p.py:Best", "ENOENT /nowhere/p.py: No such file"),
        ("/dev/null.py:1x", "EINVAL '/dev/null.py:1x' is no policy"),
        ("Best", "EINVAL 'Best' is no policy"),
    ],
)
def test_refusals_say_what_to_write(text: str, why: str) -> None:
    assert refusal(text).startswith(why)


def test_nothing_at_all() -> None:
    with pytest.raises(TtmError, match="say which evict policy"):
        parse_spec("evict", [])


def test_a_list_keeps_arguments_with_their_policy() -> None:
    assert list(map(str, split_list("evict", "lru,s3fifo,small=0.2,promote_at=1,sieve"))) == [
        "lru",
        "s3fifo small=0.2 promote_at=1",
        "sieve",
    ]
    with pytest.raises(TtmError, match=r"'small=0\.2' is no policy"):
        split_list("evict", "small=0.2,lru")


def test_a_file_is_read_anew_each_time(mine: str) -> None:
    assert make(mine).args == (4, False, 0.5, "client")  # type: ignore[attr-defined]
    path = Path(mine.rpartition(":")[0])
    path.write_text(MINE.replace("depth: int = 4", "depth: int = 5"))
    assert make(mine).args[0] == 5  # type: ignore[attr-defined]
    assert not [name for name in sys.modules if name.startswith("ttmfs_policy_")]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("class Mine", "class Other"), "EINVAL {path} has no class Mine"),
        (("def added", "def 1added"), "EINVAL {path}:11: invalid "),
        (("class Mine", "raise KeyError(5)\nclass Mine"), "raised KeyError: 5 at {path}:4"),
        (("class Mine", "while True: pass\nclass Mine"), "took more than "),
        (("class Mine", "import time; time.sleep(9)\nclass Mine"), "took more than 100 ms at {path}:4"),
        (("from ttmfs", "import nosuch\nfrom ttmfs"), "raised ModuleNotFoundError: No module named 'nosuch'"),
        (("depth: int = 4", "depth"), "parameter depth has no default"),
        (("depth: int = 4", "depth: list = ()"), "parameter depth is neither int, float, bool nor str"),
        (("depth: int = 4", "depth: 'Nothing' = 4"), "the types of its parameters cannot be read"),
        (("depth: int = 4", "*depth"), "*depth cannot be given by name"),
        (("def victims", "def victim"), "has no victims(): it could never answer"),
        (("self.here = []", "raise SystemExit"), "raised SystemExit at {path}:9 in __init__"),
    ],
)
def test_a_file_that_is_no_policy_says_where(mine: str, change: tuple[str, str], why: str) -> None:
    path = mine.rpartition(":")[0]
    Path(path).write_text(MINE.replace(*change))
    assert why.format(path=path) in refusal(mine)


def test_a_heavy_import_is_no_fault_of_the_file(mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_for_a_test.py").write_text("import time\ntime.sleep(0.3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    Path(mine.rpartition(":")[0]).write_text("import heavy_for_a_test\n" + MINE)
    assert make(mine)


def test_a_module_that_ends_the_program_ends_nothing(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits_for_a_test.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert refusal("exits_for_a_test:Mine") == "EINVAL exits_for_a_test:Mine cannot be imported: 3"
    Path(mine.rpartition(":")[0]).write_text("import exits_for_a_test\n" + MINE)
    assert "raised SystemExit" in refusal(mine), "as its own top level would"


def test_whose_file_it_is(mine: str, tmp_path: Path) -> None:
    path = mine.rpartition(":")[0]
    uid = os.stat(path).st_uid
    assert make(mine, uid)
    os.chmod(path, 0o664)
    assert refusal(mine, uid).startswith(f"EACCES {path}: a policy file must belong to the mount's owner or root")
    os.chmod(path, 0o644)
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
        assert refusal(mine, 0).startswith("EACCES")
        assert make(mine, 12345)
    fifo = tmp_path / "fifo.py"
    os.mkfifo(fifo, 0o600)
    assert refusal(f"{fifo}:Mine", uid) == f"EINVAL {fifo} is no regular file"
    large = tmp_path / "large.py"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    assert refusal(f"{large}:Mine").startswith("EFBIG")


def test_a_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policies_for_a_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make("policies_for_a_test:Mine depth=7").args[0] == 7  # type: ignore[attr-defined]


def test_an_installed_package_adds_one(tmp_path: Path) -> None:
    (tmp_path / "package_for_a_test.py").write_text(MINE)
    info = tmp_path / "package_for_a_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: package-for-a-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ttmfs.policies]\nmine = package_for_a_test:Mine\nlru = package_for_a_test:Mine\nbroken = no_such_module:X\n"
        "other = os:getcwd\n"
    )
    code = (
        "from ttmfs.policy.registry import *\n"
        "from ttmfs.policy.parameters import Spec\n"
        "entries, problems = available()\n"
        "print([entry.line() for entry in entries if entry.name in ('mine', 'lru')])\n"
        "print(problems)\n"
        "print(prepare(Spec('evict', 'mine')).entry.cls.__name__, prepare(Spec('evict', 'lru')).entry.cls.__name__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    listed, problems, classes = done.stdout.splitlines()
    assert "evict\\tmine\\tdepth=4 eager=False share=0.5 by=client\\tThe youngest goes first." in listed
    assert "evict\\tlru\\t\\tThe least recently used one goes first" in listed
    assert "broken: no_such_module:X cannot be loaded" in problems
    assert "other: os:getcwd is no policy" in problems
    assert classes == "Mine Lru"


def test_what_is_no_policy_of_the_kind() -> None:
    with pytest.raises(TtmError, match=r"must derive from ttmfs\.policy\.Evict"):
        entry_of("evict", "x", Prefetch)
    with pytest.raises(TtmError):
        entry_of("prefetch", "x", "text")
    assert parameters_of(Evict) == ()


def test_a_source_can_be_run_where_its_file_is_not(mine: str, tmp_path: Path) -> None:
    path, _, name = mine.rpartition(":")
    source = read_source(path, name, None)
    os.unlink(path)
    found = run(Budget(), source.load)
    assert isinstance(found, type)
    assert issubclass(found, Evict)


def test_a_spec_is_written_as_it_was_read() -> None:
    text = "/a b/p.py:Mine depth=4"
    assert str(parse_spec("evict", ["/a b/p.py:Mine", "depth=4"])) == text
    assert Spec("evict", "os.path:X").where == ("os.path", "X")
