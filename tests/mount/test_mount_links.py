"""Symbolic and hard links below bo/, and what stands for them in objects/."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mount.mount_harness import HERE, PAGE, Device

pytestmark = pytest.mark.mount

HELPERS = (HERE / "names_client.py").read_text()


def status(device: Device, name: str) -> dict[str, str]:
    text = device.shell.do(f"slurp('objects/{name}/status')")
    return dict(line.split(":\t", 1) for line in text.splitlines())


def test_a_bo_has_a_folder_under_every_name(device: Device) -> None:
    device.make("a", PAGE, fill=1)
    shell = device.shell
    shell.do("os.link(path('bo/a'), path('bo/b c')); os.mkdir(path('bo/d')); os.link(path('bo/b c'), path('bo/d/e'))")
    assert shell.do("sorted(os.listdir(path('objects')))") == ["a", "b c", "d"]
    inos = shell.do("[os.stat(path('objects/' + name)).st_ino for name in ('a', 'b c', 'd/e')]")
    assert len(set(inos)) == 3, "a folder is in one place only"
    assert shell.do("len({os.stat(path('bo/' + name)).st_ino for name in ('a', 'b c', 'd/e')})") == 1
    assert shell.do("os.stat(path('bo/a')).st_nlink") == 3
    for name in ("a", "b c", "d/e"):
        assert device.command(f"objects/{name}/validate", "vram") == "ok"
        assert device.command(f"objects/{name}/evict", "\n") == "ok"
    assert device.command("ctl/validate", "a vram") == "ok"
    assert device.command("ctl/validate", r"b\040c,d/e gtt") == "ok"
    assert device.status("a")["mem_type"] == "gtt"
    found = status(device, "d/e")
    assert found["name"] == "a"
    assert found["names"] == r"a b\040c d/e"
    assert device.status("a")["names"] == ["a", "b c", "d/e"]
    assert shell.do("os.getxattr(path('bo/d/e'), 'user.ttm.names')") == rb"a b\040c d/e"
    assert device.stats()["bos"]["count"] == 1


def test_its_name_is_the_oldest_that_is_left(device: Device) -> None:
    device.make("a", PAGE, fill=1)
    shell = device.shell
    shell.do("os.link(path('bo/a'), path('bo/b')); os.link(path('bo/a'), path('bo/c'))")
    shell.do("fd = opened('objects/a/evict')")
    shell.do("os.unlink(path('bo/a'))")
    assert shell.errno("os.stat(path('objects/a'))") == "ENOENT"
    assert status(device, "c")["name"] == "b"
    # The BO is there: what was opened by its old name works.
    assert shell.do("os.write(fd, b'\\n')") == 1
    shell.do("os.rename(path('bo/b'), path('bo/z'))")
    assert status(device, "c")["names"] == "z c", "a name that is renamed is as old as it was"
    shell.do("os.unlink(path('bo/z'))")
    assert status(device, "c")["name"] == "c"
    assert shell.do("os.stat(path('bo/c')).st_nlink") == 1
    shell.do("os.close(fd); os.unlink(path('bo/c'))")
    device.until(lambda: device.stats()["bos"]["count"] == 0)


def test_between_two_names_of_one_bo_rename_does_nothing(device: Device) -> None:
    device.make("a", PAGE, fill=1)
    shell = device.shell
    shell.do("os.link(path('bo/a'), path('bo/b')); before = os.stat(path('bo')).st_mtime_ns")
    shell.do("os.rename(path('bo/a'), path('bo/b'))")
    assert shell.do("sorted(os.listdir(path('bo')))") == ["a", "b"]
    assert shell.do("os.stat(path('bo/b')).st_nlink, os.stat(path('bo')).st_mtime_ns == before") == [2, True]
    assert shell.do("renameat2('bo/a', 'bo/b', 1), renameat2('bo/a', 'bo/b', 2)") == [17, 0]


def test_symbolic_links_are_links_and_nothing_else(device: Device) -> None:
    device.make("a", PAGE, fill=1)
    shell = device.client(HELPERS)
    shell.do("os.symlink('a', path('bo/l')); os.mkdir(path('bo/d')); os.symlink('../a', path('bo/d/up'))")
    shell.do("os.symlink('d', path('bo/folder')); os.symlink('loop', path('bo/loop'))")
    shell.do("os.symlink(b'\\xff/nowhere', path(b'bo/dangling'))")
    assert shell.do("got('bo/l') == got('bo/folder/up') == bytes([1]) * 4096")
    assert shell.do("os.readlink(path(b'bo/dangling'))") == b"\xff/nowhere"
    size, mode, links = shell.do("(s := os.lstat(path('bo/l'))).st_size, s.st_mode, s.st_nlink")
    assert (size, mode, links) == (1, 0o120777, 1)
    assert shell.errno("opened('bo/loop', os.O_RDONLY)") == "ELOOP"
    assert shell.errno("os.readlink(path('bo/a'))") == "EINVAL"
    assert shell.errno("opened('bo/l', os.O_RDONLY | os.O_NOFOLLOW)") == "ELOOP"
    assert shell.errno("os.symlink('x', path('bo/l'))") == "EEXIST"
    # A link has no folder in objects/, and is no name of a BO.
    assert shell.do("sorted(os.listdir(path('objects')))") == ["a", "d"]
    assert shell.do("os.stat(path('objects')).st_nlink") == 4
    assert shell.errno("os.stat(path('objects/l'))") == "ENOENT"
    assert device.command("ctl/validate", "l vram") == "ENOENT"
    assert device.command("ctl/copy", "l a") == "ENOENT"
    # It may have two names itself, and goes as files do.
    shell.do("os.link(path('bo/l'), path('bo/l2'), follow_symlinks=False)")
    assert shell.do("os.lstat(path('bo/l2')).st_nlink, os.path.islink(path('bo/l2'))") == [2, True]
    shell.do("os.rename(path('bo/l2'), path('bo/d/l3')); os.unlink(path('bo/l'))")
    shell.do("os.replace(path('bo/d/l3'), path('bo/a'))")
    assert shell.do("os.readlink(path('bo/a'))") == "a"


def test_what_links_are_refused(device: Device) -> None:
    device.make("a", PAGE, fill=1)
    shell = device.shell
    shell.do("os.mkdir(path('bo/d')); make('svm/s', 4096)")
    for code, call in (
        ("EPERM", "os.link(path('bo/d'), path('bo/e'))"),
        ("EXDEV", "os.link(path('bo/a'), path('svm/a'))"),
        ("EXDEV", "os.link(path('svm/s'), path('bo/s'))"),
        ("EXDEV", "os.rename(path('bo/a'), path('svm/a'))"),
        ("EXDEV", "os.rename(path('svm/s'), path('bo/s'))"),
        ("EPERM", "os.link(path('svm/s'), path('svm/t'))"),
        ("EPERM", "os.symlink('s', path('svm/l'))"),
        ("EPERM", "os.mkdir(path('svm/d'))"),
        ("EXDEV", "os.link(path('ctl/config'), path('bo/config'))"),
        ("EPERM", "os.symlink('x', path('ctl/l'))"),
        ("EPERM", "os.link(path('bo/a'), path('ctl/a'))"),
        ("EEXIST", "os.link(path('bo/a'), path('bo/d'))"),
        ("ENOENT", "os.link(path('bo/none'), path('bo/e'))"),
        ("ENAMETOOLONG", "os.link(path('bo/a'), path('bo/' + 'n' * 256))"),
        ("ENAMETOOLONG", "os.symlink('x', path('bo/' + 'n' * 256))"),
        ("ENOTDIR", "os.link(path('bo/a'), path('bo/a/b'))"),
    ):
        assert shell.errno(call) == code, call
    assert shell.do("sorted(os.listdir(path('bo'))), os.listdir(path('svm'))") == [["a", "d"], ["s"]]


def test_a_folder_of_1100_levels_is_renamed_whole(device: Device) -> None:
    shell = device.client()
    shell.do("os.chdir(path('bo')); [(os.mkdir('d'), os.chdir('d')) for _ in range(1100)]")
    shell.do("fd = os.open('f', os.O_CREAT | os.O_RDWR); os.write(fd, b'deep')")
    shell.do("os.rename(path('bo/d'), path('bo/e'))")
    deep = "e/" + "d/" * 1099 + "f"
    assert list(device.control("statuses")) == [deep]
    assert device.command("ctl/validate", f"{deep} vram") == "ok"
    assert shell.do("os.pread(fd, 9, 0)") == b"deep"
    assert shell.errno("os.rename(path('bo/e'), 'x')") == "EINVAL", "into the deepest of its own folders"
    shell.do("os.unlink('f'); os.close(fd)\nfor _ in range(1100): os.chdir('..'); os.rmdir('e' if _ == 1099 else 'd')")
    assert shell.do("os.listdir(path('bo'))") == []


def programs(*names: str) -> None:
    """Skip unless they are installed."""
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


def run(*command: str, cwd: str = "/") -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def tree(top: Path) -> None:
    """Files, folders, links of both kinds, modes and old times."""
    (top / "d/e").mkdir(parents=True)
    (top / "d/f").write_bytes(b"content" * 3000)
    (top / "d/g").hardlink_to(top / "d/f")
    (top / "link").symlink_to("d/f")
    (top / "dangling").symlink_to("no/where")
    os.link(top / "dangling", top / "linked", follow_symlinks=False)
    (top / "empty").touch()
    (top / "empty").chmod(0o640)
    (top / "d/e").chmod(0o2750)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        stamp = 1_000_000_000 + number
        os.utime(path, (stamp, stamp), follow_symlinks=False)


@pytest.mark.parametrize("command", [("cp", "-a"), ("rsync", "-aH"), ("tar",)], ids=lambda command: command[0])
def test_copies_of_trees_need_no_exception(device: Device, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Links, modes, times and content are there afterwards, and nothing is said."""
    programs(command[0])
    top = tmp_path / "tree"
    tree(top)
    there, back = f"{device.mountpoint}/bo/tree", tmp_path / "back"
    if command[0] == "tar":
        run("tar", "-cf", str(tmp_path / "1.tar"), "-C", str(top), ".")
        run("mkdir", there)
        run("tar", "-xpf", str(tmp_path / "1.tar"), "-C", there)
        run("tar", "-cf", str(tmp_path / "2.tar"), "-C", there, ".")
        back.mkdir()
        run("tar", "-xpf", str(tmp_path / "2.tar"), "-C", str(back))
    else:
        run(*command, f"{top}/", f"{there}/" if command[0] == "rsync" else there)
        run(*command, f"{there}/", str(back))
    assert run("diff", "-r", "--no-dereference", str(top), str(back)) == ""
    assert described(back) == described(top)
    assert device.shell.do("os.stat(path('bo/tree/d/f')).st_nlink") == 2


