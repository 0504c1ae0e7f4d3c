"""Fixtures of the command line's tests."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

import pytest

from ttmfs.fs.kernel import tuning


@pytest.fixture
def folder() -> Iterator[str]:
    """An empty folder that is no mount afterwards."""
    with tempfile.TemporaryDirectory(prefix="ttmfs-test-") as directory:
        path = os.path.join(os.path.realpath(directory), "mnt")
        os.mkdir(path)
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                tuning.abort_connection(tuning.connection_number(path))
                tuning.lazy_unmount(path)
