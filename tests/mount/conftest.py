"""Fixtures of the mount tests: devices of one test or one module, always ended, their logs checked."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.mount.mount_harness import STANDARD, Device, have_fuse
from tests.mount.trace_reading import drain


def _check_log(device: Device) -> None:
    lines = device.suspicious()
    assert not lines, "the daemon's log says:\n" + "\n".join(lines[:20]) + "\n...\n" + device.log()[-4000:]


@pytest.fixture
def mounted() -> Iterator[Callable[..., Device]]:
    """Makes devices for one test."""
    if not have_fuse():
        pytest.skip("no /dev/fuse")
    devices: list[Device] = []

    def start(*options: str, patches: tuple[str, ...] = ()) -> Device:
        devices.append(Device(*(options or STANDARD), patches=patches))
        return devices[-1]

    try:
        yield start
        for device in devices:
            _check_log(device)
    finally:
        for device in devices:
            device.end()


class ModuleDevice:
    """The device that the tests of a module share; a new one when a test has left it dead."""

    def __init__(self, options: tuple[str, ...]) -> None:
        self.options = options
        self._device: Device | None = None

    def get(self) -> Device:
        if self._device is not None and not self._device.alive:
            self._device.end()
            self._device = None
        if self._device is None:
            self._device = Device(*self.options)
        return self._device

    def end(self) -> None:
        """It must end cleanly on SIGTERM, when no client is left."""
        device = self._device
        if device is None:
            return
        try:
            device.end_clients()
            assert not device.alive or device.stop() == 0
        finally:
            device.end()


@pytest.fixture(scope="module")
def module_device(request: pytest.FixtureRequest) -> Iterator[ModuleDevice]:
    """One device for a module; its MOUNT_OPTIONS say which."""
    if not have_fuse():
        pytest.skip("no /dev/fuse")
    options: Any = getattr(request.module, "MOUNT_OPTIONS", STANDARD)
    shared = ModuleDevice(options)
    yield shared
    shared.end()


@pytest.fixture
def device(module_device: ModuleDevice) -> Iterator[Device]:
    """The module's device, without BOs before and after each test, its log checked."""
    device = module_device.get()
    try:
        yield device
        assert device.alive, device.log()[-4000:]
        _check_log(device)
        assert device.control("selfcheck") == []
    finally:
        if device.alive:
            device.settle()


@pytest.fixture
def no_trace_left(device: Device) -> Iterator[None]:
    """No test leaves a trace on, or events, to the next."""
    yield
    if device.alive:
        drain(device)
