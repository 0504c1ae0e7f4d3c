"""Jobs and asynchronous moves seen through a mount: what a client with a mapping sees of the device's work."""

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = pytest.mark.mount


def submit(device: Device, words: str, timeout: float = 10.0) -> dict[str, object]:
    code, lines = device.transact("ctl/submit", words, timeout)
    assert code == "ok", lines
    return lines[0]


def test_a_mapped_client_sees_what_a_job_wrote_after_its_fence(device: Device) -> None:
    device.make("a", 4 * MIB, 0x11, "vram")
    client = device.client(
        f"fd = opened('bo/a'); m = mapped(fd, {4 * MIB}); assert m[0] == 0x11 and m[3 << 20] == 0x11"
    )
    for value in (0x22, 0x33):
        submit(device, f"fill dst=a value={value} wait")
        assert client.do("m[0], m[3 << 20], m[(4 << 20) - 1]") == [value] * 3
        assert client.do("set(os.pread(fd, 1 << 20, 1 << 20))".replace("set(", "sorted(set(") + ")") == [value]


def test_a_job_reads_what_a_client_has_only_stored(device: Device) -> None:
    device.make("a", MIB, 0, "vram")
    client = device.client(f"fd = opened('bo/a'); m = mapped(fd, {MIB}); m[5000] = 7; m[900000] = 9")
    assert submit(device, "reduce src=a wait")["value"] == 16
    client.do("m[5000] = 100")
    assert submit(device, "reduce src=a wait")["value"] == 109


def test_mtime_moves_when_a_job_publishes(device: Device) -> None:
    device.make("a", MIB, 1)
    client = device.client("fd = opened('bo/a'); before = os.fstat(fd).st_mtime_ns")
    submit(device, "fill dst=a value=2 wait")
    assert client.do("os.fstat(fd).st_mtime_ns > before") is True


def test_a_pwrite_behind_a_queued_move_returns_at_once_and_is_kept(device: Device) -> None:
    device.make("a", 2 * MIB, 0x41, "vram")
    client = device.client("fd = opened('bo/a')")
    fence = submit(device, "busy seconds=3 bo=a")["fence"]
    assert device.command("objects/a/validate", "gtt") == "ok"
    assert client.do("os.pwrite(fd, b'x' * 5000, 4090)", 1.0) == 5000
    assert device.transact("ctl/wait", f"{fence} 0")[0] == "ETIME", "the job still runs"
    assert client.do("os.pread(fd, 5002, 4089)", 10) == b"A" + b"x" * 5000 + b"A"
    assert device.status("a")["mem_type"] == "gtt"


def test_a_fault_does_not_wait_for_a_job(device: Device) -> None:
    device.make("a", 2 * MIB, 0x41, "vram")
    client = device.client(f"fd = opened('bo/a'); m = mapped(fd, {2 * MIB})")
    fence = submit(device, "busy seconds=3 bo=a")["fence"]
    assert client.do("m[4096 * 77]", 1.0) == 0x41
    code, _lines = device.transact("ctl/wait", f"{fence} 0")
    assert code == "ETIME"
    assert device.command("ctl/wait", f"{fence} 10", 12) == "ok"


def test_pause_engine_shows_an_asynchronous_eviction(device: Device) -> None:
    device.make("a", 4 * MIB, 0x41, "vram")
    assert device.command("debug/pause_engine", "1") == "ok"
    assert device.command("objects/a/evict", "\n") == "ok"
    assert device.stats()["regions"]["vram"]["used"] == 0, "the space is free before the copy"
    assert "copy a 1024 pages" in device.shell.do("slurp('fences/pending')")
    assert device.shell.do("slurp('objects/a/snapshot')").strip("\n") == "m" * 1024
    reader = device.client("fd = opened('bo/a')").begin("os.pread(fd, 10, 9 * 4096)")
    device.until_parked()
    assert device.command("debug/pause_engine", "0") == "ok"
    assert reader.result(2) == b"A" * 10
    assert device.shell.do("slurp('fences/pending')").count("\n") == 1


def test_a_job_a_queued_move_and_a_reader_end_without_any_timeout(device: Device) -> None:
    device.make("a", 4 * MIB, 0x41, "vram")
    before = device.stats()["faults"]["errors"]
    submit(device, "busy seconds=1 bo=a")
    assert device.command("objects/a/validate", "gtt") == "ok"
    reader = device.client("fd = opened('bo/a')").begin("digest(os.pread(fd, 4 << 20, 0))")
    assert reader.result(5) == device.shell.do("digest(b'A' * (4 << 20))")
    assert device.stats()["faults"]["errors"] == before


