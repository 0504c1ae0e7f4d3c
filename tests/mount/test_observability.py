"""What a mount shows of itself: each format read by the reader that people use for it, and never at anybody's cost."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from mount_harness import MIB, PAGE, REPOSITORY, Client, Device
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ttmfs.fs.statkeys import COUNTER, KEYS, OPTIONAL, key_of, leaves, markdown

pytestmark = pytest.mark.mount
MOUNT_OPTIONS = ("--vram", "32M", "--visible-vram", "16M", "--gtt", "64M", "--memory", "128M", "--fault-timeout", "20")

LINE = re.compile(
    r"^\s*(?P<comm>\S+)-(?P<pid>\d+)\s+\[(?P<cpu>\d{3})\] (?P<flags>\S{5})\s+"
    r"(?P<ts>\d+\.\d{6}): (?P<name>\w+): (?P<rest>.*)$"
)


def slurp(device: Device, name: str, timeout: float = 10.0) -> str:
    text: str = device.shell.do(f"slurp({name!r})", timeout)
    return text


def record(device: Device, words: str) -> None:
    assert device.command("ctl/trace", words) == "ok"


QUIET = "svm_fault"
"""Recorded, and met by no test here: a trace_pipe that is opened while nothing is recorded is at its end."""


@pytest.fixture(autouse=True)
def _quiet(device: Device) -> Any:
    """No test leaves a trace on, or events, to the next."""
    yield
    if device.alive:
        drain(device)


def drain(device: Device) -> bytes:
    """All events that there are; nothing is recorded afterwards."""
    record(device, QUIET)
    code = (
        "def drain():\n"
        "    fd = os.open(path('trace_pipe'), os.O_RDONLY | os.O_NONBLOCK)\n"
        "    out = b''\n"
        "    try:\n"
        "        while True: out += os.read(fd, 1 << 16)\n"
        "    except BlockingIOError: return out\n"
        "    finally: os.close(fd)\n"
    )
    device.shell.do(code)
    data: bytes = device.shell.do("drain()")
    record(device, "off")
    return data


def events(text: str) -> list[re.Match[str]]:
    """The events of a trace; every other line must be a comment."""
    found = []
    for line in text.splitlines():
        match = LINE.match(line)
        assert match or line.startswith(("#", "CPU:")), line
        found += [match] if match else []
    return found


# -- stats and metrics -----------------------------------------------------------------------------------------------


def test_every_key_of_stats_is_documented_and_the_other_way_round(device: Device) -> None:
    found = {key_of(path)[0] for path, _value in leaves(json.loads(slurp(device, "stats")))}
    assert not found - set(KEYS), "add these to ttmfs/fs/statkeys.py, then write docs/STATS.md anew"
    missing = {key for key in set(KEYS) - found if key not in OPTIONAL and key.split(".")[0] not in OPTIONAL}
    assert not missing


def test_the_document_is_that_of_the_table() -> None:
    written = (REPOSITORY / "docs" / "STATS.md").read_text(encoding="utf-8")
    assert written == markdown(), "python -m ttmfs.fs.statkeys > docs/STATS.md"


def samples(device: Device) -> dict[tuple[str, str], float]:
    """(name, label values) to value, by prometheus_client's own parser; it refuses what is not OpenMetrics."""
    text = slurp(device, "metrics")
    assert text.endswith("# EOF\n")
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_the_numbers_of_stats(device: Device) -> None:
    device.make("a", 4 * MIB, 1, "vram")
    metrics, stats = samples(device), json.loads(slurp(device, "stats"))
    seen = 0
    for path, value in leaves(stats):
        name, region = key_of(path)
        if not KEYS[name].kind or name.split(".")[0] in ("requests", "faults"):
            continue
        metric = "ttmfs_" + name.replace(".*", "").replace(".", "_") + ("_total" if KEYS[name].kind == COUNTER else "")
        for label, number in enumerate(value) if isinstance(value, list) else [(region, value)]:
            assert metrics[metric, str(label)] == number, path
            seen += 1
    assert seen > 40


