"""The part of the scripts that runs without root opens its way in a mount namespace that nobody outside sees."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEED = pytest.mark.skipif(os.geteuid() != 0, reason="makes mounts and a chroot")

# Begins a script in a mount namespace: where / is a mount point, so that nothing is seen outside.
PRIVATE = """
set -e
mount --make-rprivate / 2>/dev/null || :
"""
UNSHARED = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c"]

# A root that is a folder within a mount, as a chroot's is: the machine's own folders bound into it, and one of its own
# that is closed to users.
CHROOT = f"""
{PRIVATE}
trap 'umount -l "$t"' EXIT
t=$1 propagation=$2 python=$3 scripts=$4 program=$5
mount -t tmpfs around "$t"
mount "--make-$propagation" "$t"
mkdir "$t/root"
for f in /*; do
    if [ -L "$f" ]; then cp -d "$f" "$t/root"
    elif [ -d "$f" ]; then mkdir "$t/root$f"; mount --rbind "$f" "$t/root$f"
    fi
done
mkdir -m 700 "$t/root/closed"
chroot "$t/root" env PYTHONPATH="$scripts" "$python" -c "$program"
"""

IN_IT = """
import os, subprocess
from pathlib import Path
from lib import unprivileged
outside = subprocess.Popen(["sh", "-c", "read -r line; ls /closed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
Path("/closed/in/wanted").mkdir(parents=True)
Path("/closed/other").mkdir()
assert subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True).returncode, "this is no chroot"
try:
    unprivileged._own_namespace()
except unprivileged.UnavailableError as error:
    print("unavailable:", error)
    raise SystemExit
unprivileged._reveal(Path("/closed"), [Path("/closed/in/wanted")])
print("inside", os.listdir("/closed"))
print("outside", sorted(outside.communicate(b"go\\n")[0].decode().split()))
"""


def in_a_chroot(folder: Path, propagation: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*UNSHARED, CHROOT, "sh", folder, propagation, sys.executable, str(ROOT / "scripts"), IN_IT],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@NEED
def test_mounts_have_their_names(tmp_path: Path) -> None:
    odd = tmp_path / "a blank\\ and \tmore"
    odd.mkdir()
    program = "import sys; from lib.device import mounts; sys.exit(sys.argv[1] not in dict(mounts()))"
    script = PRIVATE + """mount -t tmpfs odd "$1"; trap 'umount "$1"' EXIT; "$2" -c "$3" "$1" """
    subprocess.run(
        [*UNSHARED, script, "sh", odd, sys.executable, program],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")}, timeout=60, check=True,
    )  # fmt: skip


@NEED
def test_in_a_chroot_the_way_is_opened_for_this_script_alone(tmp_path: Path) -> None:
    done = in_a_chroot(tmp_path, "private")
    assert done.stdout.splitlines() == ["inside ['in']", "outside ['in', 'other']"], done.stderr


@NEED
def test_where_its_mounts_would_be_seen_outside_it_says_so(tmp_path: Path) -> None:
    done = in_a_chroot(tmp_path, "shared")
    assert "unavailable: / is no mount point" in done.stdout, done.stderr
    assert "mend, before the chroot" in done.stdout
