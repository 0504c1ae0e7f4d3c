"""Text files while what they tell of changes: who reads one in pieces, in any order, gets one text and all of it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.mount.mount_harness import PAGE, Client, Device
from tests.mount.trace_reading import drain

pytestmark = pytest.mark.mount
MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "16M", "--memory", "64M", "--swap", "16M", "--fault-timeout", "20")

READERS = """
import json

TABLES = ('/lru', '/map', '/fences', '/pending', '/fragmentation')

def texts():
    '''All text files, as paths in the mount.'''
    for top, folders, files in os.walk(path('.')):
        folders[:] = [each for each in folders if each not in ('bo', 'svm', 'changing', 'n' * 200)]
        for name in files:
            if name not in ('trace_pipe', 'peek', 'vram', 'snapshot'):
                yield os.path.relpath(os.path.join(top, name), path('.'))

def forward(fd, size):
    '''By small reads, and on by larger ones.'''
    pieces = [os.read(fd, 7) for _ in range(5)]
    while pieces[-1]: pieces.append(os.read(fd, 1021))
    return b''.join(pieces)

def backward(fd, size):
    '''As tac: the last piece first.'''
    step = max(7, size // 15)
    pieces = [os.pread(fd, step, at) for at in reversed(range(0, size, step))]
    return b''.join(reversed(pieces))

def seeking(fd, size):
    '''To the end, to the middle, back by a little: what is read twice is the same.'''
    end = os.lseek(fd, 0, os.SEEK_END)
    assert end == size, (end, size)
    os.lseek(fd, size // 2, os.SEEK_SET)
    second = os.read(fd, size)
    os.lseek(fd, -len(second) // 2, os.SEEK_CUR)
    assert second.endswith(os.read(fd, size)) and len(second) == size - size // 2
    return os.pread(fd, size // 2, 0) + second

def check(name, text, size):
    '''Is it one whole text?'''
    assert len(text) == size, (name, len(text), size)
    assert text[-1:] in (b'\\n', b'') and b'\\0' not in text, (name, text[-100:])
    lines = text.decode().splitlines()
    if text[:1] == b'{':
        assert all([isinstance(json.loads(line), dict) for line in lines]), name
    elif name.endswith(TABLES):
        assert len({line.count('\\t') for line in lines}) == 1 and '\\t' in lines[0], (name, text)
    elif name.endswith('/status'):
        assert len({line.split(':')[0] for line in lines}) == len(lines) > 20, (name, text)

def read_all(name, ways=(forward, backward, seeking)):
    '''Read one text in each way; how long it was.'''
    lengths = set()
    for way in ways:
        try:
            fd = os.open(path(name), os.O_RDONLY)
        except FileNotFoundError:
            assert name.startswith('clients/'), name  # of a process that has ended
            break
        try:
            size = os.fstat(fd).st_size
            check(name, way(fd, size), size)
            lengths.add(size)
        finally:
            os.close(fd)
    return lengths

def read_until_changed(names, rounds, changing):
    '''So many times each, and until one of them was seen with two lengths.'''
    seen = set()
    while rounds > 0 or len(seen) < 2:
        rounds -= 1
        for name in names:
            lengths = read_all(name)
            seen |= lengths if name == changing else set()
"""

CHANGES = """
def change():
    '''Until there is no bo/going any more: names, moves, groups, settings, failures.'''
    turn, a, other = 0, path('bo/a'), path('bo/' + 'n' * 200)
    os.mkdir(path('bo/changing'))
    while os.path.exists(path('bo/going')):
        turn += 1
        many = turn % 2
        if many:
            for number in range(10): make(f'bo/changing/{"b" * 30}{number}', 4096, 1)
            os.link(a, other)
        command('objects/a/validate', 'vram' if many else 'gtt')
        command('objects/a/placement', 'vram gtt system' if many else 'gtt')
        command('ctl/config', 'svm_migrate=always' if many else 'svm_migrate=once')
        command('ctl/validate', 'no-such-bo vram')
        if many:
            for number in range(10): os.unlink(path(f'bo/changing/{"b" * 30}{number}'))
            os.unlink(other)
"""


@pytest.fixture
def changing(device: Device) -> Any:
    """A device that changes all the time."""
    device.make("a", 40 * PAGE, 7, "gtt")
    device.make("going", 0)
    assert device.command("ctl/trace", "bo_create") == "ok"
    device.shell.do("for _ in range(150): make('bo/short', 0); os.unlink(path('bo/short'))")
    writer = device.client(CHANGES).begin("change()")
    yield device
    device.shell.do("os.unlink(path('bo/going'))")
    writer.result(20)
    drain(device)


def reader(device: Device) -> Client:
    return device.client(READERS)


def test_every_text_is_read_whole_in_any_order(changing: Device) -> None:
    assert reader(changing).do("sum(read_all(name) != set() for name in texts())", 60) > 150


CHANGE = ["stats", "trace", "error_log", "objects/a/status", "objects/a/status.json", "objects/a/placement",
          "regions/vram/lru", "regions/vram/map", "ctl/config"]  # fmt: skip


def test_texts_of_many_lengths_are_read_whole_too(changing: Device) -> None:
    reader(changing).do(f"read_until_changed({CHANGE!r}, 8, 'objects/a/status.json')", 60)


SMALL, LARGE = ("stats", "objects/a/status.json"), ("trace.json",)
PROGRAMS = {
    "cat": ('cat "$1"', SMALL + LARGE),
    "cp": ('rm -f "$2"; cp "$1" "$2" && cat "$2"', SMALL + LARGE),
    "dd": ('dd if="$1" bs=7 2>/dev/null', SMALL),
    "tac": ('tac "$1" | tac', SMALL + LARGE),
    "tail -c": ('tail -c 100000000 "$1"', SMALL + LARGE),
    "tail -n": ('tail -n 100000 "$1"', SMALL + LARGE),
    "less": ('less "$1" | cat', SMALL + LARGE),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_get_one_whole_text(changing: Device, tmp_path: Path, program: str) -> None:
    if shutil.which(program.split(maxsplit=1)[0]) is None:
        pytest.skip(f"{program} is not installed")
    for name in PROGRAMS[program][1]:
        command = ("sh", "-c", PROGRAMS[program][0], "-", f"{changing.mountpoint}/{name}", str(tmp_path / "copy"))
        for _ in range(3):
            text = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
            assert text.endswith(b"\n")
            times = [json.loads(line).get("ts", 0) for line in text.splitlines()]
            assert times == sorted(times)