def test_histograms_count_what_they_say(device: Device) -> None:
    before = samples(device)
    device.make("a", 4 * MIB, 1, "vram")
    device.hold("validate")
    waiting = device.begin_command("objects/a/validate", "gtt")
    device.until_held("validate")
    reader = device.client("fd = opened('bo/a')").begin("os.pread(fd, 4096, 0)")
    device.until_parked()
    device.release("validate")
    assert waiting.result() == 0
    assert len(reader.result()) == PAGE
    after = samples(device)

    def more(name: str, label: str = "") -> float:
        return after[name, label] - before[name, label]

    assert more("ttmfs_move_bytes_count") >= 3
    buckets = {float(label): count for (name, label), count in after.items() if name == "ttmfs_move_bytes_bucket"}
    assert buckets[4.0 * MIB] - buckets[1.0 * MIB] >= 3
    assert more("ttmfs_move_bytes_sum") == more("ttmfs_move_bytes_count") * 4 * MIB
    assert more("ttmfs_gate_wait_seconds_count") >= 1
    assert more("ttmfs_fault_latency_seconds_count") >= 1
    assert after["ttmfs_fault_latency_seconds_bucket", "+Inf"] == after["ttmfs_fault_latency_seconds_count", ""]


# -- trace and trace_pipe --------------------------------------------------------------------------------------------


def test_a_trace_has_ftraces_lines_and_all_of_its_facts(device: Device) -> None:
    record(device, "all")
    device.make("a b", 2 * MIB, 1, "vram")
    device.shell.do(f"fd = opened('bo/a b'); m = mapped(fd, {2 * MIB}); m[5 * 4096]")
    text = slurp(device, "trace")
    found = events(text)
    assert text.startswith("# tracer: ttmfs\n")
    names = {match["name"] for match in found}
    assert names >= {"bo_create", "fault", "validate", "move_start", "move_end", "fence_emit", "fence_signal",
                     "copy_start", "copy_end", "place_tried", "populate"}  # fmt: skip
    assert {match["pid"] for match in found} == {str(device.daemon.pid)}
    times = [float(match["ts"]) for match in found]
    assert times == sorted(times)
    fault = [match["rest"] for match in found if match["name"] == "fault" and 'bo="a b" op=read' in match["rest"]]
    assert any(" offset=20480 pages=1 " in rest and "latency_us=" in rest for rest in fault)
    rows = [json.loads(line) for line in slurp(device, "trace.json").splitlines()]
    assert [row["event"] for row in rows] == [match["name"] for match in events(slurp(device, "trace"))]
    assert len(rows) >= len(found), "reading it consumes nothing"


def test_faults_answered_from_a_view_are_recorded_while_that_is_asked_for(device: Device) -> None:
    device.make("a", 2 * MIB, 1, "vram:contiguous")
    client = device.client(f"fd = opened('bo/a'); m = mapped(fd, {2 * MIB})")
    client.do("m[0]")
    record(device, "fault")
    client.do("[m[page * 4096] for page in range(1, 21)]")
    record(device, "off")
    client.do("[m[page * 4096] for page in range(21, 31)]")
    offsets = [int(re.search(r"offset=(\d+)", m["rest"])[1]) for m in events(drain(device).decode())]  # type: ignore[index]
    assert offsets == [page * PAGE for page in range(1, 21)]


def test_commands_that_fail_are_errors(device: Device) -> None:
    device.make("a", PAGE)
    record(device, "error")
    assert device.command("objects/a/unpin", "\n") == "EINVAL"
    found = events(drain(device).decode())
    assert [match["name"] for match in found] == ["error"]
    assert found[0]["rest"].startswith('bo=a request=unpin errno=22 why="')


def test_an_event_that_does_not_exist_is_refused(device: Device) -> None:
    assert device.command("ctl/trace", "fault nonsense") == "EINVAL"
    assert slurp(device, "ctl/trace").splitlines()[0] == "off"
    assert "'nonsense' is no event" in slurp(device, "error_log").splitlines()[-1]


