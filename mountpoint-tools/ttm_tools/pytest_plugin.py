"""pytest plugin: devices as fixtures, loaded by the entry point `ttmfs` wherever ttmfs is installed.

`ttmfs_device` is a device of one test, `ttmfs_session_device` one for the whole run (for each worker of pytest-xdist).
`@pytest.mark.ttmfs(vram="16M", …)` on a test, class or module has options of `ttmfs mount` for the first. Where nothing
can be mounted the tests are skipped with the reason, or fail with `--ttmfs-require`. The report of a test that fails
has what its device says: error_log, the trace, the status of its BOs.

Nothing is loaded and no process is started before a test asks for a device.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from ttm_tools.kit import Device
    from ttm_tools.mounting import Commands

DEFAULTS: Final = {"vram": "64M", "gtt": "128M", "memory": "256M", "swap": "256M"}
"""Of a fixture's device. Memory that is not used costs nothing."""

EVENTS: Final = "evict validated move_end error"
"""What is recorded for the report until the test itself chooses."""

_TAIL: Final = 20
_STATUSES: Final = 8
_FIXTURES: Final = ("ttmfs_device", "ttmfs_session_device")
_COMMANDS: Final = pytest.StashKey["Commands"]()
_UNUSABLE: Final = pytest.StashKey[str]()
_SESSION: Final = pytest.StashKey["Device"]()
_DEVICE: Final = pytest.StashKey["Device"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--ttmfs-require`."""
    parser.getgroup("ttmfs").addoption(
        "--ttmfs-require", action="store_true", help="tests that need a ttmfs device fail where none can be mounted"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    config.addinivalue_line("markers", "ttmfs(**options): options of `ttmfs mount` for the fixture ttmfs_device")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to load ttmfs as soon as it is known that a test needs it."""
    needed = any(name in getattr(item, "fixturenames", ()) for item in session.items for name in _FIXTURES)
    if needed and not session.config.option.collectonly:
        _commands(session.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let the process with ttmfs go."""
    commands = config.stash.get(_COMMANDS, None)
    if commands is not None:
        commands.close()


def _commands(config: pytest.Config) -> "Commands | None":
    """The one `ttmfs batch` of this process; None when ttmfs is not there, and why in _UNUSABLE."""
    from ttm_tools.errors import MountError  # noqa: PLC0415
    from ttm_tools.mounting import Commands  # noqa: PLC0415

    if _COMMANDS not in config.stash and _UNUSABLE not in config.stash:
        try:
            config.stash[_COMMANDS] = Commands()
        except MountError as error:
            config.stash[_UNUSABLE] = str(error)
    return config.stash.get(_COMMANDS, None)


def _mounted(config: pytest.Config, options: dict[str, Any]) -> "Device":
    """A device. Skips where doctor says what is missing; MountError when nothing is."""
    from ttm_tools.errors import MountError  # noqa: PLC0415
    from ttm_tools.kit import Device  # noqa: PLC0415

    commands = _commands(config)
    if commands is not None and _UNUSABLE not in config.stash:
        try:
            return Device.mount(ttmfs=commands.run, **{**DEFAULTS, **options})
        except MountError as error:
            missing = _missing(commands.run)
            if not missing:
                raise
            config.stash[_UNUSABLE] = f"{error} (ttmfs doctor: {missing})"
    reason = config.stash[_UNUSABLE]
    if config.option.ttmfs_require:
        pytest.fail(f"no ttmfs device: {reason}", pytrace=False)
    pytest.skip(f"no ttmfs device: {reason}")


def _missing(ttmfs: Callable[[list[str]], None]) -> str:
    """What `ttmfs doctor` calls missing; "" when it finds nothing."""
    from ttm_tools.errors import MountError  # noqa: PLC0415

    try:
        ttmfs(["doctor"])
    except MountError as error:
        lines = [line.split(None, 1)[1] for line in str(error).splitlines() if line.startswith("missing ")]
        return "; ".join(lines)
    return ""


@pytest.fixture
def ttmfs_device(request: pytest.FixtureRequest) -> "Iterator[Device]":
    """A ttmfs device of this test alone (ttm_tools.Device), mounted with the options of the marker `ttmfs`."""
    options: dict[str, Any] = {}
    # The nearest comes first; it wins.
    for mark in request.node.iter_markers("ttmfs"):
        options = {**mark.kwargs, **options}
    with _mounted(request.config, options) as device:
        device.files.command("ctl/trace", EVENTS)
        request.node.stash[_DEVICE] = device
        yield device


@pytest.fixture(scope="session")
def _ttmfs_session_device(request: pytest.FixtureRequest) -> "Iterator[Device]":
    with _mounted(request.config, {}) as device:
        device.files.command("ctl/trace", EVENTS)
        request.config.stash[_SESSION] = device
        yield device


@pytest.fixture
def ttmfs_session_device(request: pytest.FixtureRequest, _ttmfs_session_device: "Device") -> "Device":
    """One ttmfs device for the whole run (ttm_tools.Device): what a test leaves in it the next one finds."""
    request.node.stash.setdefault(_DEVICE, _ttmfs_session_device)
    return _ttmfs_session_device


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Iterator[None]:
    """What the device says of itself, when its test has failed."""
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    device = item.stash.get(_DEVICE, None)
    if device is not None and call.when == "call" and report.failed:
        report.sections += list(_sections(device))


def _sections(device: "Device") -> Iterator[tuple[str, str]]:
    from ttm_tools.errors import MountError  # noqa: PLC0415

    try:
        for name, text in (
            ("error_log", _tail(device.files.text("error_log"))),
            ("trace", _tail(device.files.text("trace"))),
            ("BOs", _statuses(device)),
        ):
            if text:
                yield f"ttmfs {name}", text
    except (MountError, OSError) as error:
        yield "ttmfs", str(error)


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return "\n".join(lines[-_TAIL:])


def _statuses(device: "Device") -> str:
    """A line for each of the first BOs: what of their status says something."""
    names = device.files.names()
    found = device.files.statuses(names[:_STATUSES])
    lines = [
        f"{name}: " + " ".join(f"{key}={value}" for key, value in status.items() if key != "name" and value)
        for name, status in found.items()
    ]
    return "\n".join([*lines, *([f"and {len(names) - _STATUSES} more"] if len(names) > _STATUSES else [])])