def test_copy_between_bos_and_bad_jobs(device: Device) -> None:
    device.make("a", MIB, 0x41)
    device.make("b", MIB, 0x42)
    code, lines = device.transact("ctl/copy", "a b")
    assert code == "ok"
    assert device.command("ctl/wait", str(lines[0]["fence"])) == "ok"
    assert device.shell.do("open(path('bo/b'), 'rb').read() == open(path('bo/a'), 'rb').read()") is True
    for words, expected in (
        (" ", "EINVAL"),
        ("zork dst=a", "EINVAL"),
        ("fill dst=a", "EINVAL"),
        ("fill dst=nope value=1", "ENOENT"),
        ("fill dst=a value=256", "EINVAL"),
        ("fill dst=a value=1 bytes=2M", "EINVAL"),
        ("saxpy a=nan x=a y=b", "EINVAL"),
        ("saxpy a=1 x=a y=b dtype=f16", "EINVAL"),
        ("busy seconds=-1 bo=a", "EINVAL"),
        ("reduce src=a after=9:9", "EINVAL"),
    ):
        assert device.transact("ctl/submit", words)[0] == expected, words


def test_injected_engine_failure_is_intercepted_and_a_banned_memcpy_loses_loudly(device: Device) -> None:
    device.make("a", MIB, 0x41, "vram")
    assert device.command("debug/fail_engine/probability", "100") == "ok"
    assert device.command("objects/a/validate", "gtt") == "ok"
    assert device.shell.do("sorted(set(open(path('bo/a'), 'rb').read()))") == [0x41]
    device.allowed.append("content is lost")
    assert device.command("debug/fail_engine/times", "1") == "ok"
    assert device.command("debug/ban_memcpy", "1") == "ok"
    assert device.command("objects/a/validate", "vram") == "ok"
    assert device.command("objects/a/wait", "kernel 5") == "EIO"
    assert device.shell.errno("os.pread(opened('bo/a'), 10, 0)") == "EIO"
    assert device.command("debug/ban_memcpy", "0") == "ok"
    assert device.command("debug/fail_engine/probability", "0") == "ok"
    assert device.command("objects/a/validate", "none") == "ok"
    assert device.shell.do("sorted(set(open(path('bo/a'), 'rb').read()))") == [0]


def test_jobs_of_two_queues_pass_each_other_and_after_orders_them(device: Device) -> None:
    device.make("a", MIB, 0x41, "vram")
    device.make("b", MIB, 0x42, "vram")
    long = submit(device, "queue=render busy bo=a seconds=3")
    assert long["point"] == "render:1"
    assert str(submit(device, "fill dst=b value=7 wait", 3.0)["point"]).startswith("default:"), "it waits for nobody"
    assert device.transact("ctl/wait", "render:1 0")[0] == "ETIME"
    after = submit(device, "add src=b dst=b queue=video point=20 after=render:1")
    assert after["point"] == "video:20"
    assert device.command("ctl/wait", "video:3 20", 22) == "ok", "20 is the point that comes after 3"
    assert device.command("ctl/wait", "render:1 0") == "ok"
    assert device.shell.do("sorted(set(open(path('bo/b'), 'rb').read()))") == [14]
    names = [line.split("\t")[1] for line in device.shell.do("slurp('fences/timelines')").splitlines()[1:]]
    assert set(names) >= {"copy0", "default", "svm", "render", "video"}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("busy seconds=0 bo=a queue=7", "EINVAL"),
        ("busy seconds=0 bo=a queue=svm", "EACCES"),
        ("busy seconds=0 bo=a queue=q priority=urgent", "EINVAL"),
        ("busy seconds=0 bo=a point=9", "EINVAL"),
        ("busy seconds=0 bo=a queue=q point=0", "EINVAL"),
        ("busy seconds=0 bo=a queue=q after=r:1", "ENOENT"),
        ("busy seconds=0 bo=a queue=q after=default:99", "EINVAL"),
        ("busy seconds=0 bo=a queue=q queue=r", "EINVAL"),
        ("busy seconds=0 bo=nope queue=q", "ENOENT"),
        ("queue=q", "EINVAL"),
    ],
)
def test_bad_words_about_queues_make_none(device: Device, words: str, code: str) -> None:
    device.make("a", 4096, 0x41)
    submit(device, "busy seconds=0 bo=a")
    assert device.transact("ctl/submit", words)[0] == code
    assert "\tq\t" not in device.shell.do("slurp('fences/timelines')")


def test_a_point_whose_job_failed_says_so(device: Device) -> None:
    device.make("a", 4096, 0x41)
    assert device.command("debug/fail_job/probability", "100") == "ok"
    submit(device, "fill dst=a value=1 queue=failing")
    assert device.command("ctl/wait", "failing:1 9") == "EIO"
    assert device.command("debug/fail_job/probability", "0") == "ok"
    submit(device, "fill dst=a value=2 queue=failing wait")
    assert device.command("ctl/wait", "failing:2 9") == "EIO", "not all jobs up to it have succeeded"
    assert device.shell.do("sorted(set(open(path('bo/a'), 'rb').read()))") == [2]
