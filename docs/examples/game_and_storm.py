"""A game and the storm of a browser on one card: how much of VRAM does the game keep, frame by frame?

    python docs/examples/game_and_storm.py --picture groups.png

The game draws with 17 textures, 85 % of VRAM, and makes do with gtt for what has lost its place, as amdgpu lets it.
Two tabs of a browser go through 1.5 times as much as VRAM is, and must have it in VRAM. Three runs: nobody is
protected; the game's dmem.low is 80 % of VRAM; booster.py protects the game for the second half only. In each frame
all work at once.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ttm_tools import Device

BO = 256 << 10
VRAM = 20 * BO
LOW = 16 * BO
TEXTURES, TEXTURES_A_FRAME = 17, 1
SURFACES, SURFACES_A_FRAME = 15, 3
Step = Callable[[int], None]


class Program:
    """A process of a group that draws with its BOs, `a_frame` each frame, in turn. `places`: where they are to be."""

    def __init__(self, device: Device, group: str, name: str, count: int, a_frame: int, places: str) -> None:
        device.files.write(f"groups/{group}/cgroup.procs", "0")
        self.word = f"pixels of {name}".encode()
        self.a_frame, self.places = a_frame, places
        self.bos = [device.bo(f"{name}{number}", size=BO) for number in range(count)]
        for bo in self.bos:
            bo.write(self.word)

    def frame(self, number: int) -> None:
        """Validate what is drawn with, and look whether it is right."""
        for index in range(number * self.a_frame, (number + 1) * self.a_frame):
            bo = self.bos[index % len(self.bos)]
            bo.validate(self.places)
            if bo.read(len(self.word)) != self.word:
                raise SystemExit(f"{bo} holds something else")


@contextmanager
def booster(groups: str) -> Iterator[Callable[[str], None]]:
    """The daemon; call it with the group in the foreground."""
    command = [sys.executable, str(Path(__file__).with_name("booster.py")), groups, str(LOW / VRAM)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        to, said = daemon.stdin, daemon.stdout

        def foreground(group: str) -> None:
            print(group, file=to, flush=True)
            if group not in said.readline():
                raise SystemExit("the booster has ended: see its message above")

        yield foreground


def run(frames: int, protect: Callable[[Device, ExitStack], Step]) -> list[float]:
    """The game's VRAM as a share of LOW after each frame. `protect` gives what happens before each."""
    with ExitStack() as stack:
        device = stack.enter_context(Device.mount(vram=str(VRAM), gtt=str(4 * VRAM), memory=str(8 * VRAM)))
        for group in ("game", "browser"):
            (Path(device.path) / "groups" / group).mkdir()
        before = protect(device, stack)
        own = [stack.enter_context(Device(device.path)) for _ in range(3)]
        game = Program(own[0], "game", "texture", TEXTURES, TEXTURES_A_FRAME, "vram gtt:fallback")
        tabs = [Program(own[at], "browser", f"tab{at}_", SURFACES, SURFACES_A_FRAME, "vram") for at in (1, 2)]
        for number in range(TEXTURES // TEXTURES_A_FRAME):
            game.frame(number)
        kept = []
        with ThreadPoolExecutor(len(tabs) + 1) as together:
            for number in range(frames):
                before(number)
                list(together.map(Program.frame, (game, *tabs), (number,) * 3))
                used = dict(line.split(" ") for line in device.files.text("groups/game/dmem.current").splitlines())
                kept.append(int(used["drm/ttmfs/vram"]) / LOW)
        if device.files.text("ctl/selfcheck") != "ok\n":
            raise SystemExit(device.files.text("ctl/selfcheck"))
        return kept


def nobody(_device: Device, _stack: ExitStack) -> Step:
    """Nothing protects anybody."""
    return lambda _number: None


def low(device: Device, _stack: ExitStack) -> Step:
    """dmem.low, written once."""
    device.files.write("groups/game/dmem.low", f"drm/ttmfs/vram {LOW}")
    return lambda _number: None


def boosted(frames: int) -> Callable[[Device, ExitStack], Step]:
    """The browser is in the foreground first, then the game."""

    def protect(device: Device, stack: ExitStack) -> Step:
        foreground = stack.enter_context(booster(f"{device.path}/groups"))
        changes = {0: "browser", frames // 2: "game"}

        def before(number: int) -> None:
            if number in changes:
                foreground(changes[number])

        return before

    return protect


def draw(runs: dict[str, list[float]], path: str) -> None:
    """Share over time, a curve each."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second

    figure = Figure(figsize=(8, 3.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for (name, kept), colour in zip(runs.items(), ("#d55e00", "#009e73", "#0072b2"), strict=True):
        axes.plot([100 * share for share in kept], label=name, color=colour, linewidth=2)
    axes.set(xlabel="frame", ylabel="% of its dmem.low in VRAM", ylim=(0, 105), title="The game's VRAM in a storm")
    axes.legend(loc="center right")
    axes.grid(alpha=0.3)
    figure.savefig(path)


def main() -> None:
    """Three runs, a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60, help="frames of a run (default 60)")
    parser.add_argument("--picture", metavar="FILE", help="a picture of the three curves (PNG, SVG, PDF)")
    options = parser.parse_args()
    kinds = {"unprotected": nobody, "dmem.low 80 %": low, "booster, from half on": boosted(options.frames)}
    runs = {name: run(options.frames, protect) for name, protect in kinds.items()}
    print("run\tleast\tmean\tlast")
    for name, kept in runs.items():
        later = kept[len(kept) // 2 :]
        print(name, *(f"{share:.0%}" for share in (min(kept), sum(later) / len(later), kept[-1])), sep="\t")
    if options.picture:
        draw(runs, options.picture)


if __name__ == "__main__":
    main()
