"""Types of command line options: sizes and seconds, as people write them."""

from typing import Any

import click

from ttmfs.errors import TtmError
from ttmfs.units import parse_size


class SizeType(click.ParamType[int]):
    """`256M`, `1G`, `0x1000`, or bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 62:
            return value
        try:
            return parse_size(str(value))
        except TtmError as error:
            self.fail(error.message, param, ctx)


class SecondsType(click.ParamType[float]):
    """A number of seconds, not negative."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            seconds = -1.0
        if isinstance(value, bool) or not 0 <= seconds <= 1e6:
            self.fail(f"{value!r} is no number of seconds: write it as 0.5 or 15", param, ctx)
        return seconds


SIZE = SizeType()
SECONDS = SecondsType()
