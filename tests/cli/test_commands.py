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


def test_what_a_command_loads_costs_no_threads_and_no_looks_for_garbage() -> None:
    """Each thread of a BLAS turns for 50 ms; one look at all that is loaded takes 30 ms, and there are four times that
    at the end of the command."""
    script = """if True:
        import gc, json, os, sys
        from ttmfs import cli
        before = dict(os.environ)
        looks = []
        gc.callbacks.append(lambda phase, info: looks.append(phase))
        cli.load("mount")
        left = len(gc.get_objects())
        gc.callbacks.clear()
        threads = len(os.listdir("/proc/self/task"))
        json.dump([looks, threads, left < 20_000, gc.isenabled(), os.environ == before], sys.stdout)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == [[], 1, True, True, True]


def test_the_users_word_on_threads_of_the_blas_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    script = "import os; from ttmfs import cli; cli.load('mount'); print(os.environ['OPENBLAS_NUM_THREADS'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "2\n"
