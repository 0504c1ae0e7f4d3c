"""Reference: the text of docs/reference.md, from the tables that parse, list and count."""

from collections.abc import Collection, Iterable, Mapping

import click

from docslib import tables
from docslib.walk import walk
from ttmfs.cli import COMMANDS, load, main
from ttmfs.fs.commands.command import Command
from ttmfs.fs.commands.gpu_words import GPU_OPERATIONS
from ttmfs.fs.commands.objects_and_ctl import CTL_COMMANDS, OBJECT_COMMANDS
from ttmfs.fs.commands.spaces import SPACE_COMMANDS
from ttmfs.fs.commands.vms import VM_COMMANDS
from ttmfs.observe.inject import PLACES
from ttmfs.observe.points import EVENTS

_HEAD = """\
# The mount, complete

Written by `./scripts/docs` from the tables that the parser, the tree and the command line are made of. A test fails
when it is stale. For reading in order there is the [tour](tour.md).

## Words

A command is one line; a write may hold several, which run in order and stop at the first failure. Words follow the
shell's quoting. `\\040` is a space, `\\054` a comma in a name. Numbers are decimal or `0x…`; sizes take `K M G T`,
binary. A write of more than 64 KiB is E2BIG before anything runs.

`PLACE = REGION[:FLAG[+FLAG…]][@FIRST-LAST]`, FLAG one of `contiguous topdown temporary desired fallback`, the range in
pages. Places are tried in order, first without evicting anybody and without `fallback` places, then evicting and
without `desired` ones. `none` alone is the empty placement: the content is dropped.

`FENCE = CONTEXT:SEQNO`, as in a command's result. `no_wait_gpu`: EBUSY where the command would wait for the device,
ENOMEM where it would wait for room (busy victims and places are passed over).

Writing returns when the TTM call has returned, or fails with its errno. A program that opens a command file for reading
and writing reads the result back, one JSON object a line: `ok`, and what the call says (`bytes_moved`, `fence`,
`mem_type`, …) or `errno` and `error`; `line` when there were several lines. Reading without writing prints the grammar.

JSON Schemas of what programs read, made from the same tables: [stats](schemas/stats.json),
[status.json of a BO](schemas/status.json) and [of an address space](schemas/space_status.json),
[the result of a command](schemas/result.json). Keys are added, never renamed or given another type.
"""


def reference() -> str:
    """The whole text. ValueError naming what tables.py lacks, or has too much."""
    found = walk()
    parts = [_HEAD]
    parts += _commands("Commands of a BO: objects/NAME/…", "objects/tex0", OBJECT_COMMANDS)
    parts += _commands("Commands of the device: ctl/…", "ctl", CTL_COMMANDS)
    parts += _commands("Commands of an address space: svm_objects/NAME/…", "svm_objects/heap", SPACE_COMMANDS)
    parts.append("Operations of the device; `gpu` has the write bits of `svm/NAME`, `gpu_read` its read bits:\n")
    rows = [
        (_code(operation.usage), _code("gpu" if operation.writes else "gpu_read"))
        for operation in GPU_OPERATIONS.values()
    ]
    parts.append(_table(("operation", "file"), rows))

    parts += _commands("Commands of a VM: vm/NAME/…", "vm/game", VM_COMMANDS)

    parts.append("## Keys of a command's result\n\nA result has those that say something about its command.\n")
    parts.append(_table(("key", "meaning"), _pairs({key: does for key, (_type, does) in tables.RESULTS.items()})))
    _same("FILES", tables.FILES, found.files)
    parts.append("## Files\n\nBO files are below `bo/`, address spaces in `svm/`. The others:\n")
    files = [
        (_code(path), "read, write" if found.files[path] else "read", sentence)
        for path, sentence in tables.FILES.items()
    ]
    parts.append(_table(("file", "", "what it is"), files))
    _same("STATUS", tables.STATUS, found.status)
    parts.append(
        "## Keys of objects/NAME/status\n\n`getfattr -d bo/NAME` shows the same as `user.ttm.KEY`. With "
        "`--driver vmwgfx` there is `dirty_method` too.\n"
    )
    parts.append(_table(("key", "meaning"), _pairs(tables.STATUS)))
    _same("SPACE_STATUS", tables.SPACE_STATUS, found.space_status)
    parts.append("## Keys of svm_objects/NAME/status\n")
    parts.append(_table(("key", "meaning"), _pairs(tables.SPACE_STATUS)))
    _same("KNOBS", tables.KNOBS, found.knobs)
    parts.append("## Keys of ctl/config\n")
    parts.append(_table(("key", "meaning"), _pairs(tables.KNOBS)))
    _same("PLACES", tables.PLACES, PLACES)
    parts.append("## Fault injection: debug/fail_PLACE/\n")
    parts.append(_table(("place", "what fails"), _pairs(tables.PLACES)))
    parts.append("## Events: ctl/trace\n\nFacts that an event carries besides `bo` follow the colon.\n")
    parts.append(_table(("event", "what happened"), _pairs(EVENTS)))
    parts.append("## stats and metrics\n\n[STATS.md](STATS.md) has every key, its unit and its kind.\n")
    parts.append("## Command line\n")
    parts += _options()
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _same(table: str, described: Collection[str], there: Collection[str]) -> None:
    missing, unknown = set(there) - set(described), set(described) - set(there)
    if missing or unknown:
        raise ValueError(f"scripts/docslib/tables.py: {table} lacks {sorted(missing)}, need not have {sorted(unknown)}")


def _commands(title: str, folder: str, commands: Mapping[str, Command]) -> list[str]:
    parts = [f"## {title}\n"]
    for name, command in commands.items():
        words = f" {command.usage}" if command.usage else ""
        lines = [f"**`{name}{words}`**", "", command.does, "", "```sh"]
        lines += [f"echo {example!r} > {folder}/{name}" for example in command.examples]
        parts.append("\n".join([*lines, "```"]))
    return parts


def _options() -> list[str]:
    """A section a command of ttmfs, with its options; those of a device once."""
    parts = []
    # With the settings of the real one: a command keeps the help option that it makes for the first context it sees.
    context = click.Context(main, info_name="ttmfs", **main.context_settings)
    device = {param.name for param in load("run").params}
    for entry in COMMANDS:
        name, found = entry.name, entry.load()
        words = found.collect_usage_pieces(click.Context(found, info_name=name, parent=context))
        parts.append(f"**`ttmfs {name} {' '.join(words)}`**\n\n{found.get_short_help_str(200)}\n")
        options = [param for param in found.params if isinstance(param, click.Option)]
        if name == "run":
            parts.append("The options of a device, as `ttmfs mount`.\n")
            continue
        if name == "mount":
            options.sort(key=lambda option: option.name in device)
        if options:
            parts.append(_table(("option", "default", "meaning"), map(_option, options)))
    return parts


def _option(option: click.Option) -> tuple[str, str, str]:
    value = "" if option.is_flag else f" {option.make_metavar(click.Context(main, **main.context_settings))}"
    default = "" if option.is_flag or option.multiple or option.default is None else str(option.default)
    if not isinstance(option.default, str | int | float):
        default = ""
    return _code(f"{option.opts[-1]}{value}"), default, option.help or ""


def _pairs(table: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(_code(key), sentence) for key, sentence in table.items()]


def _code(text: str) -> str:
    return f"`{text}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines) + "\n"
