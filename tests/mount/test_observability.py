"""What a mount shows of itself: each format read by the reader that people use for it, and never at anybody's cost."""

import json
import os
import re
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.mount.mount_harness import MIB, PAGE, REPOSITORY, Device
from tests.mount.trace_reading import record, slurp
from ttmfs.fs.tree.stat_keys import COUNTER, KEYS, OPTIONAL, key_of, leaves, markdown, metric_name

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("no_trace_left")]
MOUNT_OPTIONS = ("--vram", "32M", "--visible-vram", "16M", "--gtt", "64M", "--memory", "128M", "--fault-timeout", "20")


# -- stats and metrics -----------------------------------------------------------------------------------------------


def test_every_key_of_stats_is_documented_and_the_other_way_round(device: Device) -> None:
    found = {key_of(path)[0] for path, _value in leaves(json.loads(slurp(device, "stats")))}
    assert not found - set(KEYS), "add these to ttmfs/fs/tree/stat_keys.py, then write docs/STATS.md anew"
    missing = {key for key in set(KEYS) - found if key not in OPTIONAL and key.split(".")[0] not in OPTIONAL}
    assert not missing


def test_the_document_is_that_of_the_table() -> None:
    written = (REPOSITORY / "docs" / "STATS.md").read_text(encoding="utf-8")
    assert written == markdown(), "python -m ttmfs.fs.tree.stat_keys > docs/STATS.md"


def samples(device: Device) -> dict[tuple[str, str], float]:
    """(name, label values) to value, by prometheus_client's own parser; it refuses what is not OpenMetrics."""
    text = slurp(device, "metrics")
    assert text.endswith("# EOF\n")
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


def test_metrics_are_the_numbers_of_stats(device: Device) -> None:
    device.make("a", 4 * MIB, 1, "vram")
    device.shell.do("os.makedirs(path('groups/app.slice/' + os.fsdecode(b'\\xff')))")
    metrics, stats = samples(device), json.loads(slurp(device, "stats"))
    seen = 0
    for path, value in leaves(stats):
        name, names = key_of(path)
        if not KEYS[name].kind or name.split(".")[0] in ("requests", "faults"):
            continue
        metric = metric_name(name) + ("_total" if KEYS[name].kind == COUNTER else "")
        for label, number in enumerate(value) if isinstance(value, list) else [(",".join(names), value)]:
            said = str(label).encode("utf-8", "backslashreplace").decode()
            assert metrics[metric, said] == KEYS[name].metric_value(number), path
            seen += 1
    assert seen > 40


def test_metrics_have_base_units_that_their_names_end_in(device: Device) -> None:
    device.make("a", 4 * MIB, 1, "vram")
    families = {family.name: family for family in text_string_to_metric_families(slurp(device, "metrics"))}  # type: ignore[no-untyped-call]
    known = {metric_name(path): key for path, key in KEYS.items() if key.kind}
    assert len(known) == len([key for key in KEYS.values() if key.kind]), "two keys have one metric"
    for name, family in families.items():
        assert family.documentation, name
        assert not family.unit or name.endswith(f"_{family.unit}")
        if name in known:
            assert family.unit == known[name].metric_unit, name
            # What promtool finds fault with: words that belong to histograms.
            assert known[name].kind == COUNTER or not name.endswith(("_count", "_sum", "_bucket", "_total")), name
    assert families["ttmfs_regions_used_bytes"].unit == "bytes"
    assert families["ttmfs_faults_max_seconds"].unit == families["ttmfs_gate_wait_seconds"].unit == "seconds"
    assert {"ttmfs_moves_bytes", "ttmfs_requests_read_bytes", "ttmfs_svm_in_bytes"} <= set(families)


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


# -- debugfs, sysfs, clients -----------------------------------------------------------------------------------------


def test_managers_have_the_kernels_four_lines(device: Device) -> None:
    device.make("a", 4 * MIB, 1, "vram")
    for name, region in (("vram0_mm", "vram"), ("gtt_mm", "gtt"), ("system_mm", "system")):
        lines = slurp(device, f"debug/{name}").splitlines()
        usage = device.stats()["regions"][region]["usage"]
        assert lines[0] == "  use_type: 1"
        assert lines[1] == f"  use_tt: {int(region != 'vram')}"
        assert re.fullmatch(r"  size: \d+", lines[2])
        assert lines[3] == f"  usage: {usage}"
    text = slurp(device, "debug/vram0_mm")
    assert re.search(r"^chunk_size: 4KiB, total: 32MiB, free: 28MiB, clear_free: \d+MiB$", text, re.M)
    assert re.search(r"^order- ?\d+ free: +\d+ (KiB|MiB), blocks: \d+$", text, re.M)
    assert re.search(r"^total: \d+, used \d+ free \d+$", slurp(device, "debug/gtt_mm"), re.M)


def test_how_full_memory_is_has_one_answer(device: Device) -> None:
    device.make("sparse", PAGE, 1)
    device.shell.do(f"os.truncate(path('bo/sparse'), {256 * MIB})")
    device.make("there", 3 * MIB, 1)
    device.make("behind", MIB, 1, "gtt")
    stats = device.stats()
    held = stats["pool"]["in_use_pages"] * PAGE
    assert held >= 4 * MIB + PAGE
    system = stats["regions"]["system"]
    assert (system["used"], system["visible_used"], system["usage"]) == (held, held, 259 * MIB)
    assert int(slurp(device, "regions/system/used")) == held
    rows = [line.split("\t") for line in slurp(device, "regions/system/map").splitlines()[1:]]
    assert sum(int(row[1]) for row in rows if row[3] != "(pool)") * PAGE == held
    assert samples(device)["ttmfs_regions_used_bytes", "system"] == held
    blocks, free = (device.shell.do(f"os.statvfs(path('bo')).{field}") for field in ("f_blocks", "f_bfree"))
    assert (blocks - free) * PAGE == held


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
    assert all(re.fullmatch(r"(drm|ttmfs)-[a-z0-9-]+:\t\S+( (KiB|MiB|ns))?", line) for line in text.splitlines())


def test_clients_are_those_who_open_and_map_bos_too(device: Device) -> None:
    device.make("a", 2 * MIB, 1, "vram")
    device.make("b", MIB, 1)
    used = device.stats()["regions"]["vram"]["used"]
    other = device.client("a, b = (os.open(path('bo/' + name), os.O_RDWR) for name in 'aab'[1:])")
    text = slurp(device, f"clients/{other.pid}")
    for line in ("ttmfs-open:\t2", "ttmfs-open-vram:\t2 MiB", "ttmfs-open-system:\t1 MiB", "drm-total-vram:\t0"):
        assert f"{line}\n" in text
    assert _sum_of(device, "drm-total-vram") == used, "what is open is charged to who made it"
    other.do("import mmap; m = mmap.mmap(a, 4096); os.close(a); os.close(b)")
    device.until(lambda: "ttmfs-open:\t1\n" in slurp(device, f"clients/{other.pid}"), why="the mapping is left")
    other.do("m.close()")
    device.until(lambda: str(other.pid) not in device.shell.do("os.listdir(path('clients'))"))
    other.do("a = os.open(path('bo/a'), os.O_RDONLY)")
    assert str(other.pid) in device.shell.do("os.listdir(path('clients'))")
    other.end()
    device.until(lambda: str(other.pid) not in device.shell.do("os.listdir(path('clients'))"))
    assert slurp(device, "ctl/selfcheck") == "ok\n"


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
