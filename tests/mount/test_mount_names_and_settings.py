"""What a shell user meets: odd names in tables and in help texts, settings that fail, jobs that find no memory."""

import json
from typing import Any

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = pytest.mark.mount

NAMES = ["a b", "a,b", "a\tb", "a\nb", "übér", "odd \udcff", "q'uo\"te", "back\\slash", "-", "(pool)", "none"]


def text(device: Device, name: str) -> str:
    data = device.shell.do(f"slurp({name!r})")
    return data if isinstance(data, str) else data.decode("utf-8", "surrogateescape")


def column(table: str, number: int) -> list[str]:
    rows = table.removesuffix("\n").split("\n")
    assert {row.count("\t") for row in rows} == {rows[0].count("\t")}, rows
    return [row.split("\t")[number] for row in rows[1:]]


def make_odd(device: Device) -> None:
    device.shell.do(
        f"""for name in {NAMES!r}:
    fd = opened('bo/' + name, os.O_CREAT | os.O_RDWR); os.ftruncate(fd, 4096); os.close(fd)
    assert command('objects/' + name + '/validate', 'vram') == 0, name"""
    )


def test_tables_with_odd_names_can_be_cut_and_the_names_written_back(device: Device) -> None:
    make_odd(device)
    listed = column(text(device, "regions/vram/lru"), 1)
    assert len(listed) == len(NAMES)
    assert sorted(listed) == sorted(column(text(device, "regions/vram/map"), 3))
    code, lines = device.transact("ctl/validate", ",".join(listed) + " gtt")
    assert code == "ok"
    assert lines[0]["moved"] == len(NAMES)
    for name in NAMES:
        rows = text(device, f"objects/{name}/status").removesuffix("\n").split("\n")
        assert all(row.count("\t") == 1 for row in rows), rows
        assert "mem_type:\tgtt" in rows


def test_fences_and_errors_of_odd_names_are_one_line(device: Device) -> None:
    make_odd(device)
    before = len(text(device, "error_log").splitlines())
    device.command("debug/pause_engine", "1")
    for name in NAMES:
        assert device.command(f"objects/{name}/validate", "gtt") == "ok"
        assert device.command(f"objects/{name}/validate", "nowhere") == "EINVAL"
    assert len(column(text(device, "fences/pending"), 1)) >= len(NAMES)
    log = text(device, "error_log").removesuffix("\n").split("\n")[before:]
    assert len(log) == len(NAMES)
    assert all(line.count("\t") == 4 for line in log), log
    device.command("debug/pause_engine", "0")


def test_the_table_of_ranges_escapes_the_name_of_the_space(device: Device) -> None:
    device.shell.do("fd = opened('svm/t\\tab c', os.O_CREAT | os.O_RDWR); os.ftruncate(fd, 64 << 20)")
    assert device.command("svm_objects/t\tab c/gpu", "fill 4M 2M 7") == "ok"
    table = text(device, "svm_objects/t\tab c/ranges")
    assert column(table, 4) == [r"svm:t\011ab\040c@0x400000"]
    assert column(table, 3) == ["vram"]
    assert "name:\tt\\011ab\\040c\n" in text(device, "svm_objects/t\tab c/status")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a b", "echo 'vram gtt' > 'objects/a b/validate'"),
        ("odd \udcff", r"echo 'vram gtt' > $'objects/odd \377/validate'"),
        ("a\nb", r"echo 'vram gtt' > $'objects/a\012b/validate'"),
    ],
)
def test_the_help_of_a_command_can_be_pasted(device: Device, name: str, line: str) -> None:
    make_odd(device)
    assert line in text(device, f"objects/{name}/validate")


def settings(device: Device) -> str:
    return text(device, "ctl/config")


def test_config_takes_all_or_nothing_and_says_why(device: Device) -> None:
    before = settings(device)
    for words, word in (("prefault=16 foo=1", "'foo'"), ("prefault=16 copy_latency=-1", "copy_latency"), ("x", "'x'")):
        code, lines = device.transact("ctl/config", words)
        assert code == "EINVAL"
        assert lines == [{"ok": False, "errno": "EINVAL", "error": lines[0]["error"]}]
        assert word in lines[0]["error"]
        assert settings(device) == before
        assert text(device, "error_log").split("\n")[-2].split("\t")[1:3] == ["EINVAL", f"ctl/config {words}"]
    assert device.transact("ctl/config", "prefault=16") == ("ok", [{"ok": True}])
    assert "prefault=16\n" in settings(device)


def test_config_can_be_written_as_it_is_read(device: Device) -> None:
    assert device.command("ctl/config", "copy_bandwidth=1G copy_latency=0.000001 command_timeout=1234.5678") == "ok"
    shown = settings(device)
    assert "copy_bandwidth=1073741824\n" in shown
    assert "copy_latency=0.000001\n" in shown
    assert "command_timeout=1234.5678\n" in shown
    assert device.command("ctl/config", shown) == "ok"
    assert settings(device) == shown


