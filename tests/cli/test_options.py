"""Options and their errors: what is refused says why and how to write it, with status 2, before anything is made."""

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ttmfs import cli
from ttmfs.device_options import checked_config
from ttmfs.driver.config import Config
from ttmfs.fs.tree.device_state import options_text


def parse(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Result, Config | None]:
    """Run `ttmfs mount` up to the point where a daemon would be started: its Config, if there is one."""
    seen: list[Config] = []

    def stop(mountpoint: str) -> str:
        raise OSError(0, "stopped by the test")

    def remember(options: dict[str, object]) -> Config:
        seen.append(checked_config(options))
        return seen[-1]

    monkeypatch.setattr("ttmfs.cli.mount.checked_config", remember)
    monkeypatch.setattr("ttmfs.cli.mount.check_mountpoint", stop)
    result = CliRunner().invoke(cli.main, ["mount", "/nowhere", *arguments])
    return result, seen[0] if seen else None


BAD = {
    "--vram -5": "'-5' is no size",
    "--vram 12Q": "'12Q' is no size: write it as 4096",
    "--memory 0": "less than a page",
    "--memory 4095": "less than a page",
    "--vram 100": "less than a page",
    "--visible-vram 512M": "--visible-vram 512M is more than --vram 256M",
    "--region 5=1M": "say NAME=SIZE:buddy or NAME=SIZE:range",
    "--region a=1M:heap": "say NAME=SIZE:buddy or NAME=SIZE:range",
    "--region vram=1M": "a region of that name already",
    "--region a=0": "less than a page",
    "--placement nowhere": "'nowhere' is no region: say one of",
    "--beneficial-order 11": "0<=x<=10",
    "--copy-engines 0": "not in the range",
    "--copy-latency -1": "no number of seconds",
    "--fault-timeout nan": "no number of seconds",
    "--watchdog 0.5": "at least 1 second",
    "--svm-notifier-size 3M": "a power of two from 1M to 1T",
    "--svm-migrate twice": "say one of once always never",
    "--svm-migrate-threshold 4M": "a multiple of 4K up to 2M",
    "--svm-range-sizes 2M,64K": "to 4K",
    "--svm-range-sizes 64K,2M,4K": "from the largest",
    "--svm-range-sizes 2M,big": "'big' is no size",
    "--svm-notifier-size 512K": "a power of two from 1M to 1T",
    "--prefault -1": "not in the range",
    "--no-such-option": "No such option",
    "--config /nonexistent.toml": "does not exist",
}


@pytest.mark.parametrize(("option", "why"), BAD.items())
def test_bad_option_is_status_2_and_says_why(monkeypatch: pytest.MonkeyPatch, option: str, why: str) -> None:
    result, config = parse(monkeypatch, *option.split())
    assert result.exit_code == 2
    assert why in result.output
    assert config is None


def test_sizes_and_defaults_reach_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    _, config = parse(monkeypatch, "--vram", "128M", "--visible-vram", "0x2000000", "--region", "stolen=16M:range")
    assert config is not None
    assert (config.vram, config.visible_vram, config.gtt) == (128 << 20, 32 << 20, 512 << 20)
    assert [(r.name, r.size, r.manager) for r in config.regions] == [("stolen", 16 << 20, "range")]
    assert (config.prefault, config.fault_timeout, config.beneficial_order) == (256, 15.0, 9)


def test_a_region_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, config = parse(monkeypatch, "--vram", "0", "--gtt", "0")
    assert config is not None
    assert (config.vram, config.gtt) == (0, 0)


def test_config_file_and_command_line_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "device.toml"
    file.write_text(
        'vram = "64M"\nvisible-vram = 8388608\nprefault = 16\nregion = ["a=1M:range", "b=2M"]\n'
        "sync_moves = true\ncopy_latency = 0.5\n"
    )
    _, config = parse(monkeypatch, "--config", str(file), "--prefault", "4")
    assert config is not None
    assert (config.vram, config.visible_vram, config.prefault) == (64 << 20, 8 << 20, 4)
    assert [(r.name, r.manager) for r in config.regions] == [("a", "range"), ("b", "buddy")]
    assert config.sync_moves
    assert config.copy_latency == 0.5


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "device.toml"
    file.write_text('vram = "1M"\ngtt = "1M"\nmemory = "64M"\n')
    for name, value in {"CONFIG": str(file), "VRAM": "2M", "GTT": "2M", "SYNC_MOVES": "1", "REGION": "a=1M"}.items():
        monkeypatch.setenv(f"TTMFS_{name}", value)
    _, config = parse(monkeypatch, "--vram", "4M")
    assert config is not None
    assert (config.vram, config.gtt, config.memory, config.swap) == (4 << 20, 2 << 20, 64 << 20, 2 << 30)
    assert config.sync_moves
    assert [region.name for region in config.regions] == ["a"]


def test_a_wrong_value_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTMFS_VISIBLE_VRAM", "lots")
    result, config = parse(monkeypatch)
    assert result.exit_code == 2
    assert "--visible-vram" in result.output
    assert "'lots' is no size" in result.output
    assert config is None


