r"""Man pages: docs/man/*.1 and mountpoint-tools/man/*.1, from the commands that click parses.

One page a command, named as Git's are: ttmfs(1), ttmfs-mount(1). click-man knows neither click's `\b` blocks nor what
roff takes for its own (backslashes, a line that begins with `.` or `'`), and examples are full of both.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Final

import click

from ttmfs import __version__
from ttmfs.cli import Command

REPOSITORY: Final = Path(__file__).resolve().parents[2]
_FOLDERS: Final = {"ttmfs": "docs/man", "ttm_tools": "mountpoint-tools/man"}
"""Where the pages of a package's programs are."""


def pages() -> dict[str, str]:
    """Path below the repository → text, of every command that is no other program's."""
    found = {}
    for program, package, command in _programs(REPOSITORY / "pyproject.toml"):
        for context in _contexts(program, command, None):
            name = context.command_path.replace(" ", "-")
            found[f"{_FOLDERS[package]}/{name}.1"] = page(context)
    return found


def _programs(pyproject: Path) -> Iterator[tuple[str, str, click.Command]]:
    """The programs that the project installs, each with its package."""
    scripts: Mapping[str, str] = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["scripts"]
    for program, where in scripts.items():
        module, name = where.split(":")
        yield program, module.split(".")[0], getattr(import_module(module), name)


def _contexts(name: str, command: click.Command, parent: click.Context | None) -> Iterator[click.Context]:
    """A command and its subcommands, each as click sees it when it prints its help."""
    if isinstance(command, Command):
        command = command.load()
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    yield context
    if isinstance(command, click.Group):
        for other, inner in sorted(command.commands.items()):
            if not inner.hidden:
                yield from _contexts(other, inner, context)


def page(context: click.Context) -> str:
    """The page of one command, as roff."""
    command, path = context.command, context.command_path
    name = path.replace(" ", "-")
    lines = [
        f'.TH {name.upper()} 1 "" "ttmfs {__version__}" "ttmfs"',
        *(".SH NAME", rf"{_plain(name)} \- {_plain(command.get_short_help_str(1000).rstrip('.'))}"),
        *(".SH SYNOPSIS", f".B {_plain(path)}", _plain(" ".join(command.collect_usage_pieces(context)))),
        *(".SH DESCRIPTION", *_text(command.help or "")),
    ]
    options = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    lines += [".SH OPTIONS"] if records else []
    for words, help_text in records:
        lines += [".TP", f".B {_plain(words)}", _line(help_text)]
    if isinstance(command, click.Group):
        lines += [".SH COMMANDS"]
        for other, found in sorted(command.commands.items()):
            if not found.hidden:
                lines += [".TP", rf"\fB{_plain(name)}\-{_plain(other)}\fR(1)", _line(found.get_short_help_str(1000))]
    if command.epilog:
        lines += [".SH NOTES", *_text(command.epilog)]
    lines += _see_also(context)
    return "\n".join(lines) + "\n"


def _see_also(context: click.Context) -> list[str]:
    """The page of the program, and where the rest is told."""
    lines = [".SH SEE ALSO"]
    others = {context.find_root().command_path, "ttmfs"} - {context.command_path}
    lines += [rf".BR {_plain(other)} (1)" for other in sorted(others)]
    return [*lines, ".PP", _plain("A mount explains itself: cat MNT/README, and any command file.")]


def _text(text: str) -> Iterator[str]:
    r"""Paragraphs as click has them: lines that flow, and after `\b` lines that stay."""
    paragraphs = cleandoc(text.split("\f", maxsplit=1)[0]).split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        kept, lines = paragraph.startswith("\b"), paragraph.removeprefix("\b").strip("\n").splitlines()
        if number:
            yield ".PP"
        if kept:
            yield from (".nf", ".RS", *map(_line, lines), ".RE", ".fi")
        else:
            yield from _lines(lines)


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (_line(line.strip()) for line in lines)


def _line(text: str) -> str:
    """A line that is no request, whatever it begins with."""
    plain = _plain(text)
    return rf"\&{plain}" if plain.startswith((".", "'", " ")) else plain


def _plain(text: str) -> str:
    """What roff prints as it stands: `-` that can be pasted, backslashes, and quotes that stay quotes."""
    return (
        text.replace("\\", r"\e")
        .replace("-", r"\-")
        .replace("'", r"\(aq")
        .replace("`", r"\(ga")
        .replace("^", r"\(ha")
        .replace("~", r"\(ti")
    )