def test_trace_pipe_blocks_until_there_is_an_event(device: Device) -> None:
    record(device, QUIET)
    reader = device.client("fd = opened('trace_pipe', os.O_RDONLY)").begin("os.read(fd, 65536)")
    with pytest.raises(Exception, match="no answer within"):
        reader.result(0.3)
    record(device, "off")
    record(device, "bo_create")
    device.make("a", PAGE)
    data = reader.result(5)
    assert [m["name"] for m in events(data.decode())] == ["bo_create"]
    assert b" bo=a " in data
    assert "bo_create" not in slurp(device, "trace").split("EVENT\n")[1], "consumed"


def test_a_pipe_opened_while_nothing_is_recorded_is_at_its_end_and_takes_nothing(device: Device) -> None:
    record(device, "bo_create")
    device.make("a", PAGE)
    record(device, "off")
    for flags in ("os.O_RDONLY", "os.O_RDONLY | os.O_NONBLOCK"):
        client = device.client(f"import select; fd = opened('trace_pipe', {flags})")
        assert client.do("os.read(fd, 65536)") == b""
        assert client.do("len(select.select([fd], [], [], 5)[0])") == 1
        record(device, QUIET)
        assert client.do("os.read(fd, 65536)") == b"", "whoever opened it then"
        record(device, "off")
    assert b"bo_create" in drain(device)


def test_o_nonblock_is_eagain(device: Device) -> None:
    record(device, QUIET)
    assert device.client().errno("os.read(opened('trace_pipe', os.O_RDONLY | os.O_NONBLOCK), 100)") == "EAGAIN"


@pytest.mark.parametrize("how", ["poll", "select", "epoll"])
def test_trace_pipe_can_be_polled(device: Device, how: str) -> None:
    code = (
        "import select\n"
        "fd = opened('trace_pipe', os.O_RDONLY)\n"
        "def ready(seconds):\n"
        "    if how == 'select': return bool(select.select([fd], [], [], seconds)[0])\n"
        "    poller = select.epoll() if how == 'epoll' else select.poll()\n"
        "    poller.register(fd, select.POLLIN)\n"
        "    found = poller.poll(seconds if how == 'epoll' else seconds * 1000)\n"
        "    return any(mask & select.POLLIN for _, mask in found)\n"
        f"how = {how!r}\n"
    )
    record(device, QUIET)
    client = device.client(code)
    assert client.do("ready(0.05)") is False
    client.begin("ready(60)")
    record(device, "bo_create")
    device.make("a", PAGE)
    assert client.result(10) is True
    assert b"bo_create" in client.do("os.read(fd, 65536)")
    assert client.do("ready(0.05)") is False
    device.make("b", PAGE)
    assert client.do("ready(60)") is True, "a second time, on the same file"


def test_other_files_are_always_ready(device: Device) -> None:
    device.make("a", PAGE)
    code = "import select; r, w, x = select.select([opened('bo/a'), opened('stats', 0)], [opened('bo/a')], [], 0)"
    client = device.client(code)
    assert client.do("[len(r), len(w)]") == [2, 1]


def test_readers_share_the_stream(device: Device) -> None:
    record(device, "bo_create")
    readers = [device.client("fd = opened('trace_pipe', os.O_RDONLY)") for _ in range(3)]
    for reader in readers:
        reader.begin("os.read(fd, 10)")
    device.make("only", PAGE)
    first = [reader for reader in readers if _answers(reader)]
    assert len(first) == 1, "one event is one reader's"


def _answers(reader: Client) -> bool:
    try:
        return bool(reader.result(0.5))
    except AssertionError:
        return False


def test_a_line_longer_than_the_read_comes_in_pieces(device: Device) -> None:
    record(device, "bo_create")
    client = device.client("fd = opened('trace_pipe', os.O_RDONLY)")
    device.make("a", PAGE)
    code = "def line():\n out = b''\n while not out.endswith(b'\\n'): out += os.read(fd, 7)\n return out"
    client.do(code)
    line = client.do("line()")
    assert len(line) > 70
    assert [match["name"] for match in events(line.decode())] == ["bo_create"]