def described(top: Path) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for path in sorted(top.rglob("*")):
        found = path.lstat()
        links = found.st_nlink if not path.is_dir() or path.is_symlink() else 0
        size = found.st_size if links else 0
        rows.append((str(path.relative_to(top)), oct(found.st_mode), links, size, found.st_mtime))
    return rows


def test_git_works_in_a_folder_of_bos(device: Device) -> None:
    programs("git")
    device.shell.do("os.mkdir(path('bo/repo'))")
    at = f"{device.mountpoint}/bo/repo"

    def git(*words: str) -> str:
        settings = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "safe.directory=*", "-c", "core.fsync=none")
        return run("git", *settings, *words, cwd=at)

    git("init", "-q", ".")
    device.shell.do("make('bo/repo/a', 5000, 65); os.symlink('a', path('bo/repo/l')); make('bo/repo/b', 10, 66)")
    git("add", "-A")
    git("commit", "-qm", "first")
    assert git("status", "--porcelain") == ""
    device.shell.do("make('bo/repo/a', 4000, 67)")
    assert git("status", "--porcelain").strip() == "M a"
    git("commit", "-qam", "second")
    git("checkout", "-q", "HEAD~1")
    assert device.shell.do("open(path('bo/repo/a'), 'rb').read() == b'A' * 5000")
    git("gc", "-q")
    git("fsck", "--strict")
    assert git("status", "--porcelain") == ""
    assert git("clone", "-q", ".", f"{at}-too") == ""
    device.shell.do("__import__('shutil').rmtree(path('bo/repo')); __import__('shutil').rmtree(path('bo/repo-too'))")
    device.until(lambda: device.stats()["bos"]["count"] == 0)


