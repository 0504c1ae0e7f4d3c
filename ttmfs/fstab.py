"""What mount(8) asks for: `ttmfs SOURCE MNT -o k=v,…`, as mount.fuse3 calls it for `mount -t fuse.ttmfs` and fstab."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

import click

from ttmfs.errors import meant

IGNORED: Final = frozenset(
    (
        *("rw", "dev", "suid", "exec", "nodev", "nosuid", "noexec", "auto", "noauto", "nofail", "user", "users"),
        *("nouser", "owner", "group", "_netdev", "defaults", "async", "atime", "noatime", "relatime", "nodiratime"),
        "default_permissions",
    )
)
"""Words of fstab that are somebody else's, or what every ttmfs mount is anyway."""

_COMMA: Final = re.compile(r"(?<!\\)((?:\\\\)*),")


def is_asked_for(words: Sequence[str], commands: Iterable[str]) -> bool:
    """Are these words of a command line mount(8)'s? SOURCE is none of `commands`, and `-o` says what to mount."""
    return (
        len(words) >= 3
        and words[0] not in commands
        and not words[0].startswith("-")
        and any(word.startswith("-o") for word in words[1:])
    )


def split_options(text: str) -> list[str]:
    r"""`a=1,b` into its parts; `\,` is a comma and `\\` a backslash in a value."""
    marked = _COMMA.sub("\\1\0", text)
    parts = (re.sub(r"\\([,\\])", r"\1", part) for part in marked.split("\0"))
    return [part for part in parts if part]


def mount_words(options: Iterable[str], mount: click.Command) -> list[str]:
    """Options of mount(8) as words of `ttmfs mount`. click.UsageError for what is none, with what it may have been."""
    known: dict[str, click.Option] = {}
    for option in mount.params:
        # A helper of mount(8) returns when it is mounted.
        if isinstance(option, click.Option) and option.name != "foreground":
            known |= {name.removeprefix("--").replace("-", "_"): option for name in option.opts}
    words = []
    for part in options:
        key, equals, value = part.partition("=")
        name = key.replace("-", "_")
        if key in IGNORED or key.startswith("x-"):
            continue
        found = known.get(name)
        if key == "ro":
            raise click.UsageError("-o ro: a device is read and written; modes say who may")
        if found is None:
            near = meant(name, known)
            hint = f"did you mean {near}?" if near else f"say some of {' '.join(sorted(known))}"
            raise click.UsageError(f"-o {key}: ttmfs has no such option: {hint}")
        if found.is_flag == bool(equals):
            raise click.UsageError(f"-o {part}: say {key}{'' if found.is_flag else '=VALUE'}")
        words += [found.opts[0]] if found.is_flag else [found.opts[0], value]
    return words
