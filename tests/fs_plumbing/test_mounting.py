"""The moment of mounting: what libfuse must not meet while it mounts."""

import signal
from pathlib import Path
from typing import NoReturn

import pyfuse3
import pytest

from ttmfs.driver.config import Config
from ttmfs.errors import TtmError
from ttmfs.fs.mount import Mount


def blocked() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, set()))


def test_no_tick_of_a_policy_while_libfuse_waits_for_the_program_that_mounts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its `waitpid` that was interrupted was a mount that failed."""
    during = []

    def init(*_arguments: object) -> NoReturn:
        during.append(blocked())
        raise RuntimeError("not today")

    monkeypatch.setattr(pyfuse3, "init", init)
    before = blocked()
    mount = Mount(str(tmp_path), Config(vram=4 << 20, gtt=4 << 20, memory=16 << 20))
    try:
        with pytest.raises(TtmError, match="not today"):
            mount.run(lambda: None)
    finally:
        mount.vdev.close()
    assert signal.SIGALRM in during[0]
    assert blocked() == before
