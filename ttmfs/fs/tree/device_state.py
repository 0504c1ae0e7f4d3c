"""The state of a device that is not a number: its options as TOML, and what about it is out of the ordinary now."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ttmfs.driver.config import Config, Region
from ttmfs.driver.device import VirtualDevice
from ttmfs.ttm.device import Device


def options_now(vdev: VirtualDevice) -> str:
    """The options of a device, the knobs that were turned since included."""
    link = vdev.link
    return options_text(
        dataclasses.replace(vdev.config, copy_bandwidth=int(link.bandwidth), copy_latency=link.latency)
    )


def options_text(config: Config) -> str:
    """As `ttmfs mount --config` takes it back."""
    lines = ["# ttmfs mount MNT --config FILE makes another device like this one\n"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None or (field.name == "source" and value == field.default):
            continue
        if field.name == "regions":
            lines += _line("region", [_region(region) for region in value]) if value else []
        elif field.name == "policies":
            lines += _line("policy", [_policy(*choice) for choice in value]) if value else []
        else:
            lines += _line(field.name, value)
    return "".join(lines)


def _line(name: str, value: object) -> list[str]:
    # A JSON text, number, truth value or list of texts is TOML too, but for DEL, which JSON leaves as it is.
    return [f"{name} = {json.dumps(value)}\n".replace("\x7f", "\\u007f")]


def _region(region: Region) -> str:
    return f"{region.name}={region.size}:{region.manager}"


def _policy(kind: str, words: tuple[str, ...]) -> str:
    region, rest = (f":{words[0]}", words[1:]) if kind == "evict" else ("", words)
    return f"{kind}{region}={','.join(rest)}"


def device_state(vdev: VirtualDevice) -> dict[str, Any]:
    """What is out of the ordinary: each is false, empty or "off" where nothing is; `says` is all of it in words."""
    ttm: Device = vdev.ttm
    trace = ttm.trace
    state = {
        "suspended": ttm.suspended,
        "unplugged": ttm.unplugged,
        "engines_paused": any(engine.paused for engine in vdev.engines),
        "injecting": [place for place in ttm.inject if ttm.inject[place].probability and ttm.inject[place].times],
        "policies": vdev.policies.chosen(),
        "tracing": " ".join(sorted(trace.events)) or "all" if trace.on else "off",
    }
    return {**state, "says": _in_words(state)}


def _in_words(state: Mapping[str, Any]) -> list[str]:
    """A phrase for each thing that is out of the ordinary."""
    said = [key.replace("_", " ") for key, value in state.items() if value is True]
    if state["injecting"]:
        said.append(f"injecting {' '.join(state['injecting'])}")
    said += [f"policy {chosen}" for chosen in state["policies"]]
    if state["tracing"] != "off":
        said.append(f"tracing {state['tracing']}")
    return said
