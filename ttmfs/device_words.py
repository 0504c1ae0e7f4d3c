"""Device words: types of command line options that name parts of a device, as people write them."""

import os
from typing import Any

import click

from ttmfs.driver.config import Region
from ttmfs.errors import TtmError
from ttmfs.policy.api import Kind
from ttmfs.policy.choice import parse_choice
from ttmfs.units import parse_size


class PolicyType(click.ParamType[tuple[Kind, tuple[str, ...]]]):
    """`evict:REGION=NAME[,key=value…]`, `prefetch=NAME`, `promote=NAME`; a file's path becomes absolute."""

    name = "policy"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Kind and words, as Policies.choose takes them."""
        try:
            return value if isinstance(value, tuple) else parse_choice(str(value))
        except TtmError as error:
            self.fail(error.message, param, ctx)


class DriverType(click.ParamType[str]):
    """A driver's name, `module:Class`, or `PATH.py:Class`, whose path becomes absolute."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As find_driver takes it, by the daemon that stands elsewhere."""
        del param, ctx
        path, colon, attribute = str(value).rpartition(":")
        return f"{os.path.abspath(path)}:{attribute}" if colon and path.endswith(".py") else str(value)


class RegionType(click.ParamType[Region]):
    """`NAME=SIZE:buddy|range`."""

    name = "region"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Region:
        """A Region."""
        if isinstance(value, Region):
            return value
        name, _, rest = str(value).partition("=")
        size, _, manager = rest.partition(":")
        if not (name.isidentifier() and size and manager in ("", "buddy", "range")):
            self.fail(f"{value!r}: say NAME=SIZE:buddy or NAME=SIZE:range, as in stolen=16M:range", param, ctx)
        try:
            return Region(name, parse_size(size), manager or "buddy")
        except TtmError as error:
            self.fail(error.message, param, ctx)
