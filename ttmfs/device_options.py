"""The options that say what a device is to be, the same for every command that makes one, and what is wrong with them.

Each is also read from the environment, and from a file (`--config`); the command line wins.
"""

from collections.abc import Callable
from typing import Any, Final, get_args

import click

from ttmfs.config_file import read_config
from ttmfs.device_words import DriverType, PolicyType, RegionType
from ttmfs.driver.config import Config
from ttmfs.driver.limits import RESERVED_NAMES, parse_user_limit
from ttmfs.errors import TtmError
from ttmfs.memory.stores import check_spec
from ttmfs.option_types import SECONDS, SIZE
from ttmfs.svm.policy import MigrationPolicy
from ttmfs.ttm.dmem import Protection
from ttmfs.ttm.placement import parse_placement
from ttmfs.units import PAGE_SIZE, format_size

_MAY_BE_NONE: Final = ("vram", "gtt")
"""Regions that a device may lack: size 0, and validating there is ENOMEM."""


def _option(*names: str, **how: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option that is also read from the environment: `--visible-vram` is $TTMFS_VISIBLE_VRAM."""
    variable = "TTMFS_" + names[0].removeprefix("--").upper().replace("-", "_")
    return click.option(*names, **{"show_default": True, "envvar": variable, **how})


_DEVICE_OPTIONS: Final[list[Callable[[Callable[..., Any]], Callable[..., Any]]]] = [
    _option("--vram", type=SIZE, default="256M", help="Memory of the device."),
    _option("--visible-vram", type=SIZE, default=None, help="Part of vram that the CPU can reach. [default: all]"),
    _option("--gtt", type=SIZE, default="512M", help="Address space through which the device reaches system pages."),
    _option("--region", "regions", type=RegionType(), multiple=True, help="One more region: NAME=SIZE:buddy|range."),
    _option("--memory", type=SIZE, default="1G", help="System memory of this device: hard, and it fragments."),
    _option("--pages-limit", type=SIZE, default=None, help="Soft limit on populated memory. [default: all]"),
    _option("--swap", type=SIZE, default="2G", help="Room for pages that are backed up, in stored bytes (0: none)."),
    _option("--swap-store", default="shmem", help="Where they are: shmem, zstd, file:PATH or zstd+file:PATH."),
    _option("--pool-limit", type=SIZE, default="64M", help="Freed pages kept ready by the pool."),
    _option("--beneficial-order", type=click.IntRange(0, 10), default=9, help="Page order worth having (0: off)."),
    _option("--copy-engines", type=click.IntRange(1, 16), default=1, help="Engines that copy at the same time."),
    _option("--compute-engines", type=click.IntRange(1, 16), default=2, help="Engines that run jobs at the same time."),
    _option("--copy-bandwidth", type=SIZE, default="0", help="Simulated link, bytes per second (0: not simulated)."),
    _option("--copy-latency", type=SECONDS, default=0.0, help="Simulated latency of a copy, seconds."),
    _option("--sync-moves", is_flag=True, help="Wait for every copy inside the move (for comparison)."),
    _option("--placement", default="system", help="Where a new BO goes at its first use, as in 'vram gtt'."),
    _option("--driver", type=DriverType(), default="default", help="default, vmwgfx, amdgpu or PATH.py:Class."),
    _option("--policy", "policies", type=PolicyType(), multiple=True, help="evict:REGION=NAME, prefetch=NAME, …"),
    _option("--prefault", type=click.IntRange(0, 1 << 20), default=256, help="Pages served around a fault."),
    _option("--fault-timeout", type=SECONDS, default=15.0, help="Seconds that a fault may wait."),
    _option("--command-timeout", type=SECONDS, default=60.0, help="Seconds that a command may take."),
    _option("--svm-notifier-size", type=SIZE, default="512M", help="Window of one svm notifier, a power of two."),
    _option("--svm-migrate", default="once", metavar="once|always|never", help="Faults that take a range to vram."),
    _option("--svm-migrate-threshold", type=SIZE, default="64K", help="Smaller svm ranges stay in system."),
    _option("--svm-range-sizes", default="2M,64K,4K", metavar="SIZES", help="Sizes of svm ranges, the largest first."),
    _option("--propagate-enospc", is_flag=True, help="A full region is ENOSPC, not ENOMEM."),
    _option("--purgeable", type=click.Choice(["zeros", "strict"]), default="zeros", help="strict: purged is an error."),
    _option("--allow-other", is_flag=True, help="Let other users in (file modes decide)."),
    _option("--user-pins", is_flag=True, help="Who may write a BO may pin it; else root and who mounts may."),
    _option(
        "--user-limit",
        default="",
        metavar="LIMITS",
        show_default=False,
        help="What each other user may have: memory=50%,vram=50%,bos=10000, or sizes. [default: all]",
    ),
    _option(
        "--dmem-protection", type=click.Choice(get_args(Protection)), default="newer",
        help="Which kernel's rules protect groups: the newer series', or those of 6.14 to 7.0.",
    ),
    _option("--stock-loop", is_flag=True, help="Read requests by pyfuse3's own loop alone."),
    _option("--watchdog", type=SECONDS, default=30.0, help="Seconds until a wedged daemon is put down (0: never)."),
    _option("--source", default="ttmfs", help="What the mount table shows as the source.", hidden=True),
    click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False),
        envvar="TTMFS_CONFIG",
        callback=read_config,
        is_eager=True,
        expose_value=False,
        help="TOML file of options.",
    ),
]


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command that makes a device with all of its options."""
    for option in reversed(_DEVICE_OPTIONS):
        command = option(command)
    return command


def checked_config(options: dict[str, Any]) -> Config:
    """What a device is to be. click.UsageError (status 2) for what cannot be, before anything is made."""
    config = Config(**options)
    _check(config)
    return config


def _check(config: Config) -> None:
    """What can be known to be wrong before anything is made."""
    names = ("system", "gtt", "vram", *(region.name for region in config.regions))
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"--region {name}: there is a region of that name already")
    sizes = {"memory": config.memory, "vram": config.vram, "gtt": config.gtt}
    sizes |= {f"region {region.name}": region.size for region in config.regions}
    for name, size in sizes.items():
        if size < PAGE_SIZE and not (size == 0 and name in _MAY_BE_NONE):
            raise click.UsageError(f"--{name}: {size} bytes is less than a page: say at least {PAGE_SIZE}, or 256M")
    if 0 < config.swap < PAGE_SIZE:
        raise click.UsageError(f"--swap {config.swap}: less than a page: say 0 for no swap store, or 256M")
    try:
        config.swap_store = check_spec(config.swap_store)
    except TtmError as error:
        raise click.UsageError(f"--swap-store: {error.message}") from None
    for kind, words in config.policies:
        if kind == "evict" and words[0] not in names:
            raise click.UsageError(f"--policy evict:{words[0]}: no such region: say one of {' '.join(names[1:])}")
    if config.visible_vram is not None and config.visible_vram > config.vram:
        raise click.UsageError(
            f"--visible-vram {format_size(config.visible_vram)} is more than --vram {format_size(config.vram)}: "
            "it is the part of vram that the CPU can reach"
        )
    _check_svm(config)
    if 0 < config.watchdog < 1:
        raise click.UsageError(f"--watchdog {config.watchdog:g}: say at least 1 second, or 0 for none")
    try:
        parse_placement(config.placement.split(), names)
    except TtmError as error:
        raise click.UsageError(f"--placement {config.placement!r}: {error.message}") from None
    _check_limits(config, names)


def _check_svm(config: Config) -> None:
    size = config.svm_notifier_size
    if not 1 << 20 <= size <= 1 << 40 or size & (size - 1):
        raise click.UsageError(f"--svm-notifier-size {format_size(size)}: say a power of two from 1M to 1T, as in 512M")
    try:
        MigrationPolicy.of(config)
    except TtmError as error:
        # It begins with the name of the option.
        raise click.UsageError(f"--{error.message.replace('_', '-')}") from None


def _check_limits(config: Config, names: tuple[str, ...]) -> None:
    for name in names:
        if name in RESERVED_NAMES:
            raise click.UsageError(f"--region {name}: that is the name of a user's limit: call it something else")
    try:
        parse_user_limit(config.user_limit, dict.fromkeys(("memory", *names[1:]), 1))
    except TtmError as error:
        raise click.UsageError(f"--user-limit: {error.message}") from None
