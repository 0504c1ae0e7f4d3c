"""A booster: who is in the foreground keeps VRAM. It knows the files of the dmem controller, and nothing else.

    echo game | python docs/examples/booster.py MNT/groups 0.8

The first argument is the folder of the root group: that of a mount, or /sys/fs/cgroup where the kernel has it. Whoever
knows what is in the foreground (a compositor) writes the group's path, a line each time that it is another one.
"""

import sys
from pathlib import Path


def regions(file: Path) -> dict[str, int]:
    """Its lines: the name of a region, and bytes."""
    lines = (line.rsplit(" ", 1) for line in file.read_text().splitlines())
    return {name: int(value) for name, value in lines}


def protect(root: Path, group: str, share: float) -> None:
    """`dmem.low` of a group, and of all above it, is that share of each region from now on; 0: nothing protects it."""
    for region, capacity in regions(root / "dmem.capacity").items():
        folder = root / group
        while folder != root:
            with open(folder / "dmem.low", "w") as low:
                low.write(f"{region} {int(capacity * share)}\n")
            folder = folder.parent


def main(root: Path, share: float) -> None:
    """Until nobody says any more what is in the foreground."""
    boosted = ""
    for line in sys.stdin:
        protect(root, boosted, 0)
        boosted = line.strip()
        protect(root, boosted, share)
        print(f"{boosted or 'nobody'} is protected", flush=True)
    protect(root, boosted, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
