"""Opening files as a user of the mount: what the kernel and the bits refuse, and the thread is itself afterwards."""

import ctypes
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from ttmfs.errors import TtmError
from ttmfs.memory import as_caller
from ttmfs.memory.as_caller import Caller, acting_as, open_as

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")

ANNA, BERT = Caller(20001, 20001), Caller(20002, 20002)


@pytest.fixture
def hers(tmp_path: Path) -> Path:
    """A file of Anna's that nobody else may use, in a folder that everybody may search."""
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(folder.stat().st_mode | 0o111)
    path = tmp_path / "hers"
    path.write_bytes(b"hers" * 2048)
    os.chown(path, ANNA.uid, ANNA.gid)
    path.chmod(0o600)
    return path


def opened(path: object, caller: Caller, *, read_only: bool = False) -> str:
    """`rw`, `ro`, or the name of the error."""
    try:
        fd, only = open_as(str(path), caller, read_only=read_only)
    except TtmError as error:
        return errno.errorcode[error.errno or 0]
    os.close(fd)
    return "ro" if only else "rw"


def test_the_bits_of_the_file_decide(hers: Path) -> None:
    assert opened(hers, ANNA) == "rw"
    assert opened(hers, ANNA, read_only=True) == "ro"
    assert opened(hers, Caller(0, 0)) == "rw"
    assert opened(hers, BERT) == "EACCES"
    hers.chmod(0o644)
    assert opened(hers, BERT) == "ro"
    hers.chmod(0o400)
    assert opened(hers, ANNA) == "ro"
    hers.chmod(0o660)
    assert opened(hers, Caller(BERT.uid, ANNA.gid)) == "rw"
    hers.chmod(0o606)
    assert opened(hers, BERT) == "EACCES", "he might be in the group, which may not"


def test_folders_on_the_way_decide_too(hers: Path) -> None:
    hers.chmod(0o666)
    folder = hers.parent / "closed"
    folder.mkdir(mode=0o700)
    os.chown(folder, ANNA.uid, ANNA.gid)
    hers.rename(folder / "hers")
    assert opened(folder / "hers", ANNA) == "rw"
    assert opened(folder / "hers", BERT) == "EACCES"
    folder.chmod(0o701)
    assert opened(folder / "hers", BERT) == "EACCES", "he might be in the group, which may not search it"
    folder.chmod(0o711)
    assert opened(folder / "hers", BERT) == "rw"
    assert opened(f"{folder}/../closed/./hers", BERT) == "rw"


def test_no_link_is_followed_anywhere(hers: Path) -> None:
    link, around = hers.parent / "link", hers.parent / "around"
    link.symlink_to(hers)
    around.symlink_to(hers.parent)
    assert opened(link, ANNA) == "ELOOP"
    assert opened(around / "hers", ANNA) == "ENOTDIR"
    held = os.open(hers.parent, os.O_RDONLY)
    for way in (f"fd/{held}", f"task/{threading.get_native_id()}/fd/{held}", "root/tmp", "cwd"):
        assert opened(f"/proc/{os.getpid()}/{way}/hers", ANNA) in ("ENOTDIR", "EACCES"), way
    os.close(held)


def test_what_has_no_memory_is_refused(hers: Path) -> None:
    pipe = hers.parent / "pipe"
    os.mkfifo(pipe)
    assert opened(pipe, Caller(0, 0)) == "EINVAL", "and nobody waits for a writer"
    assert opened(hers.parent, Caller(0, 0)) == "EINVAL"
    assert opened("/dev/null", Caller(0, 0)) == "EINVAL"
    for path in ("", "/", "hers", "../hers", "/a\0b", "//"):
        assert opened(path, Caller(0, 0)) == "EINVAL", path
    assert opened(hers.parent / "no", ANNA) == "ENOENT"
    assert opened(hers / "below", ANNA) == "ENOTDIR"


def test_what_others_answer_for_is_not_asked(hers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hers.open("rb") as file:
        lines = Path(f"/proc/self/fdinfo/{file.fileno()}").read_bytes().splitlines()
    mount = next(line.split()[1] for line in lines if line.startswith(b"mnt_id:"))
    monkeypatch.setattr(as_caller, "_types", lambda: {mount: b"fuse.sshfs"})
    assert opened(hers, ANNA) == "ENODEV"


def test_a_long_way_there_holds_two_descriptors(hers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, held = as_caller._check_near, []

    def check(found: int, path: str, types: dict[bytes, bytes]) -> None:
        held.append(len(os.listdir("/proc/self/fd")))
        real(found, path, types)

    monkeypatch.setattr(as_caller, "_check_near", check)
    assert opened("/.." * 1000 + str(hers), ANNA) == "rw"
    assert len(held) > 1000
    assert max(held) == min(held)
    assert opened("/.." * 2000 + str(hers), ANNA) == "ENAMETOOLONG"


def test_a_file_is_known_again(hers: Path) -> None:
    def known() -> object:
        fd = os.open(hers, os.O_RDONLY)
        try:
            return as_caller.identity(fd)
        finally:
            os.close(fd)

    before = known()
    hers.write_bytes(b"other bytes")
    assert known() == before
    other = hers.parent / "other"
    other.touch()
    other.rename(hers)
    assert known() != before


def capabilities() -> int:
    """Of this thread."""
    lines = Path("/proc/thread-self/status").read_bytes().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith(b"CapEff:"))


def test_the_thread_is_itself_again(hers: Path) -> None:
    before = os.getgroups()
    seen: list[tuple[int, list[int]]] = []

    def work() -> None:
        assert as_caller._set_groups([4, 20])
        probe = hers.parent / "probe"
        before = capabilities()
        with acting_as(BERT):
            seen.append((0, os.getgroups()))
            assert capabilities() == 0
        assert capabilities() == before != 0
        with pytest.raises(PermissionError), acting_as(BERT):
            probe.write_bytes(b"x")
        probe.write_bytes(b"x")
        seen.append((probe.stat().st_uid, os.getgroups()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, []), (0, [4, 20])]
    assert os.getgroups() == before, "of this thread only"
    with acting_as(ANNA):
        fd = os.open(hers, os.O_RDWR)
        hers.chmod(0o4777)
        os.write(fd, b"x")
        os.close(fd)
    assert not hers.stat().st_mode & stat.S_ISUID, "as for any write of hers"


def test_the_process_can_be_dumped_as_before(hers: Path) -> None:
    dumpable = ctypes.CDLL(None).prctl
    before = dumpable(3, 0, 0, 0, 0)
    try:
        for wanted in (1, 0):
            assert dumpable(4, wanted, 0, 0, 0) == 0
            with acting_as(ANNA):
                assert dumpable(3, 0, 0, 0, 0) == 0, "the kernel's own doing"
                other = threading.Thread(target=opened, args=(hers, ANNA))
                other.start()
                other.join()
            assert dumpable(3, 0, 0, 0, 0) == wanted
    finally:
        dumpable(4, before, 0, 0, 0)