@pytest.mark.parametrize("how", ["its own", "inherited"])
def test_a_reader_that_is_killed_dies(device: Device, how: str) -> None:
    """The kernel keeps it until its READ is answered, and the answer is an event that never comes."""
    device.allowed.append(r"fuse_reply")
    record(device, QUIET)
    path = os.path.join(device.mountpoint, "trace_pipe")
    command = ["cat", path] if how == "its own" else ["sh", "-c", 'exec 3<"$1"; cat <&3; true', "sh", path]
    group = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        device.until(lambda: "cat" in _names_of(group.pid), why="no cat")
        device.until(lambda: _waits_in_read(group.pid), why="cat does not read")
        os.killpg(group.pid, signal.SIGKILL)
        group.wait(10)
        device.until(lambda: not _names_of(group.pid), 10, why="a reader that was killed is still there")
    finally:
        record(device, "bo_create")
        device.make("release", PAGE)
        group.kill()
        group.wait(10)


def _members(group: int) -> list[int]:
    """Processes of a process group."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(name))
    return found


def _names_of(group: int) -> list[str]:
    names = []
    for pid in _members(group):
        try:
            names.append(Path(f"/proc/{pid}/comm").read_text(encoding="latin-1").strip())
        except OSError:
            continue
    return names


def _waits_in_read(group: int) -> bool:
    for pid in _members(group):
        try:
            if Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").startswith("0 "):
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize("how", ["SIGTERM", "umount -l", "abort"])
def test_readers_and_pollers_end_with_the_mount(mounted: Any, how: str) -> None:
    device: Device = mounted()
    device.allowed.append(r"fuse_reply|abort")
    record(device, QUIET)
    reader = device.client("fd = opened('trace_pipe', os.O_RDONLY)").begin("len(os.read(fd, 100))")
    poller = device.client(
        "import select; fd = opened('trace_pipe', os.O_RDONLY); p = select.poll(); p.register(fd, select.POLLIN)"
    ).begin("len(p.poll(20000))")
    for client in (reader, poller):
        with pytest.raises(AssertionError):
            client.result(0.2)
    if how == "umount -l":
        subprocess.run(["umount", "-l", device.mountpoint], check=True, timeout=10)
    if how == "abort":
        device.abort()
    else:
        assert device.stop() == 0
    if how == "abort":
        with pytest.raises(OSError, match=r"."):
            reader.result(10)
    else:
        assert reader.result(10) == 0, "end of file"
    poller.result(10)


def test_ttmfs_umount_is_not_held_up_by_a_reader(mounted: Any) -> None:
    device: Device = mounted()
    record(device, QUIET)
    reader = device.client("fd = opened('trace_pipe', os.O_RDONLY)").begin("len(os.read(fd, 100))")
    with pytest.raises(AssertionError):
        reader.result(0.2)
    started = time.monotonic()
    device.daemon.popen.send_signal(signal.SIGTERM)
    assert reader.result(10) == 0
    assert device.daemon.popen.wait(10) == 0
    assert time.monotonic() - started < 10


# -- debugfs, sysfs, clients -----------------------------------------------------------------------------------------


def test_managers_have_the_kernels_four_lines(device: Device) -> None:
    device.make("a", 4 * MIB, 1, "vram")
    for name, region in (("vram0_mm", "vram"), ("gtt_mm", "gtt"), ("system_mm", "system")):
        lines = slurp(device, f"debug/{name}").splitlines()
        used = device.stats()["regions"][region]["used"]
        assert lines[0] == "  use_type: 1"
        assert lines[1] == f"  use_tt: {int(region != 'vram')}"
        assert re.fullmatch(r"  size: \d+", lines[2])
        assert lines[3] == f"  usage: {used}"
    text = slurp(device, "debug/vram0_mm")
    assert re.search(r"^chunk_size: 4KiB, total: 32MiB, free: 28MiB, clear_free: \d+MiB$", text, re.M)
    assert re.search(r"^order- ?\d+ free: +\d+ (KiB|MiB), blocks: \d+$", text, re.M)
    assert re.search(r"^total: \d+, used \d+ free \d+$", slurp(device, "debug/gtt_mm"), re.M)


def test_the_pools_file_is_the_kernels(device: Device) -> None:
    device.make("a", 4 * MIB, 1)
    lines = slurp(device, "debug/ttm/page_pool").splitlines()
    assert lines[0] == "\t " + "".join(f" ---{order:2d}---" for order in range(11))
    assert [line.split("\t")[0] for line in lines[1:5]] == ["wc", "uc", "wc 32", "uc 32"]
    assert all(re.fullmatch(r"(wc|uc)( 32)?\t:( [ \d]{7}\d){11}", line) for line in lines[1:5])
    assert lines[5] == ""
    assert re.fullmatch(r"total\t: [ \d]{8} of [ \d]{8}", lines[6])
    assert int(slurp(device, "debug/ttm/buffer_objects")) == 1


def test_the_shrinkers_work_when_written_and_only_then(device: Device) -> None:
    device.make("a", 4 * MIB, 1)
    device.shell.do("os.unlink(path('bo/a'))")
    device.until(lambda: device.stats()["pool"]["in_use_pages"] == 0, why="the pages of a are back")
    pooled = device.stats()["pool"]["pooled_pages"]
    assert pooled >= 352
    for _ in range(3):
        slurp(device, "debug/ttm/page_pool_shrink")
    assert device.stats()["pool"]["pooled_pages"] == pooled
    assert device.command("debug/ttm/page_pool_shrink", "1") == "ok"
    counted, freed = map(int, slurp(device, "debug/ttm/page_pool_shrink").split("/"))
    assert (counted, device.stats()["pool"]["pooled_pages"]) == (pooled, pooled - freed)
    assert freed >= 352
    device.make("b", MIB, 5)
    assert slurp(device, "debug/ttm/tt_shrink") == slurp(device, "debug/ttm/tt_shrink")
    assert device.status("b")["backed_up_pages"] == 0
    assert device.command("debug/ttm/tt_shrink", "anything") == "ok"
    assert slurp(device, "debug/ttm/tt_shrink") == "256\n"
    assert device.status("b")["populated_pages"] == 0
    assert device.shell.do(f"set(os.pread(opened('bo/b', 0), {MIB}, 0)) == {{5}}") is True


def test_mem_info_is_bytes_and_a_newline(device: Device) -> None:
    device.make("a", 4 * MIB, 1, "vram")
    device.make("b", 2 * MIB, 1, "gtt")
    values = {
        name: slurp(device, f"mem_info_{name}")
        for name in ("vram_total", "vram_used", "vis_vram_total", "vis_vram_used", "gtt_total", "gtt_used")
    }
    assert all(re.fullmatch(r"\d+\n", text) for text in values.values())
    stats = device.stats()["regions"]
    assert {name: int(text) for name, text in values.items()} == {
        "vram_total": 32 * MIB,
        "vram_used": 4 * MIB,
        "vis_vram_total": 16 * MIB,
        "vis_vram_used": stats["vram"]["visible_used"],
        "gtt_total": 64 * MIB,
        "gtt_used": 2 * MIB,
    }


def test_clients_are_the_processes_that_made_the_bos(device: Device) -> None:
    device.make("mine", 2 * MIB, 1, "vram")
    other = device.client(f"make('bo/theirs', {MIB}, 1)")
    assert device.command("objects/theirs/validate", "vram") == "ok"
    assert device.command("objects/theirs/wait", "kernel") == "ok"
    listed = set(device.shell.do("os.listdir(path('clients'))"))
    assert listed == {str(device.shell.pid), str(other.pid), "kernel"}
    assert "drm-resident-vram:\t2 MiB\n" in slurp(device, f"clients/{device.shell.pid}")
    assert "drm-resident-vram:\t1 MiB\n" in slurp(device, f"clients/{other.pid}")
    assert _sum_of(device, "drm-total-vram") == device.stats()["regions"]["vram"]["used"]
    other.end()
    uid = f"uid-{os.getuid()}"
    device.until(lambda: uid in device.shell.do("os.listdir(path('clients'))"))
    text = slurp(device, f"clients/{uid}")
    assert text.startswith("drm-driver:\tttmfs\ndrm-client-id:\t")
    assert "drm-total-vram:\t1 MiB\n" in text
    assert all(re.fullmatch(r"drm-[a-z0-9-]+:\t\S+( (KiB|MiB))?", line) for line in text.splitlines())


def _sum_of(device: Device, key: str) -> int:
    total = 0
    for name in device.shell.do("os.listdir(path('clients'))"):
        number, unit, _ = re.search(rf"^{key}:\t(\d+)( (KiB|MiB))?$", slurp(device, f"clients/{name}"), re.M).groups()  # type: ignore[union-attr]
        total += int(number) << {None: 0, " KiB": 10, " MiB": 20}[unit]
    return total


def test_maps_list_runs_with_escaped_names(device: Device) -> None:
    device.make("a b", 2 * MIB, 1, "vram")
    for region, mine in (("vram", True), ("gtt", False), ("system", False)):
        lines = slurp(device, f"regions/{region}/map").splitlines()
        assert lines[0] == "first\tpages\torder\tbo"
        rows = [line.split("\t") for line in lines[1:]]
        assert all(len(row) == 4 and all(word.isdecimal() for word in row[:3]) for row in rows)
        assert sum(int(row[1]) for row in rows if row[3] == r"a\040b") == (512 if mine else 0)


def test_pages_of_address_spaces_are_theirs(device: Device) -> None:
    device.shell.do(
        f"fd = opened('svm/heap', os.O_CREAT | os.O_RDWR); os.ftruncate(fd, {8 * MIB}); "
        f"os.pwrite(fd, b'x' * {MIB}, 4096)"
    )
    rows = [line.split("\t") for line in slurp(device, "regions/system/map").splitlines()[1:]]
    assert sum(int(row[1]) for row in rows if row[3] == "svm:heap") == 256
    assert not [row for row in rows if row[3] == "(ghost)"]
    device.shell.do("os.close(fd); os.unlink(path('svm/heap'))")


def test_fences_of_evictions_are_listed_until_they_signal(mounted: Any) -> None:
    device: Device = mounted("--vram", "4M", "--gtt", "64M", "--memory", "64M")
    device.make("a", 4 * MIB, 1, "vram")
    assert slurp(device, "regions/vram/fences") == "fence\twhat\twaits_for\n"
    assert device.command("debug/pause_engine", "1") == "ok"
    assert device.command("objects/a/evict", "\n") == "ok"
    rows = slurp(device, "regions/vram/fences").splitlines()[1:]
    assert len(rows) == 1
    assert re.fullmatch(r"\d+:\d+\tcopy a 1024 pages\t.*", rows[0])
    assert device.command("debug/pause_engine", "0") == "ok"
    device.until(lambda: len(slurp(device, "regions/vram/fences").splitlines()) == 1)


def test_reading_everything_changes_nothing(device: Device) -> None:
    device.make("a", 4 * MIB, 1, "vram")
    device.make("folder-free b", MIB, 2, "gtt")
    record(device, "bo_create")
    code = (
        "def every(top):\n"
        "    for here, folders, files in os.walk(path(top)):\n"
        "        for name in files:\n"
        "            if name != 'trace_pipe':\n"
        "                with open(os.path.join(here, name), 'rb') as file: file.read()\n"
        "tops = sorted(name for name in os.listdir(path('.')) if name not in ('bo', 'svm'))\n"
        "def all():\n"
        "    for top in tops:\n"
        "        if os.path.isdir(path(top)): every(top)\n"
        "        elif top != 'trace_pipe': open(path(top), 'rb').read()\n"
    )
    device.shell.do(code)
    before = device.control("state")
    device.shell.do("all()", 60)
    assert device.control("state") == before