EDITORS = {
    "ed": ("ed", "-s", "FILE"),
    "sed": ("sed", "-i", "s/one/two/", "FILE"),
    "perl": ("perl", "-pi.bak", "-e", "s/one/two/", "FILE"),
    "vim": ("vim", "-es", "-u", "NONE", "-c", "set backup", "-c", "%s/one/two/", "-c", "wq", "FILE"),
    "vim-copies": ("vim", "-es", "-u", "NONE", "-c", "set backupcopy=yes", "-c", "%s/one/two/", "-c", "wq", "FILE"),
    "vim-renames": ("vim", "-es", "-u", "NONE", "-c", "set backupcopy=no", "-c", "%s/one/two/", "-c", "wq", "FILE"),
}


@pytest.mark.parametrize("editor", EDITORS)
def test_editors_save(device: Device, editor: str) -> None:
    words = EDITORS[editor]
    programs(words[0])
    device.shell.do("open(path('bo/text'), 'w').write('one line\\n' * 1000); os.chmod(path('bo/text'), 0o640)")
    command = [word.replace("FILE", f"{device.mountpoint}/bo/text") for word in words]
    script = "1,$s/one/two/\nw\nq\n"
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, cwd="/", check=False)
    assert done.returncode == 0, done
    assert device.shell.do("open(path('bo/text')).read() == 'two line\\n' * 1000")
    assert device.shell.do("os.stat(path('bo/text')).st_mode & 0o777") == 0o640
    assert device.status("text")["size"] == 9000