@pytest.mark.parametrize(
    ("name", "words"),
    [("debug/ban_memcpy", "2"), ("debug/pause_engine", "x"), ("debug/fail_move/times", "x"), ("ctl/trace", "nothing")],
)
def test_every_refused_setting_is_in_the_error_log(device: Device, name: str, words: str) -> None:
    assert device.command(name, words) == "EINVAL"
    assert text(device, "error_log").split("\n")[-2].split("\t")[1:3] == ["EINVAL", f"{name} {words}"]


def test_a_refused_attribute_by_xattr_is_in_the_error_log(device: Device) -> None:
    device.make("a", 4096)
    assert device.shell.errno("os.setxattr(path('bo/a'), 'user.ttm.priority', b'9')") == "EINVAL"
    assert text(device, "error_log").split("\n")[-2].split("\t")[1:3] == ["EINVAL", "a user.ttm.priority"]


def test_an_attribute_answers_what_is_written_and_shows_what_it_is(device: Device) -> None:
    device.make("a", 4096)
    client = device.client("fd = opened('objects/a/placement')")
    assert client.do("os.read(fd, 100)") == b"system\n"
    client.do("os.write(fd, b'vram:topdown gtt\\n'); None")
    assert client.do("os.read(fd, 3) + os.read(fd, 100)") == b'{"ok": true}\n'
    assert text(device, "objects/a/placement") == "vram:topdown gtt\n"
    assert client.errno("os.write(fd, b'nowhere\\n')") == "EINVAL"
    answer = json.loads(client.do("os.read(fd, 1000)"))
    assert (answer["ok"], answer["errno"]) == (False, "EINVAL")
    assert "'nowhere'" in answer["error"]
    assert text(device, "objects/a/placement") == "vram:topdown gtt\n"


@pytest.mark.parametrize("advice", ["willneed", "normal"])
@pytest.mark.parametrize("purge", [False, True])
def test_advice_after_dontneed_says_whether_the_content_is_there_still(
    device: Device, purge: bool, advice: str
) -> None:
    device.make("a", MIB, 7)
    assert device.transact("objects/a/madvise", "dontneed") == ("ok", [{"ok": True}])
    if purge:
        assert device.command("ctl/shrink", "all purge") == "ok"
    assert device.transact("objects/a/madvise", advice) == ("ok", [{"ok": True, "retained": not purge}])
    assert device.shell.do("os.pread(opened('bo/a'), 1, 0)") == (b"\0" if purge else b"\7")
    assert device.transact("objects/a/madvise", "willneed") == ("ok", [{"ok": True, "retained": True}])


def test_a_fence_has_one_name(device: Device) -> None:
    device.make("a", 4096)
    code, lines = device.transact("ctl/submit", "fill dst=a value=1 wait")
    assert code == "ok"
    context, seqno = lines[0]["fence"].split(":")
    assert device.command("ctl/wait", f"{context}:{seqno} 0") == "ok"
    for name in (f"0{context}:{seqno}", f"{context}:0{seqno}", f"{context}:{seqno}9", f"{context}:0", "1:1:1"):
        assert device.command("ctl/wait", f"{name} 0") == "EINVAL", name


@pytest.mark.parametrize("name", ["ctl/evict", "objects/a/validate", "objects/a", "stats", "objects"])
def test_modes_and_owners_that_cannot_change_are_refused(device: Device, name: str) -> None:
    device.make("a", 4096)
    before = device.shell.do(f"os.stat(path({name!r})).st_mode")
    assert device.shell.errno(f"os.chmod(path({name!r}), 0o666)") == "EPERM"
    assert device.shell.errno(f"os.chown(path({name!r}), 1, 1)") == "EPERM"
    assert device.shell.errno(f"os.utime(path({name!r}))") == "ok"
    assert device.shell.do(f"os.stat(path({name!r})).st_mode") == before


def pages(device: Device) -> dict[str, Any]:
    return {row.split("\t")[0]: int(row.split("\t")[1]) for row in text(device, "pool/pages").split("\n")[:-1]}


@pytest.mark.parametrize("use", ["objects/big/restore", "ctl/submit"])
@pytest.mark.parametrize("size", [24 * MIB, 64 << 30])
def test_what_finds_no_memory_for_all_of_a_bo_leaves_it_as_it_was(mounted: Any, use: str, size: int) -> None:
    device = mounted("--vram", "16M", "--memory", "32M", "--swap", "0")
    device.make("full", 16 * MIB, fill=1)
    device.shell.do(f"fd = opened('bo/big', os.O_CREAT | os.O_RDWR); os.ftruncate(fd, {size}); os.pwrite(fd, b'x', 0)")
    used, snapshot = pages(device)["in_use"], text(device, "objects/full/snapshot")
    assert device.command(use, "fill dst=big value=1" if use == "ctl/submit" else "\n") == "ENOMEM"
    assert pages(device)["in_use"] == used
    assert text(device, "objects/full/snapshot") == snapshot
    assert device.shell.do("os.pread(fd, 2, 0)") == b"x\0"
