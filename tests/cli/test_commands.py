"""The commands of `ttmfs`: listed without being loaded, and loaded one by one."""

import json
import subprocess
import sys

import click
import pytest

from ttmfs import cli
from ttmfs.cli.run import complete_events


@pytest.mark.parametrize("entry", cli.COMMANDS, ids=lambda entry: entry.name)
def test_what_the_list_says_is_the_first_sentence_of_the_command(entry: cli.Command) -> None:
    command = entry.load()
    assert (command.name, command.hidden) == (entry.name, entry.hidden)
    if not entry.hidden:
        assert command.get_short_help_str(1000) == entry.get_short_help_str(1000)


def loaded(*words: str, before: str = "") -> tuple[int, set[str]]:
    """The exit status of a command line, and the modules that it has loaded. `before` runs first."""
    script = (
        f"import json, sys\n{before}\nfrom ttmfs.cli import main\n"
        "try: main()\nexcept SystemExit as end: json.dump([end.code, list(sys.modules)], sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60, check=True
    )
    status, modules = json.loads(done.stderr)
    return status, set(modules)


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_what_needs_no_command_loads_none(flag: str) -> None:
    status, modules = loaded(flag)
    assert status == 0
    assert {name for name in modules if name.split(".")[0] == "ttmfs"} == {
        *("ttmfs", "ttmfs.cli", "ttmfs.errors", "ttmfs.fstab"),
    }
    assert not modules & {"numpy", "pyfuse3", "trio", "rich", "logging", "subprocess"}


def test_events_are_completed_one_after_the_other() -> None:
    items = complete_events(click.Context(click.Command("run")), click.Option(["--trace"]), "evict move_e")
    assert [item.value for item in items] == ["evict move_end"]
    assert items[0].help
    option = next(param for param in cli.load("run").params if param.name == "events")
    assert "all" in [item.value for item in option.shell_complete(click.Context(cli.load("run")), "a")]


def test_doctor_runs_where_libraries_are_missing() -> None:
    names = ("numpy", "pyfuse3", "trio", "rich", "prometheus_client", "sortedcontainers", "xxhash", "zstandard")
    status, _modules = loaded("doctor", before=f"sys.modules.update(dict.fromkeys({names}))")
    assert status in (0, 1)
