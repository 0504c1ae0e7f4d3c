"""The file of options, `--config FILE.toml`: checked, and handed to click as defaults.

So the command line wins over the environment (TTMFS_…), that over the file, and the file over what is built in.
"""

import tomllib
from typing import Any, Final

import click

from ttmfs.driver.config import Config
from ttmfs.errors import no_such

_MAX_BYTES: Final = 1 << 20


def read_config(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """An eager callback: the options of a device in the file become `ctx.default_map`.

    click.UsageError names the file and the key.
    """
    del param
    if path is None or ctx.resilient_parsing:
        return
    known = {
        option.opts[0].removeprefix("--").replace("-", "_"): option
        for option in ctx.command.params
        if isinstance(option, click.Option) and option.name in Config.__dataclass_fields__
    }
    found: dict[str, Any] = {}
    for key, value in _table(path).items():
        option = known.get(key.replace("-", "_"))
        if option is None or option.name is None:
            raise click.UsageError(f"{path}: {no_such(key, 'mount option', known).message}")
        found[option.name] = _plain(f"{path}: {key}", option, value)
        try:
            option.type_cast_value(ctx, found[option.name])
        except click.BadParameter as error:
            raise click.UsageError(f"{path}: {key}: {error.message}") from None
    ctx.default_map = {**(ctx.default_map or {}), **found}


def _table(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        # It may be a pipe, and one that never ends.
        text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise click.UsageError(f"{path} is longer than {_MAX_BYTES >> 20} MiB: it is no file of options")
        try:
            return tomllib.loads(text.decode())
        except tomllib.TOMLDecodeError as error:
            raise click.UsageError(f"{path} is no TOML: {error}") from None
        except UnicodeDecodeError:
            raise click.UsageError(f"{path} is no TOML: it is not UTF-8 text") from None
        except (ValueError, RecursionError) as error:
            # A number of some thousand digits, or as many brackets.
            raise click.UsageError(f"{path} cannot be read: {str(error)[:200]}") from None


def _plain(where: str, option: click.Option, value: object) -> object:
    """A value of a TOML file as it would be on the command line. click.UsageError for one that says nothing there."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        raise click.UsageError(f"{where}: that number is too large")
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"{where}: say true or false, not {str(value)[:80]}")
        return value
    if not option.multiple and isinstance(value, list | dict):
        raise click.UsageError(f"{where} takes one value, not {str(value)[:80]}")
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int | float) for one in values):
        raise click.UsageError(f"{where} takes a text or a number, not {str(value)[:80]}")
    words = [str(one) for one in values]
    return words if option.multiple else words[0]


