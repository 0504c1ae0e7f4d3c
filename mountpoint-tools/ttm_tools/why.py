"""ttm-why: what happened to a BO and why, in sentences: from the device's recorder, which is always on."""

import json
from typing import Any

import click

from ttm_tools.device import Device
from ttm_tools.errors import MountError
from ttm_tools.mounts import bo_file, find_mount, looks_like_a_path
from ttm_tools.options import HELP, complete_mount_or_bo, completion_help, version_option, with_errors
from ttm_tools.vms import Bound, Vm, who_has
from ttm_tools.words import shown, size_text


def read_recorder(device: Device) -> list[dict[str, Any]]:
    """The entries of debug/recorder, oldest first. MountError when this ttmfs has none."""
    try:
        text = device.text("debug/recorder")
    except FileNotFoundError:
        raise MountError(f"{device.mount} has no debug/recorder: this ttmfs is too old") from None
    return [json.loads(line) for line in text.splitlines()]


def last_of(device: Device, name: str, most: int, vm: str = "") -> list[str]:
    """The last sentences about a BO, or the VM that it is local to, the latest first; none where the recorder is not
    there, or for its owner only."""
    try:
        found = read_recorder(device)
    except (MountError, PermissionError):
        return []
    return [entry["sentence"] for entry in reversed(found) if concerns(entry, name, vm)][:most]


def concerns(entry: dict[str, Any], name: str, vm: str = "") -> bool:
    """Is it about this BO, or done for it, or a failed job of the VM that it is local to?"""
    return name in (entry["bo"], entry["other"]) or (bool(vm) and entry["bo"] == f"vm/{vm}")


def in_vms(device: Device, name: str) -> list[str]:
    """A sentence for each VM that a BO is local to or bound in: how it is there, and what that means for eviction."""
    return [_in_vm(device, vm, bound) for vm, bound in who_has(device, name)]


def _in_vm(device: Device, name: str, bound: Bound) -> str:
    states = {
        "new": "no job has used it yet",
        "usable": "jobs can use it where it is",
        "evicted": "it was evicted, or moved, since a job could use it: the next exec brings it back",
        "unbound": "bound nowhere in it",
    }
    said = f"{'local to' if bound.local else 'bound in'} the VM {shown(name)}: {states[bound.state]}"
    if bound.mappings:
        said += f", mappings: {bound.mappings}, came back for jobs: {bound.rebinds}"
    if bound.local:
        said += "; for other BOs of this VM it goes only "
        said += "where a job of the VM does not touch it" if _allows(device, name) else "after allow_res_evict is 1"
    return said


def _allows(device: Device, name: str) -> bool:
    try:
        return Vm(device, name).allow_res_evict
    except OSError:
        return False


def now(status: dict[str, Any]) -> str:
    """Where a BO is at this moment, and what keeps it there."""
    parts = [f"{shown(status['name'])}: {size_text(status['size'])} in {status['mem_type']}"]
    parts.append(f"placement {status['placement'] or 'none'}")
    if status["backed_up_pages"]:
        parts.append(f"{status['backed_up_pages']} pages in the swap store")
    if status["pin_count"]:
        parts.append(f"pinned ({status['pin_count']}), so nobody moves it")
    if status["fences"]:
        parts.append(f"waits for {' '.join(status['fences'])}")
    parts.append(f"evictions: {status['evictions']}")
    return ", ".join(parts)


@click.command(context_settings=HELP, epilog=completion_help("ttm-why"))
@click.argument("words", metavar="[MNT] [BO]", nargs=-1, shell_complete=complete_mount_or_bo)
@click.option("-n", "most", type=click.IntRange(1), default=20, show_default=True, help="At most so many of the last.")
@click.option("--json", "as_json", is_flag=True, help="The entries, one JSON object a line.")
@version_option
@with_errors
def main(words: tuple[str, ...], most: int, as_json: bool) -> None:
    """Say why a BO is where it is: its evictions (for whom, who had asked), moves, long waits, failures for want of
    room, injected failures, and the VMs that it is local to or bound in. Without BO: of all.

    The device keeps the last 1,000 such things, also while nothing is traced.

    \b
    ttm-why tex0                  of the only mount
    ttm-why /tmp/gpu tex0 -n 5
    ttm-why /tmp/gpu/bo/tex0      by its file
    """
    named = list(words)
    if len(named) == 1 and (file := bo_file(named[0])) is not None:
        named = list(file)
    mount = named.pop(0) if named and (len(named) > 1 or looks_like_a_path(named[0])) else None
    if len(named) > 1:
        raise click.UsageError("say one BO, or none for all")
    name = named[0] if named else None
    with Device(find_mount(mount)) as device:
        found = read_recorder(device)
        status = {} if name is None else device.statuses([name])
        vms = in_vms(device, name) if name in status and not as_json else []
    if name is not None:
        vm = status.get(name, {}).get("vm", "")
        found = [entry for entry in found if concerns(entry, name, vm)]
        if not found and name not in status:
            raise MountError(f"there is no BO {name!r} in {device.mount}, and nothing is known of one")
    for entry in found[-most:]:
        click.echo(json.dumps(entry) if as_json else shown(entry["sentence"]))
    if as_json:
        return
    if len(found) > most:
        click.echo(f"({len(found) - most} before that: -n {len(found)} shows them)", err=True)
    for bo in status.values():
        click.echo(now(bo))
        for sentence in vms:
            click.echo(sentence)
        if bo["last_error"]:
            click.echo(f"its last error: {shown(bo['last_error'])}")


if __name__ == "__main__":
    main()
