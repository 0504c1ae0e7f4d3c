"""docs/groups.md's experiment, with fewer frames: who is protected keeps its VRAM in a storm, and nobody else does."""

import subprocess
import sys

import pytest

from tests.docs.docs_console import REPOSITORY

pytestmark = pytest.mark.mount

GAME_AND_STORM = REPOSITORY / "docs" / "examples" / "game_and_storm.py"


def shares(*arguments: str) -> dict[str, list[int]]:
    """Of each run: the least, the mean of the second half, and the last, in % of the game's dmem.low."""
    done = subprocess.run(
        [sys.executable, str(GAME_AND_STORM), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading == "run\tleast\tmean\tlast"
    return {name: [int(word.rstrip("%")) for word in words] for name, *words in (line.split("\t") for line in lines)}


def test_the_game_keeps_what_protects_it() -> None:
    unprotected, low, boosted = shares("--frames", "4").values()
    assert unprotected[-1] < 50, unprotected
    assert min(low) >= 95, low
    assert boosted[0] < boosted[-1], boosted


@pytest.mark.stress
def test_the_game_gets_back_all_that_protects_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    picture = tmp_path_factory.mktemp("pictures") / "groups.png"
    unprotected, low, boosted = shares("--frames", "60", "--picture", str(picture)).values()
    assert max(unprotected) < 50, unprotected
    assert min(low) >= 95, low
    assert boosted[0] < 50, boosted
    assert boosted[-1] >= 95, boosted
    assert picture.read_bytes().startswith(b"\x89PNG")
