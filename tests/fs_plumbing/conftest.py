"""Fixtures: a mount point, toy servers on it, clients of them; all ended whatever happens."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fs_plumbing.plumbing_harness import HERE, Process, Server


@pytest.fixture
def mountpoint() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="toy ")
    yield path
    with contextlib.suppress(OSError):
        os.rmdir(path)


@pytest.fixture
def serve(mountpoint: str) -> Iterator[Callable[..., Server]]:
    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("no /dev/fuse")
    servers: list[Server] = []

    def start(**options: Any) -> Server:
        servers.append(Server(mountpoint, options))
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.end()


@pytest.fixture
def client(mountpoint: str, serve: object) -> Iterator[Callable[..., Process]]:
    clients: list[Process] = []

    def start(name: str, *arguments: str) -> Process:
        clients.append(Process(str(HERE / "client.py"), f"{mountpoint}/{name}", *arguments))
        assert clients[-1].receive() == {"ready": True}
        return clients[-1]

    try:
        yield start
    finally:
        for process in clients:
            process.popen.kill()
        # Their last requests are answered or aborted only when the server ends, which its fixture does after this.