def test_what_options_shows_makes_the_same_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = (
        *("--vram", "64M", "--visible-vram", "16M", "--region", "a=1M:range", "--region", "b=2M", "--sync-moves"),
        *("--swap-store", f'file:{tmp_path}/a "b\\c\x7f', "--placement", "vram gtt", "--copy-bandwidth", "1G"),
        *("--copy-latency", "0.25", "--policy", "evict:vram=quota", "--policy", "prefetch=stride", "--watchdog", "0"),
    )
    _, config = parse(monkeypatch, *words)
    assert config is not None
    file = tmp_path / "options.toml"
    file.write_text(options_text(config))
    _, again = parse(monkeypatch, "--config", str(file))
    assert again == config
    # And every option has its line, but those that say nothing.
    named = set(tomllib.loads(file.read_text()))
    fields = {"regions": "region", "policies": "policy"}
    assert {fields.get(name, name) for name in Config.__dataclass_fields__} - named == {"pages_limit", "source"}


def test_one_region_in_the_file_needs_no_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "device.toml"
    file.write_text('region = "a=1M:range"\n')
    _, config = parse(monkeypatch, "--config", str(file))
    assert config is not None
    assert [r.name for r in config.regions] == ["a"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"vram = \n", "is no TOML"),
        (b"\xff\xfe", "is no TOML"),
        (b"vrma = 1\n", "'vrma' is no mount option: did you mean vram? Say one of"),
        (b"mountpoint = 'x'\n", "'mountpoint' is no mount option"),
        (b"config_file = 'x'\n", "'config_file' is no mount option"),
        (b"vram = -1\n", "vram: '-1' is no size"),
        (b"vram = true\n", "vram: 'True' is no size"),
        (b"vram = [1]\n", "vram takes one value"),
        (b"copy_latency = 'soon'\n", "copy_latency: 'soon' is no number of seconds"),
        (b"prefault = 'many'\n", "prefault: 'many'"),
        (b"region = ['a=1M:heap']\n", "region: "),
        (b"#" * ((1 << 20) + 1), "longer than 1 MiB"),
    ],
)
def test_bad_config_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: bytes, why: str) -> None:
    file = tmp_path / "device.toml"
    file.write_bytes(text)
    result, config = parse(monkeypatch, "--config", str(file))
    assert result.exit_code == 2
    assert why in result.output
    assert str(file) in result.output
    assert config is None


def test_help_names_every_field_of_the_config() -> None:
    text = CliRunner().invoke(cli.main, ["mount", "--help"]).output
    options = set(re.findall(r"--[a-z][a-z-]+", text))
    wanted = {
        *("--vram", "--visible-vram", "--gtt", "--region", "--memory", "--pool-limit", "--beneficial-order"),
        *("--copy-engines", "--copy-bandwidth", "--copy-latency", "--sync-moves", "--placement", "--prefault"),
        *("--fault-timeout", "--propagate-enospc", "--foreground", "--allow-other", "--config"),
    }
    assert wanted <= options


@pytest.mark.parametrize("command", ["mount", "umount", "run", "status", "doctor"])
def test_every_command_has_help_with_both_spellings(command: str) -> None:
    """Also where its help was first asked for without its group."""
    assert CliRunner().invoke(cli.load(command), ["--help"]).exit_code == 0
    for flag in ("-h", "--help"):
        result = CliRunner().invoke(cli.main, [command, flag])
        assert result.exit_code == 0
        assert "Usage:" in result.output


@pytest.mark.parametrize("command", ["umount", "status"])
def test_what_is_no_mount_is_said(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, [command, str(tmp_path)])
    assert result.exit_code == 1
    assert f"{tmp_path} is no ttmfs mount" in result.output
    assert "mounted" in result.output


def test_run_needs_a_command() -> None:
    result = CliRunner().invoke(cli.main, ["run", "--vram", "1M"])
    assert result.exit_code == 125
    assert "COMMAND" in result.output


def test_run_does_not_take_an_unknown_option_for_the_command() -> None:
    result = CliRunner().invoke(cli.main, ["run", "--vrma", "1M", "--", "true"])
    assert result.exit_code == 125
    assert "No such option" in result.output


TOML_VALUES = [
    *("1", "0", "-1", "1.5", "true", "false", '"x"', '""', "[]", "[1]", '["a"]', "{}", "{a = 1}", "nan", "inf"),
    *("1979-05-27", "1979-05-27T07:32:00Z", "9" * 5000, "0x" + "f" * 5000, "[" * 5000, '"\\u0000"'),
]
KEYS = [param.opts[0].removeprefix("--") for param in cli.load("mount").params if param.opts[0].startswith("--")]


@pytest.mark.parametrize("value", TOML_VALUES, ids=lambda value: value[:20])
def test_any_value_of_any_option_in_a_file_is_taken_or_a_sentence(value: str, tmp_path: Path) -> None:
    file = tmp_path / "device.toml"
    for key in KEYS:
        file.write_text(f"{key} = {value}\n")
        result = CliRunner().invoke(cli.load("mount"), [str(tmp_path / "missing"), "--config", str(file)])
        assert result.exit_code in (1, 2), (key, result.output)
        assert isinstance(result.exception, SystemExit), (key, result.exception)
        assert "Error: " in result.output


def test_a_flag_in_a_file_is_true_or_false(tmp_path: Path) -> None:
    file = tmp_path / "device.toml"
    file.write_text("allow-other = 1\n")
    result = CliRunner().invoke(cli.load("mount"), ["/nowhere", "--config", str(file)])
    assert result.exit_code == 2
    assert "allow-other: say true or false, not 1" in result.output
    file.write_text("prefault = 1.5\n")
    assert "1.5" in CliRunner().invoke(cli.load("mount"), ["/nowhere", "--config", str(file)]).output
